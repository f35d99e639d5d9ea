"""Which cells a comparison has: those to run, from models, datasets and seeds, and those of finished runs."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_llm.comparison.cells import Cell
from recbole_llm.comparison.finished import cells_of_runs, find_runs
from recbole_llm.comparison.options import Options
from recbole_llm.config.config import Config
from recbole_llm.config.given_dataset import given_dataset
from recbole_llm.config.names import has_setting
from recbole_llm.config.parts import merged
from recbole_llm.data.build import file_hashes
from recbole_llm.data.fingerprint import run_fingerprint
from recbole_llm.data.folder import ensure_files
from recbole_llm.errors import CheckpointError, DataError, SettingError, nearest, require_whole
from recbole_llm.runs import folder as run_folder
from recbole_llm.utils.files import read_yaml


def plan(options: Options) -> list[Cell]:
    """Return the cells of a comparison, dataset by dataset, in the order of its table.

    Raises:
        SettingError: for options that no run can have, and for finished runs that cannot stand side by side.
        CheckpointError: if a named run is not finished, or no named run can be read and none is to be started.
        DataError: for a dataset or a file that is missing.
    """
    finished = cells_of_runs(find_runs(options.runs), () if options.plans else options.models)
    if finished and not options.plans and all(cell.status == "failed" for cell in finished):
        raise CheckpointError(str(finished[0].reason))
    return _in_order(_with_finished(_planned(options), finished))


def _planned(options: Options) -> list[Cell]:
    if not options.plans:
        return []
    given = options.model_settings
    by_label = read_model_settings(given) if isinstance(given, (str, Path)) else given
    models = _models(options.models, by_label)
    own = {label: {k: v for k, v in settings.items() if k != "model"} for label, settings in by_label.items()}
    common = merged(*map(read_yaml, options.config_files))
    common = {k: v for k, v in common.items() if k not in ("model", "dataset", "seed")}
    last = {k: v for k, v in options.settings.items() if k != "seed"}
    seeds = options.seeds
    if isinstance(seeds, int):
        first = _first_seed(options, models[0][1], {**common, **last})
        seeds = [first + number for number in range(seeds)]
    return plan_cells(models, options.dataset, list(seeds), common, last, own)


def _first_seed(options: Options, model: str, settings: dict[str, Any]) -> int:
    """Return the seed that the options name, or the default of the first model on the first dataset."""
    seed = options.settings.get("seed")
    for file in options.config_files if seed is None else ():
        seed = read_yaml(file).get("seed", seed)
    if seed is None:
        known = {k: v for k, v in settings.items() if has_setting(model, k)}
        seed = Config(model, options.dataset[0], config_dict=known)["seed"]
    require_whole("seed", seed, 0)
    return int(seed)


def _models(entries: Sequence[str], own: Mapping[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """Return label and model of each entry, ``label:model`` or a label whose `own` settings may name the model."""
    models: dict[str, str] = {}
    for entry in entries:
        label, _, model = entry.partition(":")
        if label in models:
            raise SettingError(f"two models are called {label}: name them apart, as --models=NAME:{label},...")
        models[label] = model or own.get(label, {}).get("model", label)
    for label, settings in own.items():
        if label not in models:
            raise SettingError(
                f"model_settings has settings of '{label}', which is not compared{nearest(label, models)}"
            )
        for name in ("dataset", "seed"):
            if name in settings:
                raise SettingError(f"model_settings gives '{label}' a {name} of its own: all models have the same")
    return list(models.items())


def plan_cells(
    models: Sequence[tuple[str, str]],
    datasets: Sequence[str],
    seeds: Sequence[int],
    common: dict[str, Any],
    last: dict[str, Any],
    own: Mapping[str, dict[str, Any]],
) -> list[Cell]:
    """Return the cells, dataset by dataset, after reading the settings of each as its run will.

    A setting of all models goes to those that have it: ``hidden_size`` to SASRec and not to Pop.

    Args:
        models: label and model name.
        datasets: names, folders or files, see `given_dataset`.
        seeds: whole numbers.
        common: settings of all models.
        last: settings of all models that override `common` and `own`, such as those of the command line.
        own: settings of each label; they override `common`.

    Raises:
        SettingError: for an unknown model, dataset or setting, and for two labels that mean the same run.
        DataError: for a dataset that is missing.
    """
    _check_common({**common, **last}, models)
    called = [given_dataset(dataset).name for dataset in datasets]
    for name in called:
        if called.count(name) > 1:
            raise SettingError(f"two datasets are called {name}: compare them one after the other")
    cells: list[Cell] = []
    for dataset in datasets:
        label_of: dict[str, str] = {}
        for label, model in models:
            given = {name: value for name, value in common.items() if has_setting(model, name)}
            ours = {name: value for name, value in last.items() if has_setting(model, name)}
            given = merged(given, own.get(label, {}), ours)
            config = Config(command_line=Cell(dataset, label, model, seeds[0], given).arguments())
            ensure_files(config)  # before the first run starts, and once for all of them
            whole, name, files = config.merged, config.dataset, file_hashes(config)
            given = {**config.of_dataset, **given}  # a run is told the name alone
            other = label_of.setdefault(run_folder.digest(whole), label)
            if other != label:
                raise SettingError(
                    f"{other} and {label} ask for the same run of {model}: give one of them other settings"
                )
            for seed in seeds:
                settings = {**whole, "seed": seed}
                fingerprint = run_fingerprint(settings, files)
                cells.append(Cell(name, label, model, seed, given, settings, fingerprint=fingerprint))
    return cells


def _check_common(settings: dict[str, Any], models: Sequence[tuple[str, str]]) -> None:
    for name in settings:
        if not any(has_setting(model, name) for _, model in models):
            raise SettingError(f"no model of the comparison has the setting '{name}'")


def _with_finished(planned: list[Cell], finished: list[Cell]) -> list[Cell]:
    """Put finished runs in the place of the cells that they are, and all others behind.

    A run that cannot be read takes no planned cell's place: that one is run.
    """
    places = {cell.key for cell in planned}
    runs = {cell.key: cell for cell in finished if cell.status == "done" or cell.key not in places}
    return [runs.pop(cell.key, cell) for cell in planned] + list(runs.values())


def _in_order(cells: list[Cell]) -> list[Cell]:
    """Sort cells by dataset and label; a label without a run on a dataset gets a missing cell there."""
    datasets = list(dict.fromkeys(cell.dataset for cell in cells))
    labels: dict[str, Cell] = {}
    for cell in cells:
        labels.setdefault(cell.label, cell)
    present = {(cell.dataset, cell.label) for cell in cells}
    absent = [
        Cell(dataset, label, cell.model, cell.seed, reason="no run of it was given")
        for dataset in datasets
        for label, cell in labels.items()
        if (dataset, label) not in present
    ]
    order = list(labels)
    return sorted([*cells, *absent], key=lambda cell: (datasets.index(cell.dataset), order.index(cell.label)))


def definition(cells: Sequence[Cell]) -> dict[str, Any]:
    """Return what tells this comparison from those of other cells; how it is shown has no part in it."""
    runs = {cell.key: str(cell.run) if cell.run else cell.arguments() for cell in cells}
    return json.loads(json.dumps(run_folder.plain(runs)))


def default_folder(cells: Sequence[Cell]) -> Path:
    """Return ``comparisons/<datasets>-<hash of the cells>``."""
    digest = hashlib.sha256(json.dumps(definition(cells), sort_keys=True).encode()).hexdigest()[:6]
    return Path("comparisons") / f"{'-'.join(dict.fromkeys(cell.dataset for cell in cells))}-{digest}"


def read_model_settings(path: str | Path) -> dict[str, dict[str, Any]]:
    """Return the settings of each label in a YAML file that maps labels to settings.

    Raises:
        DataError: if the file is missing or of another form.
    """
    found = read_yaml(path)
    for label, settings in found.items():
        if not isinstance(settings, dict):
            raise DataError(f"{path} must hold 'name: value' settings under '{label}', but holds {settings!r} there")
    return {str(label): dict(settings) for label, settings in found.items()}
