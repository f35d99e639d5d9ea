"""The tables of a report: what a comparison holds, as rows of cells that can be sorted."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from recbole_llm.comparison.columns import OF_CANDIDATES, column_name, column_text
from recbole_llm.comparison.tables import columns_of, with_other
from recbole_llm.plots.style import metric_name

Value = float | str | None
NOTHING = "\u2013"  # a dash


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: what stands in it.
        value: what it is sorted by; None sorts last, in either direction.
        notes: smaller lines below.
        mark: of significance, after the text.
        best, second: whether it is the best or second best of its column.
        failed: whether it stands for something that there is not.
    """

    text: str
    value: Value = None
    notes: tuple[str, ...] = ()
    mark: str = ""
    best: bool = False
    second: bool = False
    failed: bool = False


@dataclass(frozen=True)
class Table:
    """A table: a caption, the names of its columns, and rows; columns from `first_number` on are numbers."""

    caption: str
    columns: list[str]
    rows: list[list[Cell]]
    first_number: int = 1


def result_tables(comparison: dict[str, Any]) -> list[Table]:
    """Return one table per dataset: a row per label, a column per metric, mean and deviation over seeds."""
    return [
        _result_table(one, dataset, comparison.get("other") is not None)
        for one in with_other(comparison)
        for dataset in one["datasets"]
    ]


def _result_table(comparison: dict[str, Any], dataset: str, both: bool) -> Table:
    summary = {(e["label"], e["metric"]): e for e in comparison["summary"] if e["dataset"] == dataset}
    rows = []
    for label in comparison["models"]:
        cells = [c for c in comparison["cells"] if (c["dataset"], c["label"]) == (dataset, label)]
        row = [Cell(label, label, notes=_states(cells))]
        for metric in comparison["metrics"]:
            found = summary.get((label, metric))
            row.append(Cell(NOTHING, failed=True) if found is None else _summary(found))
        row += [_among_candidates(comparison, dataset, label, column) for column in _candidate_columns(comparison)]
        rows.append(row)
    names = [*map(metric_name, comparison["metrics"]), *map(column_name, _candidate_columns(comparison))]
    way = f", repeatable: {comparison['repeatable'][dataset]}" if both else ""
    return Table(f"{dataset}{way}", ["Model", *names], rows)


def _candidate_columns(comparison: dict[str, Any]) -> list[str]:
    return [column for column in columns_of(comparison) if column in OF_CANDIDATES]


def _among_candidates(comparison: dict[str, Any], dataset: str, label: str, column: str) -> Cell:
    """Return what was measured among few candidates, sorted by its mean."""
    mean, _, deviation = column_text(comparison, dataset, label, column).partition(" ± ")
    return Cell(mean, float(mean), (f"± {deviation}",) if deviation else ()) if mean else Cell(NOTHING, failed=True)


def _states(cells: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """Return a line for every cell that is not done, equal ones once."""
    done = sum(cell["status"] == "done" for cell in cells)
    lines = dict.fromkeys(
        f"{cell['status']}: {cell['reason']}" if cell["reason"] else cell["status"]
        for cell in cells
        if cell["status"] != "done"
    )
    counted = [f"{done} of {len(cells)} seeds finished"] if 0 < done < len(cells) else []
    return (*counted, *lines)


def _summary(entry: dict[str, Any]) -> Cell:
    notes = []
    if entry["deviation"] is not None and entry["seeds"] > 1:
        notes.append(f"± {entry['deviation']:.4f}")
    if entry["improvement"] is not None:
        notes.append(f"{signed(entry['improvement'], 2)} %")
    mark = entry.get("mark", "")
    return Cell(f"{entry['mean']:.4f}", entry["mean"], tuple(notes), mark, entry["best"], entry["second"])


def significance_tables(comparison: dict[str, Any]) -> list[Table]:
    """Return one table per dataset and metric: paired tests over users."""
    columns = ["Model", "Against", "Difference", "t-test p", "Holm", "Wilcoxon p", "Holm", "Users", "Mark"]
    tables = []
    for dataset, metric in dict.fromkeys((entry["dataset"], entry["metric"]) for entry in comparison["significance"]):
        rows = [
            [
                text(entry["label"]),
                text(entry["against"]),
                Cell(
                    signed(entry["difference"], 4),
                    entry["difference"],
                    (f"{signed(entry['low'], 4)} to {signed(entry['high'], 4)}",),
                ),
                *(
                    number(entry[name], probability(entry[name]))
                    for name in ("p_t", "p_t_holm", "p_wilcoxon", "p_wilcoxon_holm")
                ),
                number(entry["users"]),
                Cell(entry["mark"] or NOTHING, len(entry["mark"])),
            ]
            for entry in comparison["significance"]
            if (entry["dataset"], entry["metric"]) == (dataset, metric)
        ]
        tables.append(Table(f"{dataset}: {metric_name(metric)}", columns, rows, first_number=2))
    return tables


def interval_tables(comparison: dict[str, Any]) -> list[Table]:
    """Return one table per dataset: the interval of every metric over users."""
    tables = []
    for dataset in comparison["datasets"]:
        entries = [entry for entry in comparison["intervals"] if entry["dataset"] == dataset]
        metrics = list(dict.fromkeys(entry["metric"] for entry in entries))
        rows = []
        for label in dict.fromkeys(entry["label"] for entry in entries):
            estimates = {entry["metric"]: entry for entry in entries if entry["label"] == label}
            rows.append([text(label), *(_estimate(estimates.get(metric)) for metric in metrics)])
        if rows:
            tables.append(Table(dataset, ["Model", *map(metric_name, metrics)], rows))
    return tables


_WAYS = {
    "popularity": "Popularity of the target",
    "history_length": "Length of the history",
    "text_length": "Length of the item's text",
}


def group_tables(comparison: dict[str, Any]) -> list[Table]:
    """Return one table per dataset and way to group its targets."""
    tables = []
    for dataset in comparison["datasets"]:
        here = [entry for entry in comparison["groups"] if entry["dataset"] == dataset]
        for way in dict.fromkeys(entry["by"] for entry in here):
            entries = [entry for entry in here if entry["by"] == way]
            metrics = list(dict.fromkeys(metric for entry in entries for metric in entry["metrics"]))
            name = _WAYS.get(way, way)
            rows = [
                [
                    Cell(str(entry["group"]), entry["order"]),
                    number(entry["targets"]),
                    text(entry["label"]),
                    *(_estimate(entry["metrics"].get(metric)) for metric in metrics),
                ]
                for entry in sorted(entries, key=lambda entry: entry["order"])
            ]
            columns = [name, "Targets", "Model", *map(metric_name, metrics)]
            tables.append(Table(f"{dataset}: {name.lower()}", columns, rows, first_number=3))
    return tables


def paper_tables(comparison: dict[str, Any]) -> list[Table]:
    """Return one table per dataset that a paper has numbers of: the paper's, ours, and the distance."""
    means = {(e["dataset"], e["label"], e["metric"]): e["mean"] for e in comparison["summary"]}
    tables = []
    for dataset, labels in (comparison.get("papers") or {}).items():
        rows = []
        for label, metrics in labels.items():
            for metric, value in metrics.items():
                ours = means.get((dataset, label, metric))
                distance = None if ours is None or not value else 100 * (ours / value - 1)
                rows.append(
                    [
                        text(label),
                        text(metric_name(metric)),
                        _metric(value),
                        _metric(ours),
                        number(distance, None if distance is None else f"{signed(distance, 1)} %"),
                    ]
                )
        if rows:
            tables.append(Table(dataset, ["Model", "Metric", "Paper", "Here", "Distance"], rows, first_number=2))
    return tables


def count_table(comparison: dict[str, Any]) -> Table:
    """Return the sizes of the datasets."""
    counts = comparison.get("counts") or {}
    names = list(dict.fromkeys(name for sizes in counts.values() for name in sizes))
    rows = [[text(dataset), *(number(sizes.get(name)) for name in names)] for dataset, sizes in counts.items()]
    return Table("Datasets", ["Dataset", *(name.capitalize() for name in names)], rows)


def run_tables(comparison: dict[str, Any]) -> list[Table]:
    """Return how every run went, and the validation and test metrics of each."""
    cells = comparison["cells"]
    stages = list(dict.fromkeys(stage for cell in cells for stage in cell.get("seconds") or {}))
    which = ["Model", "Dataset", "Seed", "Status"]
    columns = [
        *(*which, "Epochs", "Best epoch", *(f"{stage.capitalize()}, s" for stage in stages)),
        *("Trained parameters", "Frozen parameters", "Memory, GiB", "GPU memory, GiB", "Device"),
    ]
    tables = [Table("Cost", columns, [[*_which(cell), *_cost(cell, stages)] for cell in cells], len(which))]
    for part, caption in (("test", "Test metrics"), ("valid", "Validation metrics of the best epoch")):
        metrics = list(dict.fromkeys(metric for cell in cells for metric in cell.get(part) or {}))
        if metrics:
            rows = [[*_which(cell), *(_metric((cell.get(part) or {}).get(name)) for name in metrics)] for cell in cells]
            tables.append(Table(caption, [*which, *map(metric_name, metrics)], rows, len(which)))
    return tables


def _which(cell: dict[str, Any]) -> list[Cell]:
    return [
        text(cell["label"]),
        text(cell["dataset"]),
        number(cell["seed"], str(cell["seed"])),
        Cell(cell["status"], cell["status"], failed=cell["status"] != "done"),
    ]


def _metric(value: float | None) -> Cell:
    return number(value, None if value is None else f"{value:.4f}")


def _cost(cell: dict[str, Any], stages: Iterable[str]) -> list[Cell]:
    seconds, parameters = cell.get("seconds") or {}, cell.get("parameters") or {}
    return [
        number(cell.get("epochs")),
        number(cell.get("best_epoch")),
        *(number(seconds.get(stage), None if stage not in seconds else f"{seconds[stage]:,.2f}") for stage in stages),
        *(number(parameters.get(name)) for name in ("trained", "frozen")),
        *(_gibibytes(cell.get(name)) for name in ("peak_memory_bytes", "peak_gpu_memory_bytes")),
        text(cell.get("device") or NOTHING),
    ]


def _gibibytes(size: float | None) -> Cell:
    return number(size, None if size is None else f"{size / 2**30:.2f}")


def _estimate(entry: dict[str, float] | None) -> Cell:
    if entry is None:
        return number(None)
    return Cell(f"{entry['mean']:.4f}", entry["mean"], (f"{entry['low']:.4f} to {entry['high']:.4f}",))


def text(value: Any) -> Cell:
    """Return a cell of text."""
    return Cell(str(value), str(value))


def number(value: float | None, shown: str | None = None) -> Cell:
    """Return a cell of a number, `shown` as given or in whole with separators; a dash for None."""
    if value is None:
        return Cell(NOTHING)
    return Cell(shown if shown is not None else f"{value:,}", value)


def signed(value: float, digits: int) -> str:
    """Return a number with its sign, a real minus."""
    return f"{value:+.{digits}f}".replace("-", "\u2212")


def probability(value: float) -> str:
    """Return a p-value in two digits."""
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}"
