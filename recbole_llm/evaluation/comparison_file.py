"""Reading what ``recbole-llm compare`` wrote."""

from pathlib import Path
from typing import Any

from recbole_llm.errors import DataError
from recbole_llm.evaluation.plots.records import read_json

_LISTS = ("datasets", "models", "metrics", "seeds", "cells", "summary", "significance", "intervals", "groups", "notes")
_OF_A_CELL = ("dataset", "label", "model", "seed", "status", "reason", "command")
_STATES = ("done", "failed", "missing")


def read_comparison(path: str | Path) -> dict[str, Any]:
    """Return what a `comparison.json` holds.

    Raises:
        DataError: if the file is missing, broken, or not a comparison.
    """
    path = Path(path)
    comparison = read_json(path, "comparison")
    for name in _LISTS:
        if not isinstance(comparison.get(name), list):
            raise DataError(f"{path} is not a comparison: it has no list '{name}'; `recbole-llm compare` writes one")
    if not comparison["cells"]:
        raise DataError(f"{path} is a comparison without cells: there is nothing to show")
    for number, cell in enumerate(comparison["cells"], start=1):
        lacking = [name for name in _OF_A_CELL if name not in cell]
        if lacking:
            raise DataError(f"cell {number} of {path} lacks '{lacking[0]}': make the comparison again")
        if cell["status"] not in _STATES:
            raise DataError(f"cell {number} of {path} has the status '{cell['status']}', not {', '.join(_STATES)}")
    return comparison
