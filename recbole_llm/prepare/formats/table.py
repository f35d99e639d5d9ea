"""A plain table of (user, item, timestamp) as CSV, TSV or Parquet, with a table of texts beside it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from recbole_llm.errors import DataError, SettingError, nearest
from recbole_llm.prepare.formats.base import ITEM, RATING, TIME, USER, Files
from recbole_llm.prepare.raw import RawFile, Tally

_BATCH_ROWS = 250_000


class Table:
    """See the module's text and `RawFormat`.

    Options: `columns` names the columns of the two files, ``{user: u, item: i, timestamp: t, rating: r}``, each by its
    own name if left out. The separator is a tab in a file that ends in .tsv and a comma in others; `separator`
    overrules it.
    """

    roles = ("interactions", "items")
    optional_roles = frozenset({"items"})
    fields: frozenset[str] = frozenset()
    list_fields: frozenset[str] = frozenset()
    html = False
    options = frozenset({"columns", "separator"})

    def interactions(self, files: Files, options: Mapping[str, Any], tally: Tally) -> Iterator[pl.DataFrame]:
        """See `RawFormat`."""
        columns = {"user": "user", "item": "item", "timestamp": "timestamp"} | dict(options.get("columns") or {})
        names = {columns["user"]: USER, columns["item"]: ITEM, columns["timestamp"]: TIME}
        if "rating" in columns:
            names[columns["rating"]] = RATING
        if len(names) < len(columns):
            raise SettingError(f"prepare.options.columns names one column twice: {columns}")
        for frame in batches(files["interactions"], tuple(names), options.get("separator")):
            tally.count("interactions", frame.height)
            yield frame.rename(names).cast({USER: pl.String, ITEM: pl.String})

    def items(
        self, files: Files, fields: tuple[str, ...], options: Mapping[str, Any], tally: Tally
    ) -> Iterator[pl.DataFrame]:
        """See `RawFormat`."""
        item = dict(options.get("columns") or {}).get("item", "item")
        for frame in batches(files["items"], tuple(dict.fromkeys([item, *fields])), options.get("separator")):
            tally.count("items", frame.height)
            yield frame.select(pl.col(item).alias(ITEM), *fields).cast(pl.String)


def batches(raw: RawFile, columns: tuple[str, ...], separator: str | None) -> Iterator[pl.DataFrame]:
    """Yield the named `columns` of a CSV, TSV or Parquet file in the file's order; CSV columns are texts.

    Raises:
        DataError: if the file is missing or cannot be read, or lacks a column.
    """
    raw.require_file()
    if raw.path.stat().st_size == 0:
        raise DataError(f"the raw file {raw.path} is empty: get it again from its source")
    if raw.path.suffix != ".parquet":
        raw.require_utf8()
    try:
        table = _scan(raw.path, separator)
        known = table.collect_schema().names()
        for column in columns:
            if column not in known:
                raise DataError(
                    f"{raw.path} has no column '{column}'{nearest(column, known)}: it has {', '.join(known)}"
                )
        yield from table.select(columns).collect_batches(chunk_size=_BATCH_ROWS, maintain_order=True)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{raw.path} could not be read as a table: {' '.join(str(error).split())[:200]}") from None


def _scan(path: Path, separator: str | None) -> pl.LazyFrame:
    if path.suffix == ".parquet":
        return pl.scan_parquet(path)
    tabs = ".tsv" in path.suffixes
    return pl.scan_csv(path, separator=separator or ("\t" if tabs else ","), infer_schema=False)
