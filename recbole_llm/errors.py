"""Errors that a user can mend: one clear sentence each, shown without a traceback by the command line."""

import difflib
from collections.abc import Iterable, Sequence


class RecBoleLLMError(Exception):
    """Base of all errors whose message alone tells what is wrong, where, and what to do."""


class SettingError(RecBoleLLMError):
    """An unknown setting, model, dataset or backbone name, or a value that is out of range."""


class DataError(RecBoleLLMError):
    """A data file that is missing, empty, or lacks what the settings ask for."""


class BackboneError(RecBoleLLMError):
    """A language model that cannot be had, or cannot be used for what is asked."""


class CheckpointError(RecBoleLLMError):
    """A saved run that is broken, incomplete, or belongs to another catalogue or model."""


class StorageError(RecBoleLLMError):
    """A file that could not be written: a full disk, a folder without permission."""


class EndpointError(RecBoleLLMError):
    """A server that refuses to be asked, or gives no answer that can be read."""


class TrainingError(RecBoleLLMError):
    """Training or evaluation that produced values which are not numbers."""


class ProcessEndedError(TrainingError):
    """A process of a run that several share ended, so the others cannot go on."""


def require_whole(name: str, value: object, least: int = 1) -> None:
    """Refuse a setting that is not a whole number from `least`. Raises SettingError."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise SettingError(f"{name}={value} must be a whole number from {least}")


def require_share(name: str, value: object) -> None:
    """Refuse a setting that is not a number above 0, and 1 at most. Raises SettingError."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= 1:
        raise SettingError(f"{name}={value} must be a number above 0, and 1 at most")


def require_flag(name: str, value: object) -> None:
    """Refuse a setting that is neither True nor False: the text "no" would count as True. Raises SettingError."""
    if not isinstance(value, bool):
        raise SettingError(f"{name}={value} must be True or False")


def require_one_of(name: str, value: object, allowed: Sequence[str]) -> None:
    """Refuse a setting that is none of the `allowed` values. Raises SettingError, which names the nearest."""
    if value not in allowed:
        raise SettingError(f"{name}={value} is not one of {', '.join(allowed)}{nearest(str(value), allowed)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name nearest to `name`, or an empty string."""
    by_lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(str(name).lower(), list(by_lower), n=1, cutoff=0.5)
    return f"; did you mean '{by_lower[close[0]]}'?" if close else ""
