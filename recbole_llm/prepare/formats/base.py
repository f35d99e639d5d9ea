"""The one interface behind which each publisher's layout is read."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import polars as pl

from recbole_llm.prepare.raw import RawFile, Tally

USER, TIME, RATING = "user", "time", "rating"
ITEM = "(item)"  # a text of an item may be called item
PART = "part"
"""``train``, ``valid`` or ``test``, of the user whose interaction it is; formats that publish a split give it."""
PARTS = ("train", "valid", "test")

Files = Mapping[str, RawFile]
"""Role -> file, such as ``interactions`` and ``items``."""


class RawFormat(Protocol):
    """A publisher's layout."""

    @property
    def roles(self) -> tuple[str, ...]:
        """The files it reads, by role."""
        ...

    @property
    def optional_roles(self) -> frozenset[str]:
        """Roles that the settings of a dataset may leave out."""
        ...

    @property
    def fields(self) -> frozenset[str]:
        """Names of the texts of an item that it can give; empty if the file itself says."""
        ...

    @property
    def list_fields(self) -> frozenset[str]:
        """Texts whose value may be a JSON list."""
        ...

    @property
    def html(self) -> bool:
        """Whether texts are HTML, so that tags and entities must be undone."""
        ...

    @property
    def options(self) -> frozenset[str]:
        """Names that `options` in the settings may hold."""
        ...

    def interactions(self, files: Files, options: Mapping[str, Any], tally: Tally) -> Iterator[pl.DataFrame]:
        """Yield interactions in the file's order: text columns USER, ITEM, TIME and, where published, RATING and PART.

        TIME may be numbers, their digits, dates or texts of dates, RATING numbers or their digits: the caller turns
        them into numbers and names what is none.
        """
        ...

    def items(
        self, files: Files, fields: tuple[str, ...], options: Mapping[str, Any], tally: Tally
    ) -> Iterator[pl.DataFrame]:
        """Yield the text columns ITEM and the `fields`, in the file's order; an item may come many times."""
        ...
