"""The small case of item_losses.py on the CPU, for `make bench`."""

import os
import runpy
import warnings
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
warnings.simplefilter("ignore", FutureWarning)  # RecBole's, of pandas
runpy.run_path(str(Path(__file__).with_name("item_losses.py")), run_name="__main__")
