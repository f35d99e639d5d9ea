"""What follows from the role of a setting: these functions take the place of lists of names."""

import functools
from collections.abc import Iterator

from recbole_llm.config.declared import (
    general,
    models_with_settings,
    own,
    reads_text,
    settings_of,
    without_effect,
)
from recbole_llm.config.schema import Role, Setting

_NOT_SHAPING = (Role.CHANCE, Role.PLACE, Role.MACHINE)
_SHARED = (Role.FORMAT, Role.DATA, Role.PROTOCOL, Role.METRIC, Role.CHANCE)
_SEARCHABLE = (Role.INPUT, Role.TRAINING, Role.STAGE)
# What is stored among the settings of old runs without being one.
_NOTES = ("device", "run_folder")


def names_with_role(*roles: Role, model: str | None = None) -> tuple[str, ...]:
    """Return the names of the settings with one of some roles, in the order of their declaration.

    Args:
        roles: at least one.
        model: whose settings; None for those of every run.
    """
    return tuple(setting.name for setting in settings_of(model).values() if setting.role in roles)


def shapes_result(name: str, model: str | None = None) -> bool:
    """Tell whether runs that differ in this setting are of different settings.

    Runs that do not differ in any such setting are repetitions of one another, with other seeds or in other places.

    Args:
        name: of the setting; one that nobody declares shapes the result.
        model: whose setting; None if it shapes the result of any model.
    """
    if name in _NOTES:
        return False
    declared = [settings_of(model)[name]] if model is not None and name in settings_of(model) else _all(name)
    return not declared or any(setting.role not in _NOT_SHAPING for setting in declared)


def decides_result(name: str, model: str | None = None) -> bool:
    """Tell whether a setting has a part in the numbers of a run: it shapes the result, or it is a seed.

    Args:
        name: of the setting.
        model: as in `shapes_result`.
    """
    return name in names_with_role(Role.CHANCE) or shapes_result(name, model)


def shared_with_id_model(name: str) -> bool:
    """Tell whether an ID model has the value of the run that it is trained for: data, protocol, and chance."""
    setting = general().get(name)
    if setting is None:
        return False
    return setting.role in _SHARED if setting.shared is None else setting.shared


def in_same_place(name: str) -> bool:
    """Tell whether what a run trains first has the run's own value, but no trace of it: place and machine."""
    setting = general().get(name)
    return setting is not None and setting.role in (Role.PLACE, Role.MACHINE)


def searchable(name: str, model: str | None = None) -> bool:
    """Tell whether a search may vary a setting: the model, its input and training, not what it is measured by."""
    declared = settings_of(model).get(name)
    return declared is None or declared.role in _SEARCHABLE


def protocol_settings() -> tuple[str, ...]:
    """Return what decides who is tested, on which target and among which items: equal for all runs of a table."""
    return names_with_role(Role.PROTOCOL, Role.DATA)


def pretraining_settings(model: str, shaping: bool = True) -> tuple[str, ...]:
    """Return the settings that a pre-training of `model` reads.

    Args:
        model: ST2SI, whose backbone is pre-trained, or S3Rec.
        shaping: those that shape its weights; False: those that do not.
    """
    return tuple(
        setting.name
        for setting in settings_of(model).values()
        if _read_by_pretraining(setting, model) and (setting.role not in (Role.PLACE, Role.MACHINE)) == shaping
    )


def _read_by_pretraining(setting: Setting, model: str) -> bool:
    if setting.role in (Role.PLACE, Role.MACHINE):
        return setting.pretraining or setting.name in general()
    if without_effect(model, setting.name):
        return False
    return setting.pretraining and (not setting.text or reads_text(model))


@functools.cache
def _all(name: str) -> tuple[Setting, ...]:
    return tuple(_everywhere(name))


def _everywhere(name: str) -> Iterator[Setting]:
    for settings in (general(), *(own(model) for model in models_with_settings())):
        if name in settings:
            yield settings[name]
