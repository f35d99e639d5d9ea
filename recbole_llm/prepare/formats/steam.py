"""Steam's original reviews and games (Kang and McAuley 2018): lines of Python literals, gzipped.

A review has no id of its user but the name; its time is a day, here the seconds of its midnight (UTC).
"""

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from recbole_llm.prepare.formats import jsonlines
from recbole_llm.prepare.formats.base import ITEM, TIME, USER, Files
from recbole_llm.prepare.raw import Tally

_TEXTS = {"title": "app_name", "genres": "genres", "tags": "tags", "developer": "developer", "publisher": "publisher"}


class Steam:
    """See the module's text and `RawFormat`."""

    roles = ("interactions", "items")
    optional_roles: frozenset[str] = frozenset()
    fields = frozenset(_TEXTS)
    list_fields = frozenset({"genres", "tags"})
    html = True
    options: frozenset[str] = frozenset()

    def interactions(self, files: Files, options: Mapping[str, Any], tally: Tally) -> Iterator[pl.DataFrame]:
        """See `RawFormat`."""
        day = pl.col("date").str.to_date("%Y-%m-%d", strict=False)
        seconds = (day.cast(pl.Int64) * 86_400).cast(pl.String)
        for frame in jsonlines.read(files["interactions"], ("username", "product_id", "date"), tally, "interactions"):
            yield frame.select(
                pl.col("username").alias(USER),
                pl.col("product_id").alias(ITEM),
                # What is no day stays as it is, and is then named as a time that is no number.
                pl.coalesce(seconds, pl.col("date")).alias(TIME),
            )

    def items(
        self, files: Files, fields: tuple[str, ...], options: Mapping[str, Any], tally: Tally
    ) -> Iterator[pl.DataFrame]:
        """See `RawFormat`."""
        published = ("id", *(_TEXTS[name] for name in fields))
        for frame in jsonlines.read(files["items"], published, tally, "items"):
            yield frame.rename(dict(zip(published, (ITEM, *fields), strict=True)))
