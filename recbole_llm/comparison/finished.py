"""Finished runs that are given to a comparison: found, read, and named."""

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recbole_llm.comparison.cells import Cell
from recbole_llm.config import renamed
from recbole_llm.config.config import Config
from recbole_llm.config.roles import shapes_result
from recbole_llm.errors import CheckpointError, DataError, RecBoleLLMError, SettingError, nearest
from recbole_llm.runs import folder as run_folder
from recbole_llm.runs.finished import finished_runs, read_result
from recbole_llm.runs.result import RunResult
from recbole_llm.utils.files import read_json_object, read_yaml

# Folders of weights that a run started from, which have another name for each seed.
_WEIGHTS = frozenset({"pretrained_backbone", "pretrained_state", "id_model_path"})
_OF_SEED = re.compile(r"seed-\d+")


def find_runs(patterns: Sequence[str]) -> list[tuple[str | None, Path]]:
    """Return (label or None, folder) of each run that is named.

    Args:
        patterns: folders, archives or runs in them (`runs.archive`), or patterns such as ``saved/*``, each of which may
            begin with ``label:``. A pattern passes over folders without a result. A run in a folder
            ``<label>/seed-<number>``, and every run of an archive, has that label.

    Raises:
        CheckpointError: if a named folder is no finished run, or a pattern names none.
        DataError: if an archive cannot be read.
    """
    found: dict[Path, str | None] = {}
    for pattern in patterns:
        label, path = _label(pattern)
        for folder in finished_runs(path):
            of_seed = _OF_SEED.fullmatch(folder.name)
            found.setdefault(folder, folder.absolute().parent.name if label is None and of_seed else label)
    return [(label, folder) for folder, label in found.items()]


def _label(pattern: str) -> tuple[str | None, str]:
    label, separator, path = pattern.partition(":")
    return (label, path) if separator and "/" not in label else (None, pattern)


@dataclass(frozen=True)
class _Run:
    """A finished run before it has a label; a `result` that cannot be read is None, and `reason` says why."""

    label: str | None
    folder: Path
    model: str
    dataset: str
    seed: int
    settings: dict[str, Any]
    result: RunResult | None = None
    reason: str | None = None


def cells_of_runs(runs: Sequence[tuple[str | None, Path]], labels: Sequence[str] = ()) -> list[Cell]:
    """Return a cell for each run: done, or failed if its result cannot be read.

    A run without a label is named after its model; if runs of one model on one dataset have different settings, these
    are added.

    Args:
        runs: label or None, and folder.
        labels: in the order of the cells on each dataset; other runs are left out. Empty: all.

    Raises:
        SettingError: if two runs are the same cell, runs of one label differ in more than the seed, or no run has a
            label of `labels`.
        CheckpointError: if neither result nor settings of a run say which run it is.
    """
    known = {label for label, _ in runs}
    if labels and None not in known and known.issuperset(labels):  # an archive may hold many that nobody asked for
        runs = [(label, folder) for label, folder in runs if label in labels]
    found = _read_all(runs)
    named = [(_own_label(run, found) if run.label is None else run.label, run) for run in found]
    cells: dict[str, Cell] = {}
    for label, run in _chosen(named, labels):
        cell = _cell(label, run)
        twin = cells.setdefault(cell.key, cell)
        if twin is not cell:
            raise SettingError(
                f"{twin.run} and {run.folder} are both {label} on {cell.dataset} with seed {cell.seed}: leave one out, "
                f"or give it another name with --runs=NAME:{run.folder}"
            )
    _require_one_setting([cell for cell in cells.values() if cell.status == "done"])
    return list(cells.values())


def _read_all(runs: Sequence[tuple[str | None, Path]]) -> list[_Run]:
    """Read runs; one that does not even say which it is stands beside those of the first dataset that is known."""
    found: list[_Run | CheckpointError] = []
    for label, folder in runs:
        try:
            found.append(_read(label, folder))
        except CheckpointError as error:
            found.append(error)
    known = next((run for run in found if isinstance(run, _Run)), None)
    if known is None:
        for run in found:
            if isinstance(run, CheckpointError):
                raise run
    named = zip(runs, found, strict=True)
    return [
        run
        if isinstance(run, _Run)
        else _Run(label or folder.name, folder, folder.name, known.dataset if known else "", 0, {}, None, str(run))
        for (label, folder), run in named
    ]


def _read(label: str | None, folder: Path) -> _Run:
    try:
        result = read_result(folder)
        if not result.test and result.candidates is None:
            raise CheckpointError(f"{folder / run_folder.RESULT} has no test metrics: there is nothing to compare")
    except CheckpointError as error:
        settings = _stored_settings(folder, error)
        return _Run(label, folder, settings["model"], settings["dataset"], settings["seed"], settings, None, str(error))
    # Runs of older versions stand beside today's: under today's names.
    protocol = result.protocol or {"repeatable": result.repeatable}
    result = replace(result, settings=renamed.translate(result.settings, result.model), protocol=protocol)
    return _Run(label, folder, result.model, result.dataset, result.seed, result.settings, result)


def _stored_settings(folder: Path, error: CheckpointError) -> dict[str, Any]:
    """Return settings, model, dataset and seed among them, of a run whose result is refused with `error`.

    They are those of `config.yaml`, or what the result itself still says; without either, `error` is raised.
    """
    kinds = {"model": str, "dataset": str, "seed": int}
    for read in (_settings_file, _settings_in_result):
        with contextlib.suppress(DataError):
            settings = read(folder)
            if all(isinstance(settings.get(name), kind) for name, kind in kinds.items()):
                return settings
    raise error


def _settings_file(folder: Path) -> dict[str, Any]:
    return read_yaml(folder / run_folder.CONFIG)


def _settings_in_result(folder: Path) -> dict[str, Any]:
    fields = read_json_object(folder / run_folder.RESULT, "result of a run")
    settings = fields.get("settings")
    return {
        **(settings if isinstance(settings, dict) else {}),
        **{k: fields.get(k) for k in ("model", "dataset", "seed")},
    }


def _cell(label: str, run: _Run) -> Cell:
    if run.result is None:
        return Cell(run.dataset, label, run.model, run.seed, {}, run.settings, run.folder, None, "failed", run.reason)
    given = given_settings(run.result)
    return Cell(run.dataset, label, run.model, run.seed, given, run.settings, run.folder, run.result, "done")


def _chosen(runs: list[tuple[str, _Run]], labels: Sequence[str]) -> list[tuple[str, _Run]]:
    known = list(dict.fromkeys(label for label, _ in runs))
    for name in labels:
        if name not in known:
            raise SettingError(
                f"models={name} is none of the given runs{nearest(name, known)} They are {', '.join(known)}; --dataset "
                f"would start others"
            )
    if not labels:
        return runs
    datasets = list(dict.fromkeys(run.dataset for _, run in runs))
    chosen = [(label, run) for label, run in runs if label in labels]
    return sorted(chosen, key=lambda entry: (datasets.index(entry[1].dataset), labels.index(entry[0])))


def _require_one_setting(cells: Sequence[Cell]) -> None:
    """Check that runs of one label on one dataset differ in their seeds alone, as far as both know a setting."""
    first: dict[tuple[str, str], Cell] = {}
    for cell in cells:
        other = first.setdefault((cell.dataset, cell.label), cell)
        here, there = _in_effect(cell), _in_effect(other)
        for name in sorted((here.keys() & there.keys()) - _WEIGHTS):
            if shapes_result(name) and here[name] != there[name]:
                raise SettingError(
                    f"{other.run} and {cell.run} are both {cell.label} on {cell.dataset}, but {name} is "
                    f"{there[name]} in the first and {here[name]} in the second: seeds of one label have "
                    f"the same settings; give one of them another name with --runs=NAME:{cell.run}"
                )


def _in_effect(cell: Cell) -> dict[str, Any]:
    """Return the settings of a finished run, which knows what ``repeatable: auto`` was."""
    known = cell.merged.keys() & {"repeatable"}
    return {**cell.merged, **dict.fromkeys(known, cell.result.repeatable if cell.result else None)}


def _own_label(run: _Run, runs: Sequence[_Run]) -> str:
    """Return the model's name, with the settings in which runs of it on the same dataset differ."""
    if run.result is None:
        return run.model
    unnamed = [other for other in runs if other.label is None and other.result is not None]
    same = [other.settings for other in unnamed if (other.model, other.dataset) == (run.model, run.dataset)]
    differing = [
        name
        for name in sorted(set().union(*same) - {"pretrained_backbone", "pretrained_state"})
        if shapes_result(name) and any(settings.get(name) != same[0].get(name) for settings in same)
    ]
    own = ", ".join(f"{name}={run.settings[name]}" for name in differing if run.settings.get(name) is not None)
    return f"{run.model} ({own})" if own else run.model


def given_settings(result: RunResult) -> dict[str, Any]:
    """Return the settings of a finished run that are not the defaults of its model and dataset here."""
    place = {"data_path": result.settings["data_path"]} if "data_path" in result.settings else {}
    given = result.given_settings(_defaults(result, place))
    return {name: value for name, value in result.settings.items() if name in given or name in place}


def _defaults(result: RunResult, place: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the default settings of a run's model on its dataset; None if either is not here."""
    try:
        return run_folder.plain(Config(result.model, result.dataset, config_dict=dict(place)).merged)
    except RecBoleLLMError:
        return None
