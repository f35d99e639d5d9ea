"""What stored hidden states save: a run of ST2SI that reads the last item, the same run again, and its evaluation.

    python benchmarks/stored_states.py --dataset=ml-100k --backbone=smollm2-135m

prints one line of JSON: the seconds until training starts in the first and in the second run, and those to load the run
and to evaluate it on the test part with the states on the disk; ``--cold=true`` also without them.
"""

import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from recbole_llm.quick_start.run import load, run
from recbole_llm.utils.values import parse_value


def _evaluate(folder: Path, place: Path) -> tuple[float, Any]:
    started = time.monotonic()
    parts = load(folder)
    metrics = parts.trainer(folder=place).evaluate(parts.test, load_best_model=False)
    return time.monotonic() - started, metrics


def main() -> None:
    """Run the benchmark with the settings of the command line."""
    given = {name.lstrip("-"): parse_value(value) for name, _, value in (a.partition("=") for a in sys.argv[1:])}
    cold = given.pop("cold", False)
    defaults = {"model": "ST2SI", "dataset": "ml-100k", "backbone": "smollm2-135m", "tuning": "ilp", "max_items": 1}
    quiet = {"epochs": 1, "show_progress": False, "state": "ERROR", "alignment": False}
    with tempfile.TemporaryDirectory() as place, contextlib.redirect_stdout(sys.stderr):
        states = Path(place) / "cache" / "states"
        os.environ.setdefault("RECBOLE_LLM_CACHE", str(Path(place) / "cache"))
        settings = {**defaults, **quiet, "checkpoint_dir": f"{place}/saved", **given}
        first = run(settings=settings)
        second = run(settings=settings)
        folder = Path(second["path"]).parent
        seconds, metrics = _evaluate(folder, Path(place) / "evaluated")
        found = {
            "first": first["seconds"]["prepare"],
            "second": second["seconds"]["prepare"],
            "load_and_evaluate": round(seconds, 2),
            "same_metrics": first["test"] == second["test"],
            "test": {name: round(float(value), 4) for name, value in metrics.items()},
            "counts": second["counts"],
        }
        if cold:
            shutil.rmtree(states, ignore_errors=True)
            found["load_and_evaluate_cold"] = round(_evaluate(folder, Path(place) / "again")[0], 2)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
