"""A small million_items.py, for `make bench`."""

import os
import runpy
import sys
import warnings
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""
warnings.simplefilter("ignore", FutureWarning)  # RecBole's, of pandas
sys.argv[1:] = ["--items=50000", "--users=2000", "--memory=64", "--check=50"]
runpy.run_path(str(Path(__file__).with_name("million_items.py")), run_name="__main__")
