"""Writing RecBole's atomic files in pieces, with the hash of what was written."""

import hashlib
import io
import os
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from recbole_llm.data.prepare import text
from recbole_llm.data.prepare.formats.base import ITEM, RATING, TIME, USER

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
