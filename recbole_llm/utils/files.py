"""Reading and writing files so that nothing half-written is ever seen under its final name."""

import contextlib
import copy
import errno
import functools
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import yaml

from recbole_llm.errors import DataError, StorageError
from recbole_llm.utils.yaml_nodes import check

_CACHED_TEXTS = 256


def _explain(error: OSError, path: Path) -> StorageError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"no space is left on the disk while writing {path}: free some and run again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StorageError(f"{path} may not be written: choose a folder that you may write to")
    return StorageError(f"{path} could not be written: {error.strerror or error}")


@contextlib.contextmanager
def storage_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an OSError of the block, which writes `path`, into a StorageError that says what to do."""
    try:
        yield
    except OSError as error:
        raise _explain(error, Path(path)) from error


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary file name beside `path`; rename it to `path` when the block ends well, remove it otherwise.

    The umask decides who may read the file, whatever the block writes it with.

    Raises:
        StorageError: if the disk is full or the folder may not be written; `path` then keeps its old content.
    """
    target = Path(path)
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary_name(target)
        temporary.touch(exist_ok=False)
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        temporary.chmod(mode)  # safetensors puts a file of its own there, which its owner alone may read
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(target)
    except OSError as error:
        raise _explain(error, target) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; rename it to `path` when the block ends well, remove it otherwise.

    `path` must not exist yet. If another process made it meanwhile, theirs is kept and ours is removed. The umask
    decides who may read what the block wrote.

    Raises:
        StorageError: if the disk is full or the folder may not be written.
    """
    target = Path(path)
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary_name(target)
        temporary.mkdir()
        mode = temporary.stat().st_mode & 0o666
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file() and not file.is_symlink():
                file.chmod(mode)
        try:
            temporary.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    except OSError as error:
        raise _explain(error, target) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what `replacing` left in `folder` when its process was killed; nobody else may be writing there."""
    for path in folder.glob(".*.tmp"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _temporary_name(target: Path) -> Path:
    # What `tempfile` makes is for its owner alone, and the umask cannot be read without changing it for every thread of
    # the process; what is made in the plain way follows it by itself.
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")


def reserve(file: IO[bytes], size: int) -> None:
    """Give an empty file `size` bytes of the disk, so that writing into its mapping never finds the disk full.

    Args:
        file: open for writing.
        size: in bytes.

    Raises:
        OSError: if the disk is too full.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    block = bytes(2**20)  # macOS has no such call, and a file that is only made longer holds no space yet
    for start in range(0, size, len(block)):
        file.write(block[: size - start])
    file.flush()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8 under a temporary name and rename it to `path`. Raises StorageError."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON (NaN is refused), see `write_text`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_text(path: str | os.PathLike[str], what: str = "file") -> str:
    """Return the text of a UTF-8 file.

    Args:
        path: of the file; what is no file, such as a pipe, is never opened: it might never end.
        what: what the file is, for messages, such as ``comparison``.

    Raises:
        DataError: if there is no such file, or it cannot be read.
    """
    try:
        mode = Path(path).stat().st_mode
        if stat.S_ISDIR(mode):
            raise DataError(f"{path} is a folder, but a {what} is a file: name the file in it")
        if not stat.S_ISREG(mode):
            raise DataError(f"{path} is no file but a pipe or a device: write the {what} into a file, and name that")
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"the {what} {path} does not exist") from None
    except UnicodeDecodeError as error:
        raise DataError(f"the {what} {path} is not UTF-8 text: convert it ({error.reason})") from None
    except OSError as error:
        raise DataError(f"the {what} {path} cannot be read: {_why(error)}") from None
    except ValueError as error:  # a zero byte in the name
        raise DataError(f"the {what} {str(path)!r} cannot be read: {error}") from None


def _why(error: OSError) -> str:
    return "its links lead in a circle" if error.errno == errno.ELOOP else str(error.strerror or error)


def in_words(error: OSError) -> str:
    """Return in words what the system refused, and of which file, for an error that nobody else explains."""
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    return f"{' and '.join(names) or 'a file'}: {_why(error)}"


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the mapping in a YAML file, empty for an empty file.

    Raises:
        DataError: if the file is missing, is not YAML, names something twice or within itself, or holds something other
            than a mapping.
    """
    text = read_text(path)
    try:
        value = copy.deepcopy(_parsed(text))
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-13-45
        raise DataError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise DataError(f"{path} is not valid YAML: its lists and mappings are too deep") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise DataError(f"{path} must hold settings as 'name: value' lines, but holds a {type(value).__name__}")
    return value


@functools.lru_cache(_CACHED_TEXTS)
def _parsed(text: str) -> Any:
    """Return what a YAML text holds, which the caller copies: each run, and each cell of a table, asks for the same."""
    return yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)


def read_json_object(path: str | os.PathLike[str], what: str) -> dict[str, Any]:
    """Return the object in a JSON file.

    Args:
        path: of the file.
        what: what the file is, for messages, such as ``comparison``.

    Raises:
        DataError: if the file is missing, is not JSON (NaN and Infinity are not), or holds something other than an
            object.
    """
    return json_object(read_text(path, what), path, what)


def json_object(text: str, path: str | os.PathLike[str], what: str) -> dict[str, Any]:
    """Return the object in a JSON text; the arguments and errors are those of `read_json_object`."""

    def refuse(constant: str) -> None:
        raise ValueError(f"it holds {constant}, which is not a number")

    try:
        value = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not a readable {what}: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} is not a {what}: it holds a {type(value).__name__}")
    return value


class _Loader(yaml.SafeLoader):
    """yaml.SafeLoader that also reads ``5e-5`` as a number (YAML 1.2), as RecBole's own loader does."""

    def get_single_node(self) -> yaml.Node | None:
        """Return the one node of the text. Raises `yaml.YAMLError` for what `yaml_nodes.check` refuses."""
        node = super().get_single_node()
        check(node)
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)
