"""Columns of a comparison's table beside test metrics: what runs recorded, their number, intervals over users."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from recbole_llm.errors import SettingError, nearest

_SEEDS = "seeds"
_INTERVAL = "interval."
# What is measured among few candidates: a mean over rows and draws, and its deviation over the draws.
OF_CANDIDATES = ("candidates.hit@1", "candidates.valid_ratio")
_PLAIN = ("epochs", "best_epoch", "device", "backbone", "tuning", _SEEDS)
_METRICS = {"ndcg": "NDCG", "mrr": "MRR", "map": "MAP", "auc": "AUC", "gauc": "GAUC", "mae": "MAE", "rmse": "RMSE"}
_WORDS = {"ilp_accuracy": "ILP accuracy"}
_HEADS = dict(zip(OF_CANDIDATES, ("HitRatio@1", "ValidRatio"), strict=True))


def is_column(name: str) -> bool:
    """Tell whether `name` is no test metric: one of ``epochs``, ``seeds``, ..., or with a dot as ``valid.ndcg@10``."""
    return "." in name or name in _PLAIN


def interval_metrics(columns: Sequence[str]) -> list[str]:
    """Return the metrics whose interval over users is among `columns`, as ``interval.ndcg@10``."""
    return [column.removeprefix(_INTERVAL) for column in columns if column.startswith(_INTERVAL)]


def metric_name(metric: str) -> str:
    """Return a metric as papers write it: ``NDCG@10``."""
    name, at, cut = metric.partition("@")
    return _METRICS.get(name, name.capitalize()) + at + cut


def column_name(column: str) -> str:
    """Return the head of a column: ``NDCG@10``, ``Valid NDCG@10``, ``Fit, s``."""
    if not is_column(column):
        return metric_name(column)
    if column in _HEADS:
        return _HEADS[column]
    first, _, rest = column.partition(".")
    if column.startswith(_INTERVAL):
        return f"{metric_name(rest)}, 95% interval"
    if first == "seconds":
        return f"{rest.capitalize()}, s"
    words = [
        (metric_name(part) if "@" in part or part in _METRICS else _WORDS.get(part, part)).replace("_", " ")
        for part in column.split(".")
    ]
    name = " ".join(words)
    return f"ID{name[2:]}" if name.startswith("id ") else name[:1].upper() + name[1:]


def recorded(cell: dict[str, Any], column: str) -> Any:
    """Return what the run of a cell recorded, a dot leading into a mapping; None where it recorded nothing."""
    value: Any = {**(cell.get("extras") or {}), **cell}
    for part in column.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def require_columns(cells: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """Check that each column has a value in some run.

    Raises:
        SettingError: for a column that no finished run has.
    """
    done = [cell for cell in cells if cell["status"] == "done"]
    for column in columns:
        if column == _SEEDS or column.startswith(_INTERVAL) or not done:
            continue
        values = [recorded(cell, column) for cell in done]
        if all(value is None or (isinstance(value, dict) and not _over_draws(value)) for value in values):
            known = _known(done)
            raise SettingError(
                f"show={column} is nothing that the runs recorded{nearest(column, known)} They have {', '.join(known)}"
            )


def _known(cells: Sequence[dict[str, Any]]) -> list[str]:
    names = [name for name in _PLAIN if name != _SEEDS and any(recorded(cell, name) is not None for cell in cells)]
    for cell in cells:
        for first in ("valid", "seconds", "parameters", *(cell.get("extras") or {})):
            found = recorded(cell, first)
            names += [f"{first}.{name}" for name in found] if isinstance(found, dict) else []
    return list(dict.fromkeys([_SEEDS, *names]))


def column_values(comparison: dict[str, Any], dataset: str, label: str, column: str) -> list[Any]:
    """Return the values of a column that is no metric: one a run, or one for all; empty where there is none."""
    where = (dataset, label)
    cells = [cell for cell in comparison["cells"] if (cell["dataset"], cell["label"]) == where]
    done = [cell for cell in cells if cell["status"] == "done"]
    if column == _SEEDS:
        return [len(done)] if done else []
    if column.startswith(_INTERVAL):
        of_metric = [entry for entry in comparison["intervals"] if entry["metric"] == column.removeprefix(_INTERVAL)]
        found = [entry for entry in of_metric if (entry["dataset"], entry["label"]) == where]
        return [f"{entry['low']:.4f} to {entry['high']:.4f}" for entry in found]
    values = [recorded(cell, column) for cell in done]
    return [value for value in values if value is not None]


def _over_draws(value: Any) -> bool:
    """Tell whether a value is a mean and a deviation over draws of candidates."""
    return isinstance(value, dict) and {"mean", "std"} <= value.keys()


def candidate_columns(cells: Sequence[dict[str, Any]]) -> list[str]:
    """Return what all finished runs have among candidates, if one of them ranked nothing else; else nothing."""
    done = [cell for cell in cells if cell["status"] == "done"]
    if not done or all(cell["test"] for cell in done):
        return []
    return [column for column in OF_CANDIDATES if any(recorded(cell, column) is not None for cell in done)]


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and standard deviation over seeds; the latter is None for one value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def are_numbers(values: Sequence[Any]) -> bool:
    """Tell whether there is a mean of `values`."""
    return bool(values) and all(isinstance(value, int | float) for value in values)


def column_text(comparison: dict[str, Any], dataset: str, label: str, column: str) -> str:
    """Return one field: the mean over seeds, with the deviation of a metric; words as they are; empty for nothing."""
    values = column_values(comparison, dataset, label, column)
    if values and all(map(_over_draws, values)):
        if len(values) == 1:
            return f"{values[0]['mean']:.4f} ± {values[0]['std']:.4f}"
        values = [float(value["mean"]) for value in values]
    if not are_numbers(values):
        return ", ".join(dict.fromkeys(map(str, values)))
    mean, deviation = mean_and_deviation(values)
    if column.startswith("seconds."):
        return f"{mean:,.0f}" if mean >= 10 else f"{mean:.1f}"
    if all(isinstance(value, int) for value in values):
        return f"{mean:,.0f}" if mean.is_integer() else f"{mean:,.1f}"
    return f"{mean:.4f}" + ("" if deviation is None else f" ± {deviation:.4f}")
