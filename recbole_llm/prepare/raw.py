"""Raw files of a publisher: where they lie, and how they are read as streams that never hold a whole file."""

import codecs
import contextlib
import gzip
import io
import queue
import stat
import threading
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from recbole_llm.errors import DataError

_MAX_LINE_BYTES = 256 * 1024 * 1024
# What packing saves at most in a real file of text is a factor of some tens; a file of nothing but zeros reaches 1,000.
_MAX_RATIO = 500
_FREE_BYTES = 64 * 1024 * 1024  # unpacked bytes that no ratio forbids
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

    def require_file(self) -> None:
        """Refuse what is no ordinary file: reading a pipe would wait for ever. Raises DataError."""
        try:
            mode = self.path.stat().st_mode
        except FileNotFoundError:
            raise DataError(f"the raw file {self.path} does not exist") from None
        except OSError as error:
            raise DataError(f"{self.path} could not be read: {error.strerror or error}") from None
        if not stat.S_ISREG(mode):
            raise DataError(f"{self.path} is no file but a {'folder' if stat.S_ISDIR(mode) else 'device or pipe'}")

    def require_utf8(self) -> None:
        """Refuse a text that is not UTF-8, and one that unpacks to far more than it is packed in. Raises DataError."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            with self.open() as stream:
                while piece := stream.read(BLOCK_BYTES):
                    decoder.decode(piece)
                decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            raise not_utf8(self.name) from None

    @contextlib.contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Open the unpacked content for reading.

        Raises:
            DataError: if the file is missing, or is not the archive that its name says, or ends too early.
        """
        self.require_file()
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
                packed = archive.getinfo(self.member).compress_size
                with archive.open(self.member) as stream:
                    yield io.BufferedReader(_Bounded(stream, packed, self.name))
        elif self.path.suffix == ".gz":
            with gzip.open(self.path, "rb") as stream:
                yield io.BufferedReader(
                    _Bounded(cast(IO[bytes], stream), self.path.stat().st_size, self.name), buffer_size=1 << 20
                )
        else:
            with self.path.open("rb") as stream:
                yield stream


class _Bounded(io.RawIOBase):
    """An unpacked stream that ends with an error where it holds far more than its packed file could.

    Args:
        stream: unpacked.
        packed: bytes of the packed file.
        name: of the file, for the error.
    """

    def __init__(self, stream: IO[bytes], packed: int, name: str) -> None:
        self._stream, self._left, self._name = stream, packed * _MAX_RATIO + _FREE_BYTES, name

    def readable(self) -> bool:
        """Tell that it may be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read into `buffer`; return how many bytes. Raises DataError."""
        piece = self._stream.read(len(buffer))
        self._left -= len(piece)
        if self._left < 0:
            raise DataError(f"{self._name} unpacks to more than {_MAX_RATIO} times its size: it is no data file")
        buffer[: len(piece)] = piece
        return len(piece)


def not_utf8(name: str) -> DataError:
    """Return the error that says that a file is not UTF-8."""
    return DataError(
        f"{name} is not UTF-8 text: convert it, such as by 'iconv -f GBK -t UTF-8' (or -f UTF-16, -f LATIN1)"
    )


@dataclass
class Tally:
    """What was read and what was left out, by reason; it goes into the manifest and the printed table."""

    read: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    time_format: str | None = None  # of dates; None where times are numbers

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
            if len(rest) > _MAX_LINE_BYTES:
                name = getattr(stream, "name", "a raw file")
                raise DataError(f"{name} has a line of more than {_MAX_LINE_BYTES >> 20} MiB: it is no file of lines")
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
        except BaseException as error:  # given to the reader, which raises it
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
