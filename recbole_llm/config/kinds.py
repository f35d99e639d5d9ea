"""Kinds of values that a setting may have: each tells whether a value is one of it, and says in words what is.

A flag is True or False and nothing else: the text "no" would count as True. A flag is no number, an infinite number is
none, and a whole number may stand where any number may.
"""

import codecs
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from recbole_llm.errors import nearest


def shown(value: Any) -> str:
    """Return `value` as an error shows it: an empty text would be invisible."""
    return repr(value) if value == "" else str(value)


class Kind:
    """What a value may be.

    Attributes:
        type: the Python type as RecBole's files write it, such as ``int``.
        words: what a value must be, to be read after "must be".
    """

    type: str
    words: str

    def accepts(self, value: Any) -> bool:
        """Tell whether `value` is of this kind."""
        raise NotImplementedError

    def near(self, value: Any) -> str:
        """Return a question that names the nearest choice, or an empty text."""
        return ""

    def fault(self, name: str, value: Any) -> str | None:
        """Return one sentence on what is wrong with the setting `name`, or None."""
        if self.accepts(value):
            return None
        return f"{name}={shown(value)} must be {self.words}{self.near(value)}"


@dataclass(frozen=True)
class Flag(Kind):
    """True or False."""

    type = "bool"
    words = "True or False"

    def accepts(self, value: Any) -> bool:
        """Tell whether `value` is a bool."""
        return isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Whole(Kind):
    """A whole number from `low` to `high`; without `low` any."""

    low: int | None = 0
    high: int | None = None

    type = "int"

    @property
    def words(self) -> str:  # type: ignore[override]
        """Such as "a whole number from 1"."""
        low = "" if self.low is None else f" from {self.low}"
        return f"a whole number{low}{'' if self.high is None else f' to {self.high}'}"

    def accepts(self, value: Any) -> bool:
        """Tell whether `value` is such a number."""
        if not isinstance(value, int) or isinstance(value, bool):
            return False
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)


def _bound(word: str, bound: float | None) -> str:
    return "" if bound is None else f"{word} {bound:g}"


@dataclass(frozen=True)
class Number(Kind):
    """A finite number from `low` (or above `above`) to `high` (or below `below`)."""

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None

    type = "float"

    @property
    def words(self) -> str:  # type: ignore[override]
        """Such as "a number above 0 and below 1"."""
        start = (
            f"from {self.low:g}" if self.low is not None else f"above {self.above:g}" if self.above is not None else ""
        )
        end = (
            f"to {self.high:g}" if self.high is not None else f"below {self.below:g}" if self.below is not None else ""
        )
        if self.above is not None and end:
            start += " and" if self.below is not None else " and up"
        if self.low is not None and self.below is not None:
            end = f"to {end}"
        return " ".join(filter(None, ("a number", start, end)))

    def accepts(self, value: Any) -> bool:
        """Tell whether `value` is such a number."""
        if not _is_number(value):
            return False
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )


@dataclass(frozen=True)
class Text(Kind):
    """A text; with `empty` also one without characters, and with `numbers` also a number, which is read as its text."""

    what: str = "text"
    empty: bool = False
    numbers: bool = False

    type = "str"

    @property
    def words(self) -> str:  # type: ignore[override]
        """Such as "text that is not empty"."""
        return self.what if self.empty or self.what != "text" else "text that is not empty"

    def accepts(self, value: Any) -> bool:
        """Tell whether `value` is such a text."""
        if isinstance(value, str):
            return self.empty or bool(value)
        return self.numbers and _is_number(value)


@dataclass(frozen=True, init=False)
class Choice(Kind):
    """One of some texts, in the same case unless `any_case`."""

    names: tuple[str, ...]
    any_case: bool

    type = "str"

    def __init__(self, *names: str, any_case: bool = False) -> None:
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "any_case", any_case)

    @property
    def words(self) -> str:  # type: ignore[override]
        """Such as "full, lora or frozen"."""
        *others, last = self.names
        return f"{', '.join(others)} or {last}" if others else last

    def accepts(self, value: Any) -> bool:
        """Tell whether `value` is one of the names."""
        return isinstance(value, str) and (value.lower() if self.any_case else value) in self.names

    def near(self, value: Any) -> str:
        """Return a question that names the nearest choice."""
        return nearest(str(value), self.names)


@dataclass(frozen=True)
class Matching(Kind):
    """A value that a function accepts, described in words."""

    words: str
    test: Callable[[Any], bool] = field(repr=False)
    type: str = "str"

    def accepts(self, value: Any) -> bool:
        """Tell whether the function accepts `value`."""
        return self.test(value)


@dataclass(frozen=True)
class Maybe(Kind):
    """A value of another kind, or None (``~``)."""

    kind: Kind

    @property
    def type(self) -> str:  # type: ignore[override]
        """The type of the other kind."""
        return self.kind.type

    @property
    def words(self) -> str:  # type: ignore[override]
        """Such as "a number above 0, or ~"."""
        return f"{self.kind.words}, or ~"

    def accepts(self, value: Any) -> bool:
        """Tell whether `value` is None or of the other kind."""
        return value is None or self.kind.accepts(value)

    def fault(self, name: str, value: Any) -> str | None:
        """Return one sentence on what is wrong, or None."""
        if value is None:
            return None
        inner = self.kind.fault(name, value)
        plain = isinstance(self.kind, Pairs | Keys)
        return inner if inner is None or plain else f"{name}={shown(value)} must be {self.words}{self.kind.near(value)}"


@dataclass(frozen=True, init=False)
class Either(Kind):
    """A value of one of several kinds."""

    kinds: tuple[Kind, ...]

    def __init__(self, *kinds: Kind) -> None:
        object.__setattr__(self, "kinds", kinds)

    @property
    def type(self) -> str:  # type: ignore[override]
        """The types of all kinds."""
        return " or ".join(dict.fromkeys(kind.type for kind in self.kinds))

    @property
    def words(self) -> str:  # type: ignore[override]
        """The words of all kinds."""
        return ", or ".join(kind.words for kind in self.kinds)

    def accepts(self, value: Any) -> bool:
        """Tell whether `value` is of one of the kinds."""
        return any(kind.accepts(value) for kind in self.kinds)

    def near(self, value: Any) -> str:
        """Return a question that names the nearest choice of any kind."""
        return next(filter(None, (kind.near(value) for kind in self.kinds)), "")

    def fault(self, name: str, value: Any) -> str | None:
        """Return one sentence on what is wrong, that of a mapping's own keys where the value is a mapping, or None."""
        if isinstance(value, Mapping) and not self.accepts(value):
            for kind in self.kinds:
                if isinstance(kind, Pairs | Keys):
                    return kind.fault(name, value)
        return super().fault(name, value)


@dataclass(frozen=True)
class Items(Kind):
    """A list of values of one kind, with at least `least`; with `single` also one value alone."""

    kind: Kind
    least: int = 0
    single: bool = False
    example: str = ""

    @property
    def type(self) -> str:  # type: ignore[override]
        """The type, as in ``list of int``."""
        return f"list of {self.kind.type}"

    @property
    def words(self) -> str:  # type: ignore[override]
        """Such as "a whole number from 1, or a list of such"."""
        filled = " that is not empty" if self.least else ""
        example = f", such as {self.example}" if self.example else ""
        if self.single:
            return f"{self.kind.words}, or a list of such{filled}{example}"
        return f"a list{filled} in which each is {self.kind.words}{example}"

    def accepts(self, value: Any) -> bool:
        """Tell whether `value` is such a list."""
        if isinstance(value, list | tuple):
            return len(value) >= self.least and all(self.kind.accepts(entry) for entry in value)
        return self.single and self.kind.accepts(value)

    def near(self, value: Any) -> str:
        """Return a question that names the choice nearest to the first entry that is none."""
        entries = value if isinstance(value, list | tuple) else [value]
        return next((self.kind.near(entry) for entry in entries if not self.kind.accepts(entry)), "")


class _Mapped(Kind):
    type = "dict"

    def fault_of(self, key: Any, value: Any, where: str) -> str | None:
        """Return what is wrong with one key or its value, or None."""
        raise NotImplementedError

    def accepts(self, value: Any) -> bool:
        """Tell whether `value` is such a mapping."""
        return self.fault("", value) is None

    def fault(self, name: str, value: Any) -> str | None:
        """Return one sentence on the first key or value that is wrong, or None."""
        if not isinstance(value, Mapping):
            return f"{name}={shown(value)} must be {self.words}"
        return next(filter(None, (self.fault_of(key, entry, name) for key, entry in value.items())), None)


@dataclass(frozen=True)
class Pairs(_Mapped):
    """A mapping from texts to values of one kind."""

    kind: Kind
    example: str

    @property
    def words(self) -> str:  # type: ignore[override]
        """What it must be, with the example."""
        return f"a mapping such as {self.example}"

    def fault_of(self, key: Any, value: Any, where: str) -> str | None:
        """Return what is wrong with one key or its value, or None."""
        if not isinstance(key, str) or not key:
            return f"{where} has the key {shown(key)}, which must be text: it must be {self.words}"
        return self.kind.fault(f"{where}.{key}", value)


@dataclass(frozen=True)
class Keys(_Mapped):
    """A mapping with known keys, each of a kind of its own.

    Attributes:
        kinds: by key.
        required: keys that may not be missing.
        one: whether exactly one of the keys is given.
    """

    kinds: Mapping[str, Kind]
    required: tuple[str, ...] = ()
    one: bool = False

    @property
    def words(self) -> str:  # type: ignore[override]
        """What it must be."""
        return f"a mapping with {'one of ' if self.one else ''}{', '.join(self.kinds)}"

    def fault_of(self, key: Any, value: Any, where: str) -> str | None:
        """Return what is wrong with one key or its value, or None."""
        if key not in self.kinds:
            return f"{where} has no '{key}'{nearest(str(key), self.kinds)} It has {', '.join(self.kinds)}"
        return self.kinds[key].fault(f"{where}.{key}", value)

    def fault(self, name: str, value: Any) -> str | None:
        """Return one sentence on the first key or value that is wrong or missing, or None."""
        wrong = super().fault(name, value)
        if wrong is not None:
            return wrong
        missing = [key for key in self.required if key not in value]
        if missing or (self.one and len(value) != 1):
            return f"{name}={shown(value)} must be {self.words}" + (f": it lacks {missing[0]}" if missing else "")
        return None


_INTERVAL = re.compile(r"\s*[\[(]\s*([-+]?[\d.]+(?:e[-+]?\d+)?|-inf)\s*,\s*([-+]?[\d.]+(?:e[-+]?\d+)?|inf)\s*[\])]\s*")


def _is_interval(value: Any) -> bool:
    # [4,24] is a list in YAML and in Python, (4,24) a tuple in Python; RecBole reads their text.
    text = str(value) if isinstance(value, list | tuple) else value
    return isinstance(text, str) and bool(text) and all(_INTERVAL.fullmatch(part) for part in text.split(";"))


def _is_encoding(value: Any) -> bool:
    try:
        return isinstance(value, str) and codecs.lookup(value) is not None
    except LookupError:
        return False


INTERVAL = Matching("an interval such as '[5,inf)'", _is_interval)
ENCODING = Matching("the name of a text encoding, such as utf-8", _is_encoding)
ANYTHING = Matching("anything", lambda value: True, type="any")
RATE = Number(low=0, below=1)
SHARE = Number(above=0, high=1)
POSITIVE = Number(above=0)
FROM_ZERO = Number(low=0)
COLUMN = Text("the name of a column")
COLUMNS = Items(COLUMN)
PATH = Text("a path", empty=True)
SIZE = Whole(1)
COUNT = Whole(0)
NUMBER = Number()
ANY_WHOLE = Whole(None)
