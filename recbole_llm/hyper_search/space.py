"""RecBole's parameter files: what is searched, for hyperopt and for Optuna alike.

A line names a setting, how it is drawn, and from what: ``learning_rate loguniform -8,0``. The kinds are RecBole's
(`recbole/trainer/hyper_tuning.py`, `HyperTuning._build_space_from_file`):

* ``choice [1,2,3]``: one of the values; lists are written as text, ``'[64,64]'``
* ``uniform low,high``
* ``quniform low,high,q``: uniform, rounded to a multiple of q
* ``loguniform low,high``: e to the power of a uniform number
"""

import ast
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_llm.config.config import Config, parse_value
from recbole_llm.config.roles import searchable
from recbole_llm.errors import SettingError, nearest
from recbole_llm.utils.files import read_text
from recbole_llm.utils.paths import shipped

_NUMBERS = {"uniform": 2, "quniform": 3, "loguniform": 2}


@dataclass(frozen=True)
class Parameter:
    """One line of a parameter file.

    Attributes:
        name: of the setting.
        kind: choice, uniform, quniform or loguniform.
        values: the choices; or low and high, and for quniform the step.
    """

    name: str
    kind: str
    values: tuple[Any, ...]

    def suggest(self, trial: Any) -> Any:
        """Draw a value from what an Optuna trial offers; the values that may come are those that hyperopt draws."""
        if self.kind == "choice":
            return trial.suggest_categorical(self.name, list(self.values))
        low, high = self.values[:2]
        if self.kind == "quniform":
            step = self.values[2]
            return trial.suggest_float(self.name, round(low / step) * step, round(high / step) * step, step=step)
        if self.kind == "loguniform":
            return trial.suggest_float(self.name, math.exp(low), math.exp(high), log=True)
        return trial.suggest_float(self.name, low, high)

    def reaches(self, value: float) -> bool:
        """Tell whether a range has a value."""
        low, high = self.values[:2]
        if self.kind == "quniform" and not math.isclose(round(value / self.values[2]) * self.values[2], value):
            return False
        return math.exp(low) <= value <= math.exp(high) if self.kind == "loguniform" else low <= value <= high

    def examples(self) -> tuple[Any, ...]:
        """Return the choices, or one value in the middle of a range."""
        if self.kind == "choice":
            return self.values
        low, high = self.values[:2]
        if self.kind == "quniform":
            return (round((low + high) / 2 / self.values[2]) * self.values[2],)
        return (math.exp((low + high) / 2) if self.kind == "loguniform" else (low + high) / 2,)


@dataclass(frozen=True)
class Space:
    """What is searched: the lines of a parameter file, in their order."""

    parameters: tuple[Parameter, ...]

    def for_hyperopt(self) -> dict[str, dict[str, list[Any]]]:
        """Return the space in the form of HyperTuning's `params_dict`."""
        form: dict[str, dict[str, list[Any]]] = {}
        for parameter in self.parameters:
            form.setdefault(parameter.kind, {})[parameter.name] = list(parameter.values)
        return form

    def combinations(self) -> list[dict[str, Any]]:
        """Return every combination of choices.

        Raises:
            SettingError: if there is anything but choices.
        """
        for parameter in self.parameters:
            if parameter.kind != "choice":
                raise SettingError(
                    f"an exhaustive search tries every choice, but {parameter.name} is {parameter.kind}: give its "
                    f"values with 'choice', or search with --algo=random or --algo=bayes"
                )
        values = itertools.product(*(parameter.values for parameter in self.parameters))
        return [dict(zip((p.name for p in self.parameters), row, strict=True)) for row in values]

    def settings(self, drawn: dict[str, Any], defaults: Config) -> dict[str, Any]:
        """Return drawn values as settings, in the order of the file.

        A range gives 3.0 where a setting is a whole number: it becomes 3. Text becomes what it says, as on a command
        line: ``'[64,64]'`` a list.
        """
        found = {}
        for parameter in self.parameters:
            value = drawn[parameter.name]
            value = parse_value(value) if isinstance(value, str) else value
            whole = isinstance(defaults.merged.get(parameter.name), int) and isinstance(value, float)
            found[parameter.name] = int(value) if whole and value.is_integer() else value
        return found

    def values_of(self, config: Config) -> dict[str, Any]:
        """Return the drawn values that give a config's own settings; a list of settings is text, as in the file.

        Raises:
            SettingError: if one of them is not in the space.
        """
        found = {}
        for parameter in self.parameters:
            own = config[parameter.name]
            if parameter.kind == "choice":
                fitting = [v for v in parameter.values if (parse_value(v) if isinstance(v, str) else v) == own]
            else:
                fitting = [own] if _is_number(own) and parameter.reaches(own) else []
            if not fitting:
                raise SettingError(
                    f"the first trial cannot have the settings of {config['model']}: its {parameter.name}={own} is not "
                    f"in what is searched ({parameter.kind} {list(parameter.values)}): add it, or leave out "
                    f"defaults_first"
                )
            found[parameter.name] = fitting[0]
        return found

    def check(self, defaults: Config, given: dict[str, Any]) -> None:
        """Check that every name is a setting of the model, that none is given beside, and that values are possible.

        Args:
            defaults: the settings without the drawn ones.
            given: the settings that the user gave.

        Raises:
            SettingError: which name or value cannot be.
        """
        for parameter in self.parameters:
            if parameter.name in given:
                raise SettingError(
                    f"{parameter.name} is both given ({given[parameter.name]}) and searched: leave one of them out"
                )
            if parameter.name not in defaults.merged:
                close = nearest(parameter.name, defaults.merged)
                raise SettingError(f"{defaults['model']} has no setting '{parameter.name}' to search{close}")
            if not searchable(parameter.name, defaults["model"]):
                raise SettingError(
                    f"{parameter.name} cannot be searched: it says how runs are measured or where they are computed, "
                    f"not how {defaults['model']} is"
                )
        rows = max(len(parameter.examples()) for parameter in self.parameters)
        for row in range(rows):  # every value at least once
            drawn = {p.name: p.examples()[row % len(p.examples())] for p in self.parameters}
            named = {"model": defaults["model"], "dataset": defaults["dataset"]}
            Config(config_dict={**given, **named, **self.settings(drawn, defaults)})

    def plain(self) -> dict[str, list[Any]]:
        """Return the space in plain words for YAML and JSON: ``{name: [kind, values]}``."""
        return {parameter.name: [parameter.kind, list(parameter.values)] for parameter in self.parameters}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def default_file(model: str) -> Path:
    """Return the parameter file that ships for a model.

    Raises:
        SettingError: if none does.
    """
    folder = shipped("properties") / "hyper"
    path = folder / f"{model}.hyper"
    if not path.is_file():
        have = ", ".join(sorted(file.stem for file in folder.glob("*.hyper")))
        raise SettingError(
            f"no parameter file ships for {model} (but for {have}): write one with a line a setting, such as "
            f"'learning_rate choice [0.01,0.001]', and name it with --params_file"
        )
    return path


def read_space(path: str | Path) -> Space:
    """Read a parameter file. RecBole evaluates its values as expressions; here they are literals.

    Raises:
        DataError: if the file cannot be read.
        SettingError: for a line that is not understood.
    """
    lines = read_text(path, "parameter file").splitlines()
    parameters: dict[str, Parameter] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        parameter = _parse_line(line, f"line {number} of {path}")
        if parameter.name in parameters:
            raise SettingError(f"line {number} of {path} names {parameter.name} again")
        parameters[parameter.name] = parameter
    if not parameters:
        raise SettingError(f"the parameter file {path} is empty: there is nothing to search")
    return Space(tuple(parameters.values()))


def _parse_line(line: str, where: str) -> Parameter:
    pieces = line.strip().split(" ")  # as RecBole splits it; spaces within the values are dropped
    if len(pieces) < 3:
        raise SettingError(f"{where} must be 'name kind values' with single spaces, but is '{line.strip()}'")
    name, kind, text = pieces[0], pieces[1], "".join(pieces[2:])
    if kind == "choice":
        return Parameter(name, kind, _choices(text, where))
    if kind not in _NUMBERS:
        kinds = ["choice", *_NUMBERS]
        raise SettingError(f"{where}: '{kind}' is not one of {', '.join(kinds)}{nearest(kind, kinds)}")
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    wanted = {2: "low,high", 3: "low,high,step"}[_NUMBERS[kind]]
    bad = len(numbers) != _NUMBERS[kind] or not all(map(math.isfinite, numbers))
    if bad or numbers[0] >= numbers[1] or (kind == "quniform" and numbers[2] <= 0):
        raise SettingError(f"{where}: {kind} needs {wanted} with low below high, but has '{text}'")
    return Parameter(name, kind, numbers)


def _choices(text: str, where: str) -> tuple[Any, ...]:
    try:
        values = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        values = None
    if not isinstance(values, (list, tuple)) or not values:
        raise SettingError(f"{where}: choice needs a list such as [1,2,3], but has '{text}'")
    if any(isinstance(value, (list, tuple, dict, set)) for value in values):
        raise SettingError(f"{where}: a list among the choices is written as text: ['[64,64]','[128]']")
    if len(set(values)) != len(values):
        raise SettingError(f"{where}: a choice is given twice in {text}")
    return tuple(values)
