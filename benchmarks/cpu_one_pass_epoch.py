"""A small one_pass_epoch.py on the CPU, for `make bench`."""

import os
import runpy
import sys
import warnings
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""
warnings.simplefilter("ignore", FutureWarning)  # RecBole's, of pandas
sys.argv[1:] = [
    *("--dataset=ml-100k", "--longest=50", "--width=16", "--batch_size=64", "--rows=256"),
    *("--epochs=1", "--steps=3", "--workers=0"),
]
runpy.run_path(str(Path(__file__).with_name("one_pass_epoch.py")), run_name="__main__")
