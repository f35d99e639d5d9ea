"""The verb ``prompts``: models behind an address are shown candidates, and their answers become a run."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole_llm.cli import settings
from recbole_llm.cli.arguments import Given, Parser, add_config_files, one_of
from recbole_llm.cli.show import show
from recbole_llm.config.paper import row_settings
from recbole_llm.errors import SettingError, nearest
from recbole_llm.utils.values import parse_value

WHAT = ("export", "ask", "import")
_OWN = {
    "export": ("dataset", "config_files", "paper", "out"),
    "ask": ("prompts", "answers", "endpoint", "model", "key_env", "parallel", "retries", "price_in", "price_out"),
    "import": ("prompts", "answers", "name", "rule"),
}
_DEFAULT = "prompts.jsonl"


class _Parser(Parser):
    """Reads ``export``, ``ask`` or ``import`` before the options, too."""

    def read(self, arguments: Sequence[str]) -> Given:
        """Return what a command line asks for. See `Parser`."""
        words = list(arguments)
        if words and not words[0].startswith("-"):
            words[0] = f"--do={words[0]}"
        return super().read(words)


def parser() -> Parser:
    """Return the parser of the verb."""
    found = _Parser(
        "prompts",
        "Write prompts with lists of candidates to a file, ask a server that speaks OpenAI's chat interface, and make "
        "a run of the answers, for recbole-llm compare --runs. Answers may come from anywhere: JSON lines with row, "
        "draw and answer.",
        "export -d DATASET [--out=FILE] [--name=value ...]\n"
        "       recbole-llm prompts ask --endpoint=URL --model=NAME [--prompts=FILE] [--answers=FILE]\n"
        "       recbole-llm prompts import --answers=FILE --name=GPT-4 [--prompts=FILE]",
        takes_settings=True,
    )
    group = found.add_argument_group("what to do")
    group.add_argument("--do", metavar="WHAT", help="export, ask or import; written before the options as well")
    group = found.add_argument_group("export, with settings of LLMPrompt")
    group.add_argument("-d", "--dataset", metavar="NAME", help="the dataset, whose test part is asked")
    add_config_files(group)
    group.add_argument(
        "--paper", metavar="ROW", help="a row of a paper's table, such as st2si/table9/ml-100k-llara/gpt-4"
    )
    group.add_argument("--out", metavar="FILE", help=f"the file of prompts to write (default: {_DEFAULT})")
    group = found.add_argument_group("ask and import")
    group.add_argument("--prompts", metavar="FILE", help=f"the file of prompts (default: {_DEFAULT})")
    group.add_argument("--answers", metavar="FILE", help="the file of answers (ask: default answers-<model>.jsonl)")
    group = found.add_argument_group("ask")
    group.add_argument("--endpoint", metavar="URL", help="the address of the interface, such as https://host/v1")
    group.add_argument("-m", "--model", metavar="NAME", help="the model's name there")
    group.add_argument("--key_env", metavar="NAME", help="the environment variable with the key (OPENAI_API_KEY)")
    group.add_argument("--parallel", metavar="INT", help="prompts under way at once (default: 1)")
    group.add_argument("--retries", metavar="INT", help="repetitions after an error that may pass (default: 6)")
    group.add_argument("--price_in", metavar="NUMBER", help="of a million tokens of prompts, to report the cost")
    group.add_argument("--price_out", metavar="NUMBER", help="of a million tokens of answers")
    group = found.add_argument_group("import")
    group.add_argument("--name", metavar="NAME", help="the model's name in tables, such as GPT-4")
    group.add_argument(
        "--rule",
        metavar="RULE",
        type=one_of("rule", ("strict", "substring")),
        help="how answers are read (default: answer_rule of the prompts)",
    )
    return found


def main(given: Given) -> int:
    """Export, ask or import, and print what came of it; last, the path that was written.

    Raises:
        RecBoleLLMError: one of its kinds, whose message says what to do.
    """
    options = dict(given.options)
    what = options.pop("do", None)
    if what not in WHAT:
        raise SettingError(f"prompts={what} is not one of {', '.join(WHAT)}{nearest(str(what), WHAT)}")
    for name in options:
        if name not in _OWN[what]:
            raise SettingError(f"prompts {what} has no use for --{name}: it has {', '.join(_OWN[what])}")
    if what == "export":
        return _export(given)
    if what == "ask" and given.settings:
        raise SettingError(f"prompts ask takes no settings of a run, but {given.settings[0]} is one")
    return _ask(options) if what == "ask" else _import(given, options)


def _export(given: Given) -> int:
    line = [f"--dataset={given.options['dataset']}"] if "dataset" in given.options else []
    paper = given.options.get("paper")
    row = {} if paper is None else row_settings(paper, hosted=True)
    if row and row["model"] != "LLMPrompt":
        raise SettingError(
            f"paper={paper}: its model {row['model']} is no prompted one: recbole-llm run --paper={paper}"
        )
    settings.check({**row, **settings.merged(given), "model": "LLMPrompt"}, parser())
    from recbole_llm.config.config import Config
    from recbole_llm.inference.hosted.prompt_file import MODEL, export

    out = Path(given.options.get("out", _DEFAULT))
    files = [*([row] if row else []), *given.options.get("config_files", [])]
    config = Config(MODEL, None, files, command_line=[*line, *given.settings])
    found = export(config, out)
    show(f"{len(found)} prompts: {found.lists.places.shape[0]} rows, {found.lists.seeds} draws")
    show(out)
    return 0


def _ask(options: dict[str, Any]) -> int:
    for name in ("endpoint", "model"):
        if name not in options:
            raise SettingError(f"prompts ask needs --{name}: --endpoint=https://host/v1 --model=NAME")
    numbers = {name: _number(options, name) for name in ("parallel", "retries", "price_in", "price_out")}
    for name, least in (("parallel", 1), ("retries", 0)):
        value = numbers[name]
        if value is not None and (not float(value).is_integer() or value < least):
            raise SettingError(f"{name}={options[name]} must be a whole number from {least}")
    from tqdm import tqdm

    from recbole_llm.inference.hosted.ask import KEY, Endpoint, ask, key_from

    key = key_from(options.get("key_env", KEY))
    retries = 6 if numbers["retries"] is None else int(numbers["retries"])
    endpoint = Endpoint(options["endpoint"], options["model"], key, retries=retries)
    safe = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in options["model"])
    answers = Path(options.get("answers", f"answers-{safe}.jsonl"))
    with tqdm(desc="Ask", ncols=100, disable=bool(os.environ.get("TQDM_DISABLE"))) as bar:
        used = ask(Path(options.get("prompts", _DEFAULT)), answers, endpoint, int(numbers["parallel"] or 1), bar)
    show(used.sentence(numbers["price_in"], numbers["price_out"]))
    show(answers)
    return 0


def _number(options: dict[str, Any], name: str) -> float | None:
    if name not in options:
        return None
    value = parse_value(options[name])
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise SettingError(f"{name}={options[name]} must be a number from 0")
    return value


def _import(given: Given, options: dict[str, Any]) -> int:
    if "answers" not in options or "name" not in options:
        raise SettingError("prompts import needs --answers=FILE and --name=GPT-4, the model's name in tables")
    from recbole_llm.config.config import parse_command_line
    from recbole_llm.inference.hosted.import_answers import import_answers
    from recbole_llm.runs.table import result_table

    result = import_answers(
        Path(options.get("prompts", _DEFAULT)),
        Path(options["answers"]),
        options["name"],
        options.get("rule"),
        parse_command_line(given.settings),
    )
    show(result_table(result))
    show(result["path"])
    return 0
