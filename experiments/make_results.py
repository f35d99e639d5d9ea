"""The tables of results/*.md, README.md and docs/leaderboard.md, made again from the kept runs.

    python experiments/make_results.py               # rewrites the pages' tables
    python experiments/make_results.py --check       # rewrites nothing; exits 1 and names the tables that differ
    python experiments/make_results.py results/baselines.md

In a page a table stands under an indented line that makes it, the last of its block:

* ``recbole-llm compare --runs=...``: the comparison of these runs, without its caption. Labels of ``--models`` that
  have no run yet are left out, and told. A command with ``--out=`` writes its own files and has no table in the page.
* ``table: results/probes/<name>.jsonl``: the JSON lines of a program in `benchmarks/`, a row per line; its columns are
  the names in the lines, but for "name", which names the program.
* ``leaderboard: <name>``: a table of `leaderboard.py`.
* ``table: results/probes/<name>.json --columns=a,b,c [--only=d=e]``: the list that such a program's `--out` wrote; a
  row for every object that has all of these names and the value e at d.
"""

import argparse
import contextlib
import dataclasses
import glob
import json
import re
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import leaderboard

from recbole_llm.cli.compare import parse_options
from recbole_llm.comparison.compare import Options, compare
from recbole_llm.comparison.finished import find_runs
from recbole_llm.comparison.tables import markdown_parts
from recbole_llm.errors import DataError, RecBoleLLMError, SettingError
from recbole_llm.runs.archive import split_path

ROOT = Path(__file__).resolve().parents[1]
_COMPARE, _FILE, _BOARD = "    recbole-llm compare --runs=", "    table: ", "    leaderboard: "
_FURTHER = (Path("README.md"), Path("docs/leaderboard.md"))
_NOTE = re.compile(r"\[\d+\] ")


def pages() -> list[Path]:
    """Return the pages that have tables, relative to the repository."""
    return [*_FURTHER, *sorted(page.relative_to(ROOT) for page in (ROOT / "results").glob("*.md"))]


def remade(page: Path) -> tuple[list[str], list[int], list[str]]:
    """Return a page's lines with its tables made again, the lines (from 1) whose table differs, and what is missing.

    Raises:
        RecBoleLLMError: for a table that cannot be made; the message begins with page and line.
    """
    old = page.read_text(encoding="utf-8").split("\n")
    new: list[str] = []
    differing, missing = [], []
    at = 0
    while at < len(old):
        line = old[at]
        new.append(line)
        at += 1
        if not _makes_table(line):
            continue
        try:
            if at < len(old) and old[at].startswith("    "):
                raise SettingError("the line that makes a table must be the last of its block")
            table, lacking = _table(line.strip())
        except RecBoleLLMError as error:
            raise type(error)(f"{page}:{at}: {error}") from error
        missing += [f"{page}:{at}: {text}" for text in lacking]
        end = _end_of_table(old, at)
        if old[at:end] != table:
            differing.append(at)
        new += table
        at = end
    return new, differing, missing


def _makes_table(line: str) -> bool:
    return line.startswith((_FILE, _BOARD)) or (line.startswith(_COMPARE) and " --out=" not in line)


def _end_of_table(lines: Sequence[str], at: int) -> int:
    """Return where the table below line `at` ends, an empty line before it and its footnotes included."""
    end = at
    if lines[at : at + 1] == [""] and "".join(lines[at + 1 : at + 2]).startswith("|"):
        end = at + 1
        while end < len(lines) and lines[end].startswith("|"):
            end += 1
        while lines[end : end + 1] == [""] and _NOTE.match("".join(lines[end + 1 : end + 2])):
            end += 2
    return end


def _table(line: str) -> tuple[list[str], list[str]]:
    """Return the lines of a table, an empty one first, none if it has no rows; and what is missing in it."""
    if line.startswith("table: "):
        path, *options = shlex.split(line.removeprefix("table: "))
        return ["", *table_of_file(Path(path), **dict(option[2:].split("=", 1) for option in options))], []
    if line.startswith("leaderboard: "):
        return ["", *leaderboard.table(line.removeprefix("leaderboard: "))], []
    options, missing = _there(parse_options(shlex.split(line)[2:]))
    if options is None:
        return [], missing
    with tempfile.TemporaryDirectory() as folder:
        comparison = compare(dataclasses.replace(options, out=folder, settings={"data_path": folder}))
    found: list[str] = []
    for part in markdown_parts(comparison, options.rows):
        found += ["", *part.split("\n")]
    return found, missing


def _there(options: Options) -> tuple[Options | None, list[str]]:
    """Return the options without what has no run yet, None if nothing is left; and sentences on it."""
    patterns = [pattern for pattern in options.runs if glob.glob(_file(pattern))]  # noqa: PTH207
    missing = [f"no run is at {_path(pattern)}" for pattern in options.runs if pattern not in patterns]
    known = {label for label, _ in find_runs(patterns)}
    models = [name for name in options.models if name in known]
    lacking = [name for name in options.models if name not in known]
    missing += [f"no run of {', '.join(lacking)}"] if patterns and lacking else []
    if not patterns or (options.models and not models):
        return None, missing
    ours, baselines = ([name for name in names if name in known] for names in (options.ours, options.baselines))
    return dataclasses.replace(options, runs=patterns, models=models, ours=ours, baselines=baselines), missing


def _path(pattern: str) -> str:
    label, separator, path = pattern.partition(":")
    return path if separator and "/" not in label else pattern


def _file(pattern: str) -> str:
    """Return the file or folder, or the pattern of them, in which the runs are looked for."""
    archive, _ = split_path(_path(pattern)) or (_path(pattern), "")
    return archive


def table_of_file(path: Path, columns: str | None = None, only: str | None = None) -> list[str]:
    """Return the table of a file of JSON lines, or of a JSON list.

    Args:
        path: of the file.
        columns: names, separated by commas; None: all of them but "name". A line that lacks one has no row, unless the
            name ends in a question mark.
        only: ``name=value``, the rows that have it; None: all.

    Raises:
        DataError: if the file is missing or of another form, or has no such row.
    """
    try:
        text = path.read_text(encoding="utf-8")
        rows = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines() if line]
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} must hold one JSON object a line, or a list of them")
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name != "name"]
    if columns is not None:
        asked = columns.split(",")
        names = [name.removesuffix("?") for name in asked]
        rows = [row for row in rows if {name for name in asked if not name.endswith("?")} <= set(row)]
    if only is not None:
        name, _, value = only.partition("=")
        rows = [row for row in rows if str(row.get(name)) == value]
    if not rows:
        raise DataError(f"{path} has no row with {columns} and {only}")
    numbers = [all(not isinstance(row.get(name), str) for row in rows) for name in names]
    lines = [names, ["--:" if number else ":--" for number in numbers]]
    lines += [[_field(row.get(name)) for name in names] for row in rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _field(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_field(share)}" for name, share in value.items())
    if isinstance(value, float):
        value = round(value, 4)  # a probe writes all digits
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value).replace("|", "\\|")
    return f"{value:,}" if abs(value) >= 1000 else str(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite or check the pages; return 1 if a table differs from the kept runs' and `--check` is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path, help="relative to the repository; all if none is given")
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args(arguments)
    wrong = 0
    with contextlib.chdir(ROOT):
        for page in given.pages or pages():
            try:
                lines, differing, missing = remade(page)
            except RecBoleLLMError as error:
                print(f"error: {error}", file=sys.stderr)
                return 2
            for text in missing:
                print(text, file=sys.stderr)
            for number in differing:
                print(f"{page}:{number}: the table {'differs from the kept runs' if given.check else 'is made again'}")
            wrong += len(differing)
            if differing and not given.check:
                page.write_text("\n".join(lines), encoding="utf-8")
    return int(bool(wrong) and given.check)


if __name__ == "__main__":
    sys.exit(main())
