"""The verb ``compare``: models side by side."""

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_llm.cli.arguments import Given, Parser, add_config_files, flag
from recbole_llm.cli.interrupts import interrupted
from recbole_llm.cli.show import show
from recbole_llm.config import names
from recbole_llm.utils.files import read_yaml
from recbole_llm.utils.interruption import stored_folders
from recbole_llm.utils.plain_text import one_line
from recbole_llm.utils.values import names_of, parse_value

if TYPE_CHECKING:
    from recbole_llm.comparison.compare import Options


def parser() -> Parser:
    """Return the parser of the verb."""
    found = Parser(
        "compare",
        "Show models side by side: train what is missing, take what is finished, and resume what was interrupted. The "
        "last line that is printed is the path of comparison.json; Markdown, LaTeX and CSV lie beside it.",
        "--models=ST2SI,SASRec -d DATASET [--seeds=3] [--name=value ...]\n"
        "       recbole-llm compare --runs='saved/*' [--models=LABELS]",
        takes_settings=True,
    )
    group = found.add_argument_group("what to compare")
    group.add_argument(
        "-m", "--models", metavar="NAMES", help="models, separated by commas, each alone or as LABEL:MODEL"
    )
    group.add_argument("-d", "--dataset", metavar="NAMES", help="datasets, separated by commas")
    group.add_argument(
        "--seeds", type=parse_value, metavar="INT|LIST", help="how many, from seed on, or which: [1,2,3] (default: 1)"
    )
    group.add_argument("--model_settings", metavar="FILE", help="a YAML file with the settings of each label")
    add_config_files(group)
    group.add_argument(
        "--runs", metavar="PATTERNS", help="folders of finished runs, separated by commas; 'saved/*' takes all there"
    )
    group.add_argument(
        "--out", metavar="FOLDER", help="the comparison's folder (default: comparisons/<datasets>-<hash>)"
    )
    _add_tables(found)
    return found


def _add_tables(parser: Parser) -> None:
    group = parser.add_argument_group("how to show it")
    group.add_argument(
        "--show",
        metavar="COLUMNS",
        help="metrics and other columns, such as ndcg@10,mrr,epochs,seconds.fit,interval.ndcg@10 (default: NDCG and "
        "Recall at the largest cut-off, and MRR)",
    )
    group.add_argument("--ours", metavar="LABELS", help="whose improvement is shown (default: models that read text)")
    group.add_argument("--baselines", metavar="LABELS", help="over which labels (default: all others)")
    for name, help_text, default in (
        ("papers", "show the numbers that the papers print beside ours", False),
        ("significance", "tests and intervals over users, and metrics by group", True),
    ):
        group.add_argument(
            f"--{name}",
            type=flag(name),
            nargs="?",
            const=True,
            metavar="BOOL",
            help=f"{help_text} (default: {default})",
        )
    group.add_argument(
        "--protocols",
        metavar="NAME",
        help="items that a user met before: ranked as each run did (own), kept, left_out, or a table of both (default: "
        "own)",
    )
    group.add_argument("--rows", metavar="NAME", help="models or metrics (default: models)")
    group.add_argument(
        "--format", metavar="NAME", help="the table that is printed: markdown, latex or csv (default: markdown)"
    )


def main(given: Given) -> int:
    """Compare, print the table and, last, the path of `comparison.json`.

    Raises:
        SettingError: for options that are not understood.
        RecBoleLLMError: another of its kinds, before anything runs.
    """
    _check(given)
    try:
        from recbole_llm.comparison.compare import PRINTED, compare

        options = _options(given)
        comparison = compare(options, shlex.join(["recbole-llm", "compare", *given.arguments]))
    except KeyboardInterrupt as interrupt:
        stored = stored_folders(interrupt)
        return interrupted(interrupt, f"the same command resumes the comparison {stored[-1]}" if stored else None)
    show(PRINTED[options.format](comparison, options.rows).rstrip("\n"))
    for note in comparison["notes"]:
        logging.getLogger().warning(one_line(note))
    show(comparison["path"])
    return 0


def parse_options(arguments: Sequence[str]) -> "Options":
    """Return the options in the arguments of the verb; names that are none of its own are settings of the runs.

    Raises:
        SettingError: for an argument of another form, or a value that is not possible.
    """
    return _options(parser().read(arguments))


def _options(given: Given) -> "Options":
    from recbole_llm.comparison.compare import Options

    return Options(**given.options, settings=_settings(given))


def _settings(given: Given) -> dict[str, Any]:
    pairs = (setting[2:].partition("=") for setting in given.settings)
    return {name: parse_value(text) for name, _, text in pairs}


def _check(given: Given) -> None:
    """Refuse misspelt models, datasets and settings before anything heavy is imported."""
    own_names = [*parser().names, *names.general_names()]
    for name in _settings(given):
        names.require_setting(name, own_names)
    if "dataset" not in given.options or "models" not in given.options:
        return
    labels = names_of(given.options["models"])
    own = read_yaml(given.options["model_settings"]) if "model_settings" in given.options else {}
    for entry in labels:
        label, _, model = entry.partition(":")
        stated = own.get(label)
        names.require_model(model or (stated.get("model", label) if isinstance(stated, dict) else label))
    if "runs" in given.options:
        return  # the runs say where their data is
    files = {k: v for file in given.options.get("config_files", ()) for k, v in read_yaml(file).items()}
    place = {**files, **_settings(given)}.get("data_path", "dataset")
    for dataset in names_of(given.options["dataset"]):
        names.require_dataset(dataset, Path(str(place)))
