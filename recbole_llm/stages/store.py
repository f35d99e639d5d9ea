"""What a run needs first, found again by everything that shaped it, or made under a lock.

A thing lies in ``<root>/<name>-<hash>/``, whose hash is that of its *shape*: all settings and files that it depends on,
as plain values. So whoever asks for the same finds it, in any process, and two processes never make it twice.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from filelock import FileLock

from recbole_llm.runs import checkpoint
from recbole_llm.runs import folder as run_folder
from recbole_llm.utils.collectives import object_from_first
from recbole_llm.utils.files import storage_errors, write_text
from recbole_llm.utils.processes import meet, only_first, world

_SHAPE = "settings.yaml"


class Found(NamedTuple):
    """The folder of a thing that is made once.

    Attributes:
        folder: where it lies.
        made: whether it was made now; False if it was there already, or another process made it.
    """

    folder: Path
    made: bool


@dataclass(frozen=True)
class Supplied:
    """What one stage gives to the run that needs it.

    Attributes:
        value: the argument of the model's constructor.
        settings: what the run stores.
        made: whether anything was made now.
    """

    value: Any
    settings: dict[str, Any] = field(default_factory=dict)
    made: bool = False


def digest(shape: dict[str, Any]) -> str:
    """Return ten hexadecimal digits that identify a shape."""
    return hashlib.sha256(json.dumps(run_folder.plain(shape), sort_keys=True).encode()).hexdigest()[:10]


def cut_short(folder: Path) -> Iterable[Path]:
    """Return what an ended process left and nothing resumes from: the whole folder, unless it has a resume state."""
    return () if (folder / checkpoint.RESUME).is_file() else (folder,)


def find_or_make(
    root: Path,
    name: str,
    shape: dict[str, Any],
    is_made: Callable[[Path], bool],
    make: Callable[[Path], Any],
    leftovers: Callable[[Path], Iterable[Path]] = cut_short,
) -> Found:
    """Return the folder of a thing; make it if it is not there.

    Another run that makes the same is waited for. Processes that share a run call it together; the first one holds the
    lock and looks whether the thing is there, and all of them `make` it.

    Args:
        root: where things are kept, `checkpoint_dir`.
        name: what the folder's name begins with.
        shape: all that the thing depends on; plain values, or what `runs.folder.plain` makes plain.
        is_made: tells whether the folder, which may not exist, holds the finished thing.
        make: makes it in the folder, which exists only if an interrupted process left what `make` resumes from.
        leftovers: what of an interrupted process is removed before `make`.

    Raises:
        StorageError: if the root cannot be written.
    """
    folder = root / f"{name}-{digest(shape)}"

    def locked() -> FileLock:
        with storage_errors(folder):
            root.mkdir(parents=True, exist_ok=True)
            lock = FileLock(root / f".{folder.name}.lock")
            lock.acquire()
        return lock

    with only_first(locked) or nullcontext():
        if object_from_first(world().is_first and is_made(folder)):
            logging.getLogger().info("%s is there already", folder)
            return Found(folder, made=False)
        logging.getLogger().info("%s is made first", folder)
        for left_over in leftovers(folder) if world().is_first else ():
            shutil.rmtree(left_over, ignore_errors=True)
        make(folder)
        meet()
    return Found(folder, made=True)


def write_shape(folder: Path, shape: dict[str, Any]) -> None:
    """Write `settings.yaml` into a folder that no run describes. Raises StorageError."""
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / _SHAPE, yaml.safe_dump(run_folder.plain(shape), allow_unicode=True))
