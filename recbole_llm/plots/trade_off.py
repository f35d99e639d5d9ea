"""Speed against quality: how long a model trains, and what it reaches."""

import statistics

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recbole_llm.errors import SettingError
from recbole_llm.plots.records import Results, mean
from recbole_llm.plots.style import (
    FONT_SIZE,
    grid,
    in_axes,
    label_ends,
    looks,
    metric_name,
    number_axis,
    styled,
    wrapped,
)

_WIDTH, _HEIGHT = 4.8, 3.3  # inches of a panel
_BESIDE = 6  # points whose names find room beside them; names of more stand right of the panel
_NAME = 0.42  # inches of a name there, in two lines
_Box = tuple[float, float, float, float]


@styled
def trade_off(results: Results, metric: str) -> Figure:
    """Return one panel per dataset, with one point per label: seconds of training and test metric, means over seeds.

    Seconds are those of the stage ``fit``, and of ``pretrain`` where a run has it. If the runs were on different
    devices, each label names its own. More than six labels stand right of the panel, with lines to their points.

    Args:
        results: a comparison's, or runs.
        metric: of the test.

    Raises:
        SettingError: if there is no finished run, or two runs of one label have the same seed.
    """
    datasets = [name for name in results.datasets if results.of(name)]
    if not datasets:
        raise SettingError("no run is finished: there is no point to draw")
    devices = {record.device for record in results.records}
    where = f" on {next(iter(devices))}" if len(devices) == 1 else ""
    look = looks(results.labels)
    most = max(len({record.label for record in results.of(name)}) for name in datasets)
    height = _HEIGHT if most <= _BESIDE else max(_HEIGHT, most * _NAME)
    figure, axes = grid(len(datasets), _WIDTH if most <= _BESIDE else _WIDTH * 1.4, height)
    for dataset, ax in zip(datasets, axes, strict=True):
        points = []
        for label in results.labels:
            records = results.of(dataset, label)
            if not records:
                continue
            seconds = statistics.fmean(r.seconds.get("fit", 0.0) + r.seconds.get("pretrain", 0.0) for r in records)
            quality = mean(seconds, records, metric).mean
            style = look[label]
            ax.plot(
                [seconds], [quality], color=style.colour, marker=style.marker, markersize=8, linestyle="", label=label
            )
            own = "" if where else f" ({', '.join(sorted({r.device for r in records}))})"
            points.append((seconds, quality, label + own, style.colour))
        number_axis(ax, "x", [x for x, *_ in points])
        number_axis(ax, "y", [y for _, y, *_ in points], logarithmic=False)
        ax.margins(0.2, 0.18)
        if most <= _BESIDE:
            _name_points(ax, points)
        else:
            label_ends(ax, points, height * 0.78)
        ax.set(title=dataset, xlabel=f"training, seconds{where}", ylabel=f"test {metric_name(metric)}")
    return figure


def _name_points(ax: Axes, points: list[tuple[float, float, str, str]]) -> None:
    """Write each name beside its point, on the side where it covers least of other names, points and the edge."""
    places = in_axes(ax, [(x, y) for x, y, *_ in points])
    em = (FONT_SIZE / 72 / (_WIDTH * 0.82), FONT_SIZE / 72 / (_HEIGHT * 0.78))
    taken: list[_Box] = [(px - em[0] / 2, py - em[1] / 2, px + em[0] / 2, py + em[1] / 2) for px, py in places]
    for (x, y, name, colour), (px, py) in zip(points, places, strict=True):
        text = wrapped(name)
        lines = text.split("\n")
        width, height = max(map(len, lines)) * 0.6 * em[0], len(lines) * 1.25 * em[1]
        candidates: dict[tuple[str, str], _Box] = {
            ("left", "center"): (px + em[0], py - height / 2, px + em[0] + width, py + height / 2),
            ("right", "center"): (px - em[0] - width, py - height / 2, px - em[0], py + height / 2),
            ("center", "bottom"): (px - width / 2, py + em[1], px + width / 2, py + em[1] + height),
            ("center", "top"): (px - width / 2, py - em[1] - height, px + width / 2, py - em[1]),
        }
        side = min(candidates, key=lambda key: _covered(candidates[key], taken))
        taken.append(candidates[side])
        offset = {"left": (8, 0), "right": (-8, 0), "bottom": (0, 7), "top": (0, -7)}
        shift = offset[side[0] if side[1] == "center" else side[1]]
        ax.annotate(
            text, (x, y), shift, textcoords="offset points", color=colour, ha=side[0], va=side[1], annotation_clip=False
        )


def _covered(box: _Box, taken: list[_Box]) -> float:
    left, low, right, high = box
    outside = max(0.0, -left) + max(0.0, right - 1) + max(0.0, -low) + max(0.0, high - 1)
    shared = sum(
        max(0.0, min(right, x1) - max(left, x0)) * max(0.0, min(high, y1) - max(low, y0)) for x0, y0, x1, y1 in taken
    )
    return shared + outside * (high - low)
