"""Models side by side, from runs that are finished and runs that are started for it."""

import datetime
import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from recbole_llm import __version__
from recbole_llm.comparison.analysis import analyse
from recbole_llm.comparison.cells import Cell, CellRunner, finish_all, plan_cells, read_model_settings
from recbole_llm.comparison.columns import interval_metrics
from recbole_llm.comparison.finished import RESULT_FIELDS, cells_of_runs, find_runs, read_result
from recbole_llm.comparison.protocol import Measured, require_one_protocol
from recbole_llm.comparison.tables import ROWS, csv_table, latex_table, markdown_table
from recbole_llm.config import registry
from recbole_llm.config.config import Config
from recbole_llm.config.names import has_setting
from recbole_llm.errors import SettingError, nearest, require_one_of
from recbole_llm.runs.folder import plain
from recbole_llm.runs.ranks import read_ranks
from recbole_llm.utils.files import read_yaml, write_json, write_text
from recbole_llm.utils.interruption import noting_what_is_stored
from recbole_llm.utils.values import names_of

JSON = "comparison.json"
PRINTED: dict[str, Callable[[dict[str, Any], str], str]] = {
    "markdown": markdown_table,
    "latex": latex_table,
    "csv": lambda comparison, _: csv_table(comparison),
}


@dataclass
class Options:
    """What is compared, and how it is shown.

    Attributes:
        models: model names, each alone or as ``label:model``; a label of `model_settings` names the model given there.
            Without `dataset`, labels of `runs`: the table has these rows in this order, and nothing is started.
        dataset: data set names.
        seeds: how many, from the setting `seed` on, or a list of them.
        config_files: YAML files with settings of all models.
        settings: settings of all models; each goes to those that have it, and overrides the files and `model_settings`.
        model_settings: settings of each label, or a YAML file with them; ``model`` names a label's model.
        runs: finished runs, see `compare_runs.find_runs`; they take the place of the cells that they are.
        out: the folder; None: ``comparisons/<data sets>-<hash of what is compared>``.
        show: metrics of the table, and other columns: ``seeds``, ``interval.ndcg@10`` over users, and what
            `result.json` has under a name, a dot leading into a mapping: ``epochs``, ``valid.ndcg@10``,
            ``seconds.fit``; empty: NDCG and Recall at the largest cut-off, and MRR.
        ours: labels whose improvement is shown; empty: models that read text.
        baselines: labels that `ours` are measured against; empty: all others.
        papers: whether the papers' printed numbers stand beside ours.
        significance: whether there are tests and intervals over users and metrics by group; without, an improvement is
            shown for models that `ours` names alone.
        rows: ``models`` or ``metrics``.
        format: which table is printed: ``markdown``, ``latex`` or ``csv``; all are written.

    Raises:
        SettingError: for a value that is not possible.
    """

    models: Sequence[str] = ()
    dataset: Sequence[str] = ()
    seeds: int | Sequence[int] = 1
    config_files: Sequence[str | Path] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    model_settings: str | Path | dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: Sequence[str] = ()
    out: str | Path | None = None
    show: Sequence[str] = ()
    ours: Sequence[str] = ()
    baselines: Sequence[str] = ()
    papers: bool = False
    significance: bool = True
    rows: str = "models"
    format: str = "markdown"

    def __post_init__(self) -> None:
        for name in ("models", "dataset", "runs", "show", "ours", "baselines"):
            value = getattr(self, name)
            setattr(self, name, names_of(value) if isinstance(value, str) else [str(entry) for entry in value])
        if not self.models and not self.runs:
            raise SettingError("nothing is named to compare: add --models=ST2SI,SASRec or --runs='saved/*'")
        if self.models and not self.dataset and not self.runs:
            raise SettingError("no data set is named: add --dataset=ml-100k, or several separated by commas")
        if isinstance(self.seeds, bool) or not (isinstance(self.seeds, int) and self.seeds >= 1):
            self.seeds = _seed_list(self.seeds)
        for name, allowed in (("rows", ROWS), ("format", tuple(PRINTED))):
            require_one_of(name, getattr(self, name), allowed)
        for name, verb in (("model", "--models"), ("dataset", "--dataset")):
            if name in self.settings:
                raise SettingError(f"compare takes several: name them with {verb}, not with {name}")
        if not self.plans:
            self._require_no_settings()
        self.show = [metric.lower() for metric in self.show]

    @property
    def plans(self) -> bool:
        """Whether runs may be started."""
        return bool(self.models and self.dataset)

    def _require_no_settings(self) -> None:
        """Finished runs have their settings: any other is misspelt, or would be passed over in silence."""
        for name in sorted(self.settings.keys() - {"data_path"}):
            options = [option.name for option in fields(self)]
            raise SettingError(
                f"--{name} is no option of a comparison of finished runs{nearest(name, options)} Settings of runs need "
                f"--models and --dataset"
            )
        for name in ("dataset", "model_settings", "config_files"):
            if getattr(self, name):
                raise SettingError(f"--{name} is for runs that are started, which --models names; --runs are finished")


def _seed_list(value: Any) -> list[int]:
    seeds = list(value) if isinstance(value, (list, tuple)) else []
    if not seeds or any(not isinstance(seed, int) or isinstance(seed, bool) or seed < 0 for seed in seeds):
        raise SettingError(f"seeds={value} must be how many (3), or a list of whole numbers from 0 ([1,2,3])")
    return list(dict.fromkeys(seeds))


def compare(options: Options, command: str | None = None) -> dict[str, Any]:
    """Finish what runs are missing, and write the comparison's tables and `comparison.json`.

    Args:
        options: what is compared.
        command: the command line that asked for it.

    Returns:
        What `comparison.json` holds, and under "path" where that file is.

    Raises:
        RecBoleLLMError: one of its kinds, before anything runs; a run that fails is told in its cell.
    """
    environment = dict(os.environ)
    handed = cells_of_runs(find_runs(options.runs), () if options.plans else options.models)
    cells = _with_handed(_planned(options), handed)
    # A Config sets CUDA_VISIBLE_DEVICES for its process; the runs' own do so again.
    os.environ.clear()
    os.environ.update(environment)
    _require_one_protocol([cell for cell in cells if cell.merged], before=True)
    asked = _asked(options, cells)
    folder = Path(options.out) if options.out is not None else _default_folder(cells, asked)
    runner = CellRunner(folder, asked, lambda text: print(text, file=sys.stderr))
    with noting_what_is_stored(folder, lambda: runner.has_stored(cells)):
        finish_all(cells, runner)
    _require_one_protocol([cell for cell in cells if cell.status == "done"], before=False)
    of_users = options.significance or interval_metrics(options.show)
    comparison = {
        "version": __version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command or "",
        **analyse(
            cells=[_entry(cell, folder) for cell in cells],
            ranks=[_ranks(cell) if of_users else None for cell in cells],
            settings=_data_settings(cells, options),
            show=options.show,
            ours=options.ours,
            baselines=options.baselines,
            papers=options.papers,
            significance=options.significance,
        ),
    }
    write_json(folder / JSON, comparison)
    write_text(folder / "comparison.md", markdown_table(comparison, options.rows) + "\n")
    write_text(folder / "comparison.tex", latex_table(comparison, options.rows) + "\n")
    write_text(folder / "comparison.csv", csv_table(comparison))
    return {**comparison, "path": str(folder / JSON)}


def compare_models(**options: Any) -> dict[str, Any]:
    """Compare models side by side: `recbole_llm.compare`, and what the verb ``compare`` does.

    Args:
        options: see `Options`, such as ``models=["ST2SI", "SASRec"], dataset=["ml-100k"], seeds=3,
            settings={"epochs": 10}``.

    Returns:
        What `comparison.json` holds, and under "path" where that file is.

    Raises:
        RecBoleLLMError: one of its kinds, whose message says what to do.
    """
    return compare(Options(**options))


def _planned(options: Options) -> list[Cell]:
    if not options.plans:
        return []
    own = options.model_settings
    own = read_model_settings(own) if isinstance(own, (str, Path)) else {k: dict(v) for k, v in own.items()}
    models = _labelled(options.models, own)
    settings = {k: v for file in options.config_files for k, v in read_yaml(file).items()}
    settings = {k: v for k, v in settings.items() if k not in ("model", "dataset")}
    line = dict(options.settings)
    first = line.pop("seed", settings.pop("seed", None))
    if isinstance(options.seeds, int):
        if first is None:
            known = {k: v for k, v in {**settings, **line}.items() if has_setting(models[0][1], k)}
            first = Config(models[0][1], options.dataset[0], config_dict=known)["seed"]
        seeds = [first + number for number in range(options.seeds)]
    else:
        seeds = list(options.seeds)
    return plan_cells(models, options.dataset, seeds, settings, line, own)


def _labelled(entries: Sequence[str], own: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """Return label and model of each entry, taking ``model`` out of the labels' `own` settings."""
    models: dict[str, str] = {}
    for entry in entries:
        label, _, model = entry.partition(":")
        if label in models:
            raise SettingError(f"two models are called {label}: name them apart, as --models=NAME:{label},...")
        models[label] = model or own.get(label, {}).get("model", label)
        registry.model_class(models[label])  # an unknown name ends here
        own.get(label, {}).pop("model", None)
    for label, settings in own.items():
        if label not in models:
            raise SettingError(
                f"model_settings has settings of '{label}', which is not compared{nearest(label, models)}"
            )
        for name in ("dataset", "seed"):
            if name in settings:
                raise SettingError(f"model_settings gives '{label}' a {name} of its own: all models have the same")
    return list(models.items())


def _with_handed(planned: list[Cell], handed: list[Cell]) -> list[Cell]:
    """Put finished runs in the place of the cells that they are, and all others behind."""
    runs = {cell.key: cell for cell in handed}
    cells = [runs.pop(cell.key, cell) for cell in planned] + list(runs.values())
    datasets = list(dict.fromkeys(cell.dataset for cell in cells))
    labels: dict[str, Cell] = {}
    for cell in cells:
        labels.setdefault(cell.label, cell)
    there = {(cell.dataset, cell.label) for cell in cells}
    for dataset in datasets:
        for label, cell in labels.items():
            if (dataset, label) not in there:
                cells.append(Cell(dataset, label, cell.model, cell.seed, reason="no run of it was handed in"))
    order = list(labels)
    return sorted(cells, key=lambda cell: (datasets.index(cell.dataset), order.index(cell.label)))


def _asked(options: Options, cells: list[Cell]) -> dict[str, Any]:
    """Return what makes this comparison another one than those of other cells; how it is shown has no part in it."""
    runs = {cell.key: str(cell.run) if cell.run else cell.arguments() for cell in cells}
    return json.loads(json.dumps(plain(runs)))


def _default_folder(cells: list[Cell], asked: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:6]
    return Path("comparisons") / f"{'-'.join(dict.fromkeys(cell.dataset for cell in cells))}-{digest}"


def _require_one_protocol(cells: list[Cell], before: bool) -> None:
    for dataset in dict.fromkeys(cell.dataset for cell in cells):
        runs = []
        for cell in [cell for cell in cells if cell.dataset == dataset]:
            name = f"the run {cell.run}" if cell.run else f"{cell.label} on {dataset}"
            if before or cell.run is None:
                runs.append(Measured(name, cell.model, cell.merged))
            else:
                result = read_result(cell.run)
                runs.append(Measured(name, cell.model, result["settings"], result["counts"], _ranks(cell)))
        require_one_protocol(runs)


def _ranks(cell: Cell) -> Any:
    path = None if cell.run is None else cell.run / "ranks-test.tsv.gz"
    return read_ranks(path) if path is not None and path.exists() else None


def _entry(cell: Cell, folder: Path) -> dict[str, Any]:
    """Return the cell as `comparison.json` holds it; `run` is relative to the folder of that file."""
    result = {} if cell.run is None else read_result(cell.run)
    return {
        "dataset": cell.dataset,
        "label": cell.label,
        "model": cell.model,
        "seed": cell.seed,
        "status": cell.status,
        "reason": cell.reason,
        "run": None if cell.run is None else os.path.relpath(cell.run, folder),
        "command": cell.command(),
        **{name: result.get(name) or {} for name in ("valid", "test", "seconds", "parameters", "counts")},
        **{name: result.get(name) for name in ("epochs", "best_epoch", "device", "backbone", "tuning")},
        **{name: result.get(name) for name in ("peak_memory_bytes", "peak_gpu_memory_bytes", "commit")},
        "settings": plain(cell.given),
        "history": result.get("history", []),
        "extras": {name: value for name, value in result.items() if name not in RESULT_FIELDS},
    }


def _data_settings(cells: list[Cell], options: Options) -> dict[str, dict[str, Any]]:
    """Return for each data set the settings of a run on it, of one that reads text if there is one."""
    chosen: dict[str, dict[str, Any]] = {}
    for cell in sorted(cells, key=lambda cell: not registry.reads_text(cell.model)):
        if cell.run is not None and cell.dataset not in chosen:
            place = {name: options.settings[name] for name in ("data_path",) if name in options.settings}
            chosen[cell.dataset] = {**read_result(cell.run)["settings"], **place}
    return chosen
