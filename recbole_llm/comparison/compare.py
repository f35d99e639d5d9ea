"""Models side by side, from runs that are finished and runs that are started: plan, run, collect, analyse, write."""

import datetime
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from recbole_llm import __version__
from recbole_llm.comparison.analysis import analyse
from recbole_llm.comparison.child_runs import CellRunner, finish_all
from recbole_llm.comparison.collect import collect, require_one_protocol_of_all
from recbole_llm.comparison.options import Options
from recbole_llm.comparison.plan import default_folder, definition, plan
from recbole_llm.comparison.tables import csv_table, latex_table, markdown_table
from recbole_llm.config.config import parse_command_line, parse_value
from recbole_llm.errors import SettingError
from recbole_llm.utils.files import write_json, write_text

JSON = "comparison.json"
_PRINTED: dict[str, Callable[[dict[str, Any], str], str]] = {
    "markdown": markdown_table,
    "latex": latex_table,
    "csv": lambda comparison, _: csv_table(comparison),
}


def compare(options: Options, command: str | None = None) -> dict[str, Any]:
    """Start the runs that are missing, and write the comparison's tables and `comparison.json`.

    Args:
        options: what is compared.
        command: the command line that stands for it in the file.

    Returns:
        What `comparison.json` holds, and under "path" where that file is.

    Raises:
        RecBoleLLMError: one of its kinds, before anything runs; a failed run is recorded in its cell.
    """
    environment = dict(os.environ)  # of the runs, whatever reading their settings does to this process
    cells = plan(options)
    require_one_protocol_of_all(cells)
    folder = default_folder(cells) if options.out is None else Path(options.out)
    runner = CellRunner(folder, definition(cells), environment, lambda text: print(text, file=sys.stderr))
    collected = collect(finish_all(cells, runner), folder)
    comparison = {
        "version": __version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command or "",
        **analyse(
            collected,
            show=options.show,
            ours=options.ours,
            baselines=options.baselines,
            papers=options.papers,
            significance=options.significance,
            data_path=options.settings.get("data_path"),
        ),
    }
    _write(folder, comparison, options.rows)
    return {**comparison, "path": str(folder / JSON)}


def _write(folder: Path, comparison: dict[str, Any], rows: str) -> None:
    write_json(folder / JSON, comparison)
    write_text(folder / "comparison.md", markdown_table(comparison, rows) + "\n")
    write_text(folder / "comparison.tex", latex_table(comparison, rows) + "\n")
    write_text(folder / "comparison.csv", csv_table(comparison))


# -- the command line --------------------------------------------------------------------------------------------------

_OWN = {option.name for option in fields(Options)} - {"settings"}


def compare_command(arguments: list[str]) -> int:
    """Compare, print the table and, last, the path of `comparison.json`.

    Raises:
        SettingError: for options that are not understood.
    """
    options = parse_options(arguments)
    signal.signal(signal.SIGTERM, _interrupted)  # so that the run that is going is ended, too
    try:
        comparison = compare(options, shlex.join(["recbole-llm", "compare", *arguments]))
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130
    print(_PRINTED[options.format](comparison, options.rows).rstrip("\n"))
    for note in comparison["notes"]:
        logging.getLogger().warning(note)
    print(comparison["path"])
    return 0


def _interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def parse_options(arguments: Sequence[str]) -> Options:
    """Return the options in ``--name=value`` arguments; names that are none of compare's own are settings of the runs.

    Raises:
        SettingError: for an argument of another form, or a value that is not possible.
    """
    given: dict[str, Any] = {}
    rest = []
    for argument in arguments:
        name, _, value = argument.removeprefix("--").partition("=")
        if argument == "--papers":
            given["papers"] = True
        elif argument.startswith("--") and "=" in argument and name in _OWN:
            if given.setdefault(name, value) != value:
                raise SettingError(f"--{name} is given twice, as '{given[name]}' and '{value}'")
        else:
            rest.append(argument)
    for name in ("seeds", "papers", "significance"):
        if isinstance(given.get(name), str):
            given[name] = parse_value(given[name])
    for name in ("papers", "significance"):
        if not isinstance(given.get(name, False), bool):
            raise SettingError(f"{name}={given[name]} must be true or false")
    given["config_files"] = given.get("config_files", "").split()
    return Options(**given, settings=parse_command_line(rest))
