"""The settings of a run on the command line: their names checked before anything heavy is imported, and their help."""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from recbole_llm.cli.arguments import Given, Parser
from recbole_llm.config import declared, names
from recbole_llm.config.document import written
from recbole_llm.config.given_dataset import given_dataset
from recbole_llm.config.schema import Role, Setting
from recbole_llm.utils.files import read_yaml
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
    dataset = None if settings.get("dataset") is None else given_dataset(str(settings["dataset"]))
    files = [] if dataset is None else [*names.dataset_files(dataset.name), *filter(None, [dataset.file])]
    of_data = {name for file in files for name in read_yaml(file)}
    own = {*parser.names, *names.general_names(), *names.names_of_model(model), *of_data}
    for name in settings:
        names.require_setting(name, own)
    if needs_dataset:
        of_run = {**({} if dataset is None else dataset.settings()), **settings}
        place = Path(str(of_run.get("data_path", "dataset")))
        names.require_dataset(None if dataset is None else str(settings["dataset"]), place)


# -- help --------------------------------------------------------------------------------------------------------------


# What most people set, in the order of the help; `--help=all` has the others.
_COMMON = {
    "data": ("data_path", "MAX_ITEM_LIST_LENGTH", "item_text_fields", "items_without_text", "train_share"),
    "protocol": ("eval_args", "metrics", "topk", "valid_metric", "repeatable", "candidates"),
    "training": ("epochs", "learning_rate", "train_batch_size", "stopping_step", "weight_decay", "seed"),
    "machine": (
        *("use_gpu", "gpu_id", "precision", "eval_batch_size", "checkpoint_dir", "resume_seconds", "show_progress"),
        "state",
    ),
}


def add_settings(parser: argparse.ArgumentParser, topic: str | None) -> None:
    """Add settings to a parser that is only to show its help.

    Args:
        parser: of the verb.
        topic: None for what most people set, ``all`` for the settings of all runs, or a model's name for its own.

    Raises:
        SettingError: if the topic is no model.
    """
    if topic is None:
        known = declared.general()
        for title, chosen in _COMMON.items():
            _add(parser, f"settings: {title}", [known[name] for name in chosen])
        parser.epilog = (
            "These are some of the settings of every run. --help=all lists all of them, --help=ST2SI those of a model. "
            "Values are YAML: {epochs: 100}, [a, b], 1e-3, true, ~ (nothing), '5' (text)."
        )
        return
    found = declared.general() if topic == "all" else declared.own(names.require_model(topic))
    for role in Role:
        _add(parser, f"settings: {role}", [setting for setting in found.values() if setting.role is role])


def _add(parser: argparse.ArgumentParser, title: str, settings: Sequence[Setting]) -> None:
    if not settings:
        return
    group = parser.add_argument_group(title)
    for setting in settings:
        text = f"{setting.sentence} (default: {written(setting.default)})".strip().replace("%", "%%")
        option = f"--{setting.name}"
        if option not in parser._option_string_actions:
            group.add_argument(option, metavar=setting.kind.type.upper(), help=text)
