"""A few small steps of id_model_epoch.py on the CPU, for `make bench`."""

import os
import runpy
import sys
import warnings
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""
warnings.simplefilter("ignore", FutureWarning)  # RecBole's, of pandas
sys.argv[1:] = ["--dataset=ml-100k", "--models=GRU4Rec", "--steps=5", "--batch_size=64"]
runpy.run_path(str(Path(__file__).with_name("id_model_epoch.py")), run_name="__main__")
