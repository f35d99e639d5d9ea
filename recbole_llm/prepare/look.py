"""A look at a prepared dataset: the numbers behind the table and the HTML page."""

import datetime
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from recbole_llm.errors import DataError
from recbole_llm.prepare import text

Tokenize = Callable[[Sequence[str]], Iterable[int]]
"""Texts -> how many tokens each has."""


@dataclass(frozen=True)
class Look:
    """What a prepared dataset looks like.

    Args:
        users, items, interactions: how many.
        per_user, per_item: (interactions, how many users or items have so many), ascending.
        title_lengths: (tokens, items), ascending; empty without titles.
        title_unit: what was counted: ``tokens of NAME`` or ``words and punctuation marks``.
        popularity: (share of the items, most popular first; share of the interactions that they take).
        months: (first day of the month, interactions), if times are seconds or milliseconds; otherwise empty.
        no_text: items without a title.
        repeats: interactions with an item that the user had met before.
        targets: users with at least three interactions, so a test target under leave-one-out.
        unseen_targets: targets that occur in nobody's training part.
    """

    users: int
    items: int
    interactions: int
    per_user: list[tuple[int, int]]
    per_item: list[tuple[int, int]]
    title_lengths: list[tuple[int, int]]
    title_unit: str
    popularity: list[tuple[float, float]]
    months: list[tuple[datetime.date, int]]
    no_text: int
    repeats: int
    targets: int
    unseen_targets: int


def look(folder: Path, dataset: str, tokenize: Tokenize | None = None, tokenizer: str | None = None) -> Look:
    """Read the atomic files of a prepared folder and count.

    Args:
        folder: holds ``<dataset>.inter`` and perhaps ``<dataset>.item``.
        dataset: the name of the files.
        tokenize: counts the tokens of titles; None: words and punctuation marks are counted instead.
        tokenizer: its name, shown on the page.

    Raises:
        DataError: if a file cannot be read.
    """
    # Categorical: codes of four bytes, since tens of millions of ids as text would not fit where the preparation does.
    types = {"user_id:token": pl.Categorical, "item_id:token": pl.Categorical, "timestamp:float": pl.Float64}
    table = _load(folder / f"{dataset}.inter", types)
    per_item = table.group_by("item_id").len()
    titles = _titles(folder / f"{dataset}.item")
    lengths = _lengths(titles, tokenize or (lambda texts: [text.words(each) for each in texts]))
    targets, unseen = _targets(table)
    return Look(
        users=table["user_id"].n_unique(),
        items=per_item.height,
        interactions=table.height,
        per_user=_histogram(table.group_by("user_id").len()["len"]),
        per_item=_histogram(per_item["len"]),
        title_lengths=lengths,
        title_unit=f"tokens of {tokenizer}" if tokenize else "words and punctuation marks",
        popularity=_popularity(per_item["len"]),
        months=_months(table["timestamp"]),
        no_text=per_item.height - sum(number for _, number in lengths),
        repeats=_repeats(table),
        targets=targets,
        unseen_targets=unseen,
    )


def _load(path: Path, types: Mapping[str, Any] | None = None) -> pl.DataFrame:
    """Return the columns in `types`, or all of them as text."""
    try:
        lines = pl.scan_csv(path, separator="\t", quote_char=None, infer_schema=False, schema_overrides=types)
        table = (lines.select(list(types)) if types else lines).collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path} could not be read: {' '.join(str(error).split())[:200]}") from None
    return table.rename({name: name.partition(":")[0] for name in table.columns})


def _titles(path: Path) -> pl.Series:
    if not path.is_file():
        return pl.Series([], dtype=pl.String)
    table = _load(path)
    if table.width == 1:
        return pl.Series([], dtype=pl.String)
    column = table["title"] if "title" in table.columns else table.to_series(1)
    return column.str.strip_chars().filter(column.str.strip_chars() != "")


def _lengths(titles: pl.Series, tokenize: Tokenize) -> list[tuple[int, int]]:
    return _histogram(pl.Series(list(tokenize(titles.to_list())), dtype=pl.Int64)) if len(titles) else []


def _histogram(values: pl.Series) -> list[tuple[int, int]]:
    counted = values.rename("value").to_frame().group_by("value").len().sort("value")
    return [(int(value), int(number)) for value, number in counted.iter_rows()]


def _popularity(counts: pl.Series, points: int = 100) -> list[tuple[float, float]]:
    running = counts.sort(descending=True).cast(pl.Int64).cum_sum()
    total, n = int(running[-1]), len(running)
    places = sorted({max(1, round(n * point / points)) for point in range(1, points + 1)})
    return [(0.0, 0.0), *((place / n, int(running[place - 1]) / total) for place in places)]


def _months(times: pl.Series) -> list[tuple[datetime.date, int]]:
    latest = float(times.max())
    if latest > 1e11:  # milliseconds, as in Amazon 2023
        times, latest = times / 1000, latest / 1000
    if latest < 1e8:  # a place in the history, not a time
        return []
    months = (times.cast(pl.Int64) * 1000).cast(pl.Datetime("ms")).dt.truncate("1mo").dt.date().alias("month")
    counted = months.to_frame().group_by("month").len().sort("month")
    return [(month, int(number)) for month, number in counted.iter_rows()]


def _repeats(table: pl.DataFrame) -> int:
    # One sorted column of user-and-item codes takes a third of the memory of a set of pairs.
    user, item = (table[name].to_physical().cast(pl.UInt64) for name in ("user_id", "item_id"))
    pairs = (user * (int(item.max() or 0) + 1) + item).sort()
    return int((pairs == pairs.shift(1)).sum())


def _targets(table: pl.DataFrame) -> tuple[int, int]:
    """Return how many test targets leave-one-out has, and how many of them occur in nobody's training part.

    The rows of a user follow each other in time, as `prepare` writes them.
    """
    user = pl.col("user_id").to_physical()

    def same(rows: int) -> pl.Expr:
        return (user == user.shift(rows)).fill_null(False)

    target = ~same(-1) & same(2)
    validation = same(1) & same(-1) & ~same(-2)
    training = table.filter(~target & ~validation).select(pl.col("item_id").unique())
    targets = table.filter(target).select("item_id")
    return targets.height, targets.join(training, on="item_id", how="anti").height
