"""The settings of a run on the command line: their names checked before anything heavy is imported, and their help."""

import argparse
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_llm.cli.arguments import Given, Parser
from recbole_llm.config import names
from recbole_llm.utils.files import read_yaml
from recbole_llm.utils.paths import shipped
from recbole_llm.utils.values import parse_value

# -- names -------------------------------------------------------------------------------------------------------------


def run_settings(given: Given) -> list[str]:
    """Return the settings of a run as ``--name=value``, the model and the dataset among them."""
    named = [f"--{name}={given.options[name]}" for name in ("model", "dataset") if name in given.options]
    return [*named, *given.settings]


def merged(given: Given) -> dict[str, Any]:
    """Return the settings by name: those of ``--config_files``, and above them those of the command line.

    Raises:
        DataError: if a file cannot be read.
    """
    found = _of_files(given.options.get("config_files", ()))
    for setting in run_settings(given):
        name, _, text = setting[2:].partition("=")
        found[name] = parse_value(text)
    return found


def _of_files(files: Iterable[str]) -> dict[str, Any]:
    return {str(name): value for file in files for name, value in read_yaml(file).items()}


def check(settings: dict[str, Any], parser: Parser, needs_dataset: bool = True) -> None:
    """Refuse a misspelt model, dataset or setting, as `Config` would do after some seconds of imports.

    Args:
        settings: by name; a missing model or dataset is refused as well.
        parser: its options are suggested, too.
        needs_dataset: whether the verb needs a dataset.

    Raises:
        SettingError: which names the nearest.
    """
    model = names.require_model(settings.get("model"))
    dataset = settings.get("dataset")
    of_data = {name for file in names.dataset_files(str(dataset)) for name in read_yaml(file)}
    own = {*parser.names, *names.general_names(), *names.names_of_model(model), *of_data}
    for name in settings:
        names.require_setting(name, own)
    if needs_dataset:
        names.require_dataset(
            None if dataset is None else str(dataset), Path(str(settings.get("data_path", "dataset")))
        )


# -- help --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """A setting as its YAML file declares it.

    Attributes:
        name, type, default: the last two as text; the type is empty if the file does not tell it.
        sentence: what it is.
        section: the heading above it in its file.
    """

    name: str
    type: str
    default: str
    sentence: str
    section: str


# What most people set, in the order of the help; `--help=all` has the others.
_COMMON = {
    "data": ("data_path", "MAX_ITEM_LIST_LENGTH", "item_text_fields", "items_without_text", "train_share"),
    "protocol": ("eval_args", "metrics", "topk", "valid_metric", "mask_history", "candidates"),
    "training": ("epochs", "learning_rate", "train_batch_size", "stopping_step", "weight_decay", "seed"),
    "machine": (
        *("use_gpu", "gpu_id", "precision", "eval_batch_size", "checkpoint_dir", "resume_seconds", "show_progress"),
        "state",
    ),
}
_LINE = re.compile(r"^(\w+):\s*(.*?)\s*(?:(?<=\s)#\s*(.*))?$")
_TYPE = re.compile(r"^\(([\w ]+)\)\s*")


def add_settings(parser: argparse.ArgumentParser, topic: str | None) -> None:
    """Add settings to a parser that is only to show its help.

    Args:
        parser: of the verb.
        topic: None for what most people set, ``all`` for the settings of all runs, or a model's name for its own.

    Raises:
        SettingError: if the topic is no model.
    """
    if topic is None:
        known = {setting.name: setting for setting in [*_general()]}
        for title, chosen in _COMMON.items():
            _add(parser, f"settings: {title}", [known[name] for name in chosen if name in known])
        parser.epilog = (
            "These are some of the settings of every run. --help=all lists all of them, --help=ST2SI those of a model. "
            "Values are YAML: {epochs: 100}, [a, b], 1e-3, true, ~ (nothing), '5' (text)."
        )
        return
    found = list(_general()) if topic == "all" else list(_of_model(names.require_model(topic)))
    for section in dict.fromkeys(setting.section for setting in found):
        _add(parser, f"settings: {section}", [setting for setting in found if setting.section == section])


def _add(parser: argparse.ArgumentParser, title: str, settings: Sequence[Setting]) -> None:
    group = parser.add_argument_group(title)
    for setting in settings:
        default = f" (default: {setting.default})" if setting.default else ""
        text = f"{setting.sentence}{default}".strip().replace("%", "%%")
        option = f"--{setting.name}"
        if option not in parser._option_string_actions:
            group.add_argument(option, metavar=setting.type.upper() or "VALUE", help=text)


def _general() -> Iterator[Setting]:
    """Yield the settings of all runs, each once, as the last file declares it."""
    recbole = names.recbole_folder() / "properties"
    files = [recbole / "overall.yaml", recbole / "dataset" / "sample.yaml", shipped("properties") / "overall.yaml"]
    yield from _once(setting for file in files for setting in declared(file))


def _of_model(model: str) -> Iterator[Setting]:
    yield from _once(setting for file in names.model_files(model) for setting in declared(file, f"of {model}"))


def _once(settings: Iterable[Setting]) -> Iterator[Setting]:
    found: dict[str, Setting] = {}
    for setting in settings:
        earlier = found.get(setting.name)
        if earlier is not None:  # a file that changes a default need not say again what it is
            setting = Setting(
                setting.name, setting.type or earlier.type, setting.default, setting.sentence or earlier.sentence,
                earlier.section,
            )  # fmt: skip
        found[setting.name] = setting
    yield from found.values()


def declared(file: Path, section: str = "others") -> Iterator[Setting]:
    """Yield the settings in a YAML file: name, default, and the comment ``# (type) sentence`` beside and below it."""
    lines = file.read_text(encoding="utf-8").splitlines()
    defaults = read_yaml(file)
    for number, line in enumerate(lines):
        if line.startswith("#"):
            previous = lines[number - 1].strip() if number else ""
            if not previous:
                section = re.split(r"[,:(]", line.lstrip("# "))[0].strip().removesuffix(" Settings").rstrip(".").lower()
            continue
        match = _LINE.match(line)
        if match is None or match[1] == "prepare":
            continue
        words = [match[3] or "", *_continued(lines[number + 1 :])]
        text = " ".join(" ".join(words).split())
        kind = _TYPE.match(text)
        default = defaults.get(match[1])
        name_of_type = kind[1] if kind else "" if default is None else type(default).__name__
        yield Setting(match[1], name_of_type, "~" if default is None else str(default), _TYPE.sub("", text), section)


def _continued(lines: Sequence[str]) -> Iterator[str]:
    """Yield what stands in the comment lines that belong to the line before."""
    for line in lines:
        if not re.match(r"^\s+#", line):
            return
        yield line.strip().lstrip("# ")
