"""The small case of ilp_cache.py on the CPU, for `make bench`."""

import os
import runpy
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""
runpy.run_path(str(Path(__file__).with_name("ilp_cache.py")), run_name="__main__")
