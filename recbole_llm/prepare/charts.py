"""Two kinds of chart as inline SVG. Colours come from the page's CSS classes, so they follow dark mode."""

from collections.abc import Sequence
from html import escape

_WIDTH, _HEIGHT = 440, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 10, 12, 40


def _short(number: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:g}"


def _frame(label: str, inside: list[str], x_title: str, y_title: str) -> str:
    base, middle = _HEIGHT - _BOTTOM, (_LEFT + _WIDTH - _RIGHT) / 2
    axes = [
        f'<line class="axis" x1="{_LEFT}" y1="{base}" x2="{_WIDTH - _RIGHT}" y2="{base}"/>',
        f'<text x="{middle:.0f}" y="{_HEIGHT - 4}" text-anchor="middle">{escape(x_title)}</text>',
        f'<text x="4" y="{_TOP - 1}">{escape(y_title)}</text>',
    ]
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label, quote=True)}">'
        + "".join(axes + inside)
        + "</svg>"
    )


def bars(label: str, values: Sequence[tuple[str, int]], x_title: str, y_title: str) -> str:
    """Return a bar chart of (name, height) pairs; names are thinned out where they would overlap."""
    top = max((height for _, height in values), default=0) or 1
    base, room = _HEIGHT - _BOTTOM, _HEIGHT - _BOTTOM - _TOP - 10
    step = (_WIDTH - _LEFT - _RIGHT) / max(1, len(values))
    longest = max((len(name) for name, _ in values), default=1)
    every = max(1, -(-longest * 8 // max(1, int(step))))
    drawn = [_level(base - room, _short(top)), _level(base - room / 2, _short(top / 2))]
    for place, (name, height) in enumerate(values):
        x, tall = _LEFT + place * step, room * height / top
        drawn.append(
            f'<rect class="mark" x="{x + step * 0.1:.1f}" y="{base - tall:.1f}" width="{step * 0.8:.1f}" '
            f'height="{tall:.1f}"><title>{escape(name)}: {height:,}</title></rect>'
        )
        if place % every == 0:
            drawn.append(f'<text x="{x + step / 2:.1f}" y="{base + 15}" text-anchor="middle">{escape(name)}</text>')
    return _frame(label, drawn, x_title, y_title)


def line(label: str, points: Sequence[tuple[float, float]], x_title: str, y_title: str) -> str:
    """Return a curve through (x, y) points, both in [0, 1] and shown as percentages."""
    base, room, wide = _HEIGHT - _BOTTOM, _HEIGHT - _BOTTOM - _TOP - 10, _WIDTH - _LEFT - _RIGHT
    path = " ".join(f"{_LEFT + x * wide:.1f},{base - y * room:.1f}" for x, y in points)
    drawn = [_level(base - room * share, f"{share:.0%}") for share in (0.25, 0.5, 0.75, 1.0)]
    for share in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        anchor = "end" if share == 1.0 else "middle"
        drawn.append(f'<text x="{_LEFT + share * wide:.1f}" y="{base + 15}" text-anchor="{anchor}">{share:.0%}</text>')
    drawn.append(f'<polyline class="curve" points="{path}"/>')
    return _frame(label, drawn, x_title, y_title)


def _level(y: float, name: str) -> str:
    return (
        f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}"/>'
        f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{name}</text>'
    )


def doubling(histogram: Sequence[tuple[int, int]]) -> list[tuple[str, int]]:
    """Return a histogram in bins 1, 2, 3-4, 5-8, 9-16, ...: counts of interactions spread over powers of ten."""
    bins: dict[int, int] = {}
    for value, number in histogram:
        bins[(value - 1).bit_length()] = bins.get((value - 1).bit_length(), 0) + number
    names = {power: f"{2 ** (power - 1) + 1}-{2**power}" for power in range(2, 64)} | {0: "1", 1: "2"}
    return [(names[power], bins.get(power, 0)) for power in range(max(bins, default=-1) + 1)]


def even(histogram: Sequence[tuple[int, int]], width: int = 4, bins: int = 16) -> list[tuple[str, int]]:
    """Return a histogram in `bins` bins of `width` values from 1 on, the last one open."""
    heights = [0] * bins
    for value, number in histogram:
        heights[min(bins - 1, max(0, value - 1) // width)] += number
    names = [f"{width * place + 1}-{width * (place + 1)}" for place in range(bins - 1)] + [f">{width * (bins - 1)}"]
    while len(heights) > 1 and heights[-1] == 0:
        heights.pop()
    return list(zip(names, heights, strict=False))
