"""From the cells of a comparison to what its tables, plots and report show."""

import logging
import platform
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np
import pandas as pd
from recbole.evaluator.register import smaller_metrics

from recbole_llm.comparison.collect import Collected
from recbole_llm.comparison.columns import (
    candidate_columns,
    interval_metrics,
    is_column,
    mean_and_deviation,
    require_columns,
)
from recbole_llm.comparison.groups import group_metrics, read_facts
from recbole_llm.comparison.significance import bootstrap_means, compare_pairs, percentiles
from recbole_llm.comparison.user_values import has_user_values, mean_over_seeds, ranked_together, user_values
from recbole_llm.config.paper import printed_values
from recbole_llm.errors import RecBoleLLMError, SettingError, nearest

_PACKAGES = ("recbole", "torch", "transformers", "peft", "tokenizers", "numpy", "scipy", "pandas", "scikit-learn")
_ROUNDING = 5e-4  # several times that of RecBole's four decimals
_Runs = Sequence[Collected]  # of one label on one dataset, all with ranks


def analyse(
    collected: Sequence[Collected],
    show: Sequence[str] = (),
    ours: Sequence[str] = (),
    baselines: Sequence[str] = (),
    papers: bool = False,
    significance: bool = True,
    data_path: str | None = None,
) -> dict[str, Any]:
    """Return what `comparison.json` holds beside its version, time and command.

    Args:
        collected: the cells in the order of the table; all of one dataset were measured by one protocol.
        show: metrics of the table and other columns (`comparison.columns`); empty: see `shown_metrics`, or HitRatio@1
            and ValidRatio where a run has nothing else.
        ours: labels; empty: see `sides`.
        baselines: labels; empty: see `sides`.
        papers: whether to add what the papers print.
        significance: whether to add tests and intervals over users and metrics by group, and the improvement of our
            models if `ours` names none.
        data_path: where the datasets are; None: where the runs found them.

    Raises:
        SettingError: for an unknown metric or label.
    """
    cells = [found.entry for found in collected]
    datasets = list(dict.fromkeys(cell["dataset"] for cell in cells))
    labels = list(dict.fromkeys(cell["label"] for cell in cells))
    # Where one of the runs ranked nothing but lists of candidates, these are what all have in common.
    among_candidates = [] if show else candidate_columns(cells)
    metrics = [] if among_candidates else shown_metrics(cells, show)
    require_columns(cells, [name for name in show if is_column(name)])
    ours, baselines = sides(collected, ours, baselines, by_default=significance)
    summary = _summary(cells, datasets, labels, metrics)
    analysis: dict[str, Any] = {
        "datasets": datasets,
        "models": labels,
        "ours": ours,
        "baselines": baselines,
        "metrics": metrics,
        "columns": list(show or among_candidates or metrics),
        "seeds": sorted({cell["seed"] for cell in cells}),
        "cells": cells,
        "summary": summary,
        "significance": [],
        "intervals": [],
        "groups": [],
        "repeatable": {dataset: _repeatable(cells, dataset) for dataset in datasets},
        "counts": {dataset: _counts(cells, dataset) for dataset in datasets},
        "packages": _packages(),
        "papers": printed_values(datasets) if papers else None,
        "notes": [found.note for found in collected if found.note is not None],
    }
    tested = [metric for metric in metrics if has_user_values(metric)] if significance else []
    measured = list(dict.fromkeys([*tested, *interval_metrics(show)]))
    by_target: set[tuple[str, str]] = set()
    for dataset in datasets if measured else ():
        here = [found for found in collected if found.entry["dataset"] == dataset]
        by_target |= _add_values_of_users(analysis, here, measured, tested, data_path)
    _add_marks(summary, analysis["significance"], ours, baselines)
    analysis["notes"] += _differences(summary, analysis["intervals"], by_target)
    return analysis


def _add_values_of_users(
    analysis: dict[str, Any],
    collected: Sequence[Collected],
    measured: Sequence[str],
    tested: Sequence[str],
    data_path: str | None,
) -> set[tuple[str, str]]:
    """Add tests, intervals and groups of one dataset; return dataset and label where each target has its own list."""
    runs = _runs_with_ranks(collected, analysis["notes"])
    if not runs:
        return set()
    dataset = collected[0].entry["dataset"]
    _add_users(analysis, dataset, runs, measured, tested, analysis["ours"])
    if tested:
        _add_groups(analysis, dataset, runs, tested, _data_settings(collected, data_path))
    return {(dataset, label) for label, of_label in runs.items() if _has_lists_by_target(of_label)}


def shown_metrics(cells: Sequence[dict[str, Any]], show: Sequence[str]) -> list[str]:
    """Return the metrics of the table: `show`, else NDCG and Recall at the largest cut-off and MRR, else all there are.

    Raises:
        SettingError: if no run has such a metric.
    """
    known = list(dict.fromkeys(name for cell in cells for name in cell["test"]))
    wanted = [name for name in show if not is_column(name)]
    for name in [*wanted, *interval_metrics(show)]:
        if known and name not in known:
            raise SettingError(
                f"show={name} is no metric of the runs{nearest(name, known)} They have {', '.join(known)}"
            )
    for name in interval_metrics(show):
        if not has_user_values(name):
            raise SettingError(f"show=interval.{name}: {name} has no value of one user, and so no interval over users")
    if show:
        return wanted
    cut = max((int(name.partition("@")[2]) for name in known if "@" in name), default=0)
    return [name for name in (f"ndcg@{cut}", f"recall@{cut}", "mrr") if name in known] or known


def sides(
    collected: Sequence[Collected], ours: Sequence[str], baselines: Sequence[str], by_default: bool = True
) -> tuple[list[str], list[str]]:
    """Return our labels and the baselines: by default, models that read text, and all others.

    Args:
        collected: the cells of the comparison.
        ours: labels; empty: those that read text, or none without `by_default`.
        baselines: labels; empty: all that are not ours.
        by_default: whether models are ours that nobody named.

    Raises:
        SettingError: for a label that is not compared.
    """
    labels = list(dict.fromkeys(found.entry["label"] for found in collected))
    for option, names in (("ours", ours), ("baselines", baselines)):
        for name in names:
            if name not in labels:
                raise SettingError(f"{option}={name} is not compared{nearest(name, labels)}")
    text_readers = {found.entry["label"] for found in collected if found.reads_text}
    defaults = [name for name in labels if name in text_readers and name not in baselines] if by_default else []
    chosen = ours or defaults
    return list(chosen), list(baselines or [name for name in labels if name not in chosen])


def _summary(
    cells: Sequence[dict[str, Any]], datasets: Sequence[str], labels: Sequence[str], metrics: Sequence[str]
) -> list[dict[str, Any]]:
    """Return one entry per dataset, label and metric that has a value, the best and second-best marked."""
    entries = []
    for dataset in datasets:
        for metric in metrics:
            means: list[dict[str, Any]] = []
            for label in labels:
                chosen = [cell for cell in cells if (cell["dataset"], cell["label"]) == (dataset, label)]
                values = [cell["test"][metric] for cell in chosen if metric in cell["test"]]
                if values:
                    mean, deviation = mean_and_deviation(values)
                    of_seeds = {"mean": mean, "deviation": deviation, "seeds": len(values)}
                    means.append({"dataset": dataset, "label": label, "metric": metric, **of_seeds})
            ordered = sorted({entry["mean"] for entry in means})
            if metric.partition("@")[0] not in smaller_metrics:
                ordered.reverse()
            for entry in means:
                place = ordered.index(entry["mean"])
                entries.append({**entry, "best": place == 0, "second": place == 1, "improvement": None, "mark": ""})
    return entries


def _add_marks(
    summary: list[dict[str, Any]], significance: list[dict[str, Any]], ours: Sequence[str], baselines: Sequence[str]
) -> None:
    """Set the improvement of our models over the best baseline, and its mark if it is one."""
    for entry in summary:
        where = (entry["dataset"], entry["metric"])
        others = [e for e in summary if (e["dataset"], e["metric"]) == where and e["label"] in baselines]
        if entry["label"] not in ours or not others:
            continue
        sign = -1 if entry["metric"].partition("@")[0] in smaller_metrics else 1
        best = max(others, key=lambda other: sign * other["mean"])
        if best["mean"]:
            entry["improvement"] = sign * 100 * (entry["mean"] - best["mean"]) / best["mean"]
        for test in significance:
            pair = {test["label"], test["against"]}
            if (test["dataset"], test["metric"]) == where and pair == {entry["label"], best["label"]}:
                gain = test["difference"] if test["label"] == entry["label"] else -test["difference"]
                entry["mark"] = test["mark"] if gain > 0 else ""


def _has_lists_by_target(runs: _Runs) -> bool:
    ranks = _ranks(runs[0])
    return bool(ranks["user"].duplicated().any()) and not ranked_together(runs[0].is_sequential, ranks)


def _ranks(run: Collected) -> pd.DataFrame:
    assert run.ranks is not None
    return run.ranks


def _differences(
    summary: list[dict[str, Any]], intervals: list[dict[str, Any]], by_target: set[tuple[str, str]]
) -> list[str]:
    """Return a note for each label whose values in the table differ from what its ranks give, by more than rounding.

    Args:
        summary: of `comparison.json`.
        intervals: likewise.
        by_target: dataset and label if users have several targets, each with a ranked list of its own.
    """
    means = {(entry["dataset"], entry["label"], entry["metric"]): entry["mean"] for entry in intervals}
    differing: dict[tuple[str, str], list[str]] = {}
    for entry in summary:
        found = means.get((entry["dataset"], entry["label"], entry["metric"]), entry["mean"])
        if abs(found - entry["mean"]) > _ROUNDING:
            values = f"{entry['metric']} {entry['mean']:.4f} and {found:.4f}"
            differing.setdefault((entry["dataset"], entry["label"]), []).append(values)
    several = (
        "has several targets a user. The table weighs every target alike, as RecBole does; tests and intervals weigh "
        "every user alike"
    )
    tied = (
        "gives many items the same score. RecBole puts them in an arbitrary order, as does the table; tests, intervals "
        "and groups count a tie against the target"
    )
    return [
        f"{label} on {dataset} {several if (dataset, label) in by_target else tied}: {', '.join(values)}"
        for (dataset, label), values in differing.items()
    ]


def _runs_with_ranks(collected: Sequence[Collected], notes: list[str]) -> dict[str, list[Collected]]:
    """Return the finished runs of one dataset by label; a label of which a run has no ranks gets a note instead."""
    by_label: dict[str, list[Collected]] = {}
    for found in collected:
        if found.entry["status"] == "done":
            by_label.setdefault(found.entry["label"], []).append(found)
    runs = {label: done for label, done in by_label.items() if all(found.ranks is not None for found in done)}
    for label, done in by_label.items():
        if label not in runs:
            where = f"{label} on {done[0].entry['dataset']}"
            notes.append(f"{where}: a run has no ranks, so no tests, intervals and groups are given")
    return runs


def _data_settings(collected: Sequence[Collected], data_path: str | None) -> dict[str, Any]:
    """Return the settings of a run of one dataset, from which the dataset can be built: of one that reads text, if any.

    Args:
        collected: the cells of the dataset.
        data_path: where the dataset is; None: where the run found it.
    """
    ordered = sorted(collected, key=lambda found: not found.reads_text)
    settings = next((found.settings for found in ordered if found.settings is not None), {})
    return settings if data_path is None else {**settings, "data_path": data_path}


def _add_users(
    analysis: dict[str, Any],
    dataset: str,
    runs: dict[str, list[Collected]],
    metrics: Sequence[str],
    tested: Sequence[str],
    ours: Sequence[str],
) -> None:
    """Add the intervals over users of `metrics`, and the tests of those that are `tested`."""
    tables = {}
    for label, of_label in runs.items():
        tables[label] = mean_over_seeds([_user_values(run, metrics) for run in of_label])
    # ours first, so that a difference is what ours gain
    labels = sorted(tables, key=lambda label: label not in ours)
    columns = [tables[label][metric].to_numpy() for metric in metrics for label in labels]
    # Drawing users takes longest, so that all metrics share the draws.
    drawn = bootstrap_means(np.stack(columns, axis=1)) if columns else np.empty((0, 0))
    for place, metric in enumerate(metrics):
        own = slice(place * len(labels), (place + 1) * len(labels))
        values, means = np.stack(columns[own], axis=1), drawn[:, own]
        for pair in compare_pairs(labels, values, means) if metric in tested else ():
            analysis["significance"].append({"dataset": dataset, "metric": metric, **vars(pair)})
        low, high = percentiles(means)
        for n, label in enumerate(labels):
            bounds = {"mean": float(values[:, n].mean()), "low": float(low[n]), "high": float(high[n])}
            analysis["intervals"].append({"dataset": dataset, "label": label, "metric": metric, **bounds})


def _user_values(run: Collected, metrics: Sequence[str]) -> pd.DataFrame:
    ranks = _ranks(run)
    return user_values(ranks, metrics, ranked_together(run.is_sequential, ranks))


def _add_groups(
    analysis: dict[str, Any],
    dataset: str,
    runs: dict[str, list[Collected]],
    metrics: Sequence[str],
    settings: dict[str, Any],
) -> None:
    try:
        facts = read_facts(settings)
        groups = group_metrics(facts, {label: [_ranks(run) for run in runs[label]] for label in runs}, metrics)
    except RecBoleLLMError as error:
        analysis["notes"].append(f"{dataset}: metrics by group are left out: {error}")
        return
    analysis["groups"] += [{"dataset": dataset, **group} for group in groups]
    if facts.text_length is None:
        analysis["notes"].append(f"{dataset}: metrics by length of text are left out: its items have no text here")


def _repeatable(cells: Sequence[dict[str, Any]], dataset: str) -> bool | None:
    """Return whether what users met before is ranked in the numbers of a dataset; None without any."""
    here = (cell.get("repeatable") for cell in cells if cell["dataset"] == dataset and cell["status"] == "done")
    return next(here, None)


def _counts(cells: Sequence[dict[str, Any]], dataset: str) -> dict[str, int]:
    """Return the largest of the runs' counts: a general model also trains on a user's first interaction."""
    counts = [cell["counts"] for cell in cells if cell["dataset"] == dataset and cell["counts"]]
    return {name: max(count[name] for count in counts) for name in (counts[0] if counts else ())}


def _packages() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            logging.getLogger().debug("%s is not installed", name)
    return found
