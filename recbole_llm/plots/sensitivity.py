"""A metric against a numeric setting (IDLE-Adapter, Figure 3: against the length of the prompt)."""

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recbole_llm.errors import SettingError, nearest
from recbole_llm.plots.records import Point, Record, Results, differing, point
from recbole_llm.plots.style import MUTED, Look, grid, label_ends, looks, metric_name, number_axis, styled, wrapped
from recbole_llm.utils.files import read_yaml
from recbole_llm.utils.paths import shipped

_HEIGHT = 3.1


@styled
def sensitivity(results: Results, setting: str, metric: str) -> Figure:
    """Return one line per dataset, and a line of its own for every model, backbone and kind of tuning among the runs.

    Args:
        results: runs that differ in `setting` and in their seed alone, of one line each; seeds are averaged.
        setting: a setting with a number as its value.
        metric: of the test.

    Raises:
        SettingError: if no run has the setting, a value is no number, a line has no two values, or runs at one point
            differ in something else.
    """
    values = [(record, setting_value(record, setting)) for record in results.records]
    values = [(record, value) for record, value in values if value is not None]
    if not values:
        known = sorted({name for record in results.records for name in _settings(record)})
        raise SettingError(f"no run has the setting '{setting}'{nearest(setting, known)}")
    for record, value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise SettingError(f"{setting}={value} of {record.source} is not a number: such a plot needs numbers")
    ways = {(r.model, r.backbone, r.tuning) for r, _ in values}
    lines: dict[str, dict[float, list[Record]]] = {}
    for record, value in values:
        parts = [record.model, *([Path(record.backbone).name] if record.backbone else []), record.tuning]
        name = record.dataset if len(ways) == 1 else " ".join(str(p) for p in [f"{record.dataset},", *parts] if p)
        lines.setdefault(name, {}).setdefault(float(value), []).append(record)
    points = {
        name: [point(x, records, metric, setting) for x, records in sorted(by_value.items())]
        for name, by_value in lines.items()
    }
    if all(len(line) < 2 for line in points.values()):
        found = sorted({p.x for line in points.values() for p in line})
        raise SettingError(
            f"{setting} has no two values on one line of the plot (found: {', '.join(f'{x:g}' for x in found)}): "
            "give runs that differ in it"
        )
    figure, (ax,) = grid(1, 5.4, _HEIGHT)
    on_one_line = [[record for runs in by_value.values() for record in runs] for by_value in lines.values()]
    others = {name for runs in on_one_line for name in differing(runs, setting)}
    if others:  # such as a learning rate chosen again for every value: the reader must know
        ax.set_title(
            wrapped(f"these runs differ also in {', '.join(sorted(others))}", 60), color=MUTED, weight="normal"
        )
    draw_lines(ax, points, looks(list(points)))
    ax.set(xlabel=setting, ylabel=f"test {metric_name(metric)}")
    return figure


def draw_lines(ax: Axes, lines: dict[str, list[Point]], look: dict[str, Look], ticks: bool = True) -> None:
    """Draw a line a name with whiskers of one standard deviation over seeds, and write the names at their ends.

    `ticks` stand at the values themselves, else at round numbers.
    """
    ends = []
    for name, points in lines.items():
        style = look[name]
        xs, means = [p.x for p in points], [p.mean for p in points]
        spread = [p for p in points if p.deviation is not None]
        if spread:
            low, high = zip(*((p.mean - (p.deviation or 0), p.mean + (p.deviation or 0)) for p in spread), strict=True)
            ax.vlines([p.x for p in spread], low, high, color=style.colour, linewidth=1.2)
        ax.plot(xs, means, color=style.colour, marker=style.marker, linestyle=style.dashes, label=name)
        ends.append((xs[-1], means[-1], name, style.colour))
    number_axis(ax, "x", [p.x for points in lines.values() for p in points], ticks)
    number_axis(ax, "y", [p.mean for points in lines.values() for p in points], logarithmic=False)
    ax.margins(y=0.15)
    label_ends(ax, ends, _HEIGHT * 0.75)


def setting_value(record: Record, setting: str) -> Any:
    """Return the value of a setting in a run, a default where the run names none; None where the model has no such."""
    return _settings(record).get(setting)


def _settings(record: Record) -> dict[str, Any]:
    return {**_defaults(record.model, record.dataset), **record.settings}


@cache
def _defaults(model: str, dataset: str) -> dict[str, Any]:
    """Return the settings that a run has by default, in the order in which RecBole and this package lay them."""
    spec = find_spec("recbole")
    assert spec is not None and spec.origin is not None
    recbole = Path(spec.origin).parent / "properties"
    properties = shipped("properties")
    files: Sequence[Path] = (
        *(recbole / "overall.yaml", recbole / "model" / f"{model}.yaml", recbole / "dataset" / f"{dataset}.yaml"),
        *(properties / "overall.yaml", shipped("dataset_configs") / f"{dataset}.yaml"),
        properties / "model" / f"{model}.yaml",
    )
    return {name: value for file in files if file.is_file() for name, value in read_yaml(file).items()}
