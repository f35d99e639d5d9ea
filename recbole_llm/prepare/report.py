"""One HTML page about a prepared dataset, with no request to anywhere: readable on a phone, in light and in dark."""

import datetime
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from recbole_llm.prepare import charts
from recbole_llm.prepare.counts import comparison
from recbole_llm.prepare.look import Look
from recbole_llm.prepare.pipeline import PreparedDataset
from recbole_llm.utils.files import write_text
from recbole_llm.utils.plain_text import printable

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --page: #ffffff; --card: #f6f8fa; --mark: #0b63c5; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9da7b1; --page: #0d1117; --card: #161b22; --mark: #58a6ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.grid-of { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
.tiles { display: grid; gap: .6rem; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); }
.tiles div, figure { background: var(--card); border-radius: .5rem; padding: .7rem; margin: 0; }
.tiles b { display: block; font-size: 1.25rem; }
.tiles span, figcaption, .soft { color: var(--soft); font-size: .875rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--card); vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--soft); font: 13px system-ui, sans-serif; }
.mark { fill: var(--mark); } .curve { fill: none; stroke: var(--mark); stroke-width: 2.5; }
.axis { stroke: var(--soft); } .grid { stroke: var(--soft); opacity: .25; }
"""


def write_report(path: Path, done: PreparedDataset, numbers: Look) -> None:
    """Write the page.

    Raises:
        StorageError: if it cannot be written.
    """
    write_text(path, printable(page(done, numbers)))


def page(done: PreparedDataset, numbers: Look) -> str:
    """Return the page as HTML."""
    name = escape(done.dataset)
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{name}: a look at the data</title><style>{_STYLE}</style></head><body><main>",
            f"<h1>{name}</h1>",
            _tiles(numbers),
            _papers(done),
            f"<h2>Distributions</h2>{_figures(numbers)}",
            f"<h2>What was done</h2>{_steps(done)}",
            _left_out(done),
            f"<h2>Sources</h2>{_sources(done)}",
            "</main></body></html>",
            "",
        ]
    )


def _tiles(numbers: Look) -> str:
    dates = "-"
    if numbers.months:
        dates = f"{numbers.months[0][0]:%Y-%m} to {numbers.months[-1][0]:%Y-%m}"
    tiles = [
        ("users", f"{numbers.users:,}"),
        ("items", f"{numbers.items:,}"),
        ("interactions", f"{numbers.interactions:,}"),
        ("interactions per user", f"{numbers.interactions / numbers.users:.2f}"),
        ("time span", dates),
        ("items without text", _share(numbers.no_text, numbers.items)),
        ("repeats of an item by its user", _share(numbers.repeats, numbers.interactions)),
        ("test targets never in training", _share(numbers.unseen_targets, numbers.targets)),
    ]
    return (
        '<div class="tiles">'
        + "".join(f"<div><b>{value}</b><span>{what}</span></div>" for what, value in tiles)
        + "</div>"
    )


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({part / whole:.1%})" if whole else "0"


def _papers(done: PreparedDataset) -> str:
    rows = comparison(done.counts, done.manifest["paper_counts"])
    notes = "".join(f'<p class="soft">Known: {escape(note)}</p>' for note in done.manifest["notes"])
    if not rows:
        return notes
    header = ["", "ours", "paper", "paper's", "difference", "in percent"]
    return f"<h2>Beside the paper</h2>{_table(header, rows, numeric=(1, 3, 4, 5))}{notes}"


def _figures(numbers: Look) -> str:
    drawn = [
        (
            "Interactions per user",
            charts.bars("Interactions per user", charts.doubling(numbers.per_user), "interactions", "users"),
        ),
        (
            "Interactions per item",
            charts.bars("Interactions per item", charts.doubling(numbers.per_item), "interactions", "items"),
        ),
        (
            "Popularity: the share of all interactions that the most popular items take",
            charts.line("Popularity curve", numbers.popularity, "items, most popular first", "interactions"),
        ),
    ]
    if numbers.title_lengths:
        lengths = charts.bars("Title lengths", charts.even(numbers.title_lengths), numbers.title_unit, "items")
        drawn.insert(2, (f"Title lengths in {numbers.title_unit}", lengths))
    if numbers.months:
        drawn.append(
            (
                "Interactions over time",
                charts.bars("Interactions over time", _over_time(numbers.months), "", "interactions"),
            )
        )
    figures = (f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>" for caption, svg in drawn)
    return f'<div class="grid-of">{"".join(figures)}</div>'


def _over_time(months: Sequence[tuple[datetime.date, int]]) -> list[tuple[str, int]]:
    """Return months without gaps, or years if there are more than four years of months."""
    first, last = months[0][0], months[-1][0]
    span = (last.year - first.year) * 12 + last.month - first.month + 1
    by_year = span > 48
    heights: dict[str, int] = {}
    for place in range(span):
        year, month = divmod(first.year * 12 + first.month - 1 + place, 12)
        heights.setdefault(f"{year}" if by_year else f"{year}-{month + 1:02}", 0)
    for day, number in months:
        heights[f"{day:%Y}" if by_year else f"{day:%Y-%m}"] += number
    return list(heights.items())


def _steps(done: PreparedDataset) -> str:
    rows = []
    for entry in done.manifest["steps"]:
        step = entry["step"]
        shown = step if isinstance(step, str) else ", ".join(f"{name} {values}" for name, values in step.items())
        rows.append([shown, f"{entry['users']:,}", f"{entry['items']:,}", f"{entry['interactions']:,}"])
    return _table(["after", "users", "items", "interactions"], rows, numeric=(1, 2, 3))


def _left_out(done: PreparedDataset) -> str:
    rows = [[reason, f"{rows:,}"] for reason, rows in done.manifest["skipped"].items()]
    return _table(["left out while reading", "lines"], rows, numeric=(1,)) if rows else ""


def _sources(done: PreparedDataset) -> str:
    rows = [
        [role, entry["file"], entry["url"] or "-", entry["sha256"]] for role, entry in done.manifest["sources"].items()
    ]
    return _table(["", "file", "published at", "sha256"], rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], numeric: Sequence[int] = ()) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    number = '<td class="n">'
    body = "".join(
        "<tr>"
        + "".join(f"{number if at in numeric else '<td>'}{escape(cell)}</td>" for at, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
