"""Finished runs that are handed to a comparison: found, read, and named."""

import glob
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole_llm import run_folder
from recbole_llm.compare_cells import Cell
from recbole_llm.config import Config
from recbole_llm.errors import CheckpointError, RecBoleLLMError, SettingError

_MAPPINGS = ("settings", "counts", "test", "valid")
_COUNTS = ("users", "items", "valid", "test")


def read_result(run: Path) -> dict[str, Any]:
    """Return what the `result.json` of the finished run in folder `run` holds.

    Raises:
        CheckpointError: if the run is not finished, or the file is broken.
    """
    path = run / run_folder.RESULT
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{run} is not a finished run: it has no {run_folder.RESULT}") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is broken: {error}") from None
    needed = ("model", "dataset", "seed", "test", "valid", "settings", "counts")
    missing = [name for name in needed if name not in result] if isinstance(result, dict) else needed
    if missing:
        raise CheckpointError(f"{path} is not the result of a run: it lacks '{missing[0]}'")
    _check_types(result, path)
    return result


def _check_types(result: dict[str, Any], path: Path) -> None:
    for name in _MAPPINGS:
        if not isinstance(result[name], dict) and (result[name] is not None or name in ("settings", "counts")):
            raise CheckpointError(f"{path} is not the result of a run: its '{name}' is no mapping of names to values")
    for name in _COUNTS:
        if not isinstance(result["counts"].get(name), int):
            raise CheckpointError(f"{path} is not the result of a run: its counts lack the number of '{name}'")
    if not result["test"]:
        raise CheckpointError(f"{path} has no test metrics: there is nothing to compare")
    for metric, value in result["test"].items():
        if not isinstance(value, int | float):
            raise CheckpointError(f"{path} is broken: {metric} is {value!r}, not a number")


def find_runs(patterns: Sequence[str]) -> list[tuple[str | None, Path]]:
    """Return (label or None, folder) of each run that is named.

    Args:
        patterns: folders, or patterns such as ``saved/*``, each of which may begin with ``label:``. Folders without a
            result that a pattern meets are passed over.

    Raises:
        CheckpointError: if a folder that is named is no finished run, or a pattern meets none.
    """
    found: dict[Path, str | None] = {}
    for pattern in patterns:
        label, path = _label(pattern)
        if not glob.has_magic(path):
            folders = [Path(path).parent if Path(path).name == run_folder.RESULT else Path(path)]
            read_result(folders[0])
        else:
            folders = [Path(name) for name in sorted(glob.glob(path))]  # noqa: PTH207 (a pattern may be absolute)
            folders = [folder for folder in folders if (folder / run_folder.RESULT).is_file()]
            if not folders:
                raise CheckpointError(f"no finished run is at {path}")
        for folder in folders:
            found.setdefault(folder, label)
    return [(label, folder) for folder, label in found.items()]


def _label(pattern: str) -> tuple[str | None, str]:
    label, separator, path = pattern.partition(":")
    return (label, path) if separator and "/" not in label else (None, pattern)


def cells_of_runs(runs: Sequence[tuple[str | None, Path]]) -> list[Cell]:
    """Return a finished cell for each run.

    A run without a label is named after its model; where runs of one model on one data set have different settings,
    these are added.

    Raises:
        SettingError: if two runs are the same cell.
        CheckpointError: see `read_result`.
    """
    results = [(label, folder, read_result(folder)) for label, folder in runs]
    labels = _labels([result for label, _, result in results if label is None])
    cells: dict[str, Cell] = {}
    for label, folder, result in results:
        name = labels.pop(0) if label is None else label
        settings = result["settings"]
        cell = Cell(result["dataset"], name, result["model"], result["seed"], given_settings(result), settings, folder)
        cell.status = "done"
        twin = cells.setdefault(cell.key, cell)
        if twin is not cell:
            raise SettingError(
                f"{twin.run} and {folder} are both {name} on {cell.dataset} with seed {cell.seed}: leave one out, or "
                f"give it another name with --runs=NAME:{folder}"
            )
    return list(cells.values())


def _labels(results: Sequence[dict[str, Any]]) -> list[str]:
    labels = []
    for result in results:
        same = [r["settings"] for r in results if (r["model"], r["dataset"]) == (result["model"], result["dataset"])]
        differing = [
            name
            for name in sorted(set().union(*same) - run_folder.NOT_SHAPING - {"pretrained_backbone"})
            if any(settings.get(name) != same[0].get(name) for settings in same)
        ]
        values = {name: result["settings"].get(name) for name in differing}
        own = ", ".join(f"{name}={value}" for name, value in values.items() if value is not None)
        labels.append(f"{result['model']} ({own})" if own else result["model"])
    return labels


def given_settings(result: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a finished run that are not the defaults of its model and data set here."""
    settings = {k: v for k, v in result["settings"].items() if k not in ("model", "dataset", "seed")}
    try:
        places = {name: settings[name] for name in ("data_path",) if name in settings}
        defaults = run_folder.plain(Config(result["model"], result["dataset"], config_dict=places).merged)
    except RecBoleLLMError:
        return settings  # a model or a data set that is not here
    return {k: v for k, v in settings.items() if k in places or v != defaults.get(k)}
