"""What plots are drawn from: finished runs, by themselves or as the cells of a comparison."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from recbole_llm.config import renamed
from recbole_llm.config.roles import shapes_result
from recbole_llm.errors import DataError, SettingError, nearest
from recbole_llm.runs.finished import finished_runs, read_result
from recbole_llm.runs.result import RunResult


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
        history: one entry per epoch: epoch (from 0), train_loss, valid.
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
        intervals: by dataset, label and metric: low and high end over users.
        groups: the comparison's groups of targets.
    """

    records: list[Record]
    datasets: list[str]
    labels: list[str]
    metrics: list[str]
    intervals: dict[tuple[str, str, str], tuple[float, float]] = field(default_factory=dict)
    groups: list[dict[str, Any]] = field(default_factory=list)

    def of(self, dataset: str, label: str | None = None) -> list[Record]:
        """Return the records of a dataset, all or those of one label."""
        return [r for r in self.records if r.dataset == dataset and label in (None, r.label)]

    def only(self, dataset: str) -> "Results":
        """Return the same with one dataset; labels keep their places, and so their colours."""
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


def read_runs(runs: str) -> Results:
    """Read finished runs.

    Args:
        runs: folders or their `result.json`, archives or runs in them (`runs.archive`), separated by commas or spaces;
            ``*`` stands for any name.

    Raises:
        SettingError: if nothing is named.
        CheckpointError: if a run is missing, unfinished or broken.
    """
    folders = dict.fromkeys(folder for name in runs.replace(",", " ").split() for folder in finished_runs(name))
    if not folders:
        raise SettingError("no run is named: --runs=saved/<run>,saved/<run>")
    return from_results([(str(folder), read_result(folder)) for folder in folders])


def from_results(results: Sequence[tuple[str, RunResult]]) -> Results:
    """Take finished runs.

    Args:
        results: the name of each run, for messages, and its result.
    """
    records = [_record(result.to_dict(), printable(result.label), name) for name, result in results]
    records = _with_distinct_labels(records)
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


def _record(fields: dict[str, Any], label: str, source: str) -> Record:
    """Return the record of a run from the fields of its result, which a comparison's cell has, too."""
    return Record(
        dataset=printable(fields["dataset"]), label=label, model=printable(fields["model"]),
        backbone=fields["backbone"], tuning=fields["tuning"], seed=fields["seed"], device=fields["device"],
        valid=fields["valid"] or {}, test=fields["test"] or {}, seconds=fields["seconds"],
        parameters=fields["parameters"], history=fields["history"],
        best_epoch=fields["best_epoch"], settings=_settings(fields), source=source,
    )  # fmt: skip


def _settings(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the settings under today's names; `repeatable` is what it was in the run, not ``auto``."""
    settings = renamed.translate(fields["settings"], fields["model"])
    found = (fields.get("protocol") or fields).get("repeatable")
    return settings if found is None else {**settings, "repeatable": found}


def _with_distinct_labels(records: list[Record]) -> list[Record]:
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
    names = sorted({name for record in records for name in record.settings if shapes_result(name)} - set(allowed))
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
