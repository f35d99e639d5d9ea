"""The page: tables and figures of a comparison put into the template beside this file."""

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from recbole_llm.comparison.tables import protocol_sentences
from recbole_llm.errors import SettingError
from recbole_llm.plots.bars import bars
from recbole_llm.plots.curves import curves
from recbole_llm.plots.groups import WAYS, groups
from recbole_llm.plots.records import Results, from_comparison, printable
from recbole_llm.plots.style import DARK_PALETTE, PALETTE, metric_name
from recbole_llm.plots.trade_off import trade_off
from recbole_llm.report import tables
from recbole_llm.report.svg import inline_svg

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Picture:
    """A figure of the page and the sentence below it."""

    svg: Markup
    caption: str


def render(comparison: dict[str, Any]) -> str:
    """Return the page as HTML that needs no other file and asks for none.

    Args:
        comparison: what a `comparison.json` holds.
    """
    loader = FileSystemLoader(_FOLDER)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["breakable"] = breakable
    script = (_FOLDER / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    results = from_comparison(comparison)
    cells = comparison["cells"]
    return environment.get_template("page.html.j2").render(
        comparison=comparison,
        title=_title(comparison),
        finished=sum(cell["status"] == "done" for cell in cells),
        # What the page is made of, and what it may do: this script alone runs, and nothing is fetched.
        style=Markup((_FOLDER / "page.css").read_text(encoding="utf-8")),  # noqa: S704 (files of this package)
        script=Markup(script),  # noqa: S704
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        palettes=(PALETTE, DARK_PALETTE),
        protocol=[] if comparison.get("other") else protocol_sentences(comparison),
        results=tables.result_tables(comparison),
        significance=tables.significance_tables(comparison),
        intervals=tables.interval_tables(comparison),
        groups=tables.group_tables(comparison),
        papers=tables.paper_tables(comparison),
        counts=tables.count_table(comparison),
        runs=tables.run_tables(comparison),
        packages=comparison.get("packages") or {},
        settings=[(cell, _settings(cell)) for cell in cells],
        **_pictures(results),
    )


def _title(comparison: dict[str, Any]) -> str:
    number = len(comparison["models"])
    return f"{number} model{'s' if number != 1 else ''} on {_listed(comparison['datasets'])}"


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def _settings(cell: dict[str, Any]) -> list[tuple[str, str]]:
    settings = cell.get("settings") or {}
    return [(name, json.dumps(settings[name], ensure_ascii=False)) for name in sorted(settings)]


def _grouped(results: Results, way: str) -> Results:
    return replace(results, groups=[entry for entry in results.groups if entry["by"] == way])


def breakable(value: Any) -> Markup:
    """Return text that a narrow column may break after the parts of a setting's name, not inside them."""
    return escape(value).replace("_", Markup("_<wbr>")).replace("=", Markup("=<wbr>"))


def _pictures(results: Results) -> dict[str, list[Picture]]:
    """Return the figures that the results suffice for, one per dataset and kind."""
    found: dict[str, list[Picture]] = {"bar_pictures": [], "group_pictures": [], "other_pictures": []}
    # Without a metric of a ranking, as where all were measured among candidates alone, there is nothing to draw.
    if not results.metrics and not any(record.test for record in results.records):
        return found
    metric = results.metric(None)
    name = metric_name(metric)
    # (list of the page, figure of one dataset, caption)
    kinds: list[tuple[str, Callable[[Results], Figure], str]] = [
        *(
            ("bar_pictures", lambda one, m=each: bars(one, [m]), f"Test {metric_name(each)}")
            for each in results.metrics
        ),
        *(
            ("group_pictures", lambda one, w=way: groups(_grouped(one, w), metric), f"Test {name} {WAYS.get(way, way)}")
            for way in dict.fromkeys(entry["by"] for entry in results.groups)
        ),
        ("other_pictures", lambda one: trade_off(one, metric), f"Speed against quality: training time and test {name}"),
        (
            "other_pictures",
            lambda one: curves(one, metric),
            f"Learning curves: validation {name}, its best epoch marked, and training loss",
        ),
    ]
    for dataset in results.datasets:
        for part, draw, caption in kinds:
            try:
                figure = draw(results.only(dataset))
            except SettingError:  # such as groups of a comparison without any: the page does without the picture
                continue
            number = sum(map(len, found.values())) + 1
            title = printable(f"{caption} on {dataset}")
            found[part].append(Picture(inline_svg(figure, title, f"plot{number}"), title))
    return found
