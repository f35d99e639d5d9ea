"""The ``--name=value`` arguments of the verbs that read results and train nothing."""

from collections.abc import Sequence

from recbole_llm.errors import SettingError, nearest


def read_options(arguments: Sequence[str], verb: str, allowed: Sequence[str]) -> dict[str, str]:
    """Return the values by name, as text.

    Args:
        arguments: ``--name=value`` each.
        verb: named in messages.
        allowed: names that the verb has.

    Raises:
        SettingError: for an argument of another form, an unknown name, or a name given twice.
    """
    given: dict[str, str] = {}
    for argument in arguments:
        name, separator, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not separator:
            raise SettingError(f"'{argument}' is not understood: settings are written --name=value")
        if name not in allowed:
            raise SettingError(f"{verb} has no setting '{name}'{nearest(name, allowed)}")
        if name in given:
            raise SettingError(f"--{name} is given twice, as '{given[name]}' and '{value}'")
        given[name] = value
    return given
