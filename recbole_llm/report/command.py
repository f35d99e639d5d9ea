"""The verb ``report``: one HTML page of a comparison."""

from pathlib import Path

from recbole_llm.cli.arguments import read_options
from recbole_llm.comparison.file import read_comparison
from recbole_llm.errors import SettingError
from recbole_llm.report.page import render
from recbole_llm.utils.files import write_text


def report_command(arguments: list[str]) -> int:
    """Write the page, beside the comparison unless told where, and print its path.

    Raises:
        SettingError: for options that are missing or not understood.
        DataError: if the comparison cannot be read.
        StorageError: if the page cannot be written.
    """
    given = read_options(arguments, "report", ("comparison", "out"))
    if "comparison" not in given:
        raise SettingError("report needs a comparison: --comparison=comparison.json, which recbole-llm compare writes")
    path = Path(given["comparison"])
    page = render(read_comparison(path))
    out = Path(given["out"]) if "out" in given else path.with_name("report.html")
    write_text(out, page)
    print(out)
    return 0
