"""Values as text: how the command line and parameter files write numbers, lists, mappings and words."""

import ast
import math
import re
from collections.abc import Mapping
from typing import Any

import yaml

from recbole_llm.errors import SettingError
from recbole_llm.utils.yaml_nodes import check

_LONGEST_SHOWN = 100  # characters of a value in a message
_NUMBER = r"[0-9][0-9_]*"
_EXPONENT = r"[eE][-+]?[0-9]+"
# The scalars of YAML 1.2, and Python's None. PyYAML's own rules are those of YAML 1.1, which read 2014-01-02 as a date,
# 1:30 as 90, 0123 as 83 and no as False.
_SCALARS = {
    "null": (r"~|null|Null|NULL|None", "~nN"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(?:0|[1-9][0-9_]*|0b[01_]+|0o[0-7_]+|0x[0-9a-fA-F_]+)", "-+0123456789"),
    "float": (
        rf"[-+]?(?:{_NUMBER}\.[0-9_]*(?:{_EXPONENT})?|{_NUMBER}{_EXPONENT}|\.{_NUMBER}(?:{_EXPONENT})?|\.(?:inf|Inf|INF))"
        r"|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
}
_NOTHING = ("~", "null", "Null", "NULL", "None")


class _Loader(yaml.SafeLoader):
    """yaml.SafeLoader with the scalars of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (as the types of PyYAML declare it)


class _Dumper(yaml.SafeDumper):
    """yaml.SafeDumper that quotes what `_Loader` would not read as text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012


for _class in (_Loader, _Dumper):
    for _name, (_pattern, _first) in _SCALARS.items():
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"^(?:{_pattern})$"), list(_first))


def parse_value(text: str) -> Any:
    """Read a value of the command line as YAML.

    ``[a, b]`` and ``{epochs: 100}`` are a list and a mapping, ``1e-3`` is a number, ``true`` and ``True`` are flags,
    ``~``, ``null`` and ``None`` are nothing, and ``'5'`` is text. Any other text is itself: ``no``, ``on``, ``0123``
    and ``2014-01-02`` as well, and ``{title}``, whose braces hold no value. Python's literals that YAML does not have,
    such as ``(1, 2)`` and ``1,2``, are read as in Python. Nothing is ever executed.

    Raises:
        SettingError: for a mapping that names something twice, and for a value that contains itself.
    """
    stripped = text.strip()
    value = _container(stripped) if stripped[:1] in ("[", "{", "'", '"') else _scalar(stripped)
    return parse_literal(text) if value is None and stripped not in _NOTHING else value


def parse_literal(text: str) -> Any:
    """Read a Python literal, ``true``, ``false`` or ``~`` (nothing); any other text is itself."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if text == "~":
        return None
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def write_value(value: Any) -> str:
    """Return the text that `parse_value` reads as `value`."""
    if isinstance(value, str) and parse_value(value) == value:
        return value
    written = repr(value)
    if parse_value(written) == value:
        return written
    return yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=math.inf).removesuffix("...\n").strip()


def is_finite(value: Any) -> bool:
    """Tell whether a value, with all that it holds, is without infinite numbers and nan."""
    if isinstance(value, Mapping):
        return all(map(is_finite, value.values()))
    if isinstance(value, list | tuple | set):
        return all(map(is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def names_of(text: str) -> list[str]:
    """Return the names in a list that is separated by commas, in brackets or not."""
    return [name.strip().strip("'\"") for name in text.strip().strip("[]").split(",") if name.strip()]


def _container(text: str) -> Any:
    """Return a list, a mapping or quoted text; None for text that is none of them in YAML."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    try:
        check(node)
    except (yaml.YAMLError, RecursionError) as error:
        why = getattr(error, "problem", None) or error
        raise SettingError(f"the value {text[:_LONGEST_SHOWN]} is not understood: {why}") from None
    try:
        return None if node is None or _lacks_value(node) else loader.construct_document(node)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return None


def _lacks_value(node: yaml.Node) -> bool:
    """Tell whether a key has no value anywhere, as in ``{title}``: a template, not a mapping."""
    if isinstance(node, yaml.MappingNode):
        return any(
            (isinstance(value, yaml.ScalarNode) and value.value == "" and value.style is None) or _lacks_value(value)
            for _, value in node.value
        )
    return isinstance(node, yaml.SequenceNode) and any(_lacks_value(entry) for entry in node.value)


def _scalar(text: str) -> Any:
    """Return a number, a flag or nothing; None, too, for other text."""
    loader = _Loader("")
    try:
        tag = loader.resolve(yaml.ScalarNode, text, (True, False))
        return None if tag.endswith(":str") else loader.construct_object(yaml.ScalarNode(tag, text))
    except ValueError:  # more digits than Python reads
        return None
