"""The command line: ``recbole-llm [verb] --name=value ...``; without a verb it is ``run``, as RecBole's own script."""

import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from recbole_llm.cli.arguments import Parser
from recbole_llm.cli.interrupts import interrupted, interruptible
from recbole_llm.cli.show import show, show_error
from recbole_llm.errors import RecBoleLLMError, SettingError, nearest
from recbole_llm.utils.allocator import process_is_a_command
from recbole_llm.utils.plain_text import one_line
from recbole_llm.utils.processes import is_told_elsewhere, leave, refuse_several

_OF_SEVERAL_PROCESSES = ("run", "pretrain")
# Each verb is a module of this name, whose imports wait until it runs.
VERBS = ("run", "pretrain", "tune", "prepare", "recommend", "serve", "prompts", "compare", "plot", "report", "doctor")

USAGE = """\
recbole-llm: language-model recommenders inside RecBole

Train
  recbole-llm [run] -m MODEL -d DATASET [--name=value ...]
      Train a model, evaluate its best epoch, and store the run in saved/<run>/.
  recbole-llm run --paper=st2si/table2/Scientific/st2si
      Run a row of a paper's table; --paper=list prints all rows.
  recbole-llm run --resume=saved/<run>
      Resume an interrupted run.
  torchrun --nproc_per_node=2 -m recbole_llm run -m MODEL -d DATASET [--name=value ...]
      Train one run in several processes, one per device.
  recbole-llm pretrain --pretrain_datasets=A,B [--name=value ...]
      Pre-train ST2SI's language model, or a whole model, on other datasets.
  recbole-llm tune -m MODEL -d DATASET [--algo=bayes] [--trials=20] [--name=value ...]
      Search the settings that are best on validation.

Data
  recbole-llm prepare -d DATASET [--raw=FOLDER] [--report]
      Make RecBole's atomic files of a dataset from its publisher's files.

Use
  recbole-llm recommend --run=saved/<run> --user=USER
      Show the best items for users, or after histories that are given by hand.
  recbole-llm serve --run=saved/<run>
      Answer requests for them over HTTP, on this machine.

Hosted models
  recbole-llm prompts export -d DATASET [--out=prompts.jsonl]
  recbole-llm prompts ask --endpoint=URL --model=NAME
  recbole-llm prompts import --answers=FILE --name=GPT-4
      Show candidates to a model behind an address, and make a run of its answers.

Results
  recbole-llm compare --models=ST2SI,SASRec -d DATASET [--seeds=3] [--name=value ...]
  recbole-llm compare --runs='saved/*'
      Show models side by side, and train what is missing.
  recbole-llm plot --kind=curves --runs=saved/<run>,saved/<run>
      Draw finished runs or a comparison.
  recbole-llm report --comparison=comparison.json
      Write one HTML page of a comparison.

Machine
  recbole-llm doctor [--data_path=FOLDER]
      Show what is installed and found here, and what to do about what is missing.

Options are written --name=value or --name value. Values are YAML: {epochs: 100}, [a, b], 1e-3, ~.
  -h, --help            this page; after a verb: all of its options
      --help=all        after run, pretrain, tune or compare: the settings of every run as well
      --help=ST2SI      the same for the settings of a model
      --debug           show the traceback of an error
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0, 1 after an error, 2 after a mistake in the settings, 130 after Ctrl-C, 143 after SIGTERM.
    """
    if arguments is not None:
        return _main(list(arguments))
    process_is_a_command()
    code = _main(sys.argv[1:])
    if code:
        leave(code)
    return code


def _main(argv: list[str]) -> int:
    debug = "--debug" in argv
    argv = [argument for argument in argv if argument != "--debug"]
    try:
        with interruptible():
            return _run_verb(argv)
    except KeyboardInterrupt as interrupt:
        return interrupted(interrupt)
    except (RecBoleLLMError, OSError) as error:  # OSError: a place where RecBole writes, such as ./log
        if debug:
            traceback.print_exc()
        if not is_told_elsewhere(error):
            show_error(f"error: {one_line(_in_words(error))}")
        return 2 if isinstance(error, SettingError) else 1
    except ModuleNotFoundError as error:
        if debug:
            traceback.print_exc()
        from recbole_llm.cli.doctor import missing_packages

        command = dict(missing_packages()).get(str(error.name), "recbole-llm doctor says how to get it")
        show_error(f"error: the package '{error.name}' is missing: {command}")
        return 1


def _in_words(error: RecBoleLLMError | OSError) -> str:
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    from recbole_llm.utils.files import in_words

    return in_words(error)


def _run_verb(argv: list[str]) -> int:
    if argv and argv[0] in ("-h", "--help", "help"):
        argv = [*argv[1:2], "--help", *argv[2:]]
    if argv[:1] == ["--help"]:
        show(USAGE, end="")
        return 0
    verb, rest = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else ("run", argv)
    if "=" in verb:
        raise SettingError(f"'{verb}' is not understood: settings are written --name=value or --name value")
    if verb not in VERBS:
        raise SettingError(f"there is no verb '{verb}'{nearest(verb, VERBS)} The verbs are {', '.join(VERBS)}")
    if verb not in _OF_SEVERAL_PROCESSES:
        refuse_several(verb)
    module: Any = import_module(f"recbole_llm.cli.{verb}")
    parser: Parser = module.parser()
    topic = _help_topic(rest)
    if topic is not None:
        show(help_text(parser, topic), end="")
        return 0
    return module.main(parser.read(rest))


def _help_topic(arguments: Sequence[str]) -> str | None:
    """Return what ``--help`` asks about, empty for the verb itself; None where there is no ``--help``."""
    for number, word in enumerate(arguments):
        name, _, topic = word.partition("=")
        if name in ("-h", "--help"):
            following = arguments[number + 1 : number + 2]
            return topic or next((word for word in following if not word.startswith("-")), "")
    return None


def help_text(parser: Parser, topic: str = "") -> str:
    """Return the help of a verb, with the settings of a run if it takes any.

    Args:
        parser: of the verb; it cannot read a command line afterwards.
        topic: empty, ``all`` or a model, see `recbole_llm.cli.settings.add_settings`.

    Raises:
        SettingError: if the topic is none of these.
    """
    from recbole_llm.cli.settings import add_settings

    if parser.takes_settings:
        add_settings(parser, topic or None)
    elif topic:
        raise SettingError(f"'{topic}' is not understood: {parser.verb} takes no settings of a run")
    return parser.format_help()


if __name__ == "__main__":
    sys.exit(main())
