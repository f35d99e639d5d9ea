"""The small case of large_catalogue.py on the CPU, for `make bench`: 10^6 items of width 64."""

import os
import runpy
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""
runpy.run_path(str(Path(__file__).with_name("large_catalogue.py")), run_name="__main__")
