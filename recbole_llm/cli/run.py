"""The verb ``run``: train a model, evaluate its best epoch, store the run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_llm.cli import settings
from recbole_llm.cli.arguments import Given, Parser, add_model_and_dataset
from recbole_llm.cli.interrupts import interrupted
from recbole_llm.cli.show import show
from recbole_llm.config.paper import list_rows, row_settings
from recbole_llm.errors import SettingError
from recbole_llm.utils.files import read_yaml
from recbole_llm.utils.hashing import hashes_not_stored
from recbole_llm.utils.interruption import stored_folders
from recbole_llm.utils.processes import started

_STAGES = ("id-", "pretrain-")  # how the folders of what a run trains first begin


def parser() -> Parser:
    """Return the parser of the verb."""
    found = Parser(
        "run",
        "Train a model, evaluate its best epoch, and store the run in saved/<run>/. The last line that is printed is "
        "the path of result.json. Without a verb, recbole-llm runs.",
        "-m MODEL -d DATASET [--config_files=FILES] [--name=value ...]\n       recbole-llm run --paper=ROW\n"
        "       recbole-llm run --resume=saved/<run>",
        takes_settings=True,
    )
    group = found.add_argument_group("what to run")
    add_model_and_dataset(group, "a folder in data_path, or a file of dataset_configs/ (prepared if it is not here)")
    group.add_argument(
        "--paper",
        metavar="ROW",
        help="a row of a paper's table, paper/table/dataset/row; list prints all, list:st2si/table2 those of a table",
    )
    group.add_argument("--resume", metavar="FOLDER", help="the folder of an interrupted run, to resume")
    group.add_argument(
        "--dry-run",
        nargs="?",
        const="given",
        metavar="all",
        help="train and write nothing; print the settings that differ from the defaults (all: every setting), the "
        "dataset's counts, and what would be loaded and trained first",
    )
    return found


def main(given: Given) -> int:
    """Run, print the table of metrics and, last, the path of `result.json`.

    Raises:
        RecBoleLLMError: one of its kinds, whose message says what to do.
    """
    paper = given.options.get("paper")
    if paper is not None and paper.partition(":")[0] == "list":
        show(*list_rows(paper.partition(":")[2]), sep="\n")
        return 0
    dry = given.options.get("dry_run")
    if dry not in (None, "given", "all"):
        raise SettingError(f"dry_run={dry} is not one of all, or nothing")
    resume = given.options.get("resume")
    row = [] if paper is None else [row_settings(paper)]
    _check(given, resume, row)
    files, line = [*row, *given.options.get("config_files", [])], settings.run_settings(given)
    if dry is not None:
        from recbole_llm.cli.dry_run import show_dry_run

        if not started().is_first:
            return 0
        with hashes_not_stored():
            show_dry_run(files, line, resume, everything=dry == "all")
        return 0
    try:
        return _run(files, line, resume)
    except KeyboardInterrupt as interrupt:
        return interrupted(interrupt, how_to_resume(stored_folders(interrupt)))


def _check(given: Given, resume: str | None, row: Sequence[Mapping[str, Any]]) -> None:
    """Refuse misspelt names; a resumed run has the model and the dataset that it began with."""
    named: dict[str, Any] = {}
    if resume is not None:
        stored = Path(resume) / "config.yaml"
        if not stored.is_file():
            return  # what is said about it is better said by the one who opens it
        named = {name: value for name, value in read_yaml(stored).items() if name in ("model", "dataset", "data_path")}
    of_row = {name: value for one in row for name, value in one.items()}
    settings.check({**of_row, **named, **settings.merged(given)}, parser())


def _run(files: Sequence[str | Mapping[str, Any]], line: list[str], resume: str | None) -> int:
    from recbole_llm.quick_start.run import run
    from recbole_llm.runs.table import result_table

    result = run(config_files=files, command_line=line, resume=resume)
    if started().is_first:
        show(result_table(result))
        show(result["path"])
    return 0


def how_to_resume(stored: list[Path]) -> str | None:
    """Return how to resume from the folders that an interruption left; None if there are none."""
    if not stored:
        return None
    if stored[-1].name.startswith(_STAGES):
        return f"the same command resumes the training of {stored[-1]}"
    return f"resume with: recbole-llm run --resume={stored[-1]}"
