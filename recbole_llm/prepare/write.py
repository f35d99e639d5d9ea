"""Writing RecBole's atomic files in pieces, with the hash of what was written."""

import hashlib
import io
import os
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from recbole_llm.errors import DataError
from recbole_llm.prepare import text
from recbole_llm.prepare.formats.base import ITEM, PART, PARTS, RATING, TIME, USER

_ROWS = 500_000


def inter_file(path: Path, interactions: pl.DataFrame) -> str:
    """Write the interactions as they are ordered; return the file's SHA-256."""
    columns = {
        "user_id:token": text.shield(pl.col(USER).cast(pl.String)),
        "item_id:token": text.shield(pl.col(ITEM).cast(pl.String)),
        "timestamp:float": pl.col(TIME),
    }
    if RATING in interactions.columns:
        columns["rating:float"] = pl.col(RATING)
    return _atomic(path, interactions, columns)


def benchmark_files(folder: Path, dataset: str, interactions: pl.DataFrame, history: int) -> dict[str, str]:
    """Write ``<dataset>.train.inter``, ``.valid.inter`` and ``.test.inter``; return the SHA-256 of each.

    A row is a user, the at most `history` items before the target, the most recent kept, and the target. Users of the
    training side have a row for each of their interactions but the first; the others one, for their last.

    Args:
        folder: where to write.
        dataset: the beginning of the names.
        interactions: with the column PART; a user's rows follow each other in time.
        history: maximum number of items of a history.

    Raises:
        DataError: if a part is empty, or an item's id cannot stand in a list.
    """
    item = pl.col(ITEM).cast(pl.String)
    _check_listed(interactions.select(item.unique()))
    before = [item.shift(places).over(USER) for places in range(history, 0, -1)]
    rows = interactions.with_columns(pl.concat_str(before, separator=" ", ignore_nulls=True).alias("history"))
    first, last = pl.int_range(pl.len()).over(USER) == 0, pl.int_range(pl.len()).reverse().over(USER) == 0
    rows = rows.filter(~first & ((pl.col(PART) == "train") | last))
    columns = {
        "user_id:token": text.shield(pl.col(USER).cast(pl.String)),
        "item_id_list:token_seq": pl.col("history"),
        "item_id:token": item,
    }
    outputs = {}
    for part in PARTS:
        name = f"{dataset}.{part}.inter"
        chosen = rows.filter(pl.col(PART) == part)
        if chosen.is_empty():
            raise DataError(f"the {part} part of {dataset} has no row: no user of it has two interactions")
        outputs[name] = _atomic(folder / name, chosen, columns)
    return outputs


def _check_listed(items: pl.DataFrame) -> None:
    damaged = items.filter(pl.col(ITEM).str.contains(r"\s") | (text.shield(pl.col(ITEM)) != pl.col(ITEM)))
    if damaged.height:
        raise DataError(f"the item id {damaged[ITEM][0]!r} cannot stand in a list of ids with spaces between")


def item_file(path: Path, items: pl.DataFrame, fields: Mapping[str, str]) -> str:
    """Write ITEM and the texts (column written -> column of `items`); return the file's SHA-256."""
    columns = {"item_id:token": text.shield(pl.col(ITEM).cast(pl.String))}
    for written, name in fields.items():
        columns[f"{written}:token_seq"] = text.shield(pl.col(name).fill_null(""))
    return _atomic(path, items, columns)


def _atomic(path: Path, frame: pl.DataFrame, columns: Mapping[str, pl.Expr]) -> str:
    digest = hashlib.sha256()
    # Through a Python file, so that a full disk is an OSError that says so.
    with path.open("wb") as file:
        header = ("\t".join(columns) + "\n").encode()
        digest.update(header)
        file.write(header)
        for start in range(0, frame.height, _ROWS):
            piece = io.BytesIO()
            rows = frame.slice(start, _ROWS).select(**columns)
            rows.write_csv(piece, separator="\t", quote_style="never", include_header=False)
            digest.update(piece.getbuffer())
            file.write(piece.getbuffer())
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()
