"""The command line of a checkout: ``python run_recbole_llm.py --model=ST2SI --dataset=ml-100k``."""

import sys

from recbole_llm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
