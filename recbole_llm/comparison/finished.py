"""Finished runs that are handed to a comparison: found, read, and named."""

import glob
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole_llm.comparison.cells import Cell
from recbole_llm.config.config import Config
from recbole_llm.config.names import has_folder
from recbole_llm.errors import CheckpointError, RecBoleLLMError, SettingError, nearest
from recbole_llm.runs import folder as run_folder

_MAPPINGS = ("settings", "counts", "test", "valid")
_COUNTS = ("users", "items", "valid", "test")
# What the runs of all models record.
RESULT_FIELDS = (
    *("model", "dataset", "backbone", "tuning", "seed", "valid", "test", "epochs", "best_epoch", "history", "seconds"),
    *("parameters", "peak_memory_bytes", "peak_gpu_memory_bytes", "device", "counts", "settings", "commit"),
)
# Folders of weights that a run started from, which have another name for every seed.
_WEIGHTS = frozenset({"pretrained_backbone", "id_model_path", "initial_projection"})
_OF_SEED = re.compile(r"seed-\d+")


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
            result that a pattern meets are passed over. A run in a folder ``<label>/seed-<number>`` has that label.

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
            of_seed = _OF_SEED.fullmatch(folder.name)
            found.setdefault(folder, folder.absolute().parent.name if label is None and of_seed else label)
    return [(label, folder) for folder, label in found.items()]


def _label(pattern: str) -> tuple[str | None, str]:
    label, separator, path = pattern.partition(":")
    return (label, path) if separator and "/" not in label else (None, pattern)


def cells_of_runs(runs: Sequence[tuple[str | None, Path]], models: Sequence[str] = ()) -> list[Cell]:
    """Return a finished cell for each run.

    A run without a label is named after its model; where runs of one model on one data set have different settings,
    these are added.

    Args:
        runs: label or None, and folder.
        models: labels, in the order of the cells on each data set; the other runs are left out. Empty: all.

    Raises:
        SettingError: if two runs are the same cell, runs of one label differ in more than the seed, or a label of
            `models` is of no run.
        CheckpointError: see `read_result`.
    """
    results = [(label, folder, read_result(folder)) for label, folder in runs]
    labels = _labels([result for label, _, result in results if label is None])
    named = [(labels.pop(0) if label is None else label, folder, result) for label, folder, result in results]
    cells: dict[str, Cell] = {}
    for name, folder, result in _chosen(named, models):
        settings = result["settings"]
        cell = Cell(result["dataset"], name, result["model"], result["seed"], given_settings(result), settings, folder)
        cell.status = "done"
        twin = cells.setdefault(cell.key, cell)
        if twin is not cell:
            raise SettingError(
                f"{twin.run} and {folder} are both {name} on {cell.dataset} with seed {cell.seed}: leave one out, or "
                f"give it another name with --runs=NAME:{folder}"
            )
    _require_one_setting(list(cells.values()))
    return list(cells.values())


_Named = tuple[str, Path, dict[str, Any]]


def _chosen(runs: list[_Named], models: Sequence[str]) -> list[_Named]:
    known = list(dict.fromkeys(label for label, _, _ in runs))
    for name in models:
        if name not in known:
            raise SettingError(
                f"models={name} is none of the runs that were handed in{nearest(name, known)} They are "
                f"{', '.join(known)}; --dataset would start others"
            )
    if not models:
        return runs
    datasets = list(dict.fromkeys(result["dataset"] for _, _, result in runs))
    kept = [run for run in runs if run[0] in models]
    return sorted(kept, key=lambda run: (datasets.index(run[2]["dataset"]), models.index(run[0])))


def _require_one_setting(cells: Sequence[Cell]) -> None:
    """Check that runs of one label on one data set differ in their seeds alone, as far as both know a setting."""
    first: dict[tuple[str, str], Cell] = {}
    for cell in cells:
        other = first.setdefault((cell.dataset, cell.label), cell)
        for name in sorted((cell.merged.keys() & other.merged.keys()) - run_folder.NOT_SHAPING - _WEIGHTS):
            if cell.merged[name] != other.merged[name]:
                raise SettingError(
                    f"{other.run} and {cell.run} are both {cell.label} on {cell.dataset}, but {name} is "
                    f"{other.merged[name]} in the first and {cell.merged[name]} in the second: seeds of one label have "
                    f"the same settings; give one of them another name with --runs=NAME:{cell.run}"
                )


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
    if not has_folder(result["dataset"], Path(settings.get("data_path", "dataset"))):
        return settings  # nothing is fetched to compare runs
    try:
        places = {name: settings[name] for name in ("data_path",) if name in settings}
        defaults = run_folder.plain(Config(result["model"], result["dataset"], config_dict=places).merged)
    except RecBoleLLMError:
        return settings  # a model that is not here
    return {k: v for k, v in settings.items() if k in places or v != defaults.get(k)}
