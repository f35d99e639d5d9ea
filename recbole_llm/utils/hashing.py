"""Hashes of files and of names, by which derived files are found again."""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path

from recbole_llm.errors import StorageError
from recbole_llm.utils.files import write_text
from recbole_llm.utils.paths import cache_folder

_REMEMBERS: ContextVar[bool] = ContextVar("remembers", default=True)


@contextlib.contextmanager
def hashes_not_stored() -> Iterator[None]:
    """Let `content_hash` write nothing in the block."""
    token = _REMEMBERS.set(False)
    try:
        yield
    finally:
        _REMEMBERS.reset(token)


def content_hash(path: Path) -> str:
    """Return the sha256 of a file's content in hexadecimal.

    It is remembered in our cache under the file's path, and computed again when the file's size or time has changed.

    Raises:
        OSError: if the file cannot be read.
    """
    path = path.resolve()
    status = path.stat()
    stamp = f"{path} {status.st_size} {status.st_mtime_ns}"
    note: Path | None = None
    with contextlib.suppress(OSError, UnicodeDecodeError):  # a note that is missing or broken is written again
        note = cache_folder("hashes") / f"{hashlib.sha256(str(path).encode()).hexdigest()[:32]}.txt"
        known, _, digest = note.read_text(encoding="utf-8").rpartition(" ")
        if known == stamp:
            return digest
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with contextlib.suppress(StorageError):  # without a place for the note the hash is only slower
        if note is not None and _REMEMBERS.get():
            write_text(note, f"{stamp} {digest}")
    return digest


def hash_of_tokens(tokens: Iterable[str]) -> str:
    """Return the `catalogue_hash` of a dataset with these item tokens."""
    return hashlib.sha256("\n".join(str(token) for token in tokens).encode()).hexdigest()[:16]
