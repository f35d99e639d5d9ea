"""Times of interactions as numbers: seconds since 1970 for dates, the published number for anything else.

Dates without a time zone are taken as UTC.
"""

import polars as pl

from recbole_llm.errors import DataError
from recbole_llm.prepare.formats.base import ITEM, TIME, USER
from recbole_llm.prepare.raw import RawFile, Tally

# What texts may look like when `prepare.time_format` names no format. Exactly one must fit every row.
FORMATS = (
    *("%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%d %H:%M:%S%.f%#z"),
    *("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M"),
    *("%Y-%m-%d", "%Y/%m/%d", "%Y%m%d"),
    *("%d-%m-%Y", "%m-%d-%Y", "%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y"),
)


def as_numbers(part: pl.DataFrame, raw: RawFile) -> pl.Series:
    """Return the column TIME of a block as numbers, or as the texts that it has if they are no numbers.

    Args:
        part: with USER, ITEM and TIME.
        raw: named in errors.

    Returns:
        Int64 or Float64; String, if any of the block's texts is no number: `from_texts` reads these once all blocks
        are there, since the format of a date shows in all rows together.

    Raises:
        DataError: for a number that is not finite.
    """
    column = part[TIME]
    if column.dtype == pl.String:
        column = column.str.strip_chars()
        whole = column.cast(pl.Int64, strict=False)
        if whole.null_count() == 0:
            return whole
        numbers = column.cast(pl.Float64, strict=False)
        if numbers.null_count():
            return column
        column = numbers
    elif column.dtype == pl.Date:
        return column.cast(pl.Int64) * 86_400
    elif column.dtype == pl.Datetime:
        return _seconds(column)
    elif column.dtype.is_integer():
        return column.cast(pl.Int64)
    else:
        column = column.cast(pl.Float64, strict=False)
    bad = column.is_null() | ~column.is_finite().fill_null(False)
    if bad.any():
        raise _refused(part.filter(bad), raw, "is not a number")
    return column


def from_texts(table: pl.DataFrame, wanted: str | None, raw: RawFile, tally: Tally) -> pl.Series:
    """Return the times of texts in seconds since 1970.

    Args:
        table: with USER, ITEM and TIME, a String column.
        wanted: `prepare.time_format`; None: the one of `FORMATS` that fits every row.
        raw: named in errors.
        tally: is told the format.

    Raises:
        DataError: if no format fits every row, or several do and disagree.
    """
    column = table[TIME].str.strip_chars()
    formats = FORMATS if wanted is None else (wanted,)
    fitting = {name: times for name in formats if (times := _parsed(column, name)) is not None}
    if not fitting:
        raise _none_fits(table.with_columns(column), formats, wanted, raw)
    (name, times), *others = fitting.items()
    for other, different in others:
        if not different.equals(times):
            raise DataError(
                f"{raw.name}: the timestamp {column[0]!r} may be read as {name} and as {other}, and so may all others: "
                f"say which with 'time_format' under prepare"
            )
    tally.time_format = name
    return times


def _parsed(column: pl.Series, name: str) -> pl.Series | None:
    try:
        times = column.str.to_datetime(name, strict=False, time_unit="us", time_zone="UTC" if "z" in name else None)
    except pl.exceptions.PolarsError:
        return None
    return None if times.null_count() else _seconds(times)


def _seconds(times: pl.Series) -> pl.Series:
    """Return seconds since 1970: Int64 where all are whole, Float64 elsewhere."""
    ticks = times.cast(pl.Datetime("us")).cast(pl.Int64)
    if (ticks % 1_000_000 == 0).all():
        return ticks // 1_000_000
    return ticks / 1_000_000


def _none_fits(table: pl.DataFrame, formats: tuple[str, ...], wanted: str | None, raw: RawFile) -> DataError:
    """Name the first row that the format with the fewest misfits does not fit."""
    misfits = {name: table.filter(_misfit(table[TIME], name)) for name in formats}
    fewest = min(misfits.values(), key=lambda rows: rows.height)
    if wanted is not None:
        return _refused(fewest, raw, f"does not have the time_format {wanted}")
    numbers = table.filter(table[TIME].cast(pl.Float64, strict=False).is_null())
    if 2 * numbers.height <= table.height:  # mostly numbers: a text among them is the fault
        return _refused(numbers, raw, "is not a number")
    return _refused(fewest, raw, "is neither a number nor a date that is known: set 'time_format' under prepare")


def _misfit(column: pl.Series, name: str) -> pl.Series:
    try:
        return column.str.to_datetime(name, strict=False, time_zone="UTC" if "z" in name else None).is_null()
    except pl.exceptions.PolarsError:
        return pl.Series([True] * len(column))


def _refused(rows: pl.DataFrame, raw: RawFile, why: str) -> DataError:
    first = rows.row(0, named=True)
    return DataError(
        f"{raw.name}: the timestamp {first[TIME]!r} of user {first[USER]} and item {first[ITEM]} {why}"
        f"{'' if 'time_format' in why else ': mend or remove that line'}"
    )
