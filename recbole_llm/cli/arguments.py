"""One parser for all verbs: how options are written, which mistakes are refused, and what ``--help`` shows.

Options are written ``--name=value`` or ``--name value``, in any order, with ``-`` or ``_`` in the name. A verb that
trains takes settings of the run beside its own options; their names are checked by `recbole_llm.cli.settings`.
"""

import argparse
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from recbole_llm.errors import SettingError, nearest, require_one_of, require_whole

WIDTH = 100
_MANY = ("config_files",)  # may be given several times, and hold several values
_NEGATIVE = re.compile(r"-\.?\d")


@dataclass
class Given:
    """What a command line asks for.

    Attributes:
        options: the verb's own options by name; those that are not given are missing.
        settings: ``--name=value`` settings of the run, as text.
        arguments: the whole command line after the verb.
    """

    options: dict[str, Any]
    settings: list[str] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)


class Parser(argparse.ArgumentParser):
    """The options of a verb.

    Args:
        verb: the name of the verb.
        description: what it does.
        usage: how it is written, without the program and the verb.
        takes_settings: whether settings of a run may be given, too.
    """

    def __init__(self, verb: str, description: str, usage: str, takes_settings: bool = False) -> None:
        self.verb, self.takes_settings = verb, takes_settings
        super().__init__(
            prog=f"recbole-llm {verb}",
            description=description,
            usage=f"recbole-llm {verb} {usage}",
            formatter_class=Formatter,
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
            add_help=False,
        )

    def error(self, message: str) -> Any:
        """Raise SettingError in place of ending the process."""
        raise SettingError(f"{self.verb}: {message}")

    @property
    def names(self) -> list[str]:
        """The names of the verb's own options."""
        return [action.dest for action in self._actions]

    def read(self, arguments: Sequence[str]) -> Given:
        """Return what a command line asks for.

        Raises:
            SettingError: for an unknown option (unless it may be a setting), a missing value, a word that belongs to no
                option, and an option that is given twice with different values.
        """
        options: dict[str, str | None] = {}
        settings: dict[str, str] = {}
        waiting = list(arguments)
        while waiting:
            name, value, action = self._next(waiting)
            if action is None:
                _once(settings, name, str(value), _parsed)
            elif name in _MANY:
                options[name] = f"{options.get(name, '')} {value}"
            else:
                _once(options, name, value)
        found = self.parse_args(
            [self._written(name) + ("" if value is None else f"={value}") for name, value in options.items()]
        )
        return Given(vars(found), [f"--{name}={value}" for name, value in settings.items()], list(arguments))

    def _next(self, waiting: list[str]) -> tuple[str, str | None, argparse.Action | None]:
        """Take an option with its value from the front of `waiting`; the action is None for a setting of the run."""
        word = waiting.pop(0)
        option, equals, text = word.partition("=")
        name = option.removeprefix("--").replace("-", "_")
        action = next((a for a in self._actions if option in a.option_strings), None)
        if action is None and option.startswith("--"):  # - for _, or the other way round
            action = next((a for a in self._actions if a.dest == name), None)
        if action is None and (not option.startswith("--") or not name):
            raise SettingError(self._stray(word))
        name = name if action is None else action.dest
        if action is None and not self.takes_settings:
            raise SettingError(f"{self.verb} has no setting '{name}'{nearest(name, self.names)}")
        if equals:
            return name, text, action
        if waiting and _is_value(waiting[0], self._option_string_actions):
            values = [waiting.pop(0)]
            while name in _MANY and waiting and _is_value(waiting[0], self._option_string_actions):
                values.append(waiting.pop(0))
            return name, " ".join(values), action
        if action is not None and action.nargs == "?":
            return name, None, action
        raise SettingError(f"{word} has no value: settings are written --{name}=value or --{name} value")

    def _written(self, name: str) -> str:
        """Return how an option is written in full."""
        return next(action.option_strings[-1] for action in self._actions if action.dest == name)

    def _stray(self, word: str) -> str:
        if word.startswith("-"):
            return f"{self.verb} has no setting '{word}'{nearest(word, self._option_string_actions)}"
        return f"'{word}' is not understood: settings are written --name=value or --name value"


def _parsed(text: str) -> Any:
    from recbole_llm.utils.values import parse_value  # it needs PyYAML, and doctor runs where nothing is installed

    return parse_value(text)


def _is_value(word: str, options: dict[str, Any]) -> bool:
    """Tell whether a word is the value of the option before it, and no option itself."""
    return not word.startswith("-") or (bool(_NEGATIVE.match(word)) and word not in options)


def _once(given: dict[str, Any], name: str, value: Any, read: Callable[[Any], Any] = lambda text: text) -> None:
    """Add an option. Raises SettingError if it has another value already."""
    if name in given and read(given[name]) != read(value):
        raise SettingError(f"--{name} is given twice, as {given[name]!r} and {value!r}")
    given[name] = value


class Formatter(argparse.HelpFormatter):
    """Options as ``-m, --model=NAME``, at most `WIDTH` columns wide."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=WIDTH)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        value = self._format_args(action, "VALUE").strip("[]")
        names = ", ".join(action.option_strings)
        if action.nargs == 0:
            return names
        return f"{names}[={value}]" if action.nargs == "?" else f"{names}={value}"


# -- what a value may be -----------------------------------------------------------------------------------------------


def flag(name: str) -> Callable[[str], bool]:
    """Return what reads a value that is true or false, and refuses others by SettingError."""

    def read(text: str) -> bool:
        value = _parsed(text)
        if not isinstance(value, bool):
            raise SettingError(f"{name}={text} must be true or false")
        return value

    return read


def whole(name: str, least: int, most: float = math.inf) -> Callable[[str], int]:
    """Return what reads a whole number from `least` to `most`, and refuses others by SettingError."""

    def read(text: str) -> int:
        value = _parsed(text)
        require_whole(name, value, least)
        if value > most:
            raise SettingError(f"{name}={value} is more than {most}")
        return int(value)

    return read


def one_of(name: str, allowed: Sequence[str]) -> Callable[[str], str]:
    """Return what reads a value that is one of `allowed`, and refuses others by SettingError."""

    def read(text: str) -> str:
        require_one_of(name, text, allowed)
        return text

    return read


def add_model_and_dataset(group: Any, dataset_help: str) -> None:
    """Add RecBole's own ``-m``, ``-d`` and ``--config_files``; the first two are settings of a run."""
    group.add_argument("-m", "--model", metavar="NAME", help="ST2SI, IDLEAdapter, or any model of RecBole")
    group.add_argument("-d", "--dataset", metavar="NAME", help=dataset_help)
    add_config_files(group)


def add_config_files(group: Any) -> None:
    """Add ``--config_files``."""
    group.add_argument(
        "--config_files",
        type=str.split,
        metavar="FILES",
        help="YAML files with settings, separated by spaces; later ones win, the command line above all",
    )
