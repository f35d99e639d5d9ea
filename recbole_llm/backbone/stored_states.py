"""Hidden states on the disk, found again by what they were computed from.

They lie in the folder ``states`` of our cache (`utils.paths.cache_folder`), one ``.npy`` file per table, named after a
hash of all that shapes them: the backbone's files, the tokens that it read, and how. So a second run, a run that is
resumed and a model that is loaded find what an earlier one computed. The folder may be removed at any time.
"""

import contextlib
import hashlib
import itertools
import json
import logging
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

import recbole_llm
from recbole_llm.backbone.loading import fingerprint
from recbole_llm.errors import StorageError
from recbole_llm.utils.files import replacing
from recbole_llm.utils.hashing import content_hash
from recbole_llm.utils.paths import cache_folder

_FORMAT = 1  # part of every name: raise it when states are computed differently, or written differently
_HEADER = 128  # bytes of a file before its rows
_ROWS = 16384  # written at once
_ABANDONED = 24 * 3600.0  # seconds after which a half-written file is nobody's


def files_key(folder: Path) -> str:
    """Return what identifies the states of the backbone in `folder`: its weights, and how its config uses them.

    All weight files are read, so nobody asks who stores no states.
    """
    return f"{fingerprint(folder)} {content_hash(folder / 'config.json')}"


def states_key(files: str, content: str, **how: Any) -> str:
    """Return the name under which states are stored.

    Args:
        files: see `files_key`.
        content: a hash of the tokens that are read, in which order and at which places.
        how: all else that changes states, to the last bit: the arithmetic, the device, the tokens of a pass, ...
    """
    found = {
        "format": _FORMAT,
        "versions": [recbole_llm.__version__, torch.__version__, transformers.__version__],
        "files": files,
        "content": content,
        "how": {name: str(value) for name, value in how.items()},
    }
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:32]


def read_states(key: str, rows: int, width: int, dtype: torch.dtype) -> Tensor | None:
    """Return the stored states [rows, width], memory-mapped, or None if there are none."""
    path = _path(key)
    if path is None or not path.is_file():
        return None
    try:
        table = np.load(path, mmap_mode="c", allow_pickle=False)  # changes would stay in memory, but there are none
        if table.shape != (rows, width) or table.dtype != _numpy_type(dtype):
            raise ValueError(f"it holds {table.dtype} {table.shape}")
    except (OSError, ValueError, EOFError) as error:
        logging.getLogger().warning("the stored hidden states %s are broken and are made again (%s)", path, error)
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # the least recently used are removed first
    return torch.from_numpy(table).view(dtype)


def write_states(key: str, shape: tuple[int, int], dtype: torch.dtype, parts: Iterable[Tensor], limit: float) -> None:
    """Store states under a temporary name and rename it, if they fit.

    Args:
        key: see `states_key`.
        shape: rows and their width.
        dtype: float32 or bfloat16.
        parts: the rows in their order, some at a time, on any device.
        limit: bytes that all stored states may take; the least recently used are removed for new ones. What is larger
            than that is not stored. A full disk is no error here: the states are then computed again next time.
    """
    size = shape[0] * shape[1] * dtype.itemsize + _HEADER
    path = _path(key)
    if path is None or size > limit:
        return
    _make_room(path.parent, limit - size)
    header = {"descr": _numpy_type(dtype).str, "fortran_order": False, "shape": tuple(shape)}
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for part in itertools.chain.from_iterable(rows.split(_ROWS) for rows in parts):
                file.write(part.contiguous().cpu().view(_torch_type(dtype)).numpy().tobytes())
    except StorageError as error:
        logging.getLogger().warning("hidden states are not stored for later runs: %s", error)


def _path(key: str) -> Path | None:
    with contextlib.suppress(OSError):  # a cache that cannot be made stores nothing
        return cache_folder("states") / f"{key}.npy"
    return None


def _make_room(folder: Path, limit: float) -> None:
    """Remove the least recently used files until those that stay take at most `limit` bytes."""
    used: Mapping[Path, os.stat_result] = {}
    with contextlib.suppress(OSError):  # another process may remove them, too
        for file in folder.glob(".*.tmp"):
            if time.time() - file.stat().st_mtime > _ABANDONED:
                file.unlink(missing_ok=True)
        used = {file: file.stat() for file in folder.glob("*.npy")}
    total = sum(status.st_size for status in used.values())
    for file in sorted(used, key=lambda file: used[file].st_mtime_ns):
        if total <= limit:
            return
        with contextlib.suppress(OSError):
            file.unlink()
        total -= used[file].st_size


def _numpy_type(dtype: torch.dtype) -> "np.dtype[Any]":
    return np.dtype("<f4" if dtype == torch.float32 else "<u2")  # numpy has no bfloat16: its bits are stored


def _torch_type(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype == torch.float32 else torch.uint16
