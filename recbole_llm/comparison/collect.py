"""What a comparison takes from its cells once their runs have ended: each result and its ranks."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from recbole_llm.comparison.cells import Cell
from recbole_llm.comparison.protocol import Measured, protocol_of, require_one_protocol
from recbole_llm.errors import DataError
from recbole_llm.runs.finished import read_test_ranks
from recbole_llm.runs.folder import plain
from recbole_llm.runs.result import RunResult

_MAPPINGS = ("valid", "test", "seconds", "parameters", "counts")
_VALUES = (
    *("epochs", "best_epoch", "device", "backbone", "tuning"),
    *("peak_memory_bytes", "peak_gpu_memory_bytes", "commit"),
)


@dataclass(frozen=True)
class Collected:
    """One cell with what its run found.

    Attributes:
        entry: the cell as `comparison.json` holds it.
        is_sequential: whether its model reads histories.
        reads_text: whether its model reads item text with a language model.
        settings: all settings of its run; None without a result.
        ranks: of the run's test targets, columns user, item and rank; None if it has none.
        note: why the ranks could not be read, or None.
    """

    entry: dict[str, Any]
    is_sequential: bool = True
    reads_text: bool = False
    settings: dict[str, Any] | None = None
    ranks: pd.DataFrame | None = None
    note: str | None = None


def collect(cells: Sequence[Cell], folder: Path, repeatable: bool | None = None) -> list[Collected]:
    """Return what the cells' runs found.

    Args:
        cells: all that a comparison has, each ended.
        folder: of the comparison, from which `comparison.json` names the runs.
        repeatable: whether items that a user met before are ranked with the others in what is shown; None: as each run
            ranked them when it chose its best epoch.

    Raises:
        SettingError: if runs on one dataset were not measured in the same way.
    """
    collected = [_collect(cell, folder, repeatable) for cell in cells]
    done = [(cell, found) for cell, found in zip(cells, collected, strict=True) if found.entry["status"] == "done"]
    for dataset in dict.fromkeys(cell.dataset for cell, _ in done):
        require_one_protocol(
            [_measured(cell, found, repeatable is None) for cell, found in done if cell.dataset == dataset]
        )
    return collected


def require_one_protocol_of_all(cells: Iterable[Cell], own: bool = True) -> None:
    """Check that the runs of each dataset, also those still to be started, are measured in the same way.

    Args:
        cells: of a comparison.
        own: whether each run is shown as it ranked itself.

    Raises:
        SettingError: naming the first difference.
    """
    known = [cell for cell in cells if cell.merged and cell.status != "failed"]
    for dataset in dict.fromkeys(cell.dataset for cell in known):
        here = [cell for cell in known if cell.dataset == dataset]
        require_one_protocol(
            [Measured(_name(cell), _protocol(cell.merged, cell.result, own), cell.is_sequential) for cell in here]
        )


def _collect(cell: Cell, folder: Path, repeatable: bool | None) -> Collected:
    ranks, note = None, None
    result = cell.result
    if result is not None and repeatable is not None and result.metrics("test", repeatable) is None:
        way = "with all items ranked" if repeatable else "with what users met before left out"
        cell = replace(cell, result=None, status="missing", reason=f"its run was not measured {way}: run it again")
        result = None
    own = result is None or repeatable is None or repeatable == result.repeatable
    if result is not None and cell.run is not None:
        try:
            ranks = read_test_ranks(cell.run, own)
        except DataError as error:
            note = f"{cell.label} on {cell.dataset}: {error}"
    settings = None if result is None else result.settings
    return Collected(_entry(cell, folder, own), cell.is_sequential, cell.reads_text, settings, ranks, note)


def _measured(cell: Cell, found: Collected, own: bool) -> Measured:
    counts = None if cell.result is None else cell.result.counts
    settings = found.settings or {}
    protocol = _protocol(settings, cell.result, own)
    return Measured(
        _name(cell), protocol, found.is_sequential, counts, found.ranks, valid_users=settings.get("valid_users")
    )


def _protocol(settings: Mapping[str, Any], result: RunResult | None, own: bool) -> dict[str, Any]:
    """Return `protocol_of` the settings, in which a finished run says what its ``repeatable: auto`` was."""
    protocol = protocol_of(settings)
    if not own:
        del protocol["repeatable"]
    elif result is not None:
        protocol["repeatable"] = result.repeatable
    return protocol


def _name(cell: Cell) -> str:
    return f"the run {cell.run}" if cell.run else f"{cell.label} on {cell.dataset}"


def _entry(cell: Cell, folder: Path, own: bool) -> dict[str, Any]:
    """Return the cell as `comparison.json` holds it; `run` is relative to the folder of that file."""
    result, repeatable = {}, None
    if cell.result is not None:
        repeatable = cell.result.repeatable == own
        result = cell.result.to_dict() | {part: cell.result.metrics(part, repeatable) for part in ("valid", "test")}
    run = None if cell.run is None or cell.result is None else os.path.relpath(cell.run, folder)
    return {
        "dataset": cell.dataset,
        "label": cell.label,
        "model": cell.model,
        "seed": cell.seed,
        "status": cell.status,
        "reason": cell.reason,
        "run": run,
        "command": cell.command(),
        **{name: result.get(name) or {} for name in _MAPPINGS},
        **{name: result.get(name) for name in _VALUES},
        "repeatable": repeatable,
        "settings": plain(cell.given),
        "history": result.get("history", []),
        "extras": {} if cell.result is None else _extras(cell.result),
    }


def _extras(result: RunResult) -> dict[str, Any]:
    candidates = {} if result.candidates is None else {"candidates": result.candidates}
    return {**result.extras, **candidates}
