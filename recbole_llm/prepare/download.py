"""Finding raw files on disk, or fetching them from their publisher.

A download goes into ``<file>.part`` and is renamed when it is whole, so a file under its own name is a whole one. After
an interruption it goes on where it ended, if the publisher still has the same file (``If-Range`` with the ETag or the
date that the first answer had, kept in ``<file>.part.json``).
"""

import contextlib
import inspect
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import recbole
import requests
import urllib3
from filelock import FileLock
from tqdm import tqdm

from recbole_llm.errors import DataError
from recbole_llm.prepare.manifest import sha256
from recbole_llm.prepare.raw import RawFile
from recbole_llm.prepare.spec import Source, Spec
from recbole_llm.utils.files import storage_errors, write_text
from recbole_llm.utils.paths import cache_folder

CHUNK_BYTES = 1 << 16
"""Bytes taken at a time; at most this much is lost when the line breaks."""
ATTEMPTS = 6
"""Times that a download is tried without a new byte having come."""
FIRST_WAIT = 1.0
"""Seconds before the second attempt; each wait is twice the one before."""
LONGEST_WAIT = 60.0
"""Seconds, also where the publisher asks for more."""
TIMEOUT = (10.0, 60.0)
"""Seconds to connect, and between two pieces of the answer."""

_EXAMPLES = Path(inspect.getfile(recbole)).parent / "dataset_example"
_LATER = {408, 425, 429, 500, 502, 503, 504}
_PASSING = (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError)


class _PassingError(Exception):
    """A failure after which another attempt may do better."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def find_or_download(spec: Spec, raw: Path | None, say: Callable[[str], None]) -> dict[str, RawFile]:
    """Return the raw file of each role, downloading what is not there.

    Args:
        spec: the dataset's settings.
        raw: folder that holds, or shall hold, the raw files; None: a folder of this dataset in the cache.
        say: told what is downloaded.

    Raises:
        DataError: if a file is not there and cannot be downloaded; it names the files and where to put them.
    """
    folder = raw if raw is not None else cache_folder("raw") / spec.dataset
    found: dict[str, RawFile] = {}
    for role, source in spec.sources.items():
        there = _find(folder, source)
        if there is None:
            there = RawFile(_fetch(spec, source, folder, say), source.member)
        found[role] = there
    return found


def _find(folder: Path, source: Source) -> RawFile | None:
    names = [source.file]
    if source.file.endswith(".gz"):
        names.append(source.file.removesuffix(".gz"))
    if source.member:
        names += [source.member, source.member.rpartition("/")[2]]
    for name in names:
        if (folder / name).is_file():
            return RawFile(folder / name, source.member)
    if source.packaged is not None and (packaged := _EXAMPLES / source.packaged).is_file():
        return RawFile(packaged, source.member)
    return None


def _fetch(spec: Spec, source: Source, folder: Path, say: Callable[[str], None]) -> Path:
    reason = "no address of it is known"
    if source.url is not None:
        say(f"downloading {source.url}")
        try:
            return download(source.url, folder / source.file, source.sha256)
        except DataError as error:
            reason = "its address " + str(error).removeprefix(f"{source.url} ")
    missing = {each.file: each.url for each in spec.sources.values() if _find(folder, each) is None}
    wanted = " and ".join(file + (f" ({url})" if url else "") for file, url in missing.items())
    raise DataError(
        f"the raw file {source.file} of {spec.dataset} is missing, and {reason}: put {wanted} into {folder}, or name "
        "the folder that holds them with --raw=FOLDER"
    )


def download(url: str, target: Path, digest: str | None = None) -> Path:
    """Fetch `url` into `target`, unless it is there.

    Args:
        url: http(s) address.
        target: the file; its folder is made.
        digest: SHA-256 that the publisher's file has; None: unknown, nothing is checked but the length.

    Raises:
        DataError: if the address has no such file, keeps failing, or gives a file of another hash.
        StorageError: if the disk is full or the folder may not be written.
    """
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target.with_name(f".{target.name}.lock"))
        lock.acquire()
    try:
        if not target.exists():
            _Transfer(url, target).run(digest)
    finally:
        lock.release()
    return target


@dataclass
class _Transfer:
    url: str
    target: Path

    @property
    def part(self) -> Path:
        return self.target.with_name(f"{self.target.name}.part")

    @property
    def note(self) -> Path:
        return self.target.with_name(f"{self.target.name}.part.json")

    def run(self, digest: str | None) -> None:
        self._until_whole()
        found = sha256(self.part)
        if digest and found != digest:
            self._forget()
            raise DataError(f"{self.url} gave a file whose sha256 is {found} where {digest} is published")
        with storage_errors(self.target):
            self.part.replace(self.target)
            self.note.unlink(missing_ok=True)

    def _until_whole(self) -> None:
        failures = 0
        wait = FIRST_WAIT
        furthest = self._have()
        while True:
            try:
                self._attempt()
                return
            except _PassingError as error:
                if self._have() > furthest:  # further than ever: the publisher is there, so start counting again
                    failures, wait, furthest = 0, FIRST_WAIT, self._have()
                failures += 1
                if failures >= ATTEMPTS:
                    raise DataError(f"{self.url} failed {failures} times, at last with: {error}") from None
                time.sleep(min(LONGEST_WAIT, max(wait, error.wait)))
                wait *= 2

    def _have(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _forget(self) -> None:
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def _attempt(self) -> None:
        have = self._have()
        note = self._noted()
        validator = str(note.get("validator") or "")
        if have and not validator:
            self._forget()
            have = 0
        # As the publisher stores it: a .gz that is labelled as a packed answer must not be unpacked on the way.
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers |= {"Range": f"bytes={have}-", "If-Range": validator}
        try:
            with requests.get(self.url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
                total = self._judge(answer, have, note)
                self._remember(answer, total)
                if answer.status_code != 416:
                    self._save(answer, have if answer.status_code == 206 else 0, total)
        except _PASSING as error:
            if not have and "NameResolutionError" in repr(error):
                # Waiting does not help a machine without a network, whose user should soon read what to do.
                raise DataError(f"{self.url} cannot be found by its name: is there a network?") from None
            raise _PassingError(_reason(error)) from None
        except requests.RequestException as error:
            raise DataError(f"{self.url} cannot be asked for: {_reason(error)}") from None
        if total is not None and self._have() != total:
            if self._have() > total:
                self._forget()
            raise _PassingError(f"{self._have():,} bytes came where {total:,} were announced")

    def _judge(self, answer: requests.Response, have: int, note: dict[str, Any]) -> int | None:
        """Return the length of the whole file, if the answer tells it."""
        status = answer.status_code
        if status in _LATER:
            raise _PassingError(f"answer {status} {answer.reason}", _seconds(answer.headers.get("Retry-After")))
        if status == 416:
            total = _total(answer.headers.get("Content-Range"))
            if total != have or note.get("total") not in (None, have):
                self._forget()
                raise _PassingError("the part that is here does not fit the file there")
            return total
        if status == 206:
            start, total = _start(answer.headers.get("Content-Range")), _total(answer.headers.get("Content-Range"))
            if start != have:
                self._forget()
                raise _PassingError("the answer begins at another byte than asked for")
            return total
        if status != 200:
            raise DataError(f"{self.url} answers {status} {answer.reason}")
        length = answer.headers.get("Content-Length")
        return int(length) if length and length.isdigit() else None

    def _save(self, answer: requests.Response, start: int, total: int | None) -> None:
        bar = tqdm(
            total=total, initial=start, unit="B", unit_scale=True, unit_divisor=1024, desc=self.target.name, leave=False
        )
        with storage_errors(self.part), bar, self.part.open("ab" if start else "wb") as file:
            for chunk in _pieces(answer):
                file.write(chunk)
                bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())

    def _noted(self) -> dict[str, Any]:
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return note if isinstance(note, dict) and note.get("url") == self.url else {}

    def _remember(self, answer: requests.Response, total: int | None) -> None:
        if answer.status_code == 416:
            return
        etag = answer.headers.get("ETag", "")
        # Only a strong ETag or a date may follow If-Range.
        validator = etag if etag.startswith('"') else answer.headers.get("Last-Modified", "")
        write_text(self.note, json.dumps({"url": self.url, "validator": validator, "total": total}))


def _pieces(answer: requests.Response) -> Iterator[bytes]:
    # What came before the line broke is written, not lost with the exception.
    try:
        yield from answer.raw.stream(CHUNK_BYTES, decode_content=False)
    except urllib3.exceptions.HTTPError as error:
        raise _PassingError(_reason(error)) from None


def _reason(error: Exception) -> str:
    if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
        return "no answer in time"
    if isinstance(error, requests.ConnectionError | urllib3.exceptions.ProtocolError):
        return "the connection failed or broke off"
    return str(error)


def _total(content_range: str | None) -> int | None:
    _, _, total = (content_range or "").rpartition("/")
    return int(total) if total.isdigit() else None


def _start(content_range: str | None) -> int | None:
    first = (content_range or "").removeprefix("bytes").strip().partition("-")[0]
    return int(first) if first.isdigit() else None


def _seconds(retry_after: Any) -> float:
    with contextlib.suppress(TypeError, ValueError):
        return max(0.0, float(retry_after))
    return 0.0
