"""Who gains: a metric by how popular the target is, how long the history is, and how long the item's text is."""

import textwrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from recbole_llm.errors import SettingError
from recbole_llm.plots.records import Results, printable
from recbole_llm.plots.style import (
    INK,
    Look,
    height_of_labels,
    label_ends,
    looks,
    metric_name,
    panels,
    plain_number,
    styled,
)

WAYS = {
    "popularity": "by popularity of the target",
    "history_length": "by length of the history",
    "text_length": "by length of the item's text",
}
_HEIGHT, _AROUND = 3.1, 1.0  # inches of a panel, at least, and of what stands above and below its axes
_SPREAD = 0.5  # how much of a group's width its points take


@styled
def groups(results: Results, metric: str) -> Figure:
    """Return one panel per dataset and way to group, with a point and its interval per label and group.

    Args:
        results: a comparison's, which has groups.
        metric: of the groups.

    Raises:
        SettingError: if there are no groups with `metric`.
    """
    entries = [entry for entry in results.groups if metric in entry["metrics"]]
    if not entries:
        raise SettingError(
            f"there are no groups of targets with {metric}: they are in a comparison whose runs kept their ranks"
        )
    parts = list(dict.fromkeys((entry["dataset"], entry["by"]) for entry in entries))
    height = max(_HEIGHT, height_of_labels(results.labels) + _AROUND)
    figure, rows = panels(len(parts), 1, 5.4, height)
    for (dataset, way), (ax,) in zip(parts, rows, strict=True):
        here = [entry for entry in entries if (entry["dataset"], entry["by"]) == (dataset, way)]
        _draw(ax, here, results.labels, metric, height - _AROUND)
        title = f"{dataset}, {WAYS.get(way, printable(way))}"
        ax.set(title=title, ylabel=f"test {metric_name(metric)}")
    return figure


def _draw(ax: Axes, entries: list[dict[str, Any]], labels: list[str], metric: str, height: float) -> None:
    look = looks(labels)
    order = {entry["group"]: entry["order"] for entry in entries}
    names = sorted(order, key=lambda name: order[name])
    targets = {entry["group"]: entry["targets"] for entry in entries}
    drawn = [label for label in labels if any(entry["label"] == label for entry in entries)]
    ends = []
    for number, label in enumerate(drawn):
        shift = _SPREAD * ((number + 0.5) / len(drawn) - 0.5)
        ordered = sorted((e for e in entries if e["label"] == label), key=lambda e: e["order"])
        places = [names.index(entry["group"]) + shift for entry in ordered]
        ends.append(_line(ax, places, [entry["metrics"][metric] for entry in ordered], label, look[label]))
    ticks = [f"{textwrap.fill(printable(name), 14)}\n({plain_number(targets[name])})" for name in names]
    ax.set_xticks(range(len(names)), ticks)
    ax.set_xlabel("group (number of targets)")
    ax.tick_params(axis="x", length=0, labelcolor=INK)
    ax.grid(axis="x", visible=False)
    ax.set_xlim(-0.5, len(names) - 0.5)
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_locator(MaxNLocator(nbins=5))
    ax.yaxis.set_major_formatter(FuncFormatter(plain_number))
    label_ends(ax, ends, height)


def _line(
    ax: Axes, places: list[float], values: list[dict[str, float]], label: str, style: Look
) -> tuple[float, float, str, str]:
    means = [value["mean"] for value in values]
    ax.vlines(
        places, [value["low"] for value in values], [value["high"] for value in values],
        color=style.colour, linewidth=1.2,
    )  # fmt: skip
    ax.plot(places, means, color=style.colour, marker=style.marker, linestyle=style.dashes, linewidth=0.7, label=label)
    return places[-1], means[-1], label, style.colour
