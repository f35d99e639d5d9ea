"""What pre-training gives: by its datasets (ST2SI, Figures 3 and 4) and by its epochs (Figure 5)."""

from collections import Counter

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from recbole_llm.errors import SettingError
from recbole_llm.plots.records import Record, Results, point
from recbole_llm.plots.sensitivity import draw_lines, setting_value
from recbole_llm.plots.style import INK, MUTED, grid, looks, metric_name, plain_number, styled

# What follows from the sources and the epochs of a pre-training, or belongs to them.
_OF_PRETRAINING = (
    *("pretrain_datasets", "pretrain_epochs", "pretrain_save_epochs", "pretrained_backbone", "pretrain_seed"),
    *("pretrained_state", "pretrain_learning_rate", "learning_rate"),
)
_NONE = "none"


def sources_of(record: Record) -> str:
    """Return the datasets of a run's pre-training, as ``Food + Cell``, or ``none``."""
    value = setting_value(record, "pretrain_datasets")
    names = value.split(",") if isinstance(value, str) else value or ()
    return " + ".join(str(name).strip() for name in names) or _NONE


def epochs_of(record: Record) -> int:
    """Return after how many epochs of pre-training the backbone was taken; 0 without one."""
    if sources_of(record) == _NONE:
        return 0
    saved = setting_value(record, "pretrain_save_epochs")
    if isinstance(saved, str):
        saved = [int(epoch) for epoch in saved.split(",")]
    if isinstance(saved, list) and saved:
        return max(saved)
    return saved or setting_value(record, "pretrain_epochs")


def pretraining(results: Results, metric: str) -> dict[str, Figure]:
    """Return the figures that the runs suffice for: ``sets`` and ``epochs``.

    Args:
        results: runs of a model that can be pre-trained.
        metric: of the test.

    Raises:
        SettingError: if they suffice for none, or runs at one point differ in something else.
    """
    records = [r for r in results.records if r.backbone]
    figures = {"sets": _sets(records, metric), "epochs": _epochs(records, metric)}
    found = {name: figure for name, figure in figures.items() if figure is not None}
    if not found:
        raise SettingError(
            "no two runs on one dataset differ in pretrain_datasets, or in the epochs of their pre-training: "
            "give runs that do"
        )
    return found


@styled
def _sets(records: list[Record], metric: str) -> Figure | None:
    """Draw bars by target and sources, one panel per kind of tuning."""
    pretrained = Counter(epochs_of(r) for r in records if sources_of(r) != _NONE)
    if not pretrained:
        return None
    # Of one length, so that bars differ in their sources alone: the length that most runs have.
    length = max(pretrained, key=lambda epochs: (pretrained[epochs], epochs))
    records = [r for r in records if epochs_of(r) in (0, length)]
    ways: dict[str, dict[str, dict[str, list[Record]]]] = {}
    for record in records:
        by_target = ways.setdefault(_way(record), {})
        by_target.setdefault(record.dataset, {}).setdefault(sources_of(record), []).append(record)
    ways = {way: by_target for way, by_target in ways.items() if any(len(s) > 1 for s in by_target.values())}
    if not ways:
        return None
    names = sorted({sources_of(r) for r in records}, key=lambda name: (name != _NONE, name.count("+"), name))
    look = looks(names)
    figure, axes = grid(len(ways))
    for (way, by_target), ax in zip(ways.items(), axes, strict=True):
        width = 0.8 / len(names)
        for number, name in enumerate(names):
            heights = [
                point(0, by_source[name], metric, *_OF_PRETRAINING).mean if name in by_source else np.nan
                for by_source in by_target.values()
            ]
            places = np.arange(len(by_target)) + (number + 0.5) * width - 0.4
            ax.bar(places, heights, width * 0.92, color=look[name].colour, label=name)
        ax.set_xticks(range(len(by_target)), list(by_target))
        ax.tick_params(axis="x", length=0, labelcolor=INK)
        ax.grid(axis="x", visible=False)
        ax.yaxis.set_major_locator(MaxNLocator(nbins=5))
        ax.yaxis.set_major_formatter(FuncFormatter(plain_number))
        ax.set(title=way, ylabel=f"test {metric_name(metric)}")
    handles, shown = axes[0].get_legend_handles_labels()
    legend = figure.legend(
        handles, shown, title=f"pre-trained on ({length} epochs)", loc="outside lower left", ncols=len(names),
        frameon=False, alignment="left", handlelength=1.0, columnspacing=1.2,
    )  # fmt: skip
    legend.get_title().set_color(MUTED)
    return figure


@styled
def _epochs(records: list[Record], metric: str) -> Figure | None:
    """Draw one line per target, and a line of its own for every set of sources and kind of tuning."""
    lines: dict[tuple[str, str, str], dict[float, list[Record]]] = {}
    for record in records:
        if sources_of(record) != _NONE:
            key = (record.dataset, sources_of(record), _way(record))
            lines.setdefault(key, {}).setdefault(float(epochs_of(record)), []).append(record)
    lines = {key: by_epochs for key, by_epochs in lines.items() if len(by_epochs) > 1}
    if not lines:
        return None
    columns = list(zip(*lines, strict=True))
    shown = [number for number in range(3) if number == 0 or len(set(columns[number])) > 1]
    points = {
        ", ".join(key[number] for number in shown): [
            point(x, runs, metric, *_OF_PRETRAINING) for x, runs in sorted(by_epochs.items())
        ]
        for key, by_epochs in lines.items()
    }
    figure, (ax,) = grid(1, 5.4)
    draw_lines(ax, points, looks(list(points)))
    title = ", ".join(columns[number][0] for number in (1, 2) if number not in shown)
    ax.set(title=title, xlabel="epochs of pre-training", ylabel=f"test {metric_name(metric)}")
    return figure


def _way(record: Record) -> str:
    return " ".join(str(part) for part in (record.model, record.tuning, record.backbone) if part)
