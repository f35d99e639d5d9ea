"""The small case of catalogue_size.py on the CPU, for `make bench`."""

import os
import runpy
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""
runpy.run_path(str(Path(__file__).with_name("catalogue_size.py")), run_name="__main__")
