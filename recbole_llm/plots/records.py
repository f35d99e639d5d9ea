"""What plots are drawn from: finished runs, by themselves or as the cells of a comparison."""

import glob
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from recbole_llm.config import renamed
from recbole_llm.errors import DataError, SettingError, nearest
from recbole_llm.runs import folder as run_folder

_MAPPINGS = ("test", "valid", "seconds", "parameters", "settings")


@dataclass(frozen=True)
class Record:
    """One finished run.

    Attributes:
        dataset, label: where it stands in a table.
        model, backbone, tuning, seed, device: as in `result.json`; without a language model, backbone and tuning
            are None.
        valid, test: metrics of the epoch that was best on validation, as fractions.
        seconds: of every stage.
        parameters: numbers ``trained`` and ``frozen``.
        history: one entry an epoch: epoch (from 0), train_loss, valid.
        best_epoch: the one whose weights were tested; None without validation.
        settings: all settings of a run, or those of a comparison's cell that are not defaults.
        source: its file or folder, for messages.
    """

    dataset: str
    label: str
    model: str
    backbone: str | None
    tuning: str | None
    seed: int
    device: str
    valid: dict[str, float]
    test: dict[str, float]
    seconds: dict[str, float]
    parameters: dict[str, int]
    history: list[dict[str, Any]]
    best_epoch: int | None
    settings: dict[str, Any]
    source: str


@dataclass(frozen=True)
class Results:
    """What there is to draw.

    Attributes:
        records: finished runs.
        datasets, labels, metrics: in the order of a table; labels also of cells that failed.
        intervals: by data set, label and metric: low and high end over users.
        groups: the comparison's groups of targets.
    """

    records: list[Record]
    datasets: list[str]
    labels: list[str]
    metrics: list[str]
    intervals: dict[tuple[str, str, str], tuple[float, float]] = field(default_factory=dict)
    groups: list[dict[str, Any]] = field(default_factory=list)

    def of(self, dataset: str, label: str | None = None) -> list[Record]:
        """Return the records of a data set, all or those of one label."""
        return [r for r in self.records if r.dataset == dataset and label in (None, r.label)]

    def only(self, dataset: str) -> "Results":
        """Return the same with one data set; labels keep their places, and so their colours."""
        groups = [group for group in self.groups if group["dataset"] == dataset]
        return Results(self.of(dataset), [dataset], self.labels, self.metrics, self.intervals, groups)

    def metric(self, name: str | None) -> str:
        """Return `name`, or the metric to draw where none is named.

        Raises:
            SettingError: if no run has it.
            DataError: if no run has any.
        """
        known = list(dict.fromkeys([*self.metrics, *(metric for record in self.records for metric in record.test)]))
        if not known:
            raise DataError("no run has test metrics: there is nothing to draw")
        if name is None:
            return "ndcg@10" if "ndcg@10" in known else known[0]
        if name not in known:
            raise SettingError(f"no run has the metric '{name}'{nearest(name, known)} Metrics are {', '.join(known)}")
        return name


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Return the object in a JSON file. Raises DataError, which calls the file `what`."""

    def refuse(constant: str) -> None:
        raise ValueError(f"it holds {constant}, which is not a number")

    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except FileNotFoundError:
        raise DataError(f"the {what} {path} does not exist") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a readable {what}: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} is not a {what}: it holds a {type(value).__name__}")
    return value


def read_runs(runs: str) -> Results:
    """Read finished runs.

    Args:
        runs: folders or their `result.json`, separated by commas or spaces; ``*`` stands for any name.

    Raises:
        SettingError: if nothing is named.
        DataError: if a run is missing, unfinished or broken.
    """
    files: dict[Path, None] = {}
    for name in runs.replace(",", " ").split():
        found = [Path(p) for p in sorted(glob.glob(name))] if glob.has_magic(name) else [Path(name)]  # noqa: PTH207
        finished = [
            path
            for path in (p / run_folder.RESULT if p.is_dir() else p for p in found)
            if path.name == run_folder.RESULT
        ]
        if glob.has_magic(name):  # a pattern takes what is finished
            finished = [path for path in finished if path.is_file()]
        if not finished:
            raise DataError(
                f"{name} names no finished run: a run is a folder with {run_folder.RESULT} in it, such as saved/<run>"
            )
        files.update(dict.fromkeys(finished))
    if not files:
        raise SettingError("no run is named: --runs=saved/<run>,saved/<run>")
    return from_results([(str(path.parent), read_json(path, "result of a run")) for path in files])


def from_results(results: Sequence[tuple[str, dict[str, Any]]]) -> Results:
    """Take what `result.json` files hold.

    Args:
        results: the name of each run, for messages, and what its file holds.

    Raises:
        DataError: if one lacks what every result has.
    """
    records = [_record(result, _own_label(result, name), name) for name, result in results]
    records = _told_apart(records)
    return Results(
        records,
        list(dict.fromkeys(record.dataset for record in records)),
        list(dict.fromkeys(record.label for record in records)),
        list(dict.fromkeys(metric for record in records for metric in record.test)),
    )


def from_comparison(comparison: dict[str, Any]) -> Results:
    """Take the finished cells of a comparison, with its intervals and groups."""
    cells = [cell for cell in comparison["cells"] if cell["status"] == "done"]
    return Results(
        [_record(cell, printable(cell["label"]), f"{cell['label']} on {cell['dataset']}") for cell in cells],
        [printable(name) for name in comparison["datasets"]],
        [printable(label) for label in comparison["models"]],
        list(comparison["metrics"]),
        {
            (printable(entry["dataset"]), printable(entry["label"]), entry["metric"]): (entry["low"], entry["high"])
            for entry in comparison["intervals"]
        },
        [
            {**entry, "dataset": printable(entry["dataset"]), "label": printable(entry["label"])}
            for entry in comparison["groups"]
        ],
    )


def printable(text: Any) -> str:
    """Return text with a space for every character that no page or picture can show."""
    return "".join(character if character.isprintable() else " " for character in str(text))


def _record(result: dict[str, Any], label: str, source: str) -> Record:
    for name in _MAPPINGS:
        if not isinstance(result.get(name), dict | None):
            raise DataError(f"'{name}' in the result of {source} is no mapping of names to values: run it again")
    for part in ("test", "valid"):
        for metric, value in (result.get(part) or {}).items():
            if not isinstance(value, int | float):
                raise DataError(f"{metric} in the result of {source} is {value!r}, not a number: run it again")
    try:
        return Record(
            dataset=printable(result["dataset"]), label=label, model=printable(result["model"]),
            backbone=result["backbone"], tuning=result["tuning"], seed=result["seed"], device=result["device"],
            valid=result["valid"] or {}, test=result["test"] or {}, seconds=result["seconds"],
            parameters=result["parameters"], history=result["history"],
            best_epoch=result["best_epoch"],
            settings=renamed.translate(result["settings"] or {}, result["model"]), source=source,
        )  # fmt: skip
    except KeyError as error:
        raise DataError(f"the result of {source} lacks {error}: run it again") from None


def _own_label(result: dict[str, Any], source: str) -> str:
    if "model" not in result:
        raise DataError(f"the result of {source} lacks 'model': run it again")
    backbone = result.get("backbone")
    parts = [result["model"], Path(backbone).name if backbone else None, result.get("tuning")]
    return printable(", ".join(str(part) for part in parts if part))


def _told_apart(records: list[Record]) -> list[Record]:
    """Add to the labels of runs that differ in more than their seed what they differ in."""
    named = []
    for record in records:
        same = [r for r in records if (r.dataset, r.label) == (record.dataset, record.label)]
        names = differing(same)
        kinds = _kinds(same, names)
        # The fewest that tell as many apart as all of them do.
        names = next(names[:n] for n in range(len(names) + 1) if _kinds(same, names[:n]) == kinds)
        parts = [record.label, *(f"{name}={printable(record.settings.get(name))}" for name in names)]
        named.append(replace(record, label=", ".join(parts)))
    return named


def _kinds(records: list[Record], names: list[str]) -> int:
    return len({tuple(repr(record.settings.get(name)) for name in names) for record in records})


def differing(records: Sequence[Record], *allowed: str) -> list[str]:
    """Return the names of settings that shape a result and are not the same in all `records`, but for `allowed`."""
    names = sorted({name for record in records for name in record.settings} - run_folder.NOT_SHAPING - set(allowed))
    return [name for name in names if any(r.settings.get(name) != records[0].settings.get(name) for r in records)]


@dataclass(frozen=True)
class Point:
    """One point of a curve: the mean over seeds of the test metric, and its standard deviation (None for one seed)."""

    x: float
    mean: float
    deviation: float | None


def mean(x: float, records: Sequence[Record], metric: str) -> Point:
    """Return the point of runs of one setting at `x`.

    Raises:
        SettingError: if two have the same seed, so that their deviation would mean nothing, or one lacks the metric.
    """
    seeds = [record.seed for record in records]
    if len(set(seeds)) < len(seeds):
        raise SettingError(_at_one_point(records, "have the same seed"))
    values = [value_of(record, metric) for record in records]
    return Point(x, statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def point(x: float, records: Sequence[Record], metric: str, *allowed: str) -> Point:
    """Return `mean` of runs of which it is not known yet that they differ in their seed alone.

    Raises:
        SettingError: if they differ in a setting that is not `allowed` to, so that their mean would mean nothing.
    """
    others = differing(records, *allowed)
    if others:
        raise SettingError(_at_one_point(records, f"differ also in {', '.join(others[:3])}"))
    return mean(x, records, metric)


def _at_one_point(records: Sequence[Record], what: str) -> str:
    runs = f"{records[0].source} and {records[-1].source}"
    return f"the runs {runs} stand at one point of the plot, but {what}: give runs of one setting"


def value_of(record: Record, metric: str) -> float:
    """Return a test metric. Raises SettingError if the run lacks it."""
    if metric not in record.test:
        raise SettingError(f"the run {record.source} lacks the test metric '{metric}'{nearest(metric, record.test)}")
    return record.test[metric]
