"""The tables of docs/leaderboard.md: systems by datasets, from kept runs and from what others published.

`results/leaderboard.yaml` names the systems, the label of each one's runs on every dataset, the settings of these
runs, published numbers, and why there is no run. `make_results.py` puts a table under a line

    leaderboard: <dataset>    numbers under both protocols, seeds and cost
    leaderboard: systems      NDCG@10 with the history left out, of all systems and datasets
    leaderboard: settings     what makes each run
"""

import functools
import shlex
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recbole_llm.comparison.columns import mean_and_deviation
from recbole_llm.errors import DataError
from recbole_llm.runs.archive import read_archive
from recbole_llm.runs.result import RunResult
from recbole_llm.utils.files import read_yaml

FILE = Path("results/leaderboard.yaml")
SYSTEMS, SETTINGS = "systems", "settings"
ABSENT = "–"  # noqa: RUF001
_RUNS = Path("results/runs")
_METRICS = ("ndcg@10", "hit@10")
_LEFT_OUT, _KEPT = False, True  # answers to `repeatable`
_OLD = "its runs are of version 0.2, which measured with all items ranked alone"
_NOT_MEASURED = "not measured there"
_HEAD = (
    *("System", "Reads", "NDCG@10", "HR@10", "NDCG@10, all ranked", "HR@10, all ranked"),
    *("Seeds", "Fit, s", "Trained"),
)


@dataclass(frozen=True)
class Entry:
    """A system on a dataset.

    Attributes:
        system: its name.
        reads: what it knows of an item.
        dataset: where.
        label: of its runs in the archive of the dataset; None for a published row.
        settings: what a command needs to make such a run, as one line; empty for a published row.
        published: metrics with the history left out.
        source: of these.
        why: why there is neither a run nor a published number.
    """

    system: str
    reads: str
    dataset: str
    label: str | None = None
    settings: str = ""
    published: dict[str, float] = field(default_factory=dict)
    source: str = ""
    why: str = ""

    @property
    def runs(self) -> list[RunResult]:
        """The results of its runs, one per seed; none for a published row, or where the label has none."""
        return _results(self.dataset).get(self.label or "", [])

    def values(self, metric: str, repeatable: bool) -> list[float]:
        """Return a test metric of every seed under one answer to `repeatable`; none where it was not measured."""
        if self.published:
            return [self.published[metric]] if repeatable is _LEFT_OUT and metric in self.published else []
        found = [run.metrics("test", repeatable) for run in self.runs]
        return [metrics[metric] for metrics in found if metrics is not None]

    def absence(self) -> str:
        """Return why a metric of it is missing."""
        if self.why or self.published:
            return self.why or _NOT_MEASURED
        return _OLD if self.runs else f"no run is labelled {self.label}"


def entries(path: Path = FILE) -> list[Entry]:
    """Return every system on every dataset, in the order of the file.

    Args:
        path: of the YAML file.

    Raises:
        DataError: if a system has neither a run, nor a published number, nor a reason on a dataset.
    """
    file = read_yaml(path)
    found = []
    for system in file["systems"]:
        for dataset in file["datasets"]:
            own = system.get("results", {}).get(dataset) or {"why": system.get("why")}
            entry = Entry(system["system"], system["reads"], dataset, **own)
            if not (entry.label or entry.published or entry.why):
                raise DataError(
                    f"{path} has neither a run, nor a published number, nor a reason for {entry.system} on {dataset}: "
                    f"add label, published or why"
                )
            found.append(entry)
    return found


def table(name: str) -> list[str]:
    """Return the lines of a table and its footnotes.

    Args:
        name: of a dataset, ``systems`` or ``settings``.

    Raises:
        DataError: if there is no such dataset, or the file is wrong.
    """
    found = entries()
    if name == SYSTEMS:
        return _of_systems(found)
    if name == SETTINGS:
        return _of_settings(found)
    datasets = list(dict.fromkeys(entry.dataset for entry in found))
    if name not in datasets:
        raise DataError(f"{FILE} has no dataset {name}: there are {', '.join(datasets)}, {SYSTEMS} and {SETTINGS}")
    return _of_dataset([entry for entry in found if entry.dataset == name and not entry.why])


@functools.cache
def _results(dataset: str) -> dict[str, list[RunResult]]:
    found: dict[str, list[RunResult]] = {}
    for run in read_archive(_RUNS / f"{dataset}.parquet"):
        found.setdefault(run.label, []).append(RunResult.from_dict(run.result, run.path))
    return found


def _rank(entry: Entry) -> tuple[float, float]:
    """Return what a table is sorted by: NDCG@10 with the history left out, then with all items ranked."""
    left_out, kept = (entry.values("ndcg@10", repeatable) for repeatable in (_LEFT_OUT, _KEPT))
    return tuple(-statistics.mean(values) if values else 0.0 for values in (left_out, kept))  # type: ignore[return-value]


class _Notes:
    """Footnotes of a table, each text once."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def number(self, text: str) -> int:
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text) + 1

    def absent(self, text: str) -> str:
        return f"{ABSENT} [{self.number(text)}]"

    def lines(self) -> Iterator[str]:
        for number, text in enumerate(self.texts, 1):
            yield from ("", f"[{number}] {text}")


def _metric(entry: Entry, metric: str, repeatable: bool, notes: _Notes) -> str:
    values = entry.values(metric, repeatable)
    if not values:
        return notes.absent(entry.absence())
    mean, deviation = mean_and_deviation(values)
    return f"{mean:.4f}" + ("" if deviation is None else f" ± {deviation:.4f}")


def _of_dataset(found: Sequence[Entry]) -> list[str]:
    notes = _Notes()
    rows = []
    for entry in sorted(found, key=_rank):
        metrics = [_metric(entry, metric, way, notes) for way in (_LEFT_OUT, _KEPT) for metric in _METRICS]
        rows.append([_name(entry, notes), entry.reads, *metrics, *_cost(entry)])
    return [*_lines(_HEAD, rows, words=2), *notes.lines()]


def _name(entry: Entry, notes: _Notes) -> str:
    return f"{entry.system} [{notes.number(f'As published: {entry.source}')}]" if entry.published else entry.system


def _cost(entry: Entry) -> list[str]:
    if not entry.runs:
        return ["", "", ""]
    seconds = statistics.mean(run.seconds["fit"] for run in entry.runs)
    trained = statistics.mean(run.parameters["trained"] for run in entry.runs)
    return [str(len(entry.runs)), f"{seconds:,.0f}", f"{trained:,.0f}"]


def _of_systems(found: Sequence[Entry]) -> list[str]:
    notes = _Notes()
    datasets = list(dict.fromkeys(entry.dataset for entry in found))
    rows: dict[str, list[str]] = {}
    for entry in found:
        row = rows.setdefault(entry.system, [entry.system, entry.reads])
        row.append(_metric(entry, "ndcg@10", _LEFT_OUT, notes))
    return [*_lines(("System", "Reads", *datasets), list(rows.values()), words=2), *notes.lines()]


def _of_settings(found: Sequence[Entry]) -> list[str]:
    head = ("System", "Dataset", "Label", "Settings")
    rows = [[entry.system, entry.dataset, str(entry.label), f"`{entry.settings}`"] for entry in found if entry.label]
    return _lines(head, rows, words=4)


def _lines(head: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> list[str]:
    """Return a table whose first `words` columns are words."""
    rule = [":--" if number < words else "--:" for number in range(len(head))]
    return ["| " + " | ".join(line) + " |" for line in (head, rule, *rows)]


def unlike_the_run(entry: Entry, parse: Callable[[str], Any]) -> list[str]:
    """Return the settings of an entry that its runs do not have; none if all is well.

    Args:
        entry: with a label.
        parse: from the text of a value to the value.
    """
    pairs = [word.removeprefix("--").split("=", 1) for word in shlex.split(entry.settings)]
    return [
        f"{name}={text}"
        for name, text in pairs
        if name != "config_files"
        and any(name in run.settings and run.settings[name] != parse(text) for run in entry.runs)
    ]
