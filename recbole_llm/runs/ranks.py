"""The file of ranks that a run leaves: one line per target, from which each metric can be computed again."""

import gzip
import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_llm.errors import DataError
from recbole_llm.utils.files import replacing

OTHER = "other_rank"
_COLUMNS = ["user", "item", "rank"]


def write_ranks(
    path: Path,
    dataset: Any,
    users: np.ndarray,
    targets: np.ndarray,
    ranks: np.ndarray,
    other_ranks: np.ndarray | None = None,
) -> None:
    """Write one line per target, ``user item rank`` separated by tabs, gzipped: the same ranks give the same bytes.

    Where the ranks under the other protocol are known, they follow as ``other_rank``.

    Args:
        path: ending in ``.tsv.gz``.
        dataset: a RecBole dataset, whose tokens name users and items.
        users: int64 [targets], internal ids.
        targets: int64 [targets], internal ids.
        ranks: int64 [targets].
        other_ranks: int64 [targets], or None.
    """
    frame = pd.DataFrame(
        {
            "user": dataset.id2token(dataset.uid_field, users),
            "item": dataset.id2token(dataset.iid_field, targets),
            "rank": ranks,
            **({} if other_ranks is None else {OTHER: other_ranks}),
        }
    )
    text = io.StringIO()
    frame.to_csv(text, sep="\t", index=False)
    with replacing(path) as temporary:
        temporary.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))


def read_ranks(path: Path) -> pd.DataFrame:
    """Return the columns user, item (str), rank and perhaps other_rank (int) of a file that `write_ranks` made.

    Raises:
        DataError: if the file is missing, cut short or of another form.
    """
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is no file of ranks: a folder or a pipe stands there")
    try:
        types = {"user": str, "item": str, "rank": np.int64, OTHER: np.int64}
        frame = pd.read_csv(path, sep="\t", dtype=types, keep_default_na=False)
    except (OSError, EOFError, ValueError, OverflowError, zlib.error) as error:
        raise DataError(f"{path} is not a whole file of ranks: {' '.join(str(error).split())}") from error
    if list(frame.columns) not in (_COLUMNS, [*_COLUMNS, OTHER]):
        raise DataError(f"{path} must have the columns user, item and rank, but has {', '.join(frame.columns)}")
    if (frame["rank"] < 1).any():
        raise DataError(f"{path} has the rank {frame['rank'].min()}, but ranks begin at 1: run it again")
    return frame


def ranks_under(frame: pd.DataFrame, own: bool) -> pd.DataFrame | None:
    """Return user, item and rank of what `read_ranks` returned, under the run's own protocol or the other.

    Args:
        frame: of all columns.
        own: False for the other; None is returned then if it is not known.
    """
    if own:
        return frame[_COLUMNS]
    return frame[["user", "item", OTHER]].set_axis(_COLUMNS, axis=1) if OTHER in frame else None
