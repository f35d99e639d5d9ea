"""A metric against the size of the language model, one line per system through language models of all families."""

import operator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from recbole_llm.errors import SettingError
from recbole_llm.plots.backbones import best_without, draw_best_without, point_at_size
from recbole_llm.plots.records import Point, Record, Results
from recbole_llm.plots.style import Look, grid, label_ends, looks, metric_name, number_axis, plain_number, styled

_HEIGHT = 3.4
_NEAREST = 1.12  # ticks of sizes that are closer than by this factor would cover each other
CONTROL = "random-"
"""How the name of a language model begins that has random weights: the control of one with learned weights."""


@dataclass(frozen=True)
class _Size:
    backbone: str
    point: Point
    runs: list[Record]


@styled
def scaling(results: Results, metric: str) -> Figure:
    """Return one panel per dataset: test metric against all parameters, trained and frozen, on a logarithmic axis.

    A line joins the language models of one system (model and tuning) in the order of their sizes, whatever their
    family, and names them at its points; those whose name begins with ``random-`` have a line of their own. The best
    run without a language model is a dashed line.

    Args:
        results: runs with language models of different sizes; seeds are averaged.
        metric: of the test.

    Raises:
        SettingError: if no system has two sizes, or runs at one point differ in something else.
    """
    systems = _systems(results, metric)
    look = looks([name for lines in systems.values() for name in lines])
    figure, axes = grid(len(systems), 6.0, _HEIGHT)
    for (dataset, lines), ax in zip(systems.items(), axes, strict=True):
        draw_best_without(ax, results.of(dataset), metric)
        _draw(ax, lines, look)
        ax.set(title=dataset, xlabel="parameters, trained and frozen", ylabel=f"test {metric_name(metric)}")
    return figure


def scaling_points(results: Results, metric: str) -> list[dict[str, Any]]:
    """Return what `scaling` draws: one mapping per point, and one per dataset for the best without a language model.

    Each has dataset, system, backbone, parameters (None for the best without), metric, mean and deviation over seeds
    (None for one seed or the best without), and the names of its runs.

    Args:
        results: as for `scaling`.
        metric: of the test.

    Raises:
        SettingError: as `scaling`.
    """
    found: list[dict[str, Any]] = []
    for dataset, lines in _systems(results, metric).items():
        for system, sizes in lines.items():
            for size in sizes:
                numbers = {"mean": size.point.mean, "deviation": size.point.deviation}
                named = {"dataset": dataset, "system": system, "backbone": size.backbone}
                sources = [record.source for record in size.runs]
                found.append({**named, "parameters": int(size.point.x), "metric": metric, **numbers, "runs": sources})
        reference = best_without(results.of(dataset), metric)
        if reference is not None:
            own = [record.source for record in results.of(dataset, reference[0])]
            named = {"dataset": dataset, "system": reference[0]}
            numbers = {"mean": reference[1], "deviation": None}
            found.append({**named, "backbone": None, "parameters": None, "metric": metric, **numbers, "runs": own})
    return found


def _systems(results: Results, metric: str) -> dict[str, dict[str, list[_Size]]]:
    """Return by dataset and system what is drawn of each language model, the smallest first."""
    found = {name: _lines(results.of(name), metric) for name in results.datasets}
    found = {name: lines for name, lines in found.items() if any(len(sizes) > 1 for sizes in lines.values())}
    if not found:
        raise SettingError(
            "no two runs of one model and tuning on one dataset have language models of different sizes, such as "
            "backbone=smollm2-135m and backbone=opt-350m: give runs of both"
        )
    return found


def _lines(records: list[Record], metric: str) -> dict[str, list[_Size]]:
    by_name: dict[str, dict[str, list[Record]]] = {}
    for record in records:
        if record.backbone:
            name = Path(record.backbone).name
            parts = [record.model, record.tuning, "random weights" if name.startswith(CONTROL) else None]
            system = ", ".join(str(part) for part in parts if part)
            by_name.setdefault(system, {}).setdefault(name, []).append(record)
    lines = {}
    for system, runs_of in by_name.items():
        sizes = [_Size(name, point_at_size(runs, metric), runs) for name, runs in runs_of.items()]
        lines[system] = sorted(sizes, key=operator.attrgetter("point.x"))
    return lines


def _draw(ax: Axes, lines: dict[str, list[_Size]], look: dict[str, Look]) -> None:
    ax.set_xscale("log")
    ends = []
    for system, sizes in lines.items():
        style = look[system]
        xs, means = [size.point.x for size in sizes], [size.point.mean for size in sizes]
        spread = [size.point for size in sizes if size.point.deviation is not None]
        if spread:
            ends_of = [(p.mean - (p.deviation or 0), p.mean + (p.deviation or 0)) for p in spread]
            ax.vlines([p.x for p in spread], *zip(*ends_of, strict=True), color=style.colour, linewidth=1.2)
        ax.plot(xs, means, color=style.colour, marker=style.marker, linestyle=style.dashes, label=system)
        for place, size in enumerate(sizes):
            beside = [means[n] for n in (place - 1, place + 1) if 0 <= n < len(means)]
            low = bool(beside) and sum(beside) / len(beside) > size.point.mean  # the line leaves it upwards
            ax.annotate(
                size.backbone.removeprefix(CONTROL), (size.point.x, size.point.mean), (0, -8 if low else 7),
                textcoords="offset points", color=style.colour, ha="center", va="top" if low else "bottom",
                annotation_clip=False,
            )  # fmt: skip
        ends.append((xs[-1], means[-1], system, style.colour))
    values = sorted({size.point.x for sizes in lines.values() for size in sizes})
    apart = [x for n, x in enumerate(values) if n == 0 or x / values[n - 1] >= _NEAREST]
    ax.xaxis.set_major_locator(FixedLocator(apart))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(_rounded))
    number_axis(ax, "y", [size.point.mean for sizes in lines.values() for size in sizes], logarithmic=False)
    ax.margins(x=0.2, y=0.25)
    label_ends(ax, ends, _HEIGHT * 0.75)


def _rounded(value: float, _position: int | None = None) -> str:
    """Return a number of parameters with three digits: 137,017,728 as 137M."""
    return plain_number(float(f"{value:.3g}"))
