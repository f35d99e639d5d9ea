"""How every plot looks, and how it is written: the same input gives the same bytes."""

import io
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from scipy.optimize import isotonic_regression

from recbole_llm.utils.files import replacing

_P = ParamSpec("_P")
_T = TypeVar("_T")

# Eight colours that stay apart (CIELAB distance above 13) for normal, protan, deutan and tritan sight, each with a
# contrast of at least 3 : 1 against its background; tests/plots/test_style.py computes both. The dark ones
# take the light ones' places where a page has a dark background.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#8427e0", "#14145f", "#5c0a24", "#cc5cf2", "#6b7280")
DARK_PALETTE = ("#56b4e9", "#f0853b", "#10a878", "#b06cf5", "#f3e36f", "#f7b6d2", "#9c5a3c", "#7388a3")
INK, MUTED, RULE = "#1c2024", "#5c6570", "#d5d9de"
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
_DASHES = ("-", "--", ":", "-.")

FONT_SIZE = 9.0  # points
_LINE = FONT_SIZE * 1.3 / 72  # inches of a line of a label
_STYLE: Any = {  # matplotlib types its keys one by one
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib
    "font.size": FONT_SIZE,
    "text.parse_math": False,  # a dollar sign in a label is a dollar sign
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": FONT_SIZE + 0.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.0,
    "figure.facecolor": "white",
    "svg.fonttype": "none",  # text stays text: it can be searched, copied and read aloud
    "svg.hashsalt": "recbole-llm",  # matplotlib's ids are random without one
}


@dataclass(frozen=True)
class Look:
    """How one label is drawn wherever it appears: never by colour alone."""

    colour: str
    marker: str
    dashes: str


def looks(labels: Sequence[str]) -> dict[str, Look]:
    """Return the look of every label, which its place in `labels` decides; hand in all, also for a part."""
    places = {label: place for place, label in enumerate(dict.fromkeys(labels))}
    return {
        label: Look(
            PALETTE[place % len(PALETTE)],
            _MARKERS[(place + place // len(PALETTE)) % len(_MARKERS)],  # another one when a colour is used again
            _DASHES[place // len(PALETTE) % len(_DASHES)],
        )
        for label, place in places.items()
    }


def styled(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Make `function` draw in the style of this module, and leave matplotlib's global settings alone."""

    @wraps(function)
    def inside(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        with mpl.rc_context(_STYLE):
            return function(*args, **kwargs)

    return inside


def panels(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure and its axes [rows][columns], each `width` by `height` inches with its labels."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, [list(row) for row in axes]


def grid(count: int, width: float = 4.8, height: float = 3.1) -> tuple[Figure, list[Axes]]:
    """Return a figure and `count` axes, at most two side by side."""
    columns = min(count, 2)
    rows = -(-count // columns)
    figure, axes = panels(rows, columns, width, height)
    flat = [ax for row in axes for ax in row]
    for ax in flat[count:]:
        ax.remove()
    return figure, flat[:count]


def metric_name(metric: str) -> str:
    """Return a metric as papers print it: ``ndcg@10`` as ``NDCG@10``."""
    name, at, cut = metric.partition("@")
    name = {"hit": "Hit", "recall": "Recall", "precision": "Precision"}.get(name, name.upper())
    return f"{name}{at}{cut}"


def plain_number(value: float, _position: int | None = None) -> str:
    """Return a number of an axis without powers of ten: 1,500,000 as 1.5M."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.4g}{letter}"
    return f"{value:.6g}"


def number_axis(
    ax: Axes, which: Literal["x", "y"], values: Sequence[float], ticks: bool = False, logarithmic: bool = True
) -> None:
    """Write plain numbers on an axis.

    Args:
        ax: with its data.
        which: axis.
        values: of the data.
        ticks: at the values themselves, if they are few.
        logarithmic: from a factor of 30 between the values on.
    """
    axis = ax.xaxis if which == "x" else ax.yaxis
    if logarithmic and values and min(values) > 0 and max(values) / min(values) >= 30:
        ax.set(**{f"{which}scale": "log"})
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=6))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(
            MaxNLocator(6, steps=[1, 2, 2.5, 5, 10], integer=all(float(v).is_integer() for v in values))
        )
    if ticks and len(set(values)) <= 8:
        axis.set_major_locator(FixedLocator(sorted(set(values))))
    axis.set_major_formatter(FuncFormatter(plain_number))


def wrapped(text: str, width: int = 26) -> str:
    """Return a label in lines of at most `width` characters; only a word that is longer by far is broken."""
    return textwrap.fill(text, width, break_long_words=len(text) > 3 * width)


def in_axes(ax: Axes, points: Sequence[tuple[float, float]]) -> np.ndarray:
    """Return where points of the data stand, [points, 2], as fractions of the axes with the data drawn so far."""
    ax.autoscale_view()  # matplotlib itself scales only when it draws
    return ax.transLimits.transform(ax.transScale.transform(points))


def height_of_labels(labels: Sequence[str]) -> float:
    """Return the inches that labels take right of the axes, one below the other."""
    return sum(wrapped(label).count("\n") + 1 for label in labels) * _LINE


def label_ends(ax: Axes, ends: Sequence[tuple[float, float, str, str]], height: float) -> None:
    """Write labels right of the axes, each at the height of its end as far as they do not touch.

    Args:
        ax: with its final data and scales.
        ends: x and y of the data, text, colour.
        height: of the axes without labels, in inches, roughly.
    """
    texts = [wrapped(text) for _, _, text, _ in ends]
    points = in_axes(ax, [(x, y) for x, y, _, _ in ends])
    order = np.lexsort((-np.arange(len(ends)), points[:, 1]))  # from below; the first of equal ends is the topmost
    lines = np.array([text.count("\n") + 1 for text in texts])[order]
    line = _LINE / height
    # Centres that keep their distance: the nearest such heights are an isotonic regression of what is left of each.
    gaps = np.concatenate([[0.0], np.cumsum((lines[1:] + lines[:-1]) / 2 * line)])
    free = np.clip(isotonic_regression(points[order, 1] - gaps).x, 0.0, max(0.0, 1.0 - gaps[-1]))
    places = free + gaps
    for index, place in zip(order, places, strict=True):
        x, y, _, colour = ends[index]
        ax.annotate(
            texts[index], (x, y), (1.05, float(place)), textcoords="axes fraction", color=colour, va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "relpos": (0, 0.5), "shrinkA": 1},
        )  # fmt: skip


@styled
def svg_text(figure: Figure, title: str) -> str:
    """Return a figure as SVG; `title` is what a screen reader says."""
    with mpl.rc_context({"svg.hashsalt": f"recbole-llm {title}"}):
        stream = io.StringIO()
        FigureCanvasSVG(figure).print_svg(stream, metadata={"Date": None, "Creator": None, "Title": title})
    return stream.getvalue()


@styled
def save(figure: Figure, folder: Path, name: str, title: str) -> tuple[Path, Path]:
    """Write ``<name>.png`` and ``<name>.svg`` and return their paths.

    Raises:
        StorageError: if the folder may not be written; neither file is then left half-written.
    """
    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    with replacing(png) as temporary:
        figure.savefig(temporary, format="png", dpi=200, metadata={"Software": None, "Title": title})
    with replacing(svg) as temporary:
        temporary.write_text(svg_text(figure, title), encoding="utf-8")
    return png, svg
