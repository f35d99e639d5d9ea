"""RecBole's own atomic files, to filter them again or to give them the manifest and the report."""

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from recbole_llm.errors import DataError, nearest
from recbole_llm.prepare.formats.base import ITEM, RATING, TIME, USER, Files
from recbole_llm.prepare.raw import RawFile, Tally, ahead, blocks, not_utf8


class Atomic:
    """See the module's text and `RawFormat`.

    Options: `columns` as in the format `table`; by default ``user_id``, ``item_id``, ``timestamp`` and ``rating``.
    """

    roles = ("interactions", "items")
    optional_roles = frozenset({"items"})
    fields: frozenset[str] = frozenset()
    list_fields: frozenset[str] = frozenset()
    html = False
    options = frozenset({"columns"})

    def interactions(self, files: Files, options: Mapping[str, Any], tally: Tally) -> Iterator[pl.DataFrame]:
        """See `RawFormat`."""
        columns = _columns(options)
        names = {columns["user"]: USER, columns["item"]: ITEM, columns["timestamp"]: TIME}
        for frame in _read(files["interactions"], tuple(names), (columns["rating"],), tally, "interactions"):
            yield frame.rename({**names, columns["rating"]: RATING}, strict=False)

    def items(
        self, files: Files, fields: tuple[str, ...], options: Mapping[str, Any], tally: Tally
    ) -> Iterator[pl.DataFrame]:
        """See `RawFormat`."""
        item = _columns(options)["item"]
        for frame in _read(files["items"], tuple(dict.fromkeys([item, *fields])), (), tally, "items"):
            yield frame.select(pl.col(item).alias(ITEM), *fields)


def _columns(options: Mapping[str, Any]) -> dict[str, str]:
    default = {"user": "user_id", "item": "item_id", "timestamp": "timestamp", "rating": "rating"}
    return default | dict(options.get("columns") or {})


def _text(block: bytes, raw: RawFile) -> str:
    try:
        return block.decode("utf-8")
    except UnicodeDecodeError:
        raise not_utf8(raw.name) from None


def _read(
    raw: RawFile, needed: tuple[str, ...], welcome: tuple[str, ...], tally: Tally, what: str
) -> Iterator[pl.DataFrame]:
    header: list[str] = []
    wanted: list[str] = []
    with raw.open() as stream:
        for block in ahead(blocks(stream)):
            lines = _text(block, raw).split("\n")
            if not header:
                lines[0] = lines[0].removeprefix("\ufeff")
                header = [column.partition(":")[0] for column in lines.pop(0).rstrip("\r").split("\t")]
                for name in needed:
                    if name not in header:
                        raise DataError(
                            f"{raw.name} has no column '{name}'{nearest(name, header)}: {', '.join(header)}"
                        )
                wanted = [*needed, *(name for name in welcome if name in header)]
            rows = pl.Series([line.rstrip("\r") for line in lines if line], dtype=pl.String)
            tally.count(what, len(rows))
            columns = rows.str.split_exact("\t", len(header)).struct.rename_fields([*header, "rest of the line"])
            # The space that `text.shield` wrote before some texts is taken off again.
            yield columns.struct.unnest().select(pl.col(wanted).str.strip_chars(" "))
