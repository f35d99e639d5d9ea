"""The verb ``pretrain``: a language model, or a whole model, trained on other datasets first."""

from recbole_llm.cli import settings
from recbole_llm.cli.arguments import Given, Parser, add_config_files
from recbole_llm.cli.interrupts import interrupted
from recbole_llm.cli.show import show
from recbole_llm.utils.interruption import stored_folders
from recbole_llm.utils.processes import started


def parser() -> Parser:
    """Return the parser of the verb."""
    found = Parser(
        "pretrain",
        "Pre-train ST2SI's language model, or all of another model (UniSRec, ZESRec, LLMRec, Recformer), on datasets. "
        "The last line that is printed is the folder of what was trained, for --backbone (ST2SI) or "
        "--pretrained_state of a run on another dataset. How long, and which epochs are stored, say the settings "
        "pretrain_epochs and pretrain_save_epochs (--help=ST2SI).",
        "[--model=NAME] --pretrain_datasets=A,B [--backbone=NAME] [--name=value]",
        takes_settings=True,
    )
    group = found.add_argument_group("what to pre-train")
    group.add_argument("-m", "--model", metavar="NAME", help="a model that is pre-trained in this way (default: ST2SI)")
    group.add_argument("--pretrain_datasets", metavar="NAMES", help="datasets, separated by commas")
    add_config_files(group)
    return found


def main(given: Given) -> int:
    """Pre-train, and print the folder of the language model, or of the model's weights.

    Raises:
        RecBoleLLMError: one of its kinds, whose message says what to do.
    """
    line = settings.run_settings(given)
    if "pretrain_datasets" in given.options:
        line.append(f"--pretrain_datasets={given.options['pretrain_datasets']}")
    settings.check({"model": "ST2SI", **settings.merged(given)}, parser(), needs_dataset=False)
    try:
        from recbole_llm.quick_start.run import pretrain

        folder = pretrain(config_files=given.options.get("config_files", []), command_line=line)
        if started().is_first:
            show(folder)
    except KeyboardInterrupt as interrupt:
        stored = stored_folders(interrupt)
        return interrupted(interrupt, f"the same command resumes {stored[-1]}" if stored else None)
    return 0
