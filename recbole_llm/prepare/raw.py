"""Raw files of a publisher: where they lie, and how they are read as streams that never hold a whole file."""

import contextlib
import gzip
import io
import queue
import threading
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from recbole_llm.errors import DataError

BLOCK_BYTES = 16 * 1024 * 1024
"""Unpacked bytes that are parsed at a time. Fixed, so that the same file is cut at the same places on every machine."""


@dataclass(frozen=True)
class RawFile:
    """One file that a format reads.

    Args:
        path: the file on disk, perhaps packed (.gz) or an archive (.zip).
        member: name inside the archive; None for a file that is no archive.
    """

    path: Path
    member: str | None = None

    @property
    def name(self) -> str:
        """The name that error messages show."""
        return f"{self.path} ({self.member})" if self.member and zipfile.is_zipfile(self.path) else str(self.path)

    @contextlib.contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Open the unpacked content for reading.

        Raises:
            DataError: if the file is missing, or is not the archive that its name says, or ends too early.
        """
        try:
            with self._unpacked() as stream:
                yield stream
        except FileNotFoundError:
            raise DataError(f"the raw file {self.path} does not exist") from None
        except EOFError:
            raise DataError(f"{self.name} ends in the middle: download it again") from None
        except (gzip.BadGzipFile, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{self.name} cannot be unpacked ({error}): download it again") from None
        except OSError as error:
            raise DataError(f"{self.name} could not be read: {error.strerror or error}") from None

    @contextlib.contextmanager
    def _unpacked(self) -> Iterator[IO[bytes]]:
        if self.path.suffix == ".zip":
            if self.member is None:
                raise DataError(f"the settings do not say which file of the archive {self.path} to read: add 'member'")
            with zipfile.ZipFile(self.path) as archive:
                if self.member not in archive.namelist():
                    raise DataError(f"the archive {self.path} has no file '{self.member}': download it again")
                with archive.open(self.member) as stream:
                    yield stream
        elif self.path.suffix == ".gz":
            with gzip.open(self.path, "rb") as stream:
                yield io.BufferedReader(stream, buffer_size=1 << 20)
        else:
            with self.path.open("rb") as stream:
                yield stream


@dataclass
class Tally:
    """What was read and what was left out, by reason; it goes into the manifest and the printed table."""

    read: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)

    def count(self, what: str, rows: int) -> None:
        """Count `rows` that were read."""
        self.read[what] = self.read.get(what, 0) + rows

    def skip(self, reason: str, rows: int) -> None:
        """Count `rows` that were left out."""
        if rows:
            self.skipped[reason] = self.skipped.get(reason, 0) + rows


def blocks(stream: IO[bytes], size: int = BLOCK_BYTES) -> Iterator[bytes]:
    """Yield the content in pieces of about `size` bytes that end at the end of a line."""
    rest = b""
    while piece := stream.read(size):
        cut = piece.rfind(b"\n") + 1
        if cut == 0:
            rest += piece
            continue
        yield rest + piece[:cut]
        rest = piece[cut:]
    if rest:
        yield rest


def ahead(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield `pieces`, unpacking the next one in a thread while the caller parses the one before.

    An error of the thread is raised here. At most two pieces wait, so memory stays bounded.
    """
    waiting: queue.Queue[bytes | BaseException | None] = queue.Queue(maxsize=2)
    stop = threading.Event()

    def put(thing: bytes | BaseException | None) -> bool:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                waiting.put(thing, timeout=0.1)
                return True
        return False

    def work() -> None:
        try:
            for piece in pieces:
                if not put(piece):
                    return
            put(None)
        except BaseException as error:  # handed over to the reader, which raises it
            put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (thing := waiting.get()) is not None:
            if isinstance(thing, BaseException):
                raise thing
            yield thing
    finally:
        stop.set()
        thread.join()
