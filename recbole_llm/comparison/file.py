"""Reading what ``recbole-llm compare`` wrote."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from recbole_llm import __version__
from recbole_llm.errors import DataError
from recbole_llm.runs.result import fault_in
from recbole_llm.utils.files import read_json_object

_NAMES = ("datasets", "models", "metrics", "seeds", "notes")
_BOUNDS = ("low", "high")
# What stands in the entries of each list.
_ENTRIES = {
    "cells": (
        *("dataset", "label", "model", "seed", "status", "reason", "command", "settings", "valid", "test"),
        *("seconds", "parameters", "history", "best_epoch", "device", "backbone", "tuning"),
    ),
    "summary": (
        *("dataset", "label", "metric", "mean", "deviation", "seeds", "best", "second", "improvement", "mark"),
    ),
    "significance": (
        *("dataset", "metric", "label", "against", "difference", *_BOUNDS, "p_t", "p_t_holm", "p_wilcoxon"),
        *("p_wilcoxon_holm", "users", "mark"),
    ),
    "intervals": ("dataset", "label", "metric", "mean", *_BOUNDS),
    "groups": ("dataset", "label", "by", "group", "order", "targets", "metrics"),
}
# Fields of a finished cell that are those of its run's result.
_OF_RESULT = (
    *("model", "dataset", "backbone", "tuning", "seed", "valid", "test", "best_epoch", "seconds", "parameters"),
    *("device", "history", "settings"),
)
_OBJECTS = ("settings", "valid", "test", "seconds", "parameters")
_AGAIN = "make the comparison again with `recbole-llm compare`"
_OF_WRONG_TYPES: tuple[type[Exception], ...] = (
    *(KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError),
)
_STATES = ("done", "failed", "missing")


def read_comparison(path: str | Path) -> dict[str, Any]:
    """Return what a `comparison.json` holds.

    Raises:
        DataError: if the file is missing, broken, or not a comparison.
    """
    path = Path(path)
    comparison = read_json_object(path, "comparison")
    for name in (*_NAMES, *_ENTRIES):
        if not isinstance(comparison.get(name), list):
            raise DataError(f"{path} is not a comparison: it has no list '{name}'; `recbole-llm compare` writes one")
    for name in ("version", "created"):
        if not isinstance(comparison.get(name), str):
            raise DataError(f"{path} lacks '{name}': {_AGAIN}")
    if not comparison["cells"]:
        raise DataError(f"{path} is a comparison without cells: there is nothing to show")
    for name, needed in _ENTRIES.items():
        for number, entry in enumerate(comparison[name], start=1):
            where = f"{'cell' if name == 'cells' else f'entry of {name!r}'} {number} of {path}"
            _check_entry(entry, needed, where, comparison["version"])
    return comparison


@contextlib.contextmanager
def showing(path: str | Path, *others: type[Exception]) -> Iterator[None]:
    """Raise DataError where the block, which shows a comparison, meets what no comparison has in it.

    `read_comparison` checks what is there; how deep a file can be changed by hand has no end.

    Args:
        path: of the comparison.
        others: kinds of errors, beside those of wrong types and missing names, that mean the same.
    """
    try:
        yield
    except (*_OF_WRONG_TYPES, *others) as error:
        fault = " ".join(f"{type(error).__name__}: {error}".split())[:100]
        raise DataError(f"{path} holds what no comparison has ({fault}): {_AGAIN}") from error


def _check_entry(entry: Any, needed: Sequence[str], where: str, version: str) -> None:
    lacking = [name for name in needed if name not in entry] if isinstance(entry, dict) else needed
    if lacking:
        other = "" if version == __version__ else f" (it was made by version {version}, this is {__version__})"
        raise DataError(f"{where} lacks '{lacking[0]}': {_AGAIN}{other}")
    if entry.get("status", "done") not in _STATES:
        raise DataError(f"{where} has the status '{entry['status']}', not {', '.join(_STATES)}")
    for name in _OBJECTS:
        if not isinstance(entry.get(name), dict | None):
            raise DataError(f"'{name}' of {where} is no mapping of names to values: {_AGAIN}")
    for name in ("mean", "low", "high", "difference"):
        if not isinstance(entry.get(name, 0.0), int | float):
            raise DataError(f"'{name}' of {where} is not a number: {_AGAIN}")
    if entry.get("status") == "done" and (fault := fault_in(entry, _OF_RESULT)):
        raise DataError(f"{where} does not hold what a run found: {fault}; {_AGAIN}")
