"""From raw files to two tables in memory: interactions in a compact coding, and the texts of the items that occur.

Only four columns of the interactions are held (20 bytes each; ids are coded as they come), and only the texts of items
that somebody interacted with: the raw files stream through in blocks.
"""

from collections.abc import Mapping

import numpy as np
import polars as pl

from recbole_llm.errors import DataError
from recbole_llm.prepare import text, times
from recbole_llm.prepare.filters import ROW
from recbole_llm.prepare.formats.base import ITEM, PART, PARTS, RATING, TIME, USER
from recbole_llm.prepare.raw import RawFile, Tally
from recbole_llm.prepare.spec import Spec

_NEEDED = {USER: "user", ITEM: "item", TIME: "timestamp"}


def interactions(spec: Spec, files: Mapping[str, RawFile], tally: Tally) -> pl.DataFrame:
    """Return USER and ITEM (categorical), TIME (Int64, or Float64 if published so), ROW and perhaps RATING.

    A row without a user, an item or a time is left out and counted.

    Raises:
        DataError: if the file is broken or empty, or lacks one of the three everywhere, or a time cannot be read.
    """
    raw = files[next(iter(files))]
    categories = {USER: pl.Categorical(pl.Categories.random()), ITEM: pl.Categorical(pl.Categories.random())}
    columns = [USER, ITEM, TIME, *([RATING] if RATING in spec.inter_fields else [])]
    if spec.benchmark is not None:
        columns.append(PART)
    present = dict.fromkeys(_NEEDED, 0)
    rows = 0
    parts = []
    for block in spec.reader.interactions(files, spec.options, tally):
        rows += block.height
        if PART in columns and PART not in block.columns:
            raise DataError(f"the format '{spec.format}' publishes no split: take 'benchmark' out of prepare")
        if missing := [name for name in columns if name not in block.columns]:
            raise DataError(f"{raw.name} gives no {missing[0]}: take '{missing[0]}' out of prepare.inter_fields")
        for name in _NEEDED:
            present[name] += block.height - block[name].null_count()
        part = block.select(columns).with_columns(_token(block[USER]), _token(block[ITEM]))
        part = part.filter((pl.col(USER) != "") & (pl.col(ITEM) != "") & pl.col(TIME).is_not_null())
        tally.skip("interactions: no user, item or timestamp", block.height - part.height)
        parts.append(part.with_columns(times.as_numbers(part, raw).alias(TIME)).cast(dict(categories)))
    if not rows:
        raise DataError(f"{raw.name} holds no interactions: it is empty, or no line of it could be read")
    for name, count in present.items():
        if not count:
            raise DataError(f"{raw.name} has no {_NEEDED[name]} column: is it the file that '{spec.format}' reads?")
    return _gathered(_with_dates(parts, spec, raw, tally))


def _with_dates(parts: list[pl.DataFrame], spec: Spec, raw: RawFile, tally: Tally) -> pl.DataFrame:
    if not any(part[TIME].dtype == pl.String for part in parts):
        return pl.concat(parts, how="vertical_relaxed", rechunk=True)
    table = pl.concat([part.cast({TIME: pl.String}) for part in parts], rechunk=True)
    return table.with_columns(times.from_texts(table, spec.time_format, raw, tally).alias(TIME))


def _gathered(table: pl.DataFrame) -> pl.DataFrame:
    for name in (TIME, RATING):
        if name in table.columns:
            column = table[name]
            if name == RATING:
                column = column.cast(pl.Float64, strict=False)
            if column.dtype == pl.Float64 and (column == column.floor()).all() and not column.is_null().any():
                column = column.cast(pl.Int64)
            table = table.with_columns(column)
    if PART in table.columns:
        table = table.with_columns(pl.col(PART).cast(pl.Enum(PARTS)))
    return table.with_row_index(ROW)


def _token(column: pl.Series) -> pl.Series:
    """Return ids on one line; almost all are already, and are then left as they are."""
    plain = column.cast(pl.String).fill_null("")
    if not plain.str.contains(r"[\s\x00-\x1f\x7f-\x9f]").any():
        return plain
    return plain.to_frame().select(text.one_line(pl.col(plain.name))).to_series()


def items(spec: Spec, files: Mapping[str, RawFile], occurring: pl.Series, tally: Tally) -> pl.DataFrame:
    """Return ITEM and the texts of the items that occur, each once; ``title`` is there whenever the format has titles.

    The publisher may list an item many times: the first entry with a title wins, or the first entry if none has one.

    Args:
        occurring: the items of the interactions (categorical, unique).
        spec: the dataset's settings.
        files: role -> raw file.
        tally: counts what is read and left out.

    Raises:
        DataError: if the file is broken, or has no entry for any item that occurs.
    """
    title = title_field(spec)
    fields = tuple(dict.fromkeys([*([title] if title else []), *spec.item_fields.values()]))
    empty = pl.DataFrame(schema={ITEM: occurring.dtype, **dict.fromkeys(fields, pl.String)})
    if "items" not in files or not fields:
        return empty
    wanted = pl.DataFrame({ITEM: occurring.cast(pl.String), "code": occurring})
    titled = np.zeros(int(occurring.to_physical().max() or 0) + 1, dtype=bool)
    parts = [empty.with_columns(pl.lit(None, pl.Boolean).alias("empty"))]
    seen = 0
    for block in spec.reader.items(files, fields, spec.options, tally):
        found = block.with_columns(_token(block[ITEM])).join(wanted, on=ITEM, how="inner", maintain_order="left")
        seen += found.height
        found = found.filter(~pl.Series(titled[found["code"].to_physical().to_numpy()], dtype=pl.Boolean))
        if found.is_empty():
            continue
        found = found.select(pl.col("code").alias(ITEM), *(_clean(spec, found[name]) for name in fields))
        found = _first_with_title(found.with_columns((pl.col(fields[0]) == "").alias("empty")))
        titled[found.filter(~pl.col("empty"))[ITEM].to_physical().to_numpy()] = True
        parts.append(found)
    if not seen:
        raise DataError(
            f"{files['items'].name} has no entry for any of the {len(occurring):,} items of the interactions: the two "
            "files do not belong together"
        )
    tally.skip("items: listed again", seen - len(pl.concat(parts)[ITEM].unique()))
    return _first_with_title(pl.concat(parts)).drop("empty")


def all_items(spec: Spec, files: Mapping[str, RawFile], occurring: pl.Series) -> pl.Series:
    """Return `occurring` and after it the other items of the item file, in that file's order."""
    fields = tuple(spec.item_fields.values())
    listed = [_token(block[ITEM]) for block in spec.reader.items(files, fields, spec.options, Tally())]
    return pl.concat([occurring, *(part.cast(occurring.dtype) for part in listed)]).unique(maintain_order=True)


def title_field(spec: Spec) -> str | None:
    """Return which text of the format counts as the title: ``title``, or the first one listed if there is none."""
    if "title" in spec.reader.fields or "title" in spec.item_fields.values():
        return "title"
    return next(iter(spec.item_fields.values()), None)


def _first_with_title(entries: pl.DataFrame) -> pl.DataFrame:
    # A stable sort: entries with a title first, otherwise in the file's order.
    return entries.sort("empty", maintain_order=True).unique(ITEM, keep="first", maintain_order=True)


def _clean(spec: Spec, column: pl.Series) -> pl.Series:
    if column.name in spec.reader.list_fields:
        column = column.map_elements(text.from_list, return_dtype=pl.String)
    if spec.reader.html:
        column = text.from_html(column)
    return column.to_frame().select(text.one_line(pl.col(column.name))).to_series()
