"""Settings of older versions: what each is called now, or that it left; and how settings of stored runs are read.

A setting that a user gives under an old name is refused by `refuse`. The settings that are stored with a run of an
older version (`config.yaml`, `result.json`, `comparison.json`) are read through `translate` or `loadable`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_llm.config import declared
from recbole_llm.errors import CheckpointError, SettingError

_LAST = "version 0.1.0 (commit ef675e4)"  # the last that knows the old names
_NO_HELP = "it did not help on validation"


@dataclass(frozen=True)
class Old:
    """A setting of an older version.

    Attributes:
        models: whose setting it was.
        new: its name now, with the same meaning; None if it left.
        why: why it left, or what serves in its place.
        without_effect: the value, its default, that changed nothing.
        in_training_alone: whether a finished run scores the same without it.
    """

    models: tuple[str, ...]
    new: str | None
    why: str = ""
    without_effect: Any = None
    in_training_alone: bool = True


OLD = {
    "max_window_items": Old(("ST2SI",), "max_items"),
    "max_prompt_items": Old(("IDLEAdapter",), "max_items"),
    "ilp_dropout": Old(("ST2SI",), "head_dropout"),
    "backbone_tuning": Old(("IDLEAdapter",), "tuning"),
    "ilp_learning_rate": Old(("ST2SI",), None, "learning_rate is that of the projection, too"),
    "label_smoothing": Old(("ST2SI",), None, _NO_HELP, 0.0),
    "backbone_dropout": Old(("ST2SI",), None, "the backbone keeps its own dropout rates"),
    "initial_projection": Old(("ST2SI",), None, _NO_HELP),
    "id_states": Old(("ST2SI",), None, "id_model without it mixes in the scores, which is better", False, False),
    "prefixes_per_user": Old(("IDLEAdapter",), None, "train_share trains on a share of the rows"),
    "mmd_rho": Old(("IDLEAdapter",), None, "the kernel's width is always the median", "median"),
}
# Of every model: what `mask_history` asked for is asked for by the opposite value of `repeatable`.
_MASK = "mask_history"
# Values that left while their setting stayed.
_OLD_VALUES = {("train_window", "mixed"): Old(("ST2SI",), None, _NO_HELP)}


def refuse(name: str, value: Any) -> None:
    """Refuse a setting, or a value, of an older version.

    Raises:
        SettingError: that names the new name, or says that the setting left and which version had it last.
    """
    if name == _MASK:
        raise SettingError(
            f"the setting '{_MASK}' is called 'repeatable' since version 0.3.0 and says the opposite: "
            f"repeatable={not value}"
        )
    if name in OLD:
        old = OLD[name]
        models = " and ".join(old.models)
        if old.new is not None:
            raise SettingError(f"the setting '{name}' of {models} is called '{old.new}' since version 0.2.0")
        raise SettingError(f"the setting '{name}' of {models} left, {old.why}: {_LAST} had it last")
    for (of, old_value), old in _OLD_VALUES.items():
        if (name, value) == (of, old_value):
            raise SettingError(f"{name}={value} left, {old.why}: {_LAST} had it last")


def translate(settings: Mapping[str, Any], model: str | None = None) -> dict[str, Any]:
    """Return stored settings under today's names.

    A setting that left is dropped if its value changed nothing; else it stays, so that a comparison can show it.

    Args:
        settings: of a run.
        model: whose settings they are; None for ``settings["model"]``.
    """
    model = model or settings.get("model")
    found: dict[str, Any] = {}
    for name, value in settings.items():
        old = OLD.get(name)
        if old is None or model not in old.models:
            found[name] = value
        elif old.new is not None:
            found[old.new] = value
        elif value != old.without_effect:
            found[name] = value
    if _MASK in found:  # RecBole's own `repeatable`, which is stored beside it, was not read by an evaluation then
        found["repeatable"] = not found.pop(_MASK)
    if isinstance(found.get("id_model_settings"), Mapping):
        found["id_model_settings"] = translate(found["id_model_settings"], found.get("id_model"))
    return found


def known(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored settings under today's names, without any that left or that the model never read."""
    left, model = _left(settings), str(settings.get("model"))
    found = {name: value for name, value in translate(settings).items() if name not in left}
    return {name: value for name, value in found.items() if _has_effect(model, name, value)}


def _has_effect(model: str, name: str, value: Any) -> bool:
    of_another = name in declared.names_of_all_models() and name not in declared.settings_of(model)
    return not of_another and declared.ignored(model, name, value) is None


def loadable(settings: Mapping[str, Any], run: str | Path, training: bool) -> dict[str, Any]:
    """Return the settings of a stored run, with which its model can be built again.

    Args:
        settings: what is stored.
        run: its folder.
        training: whether training is resumed; what shaped the training of a finished run alone is dropped.

    Raises:
        CheckpointError: if one that left had an effect on what is done.
    """
    for name, old in _left(settings).items():
        if training or not old.in_training_alone:
            raise CheckpointError(
                f"the run {run} has {name}={settings[name]}, which left after {_LAST}: use that version for it"
            )
    return known(settings)


def _left(settings: Mapping[str, Any]) -> dict[str, Old]:
    """Return the settings that left and had an effect on the run."""
    of_names = {name: OLD[name] for name in translate(settings) if name in OLD}
    of_values = {name: old for (name, value), old in _OLD_VALUES.items() if settings.get(name) == value}
    model = settings.get("model")
    return {name: old for name, old in {**of_names, **of_values}.items() if model in old.models}
