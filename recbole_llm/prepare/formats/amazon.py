"""Amazon Reviews 2014, 2018 and 2023: a file of reviews and a file of metadata, both lines of JSON, gzipped.

Sources: McAuley et al. 2015 (2014), Ni, Li and McAuley 2019 (2018), Hou et al. 2024 (2023). Metadata of 2014 are
Python literals; some lines of 2018 are. In 2023 times are milliseconds, and reviews name an item by `parent_asin`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from recbole_llm.prepare.formats import jsonlines
from recbole_llm.prepare.formats.base import ITEM, RATING, TIME, USER, Files
from recbole_llm.prepare.raw import Tally


@dataclass(frozen=True)
class Amazon:
    """One edition: what it calls the user, the item, the time, the rating, and the texts of an item."""

    user: str
    item: str
    time: str
    rating: str
    texts: Mapping[str, str]
    roles: tuple[str, ...] = ("interactions", "items")
    optional_roles: frozenset[str] = frozenset()
    list_fields: frozenset[str] = frozenset({"categories", "description"})
    html: bool = True
    options: frozenset[str] = frozenset()

    @property
    def fields(self) -> frozenset[str]:
        """Texts that an item may have."""
        return frozenset(self.texts)

    def interactions(self, files: Files, options: Mapping[str, Any], tally: Tally) -> Iterator[pl.DataFrame]:
        """See `RawFormat`."""
        names = {self.user: USER, self.item: ITEM, self.time: TIME, self.rating: RATING}
        for frame in jsonlines.read(files["interactions"], tuple(names), tally, "interactions"):
            yield frame.rename(names)

    def items(
        self, files: Files, fields: tuple[str, ...], options: Mapping[str, Any], tally: Tally
    ) -> Iterator[pl.DataFrame]:
        """See `RawFormat`."""
        published = (self.item, *(self.texts[name] for name in fields))
        for frame in jsonlines.read(files["items"], published, tally, "items"):
            yield frame.rename(dict(zip(published, (ITEM, *fields), strict=True)))


_TEXTS = {"title": "title", "brand": "brand", "categories": "category", "description": "description"}

AMAZON_2014 = Amazon("reviewerID", "asin", "unixReviewTime", "overall", {**_TEXTS, "categories": "categories"})
AMAZON_2018 = Amazon("reviewerID", "asin", "unixReviewTime", "overall", _TEXTS)
AMAZON_2023 = Amazon(
    "user_id", "parent_asin", "timestamp", "rating", {**_TEXTS, "categories": "categories", "brand": "store"}
)
