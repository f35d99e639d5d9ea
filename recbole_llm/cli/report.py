"""The verb ``report``: one HTML page of a comparison."""

from pathlib import Path

from recbole_llm.cli.arguments import Given, Parser
from recbole_llm.cli.show import show
from recbole_llm.errors import SettingError


def parser() -> Parser:
    """Return the parser of the verb."""
    found = Parser(
        "report",
        "Write one HTML page that holds all of a comparison: tables, plots, settings and commands.",
        "--comparison=FILE [--out=FILE]",
    )
    group = found.add_argument_group("options")
    group.add_argument(
        "--comparison", type=Path, metavar="FILE", help="the comparison.json that recbole-llm compare writes"
    )
    group.add_argument("--out", type=Path, metavar="FILE", help="the page (default: report.html beside the comparison)")
    return found


def main(given: Given) -> int:
    """Write the page and print its path.

    Raises:
        SettingError: if no comparison is named.
        DataError: if the comparison cannot be read.
        StorageError: if the page cannot be written.
    """
    if "comparison" not in given.options:
        raise SettingError("report needs a comparison: --comparison=comparison.json, which recbole-llm compare writes")
    from jinja2 import UndefinedError

    from recbole_llm.comparison.file import read_comparison, showing
    from recbole_llm.report.page import render
    from recbole_llm.utils.files import write_text
    from recbole_llm.utils.plain_text import printable

    path = given.options["comparison"]
    comparison = read_comparison(path)
    with showing(path, UndefinedError):
        page = printable(render(comparison))
    out = given.options.get("out", path.with_name("report.html"))
    write_text(out, page)
    show(out)
    return 0
