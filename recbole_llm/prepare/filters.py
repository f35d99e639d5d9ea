"""The filters that a dataset's settings list, applied in the order listed.

Each is a frozen dataclass whose fields are its settings. Nothing here depends on the order in which polars groups rows:
rows carry their place in the raw file (`row`), and whatever chooses among rows chooses by it.
"""

import hashlib
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

import polars as pl

from recbole_llm.errors import SettingError
from recbole_llm.prepare.formats.base import ITEM, TIME, USER

ROW = "row"


@dataclass(frozen=True)
class Data:
    """Interactions and texts between two filters.

    Args:
        interactions: USER and ITEM (categorical), TIME (number), ROW (place in the raw file), perhaps RATING.
        titles: ITEM (categorical) and ``title`` of the items that have a title; the others are absent.
        seed: of the sampling.
    """

    interactions: pl.DataFrame
    titles: pl.DataFrame
    seed: int

    def of(self, column: str, kept: pl.DataFrame) -> "Data":
        """Return the data with those interactions only whose `column` is among `kept`."""
        interactions = self.interactions.join(kept.select(column), on=column, how="semi", maintain_order="left")
        return Data(interactions, self.titles, self.seed)


class Filter(Protocol):
    """One entry under `filters`."""

    name: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def apply(self, data: Data) -> Data:
        """Return the data without what the filter drops."""
        ...

    def settings(self) -> dict[str, Any]:
        """Return the entry as it may be written into the YAML file."""
        ...


class _Settings:
    name: ClassVar[str]

    def settings(self) -> dict[str, Any]:
        """See `Filter`."""
        return {self.name: asdict(self)}  # type: ignore[call-overload]


@dataclass(frozen=True)
class Titles(_Settings):
    """Drop items by their title, as it is after HTML is undone.

    Args:
        empty: ``drop`` or ``keep`` items whose title is missing or empty, and items without metadata.
        max_characters: longer titles drop their item; None: no limit.
        containing: a title with one of these pieces drops its item. (Some titles of Amazon 2018 are a scrap of the
            page's script: ``getTime`` finds them. No paper drops them.)
    """

    name: ClassVar[str] = "titles"
    empty: str = "drop"
    max_characters: int | None = None
    containing: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.empty not in ("drop", "keep"):
            raise SettingError(f"titles.empty is 'drop' or 'keep', not {self.empty!r}")
        if self.max_characters is not None:
            _at_least(1, "titles.max_characters", self.max_characters)
        object.__setattr__(self, "containing", tuple(self.containing))

    def apply(self, data: Data) -> Data:
        """See `Filter`."""
        title = pl.col("title")
        too_long = pl.lit(False) if self.max_characters is None else title.str.len_chars() > self.max_characters
        bad = too_long
        for piece in self.containing:
            bad = bad | title.str.contains(piece, literal=True)
        if self.empty == "drop":
            return data.of(ITEM, data.titles.filter(~bad))
        dropped = data.titles.filter(bad).select(ITEM)
        interactions = data.interactions.join(dropped, on=ITEM, how="anti", maintain_order="left")
        return Data(interactions, data.titles, data.seed)


@dataclass(frozen=True)
class Repeats(_Settings):
    """What to do where a user meets an item more than once.

    Args:
        keep: ``all``, or the ``first`` or ``last`` by time (ties by the place in the file).
    """

    name: ClassVar[str] = "repeats"
    keep: str = "all"

    def __post_init__(self) -> None:
        if self.keep not in ("all", "first", "last"):
            raise SettingError(f"repeats.keep is 'all', 'first' or 'last', not {self.keep!r}")

    def apply(self, data: Data) -> Data:
        """See `Filter`."""
        if self.keep == "all":
            return data
        ordered = data.interactions.sort(TIME, ROW, descending=self.keep == "last")
        kept = ordered.unique([USER, ITEM], keep="first", maintain_order=True).sort(ROW)
        return Data(kept, data.titles, data.seed)


@dataclass(frozen=True)
class KCore(_Settings):
    """Drop users, and items, with too few interactions.

    Args:
        user: the fewest interactions of a user; 0: any.
        item: the fewest interactions of an item; 0: any.
        until: ``once`` counts both, drops, and is done; ``stable`` repeats until nothing more is dropped.
    """

    name: ClassVar[str] = "k_core"
    user: int = 0
    item: int = 0
    until: str = "stable"

    def __post_init__(self) -> None:
        _at_least(0, "k_core.user", self.user)
        _at_least(0, "k_core.item", self.item)
        if self.until not in ("once", "stable"):
            raise SettingError(f"k_core.until is 'once' or 'stable', not {self.until!r}")

    def apply(self, data: Data) -> Data:
        """See `Filter`."""
        while True:
            before = data.interactions.height
            kept = {column: _frequent(data, column, least) for column, least in ((USER, self.user), (ITEM, self.item))}
            for column, values in kept.items():
                if values is not None:
                    data = data.of(column, values)
            if self.until == "once" or data.interactions.height == before:
                return data


def _frequent(data: Data, column: str, least: int) -> pl.DataFrame | None:
    if least <= 1:
        return None
    return data.interactions.group_by(column).len().filter(pl.col("len") >= least)


@dataclass(frozen=True)
class MinimumLength(_Settings):
    """Drop users with fewer than so many `interactions`, once."""

    name: ClassVar[str] = "minimum_length"
    interactions: int = 1

    def __post_init__(self) -> None:
        _at_least(1, "minimum_length.interactions", self.interactions)

    def apply(self, data: Data) -> Data:
        """See `Filter`."""
        return KCore(user=self.interactions, until="once").apply(data)


@dataclass(frozen=True)
class SampleUsers(_Settings):
    """Keep some users at random.

    A user's lot is the SHA-256 of the seed and the user's id, so it depends on nothing else: not on the machine, the
    library's version, or the other users.

    Args:
        count: this many users are kept, those with the lowest lots; None: off.
        one_in: each user is kept with probability 1 / one_in; None: off.
    """

    name: ClassVar[str] = "sample_users"
    count: int | None = None
    one_in: int | None = None

    def __post_init__(self) -> None:
        if self.count is not None and self.one_in is not None:
            raise SettingError("sample_users takes 'count' or 'one_in', not both")
        _at_least(1, "sample_users.count", self.count or 1)
        _at_least(1, "sample_users.one_in", self.one_in or 1)

    def apply(self, data: Data) -> Data:
        """See `Filter`."""
        if self.count is None and self.one_in is None:
            return data
        users = data.interactions.select(pl.col(USER).unique())
        names = users[USER].cast(pl.String)
        lots = pl.Series("lot", [_lot(data.seed, name) for name in names], dtype=pl.UInt64)
        drawn = users.with_columns(lots, names.alias("name"))
        if self.one_in is not None:
            return data.of(USER, drawn.filter(pl.col("lot") % self.one_in == 0))
        return data.of(USER, drawn.sort("lot", "name").head(self.count))


def _lot(seed: int, user: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{user}".encode()).digest()[:8], "big")


def _at_least(least: int, name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SettingError(f"{name} must be a whole number of at least {least}, not {value!r}")


FILTERS: dict[str, type[Any]] = {step.name: step for step in (Titles, Repeats, KCore, MinimumLength, SampleUsers)}
"""Name in the settings -> filter."""
