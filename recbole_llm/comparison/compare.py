"""Models side by side, from runs that are finished and runs that are started: plan, run, collect, analyse, write."""

import datetime
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recbole_llm import __version__
from recbole_llm.comparison.analysis import analyse
from recbole_llm.comparison.child_runs import CellRunner, finish_all
from recbole_llm.comparison.collect import collect, require_one_protocol_of_all
from recbole_llm.comparison.options import PROTOCOLS, Options
from recbole_llm.comparison.plan import default_folder, definition, plan
from recbole_llm.comparison.tables import csv_table, latex_table, markdown_table
from recbole_llm.utils.files import write_json, write_text
from recbole_llm.utils.interruption import noting_what_is_stored
from recbole_llm.utils.plain_text import one_line

JSON = "comparison.json"
PRINTED: dict[str, Callable[[dict[str, Any], str], str]] = {
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
    cells = plan(options)
    wanted = PROTOCOLS[options.protocols]
    require_one_protocol_of_all(cells, own=wanted == PROTOCOLS["own"])
    folder = default_folder(cells) if options.out is None else Path(options.out)
    runner = CellRunner(
        folder, definition(cells), dict(os.environ), lambda text: print(one_line(text), file=sys.stderr)
    )
    with noting_what_is_stored(folder, lambda: runner.has_stored(cells)):
        finished = finish_all(cells, runner)
    first, *others = (
        analyse(
            collect(finished, folder, repeatable),
            show=options.show,
            ours=options.ours,
            baselines=options.baselines,
            papers=options.papers,
            significance=options.significance,
            data_path=options.settings.get("data_path"),
        )
        for repeatable in wanted
    )
    comparison = {
        "version": __version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command or "",
        **first,
        **({"other": others[0]} if others else {}),
    }
    _write(folder, comparison, options.rows)
    return {**comparison, "path": str(folder / JSON)}


def _say(text: str) -> None:
    print(one_line(text), file=sys.stderr)


def compare_models(**options: Any) -> dict[str, Any]:
    """Compare models side by side: `recbole_llm.compare`, and what the verb ``compare`` does.

    Args:
        options: see `Options`, such as ``models=["ST2SI", "SASRec"], dataset=["ml-100k"], seeds=3,
            settings={"epochs": 10}``.

    Returns:
        What `comparison.json` holds, and under "path" where that file is.

    Raises:
        RecBoleLLMError: one of its kinds, whose message says what to do.
    """
    return compare(Options(**options))


def _write(folder: Path, comparison: dict[str, Any], rows: str) -> None:
    write_json(folder / JSON, comparison)
    write_text(folder / "comparison.md", markdown_table(comparison, rows) + "\n")
    write_text(folder / "comparison.tex", latex_table(comparison, rows) + "\n")
    write_text(folder / "comparison.csv", csv_table(comparison))
