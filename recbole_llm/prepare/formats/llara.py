"""Steam and LastFM as LLaRA (Liao et al. 2024) passes them on: windows of ten items and the next, in pickled tables.

Three tables hold rows (`seq`: ten item numbers, filled up with a padding number; `len_seq`; `next`), and `id2name.txt`
has `number::name` lines. Windows that follow each other in one history (the window moved by the `next` item) are joined
again. A history is named after its table and its place in it (``train-0``, ``valid-0``, ``test-0``), and a time is the
place in the history, as the tables have no times.

A pickle can run any code when it is loaded, so only the few classes of a pandas table are admitted.
"""

import pickle
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
import polars as pl
from pandas.compat import pickle_compat  # type: ignore[import-not-found]

from recbole_llm.errors import DataError
from recbole_llm.prepare.formats.base import ITEM, PART, PARTS, TIME, USER, Files
from recbole_llm.prepare.raw import RawFile, Tally

_SPLITS = PARTS
_COLUMNS = ("seq", "len_seq", "next")
_ADMITTED = {
    ("builtins", "slice"),
    ("_codecs", "encode"),
    *((module, "_reconstruct") for module in ("numpy.core.multiarray", "numpy._core.multiarray")),
    *((module, "scalar") for module in ("numpy.core.multiarray", "numpy._core.multiarray")),
    *((module, "_frombuffer") for module in ("numpy.core.numeric", "numpy._core.numeric")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("pandas.core.frame", "DataFrame"),
    ("pandas.core.internals.managers", "BlockManager"),
    ("pandas.core.internals.blocks", "new_block"),
    ("pandas._libs.internals", "_unpickle_block"),
    ("pandas.core.indexes.base", "_new_Index"),
    ("pandas.core.indexes.base", "Index"),
    ("pandas.core.indexes.range", "RangeIndex"),
    ("pandas.core.indexes.numeric", "Int64Index"),
}


class _Tables(pickle_compat.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


class LLaRA:
    """See the module's text and `RawFormat`.

    Options: `padding_item`, the number that fills up short windows; `rows_apart`, whether every row of `valid` and
    `test` stays a history of its own, as LLaRA evaluates them.
    """

    roles = (*_SPLITS, "items")
    optional_roles: frozenset[str] = frozenset()
    fields = frozenset({"title"})
    list_fields: frozenset[str] = frozenset()
    html = False
    options = frozenset({"padding_item", "rows_apart"})

    def interactions(self, files: Files, options: Mapping[str, Any], tally: Tally) -> Iterator[pl.DataFrame]:
        """See `RawFormat`."""
        padding = options.get("padding_item")
        for split in _SPLITS:
            table = _load(files[split])
            tally.count(f"windows of {split}", len(table))
            join = split == "train" or not options.get("rows_apart")
            users: list[str] = []
            items: list[str] = []
            times: list[int] = []
            histories = list(_histories(table, padding, join))
            if not join:  # a row without a history says nothing about what follows it
                tally.skip(f"windows of {split}: no history", sum(len(history) < 2 for history in histories))
                histories = [history for history in histories if len(history) > 1]
            for number, history in enumerate(histories):
                users += [f"{split}-{number}"] * len(history)
                items += [str(item) for item in history]
                times += range(1, len(history) + 1)
            schema = {USER: pl.String, ITEM: pl.String, TIME: pl.Int64}
            yield pl.DataFrame({USER: users, ITEM: items, TIME: times}, schema=schema).with_columns(
                pl.lit(split).alias(PART)
            )

    def items(
        self, files: Files, fields: tuple[str, ...], options: Mapping[str, Any], tally: Tally
    ) -> Iterator[pl.DataFrame]:
        """See `RawFormat`."""
        with files["items"].open() as stream:
            pairs = [line.decode("utf-8", "replace").rstrip("\r\n").partition("::") for line in stream]
        tally.count("items", len(pairs))
        rows = [(number, name) for number, found, name in pairs if found]
        frame = pl.DataFrame(rows, schema={ITEM: pl.String, "title": pl.String}, orient="row")
        yield frame.select(ITEM, *fields)


def _load(raw: RawFile) -> pd.DataFrame:
    with raw.open() as stream:
        try:
            table = _Tables(stream).load()
        except Exception as error:  # a broken pickle raises almost anything
            raise DataError(f"{raw.name} is no pickled table that may be loaded: {error}") from None
    if not isinstance(table, pd.DataFrame) or not set(_COLUMNS) <= set(table.columns):
        raise DataError(
            f"{raw.name} has not the columns {', '.join(_COLUMNS)} of LLaRA's tables: check which file it is"
        )
    return table


def _item(entry: Any) -> int:
    # LLaRA's MovieLens tables hold (item, rating) pairs, the others bare numbers.
    return int(entry[0] if isinstance(entry, tuple) else entry)


def _histories(table: pd.DataFrame, padding: int | None, join: bool) -> Iterator[list[int]]:
    history: list[int] = []
    for entries, following in zip(table["seq"], table["next"], strict=True):
        window = [item for item in map(_item, entries) if item != padding]
        # Of one user, the window is all that came before, or as many of the last items as it has room for. The first
        # row of a user may have an empty one.
        if join and window and window == history[-len(entries) :]:
            history.append(_item(following))
            continue
        if history:
            yield history
        history = [*window, _item(following)]
    if history:
        yield history
