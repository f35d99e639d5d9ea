"""The state to resume from where several processes split tensors: each writes its own rows, and nothing is gathered.

`resume.pt` has all the rest, and in the place of a split tensor one without numbers (on torch's device ``meta``). Its
numbers are in a folder ``resume-<8 digits>`` beside the file, which names it and the sizes of its files. A new folder
is whole before the file takes the place of the older one, whose folder is removed after that.

`torch.distributed.checkpoint` writes the folder and reads it, in any number of processes, as safetensors: its own
format has an index that is a pickle, whose reading would take a list of harmless classes for every version of torch.
That of safetensors has no index, so a file that is missing would not be missed: therefore the sizes.
"""

import inspect
import re
import secrets
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from recbole_llm.errors import CheckpointError
from recbole_llm.runs import checkpoint
from recbole_llm.utils.collectives import exchanged_by_torch, object_from_first, objects_of_all
from recbole_llm.utils.files import storage_errors
from recbole_llm.utils.processes import meet, world

_PARTS = "parts"
_FOLDER = re.compile(r"resume-[0-9a-f]{8}")
_FILE_BYTES = 2**30  # of the rows in a file, but for larger tensors; a process holds a file twice in its host's memory


def can_be_written() -> bool:
    """Tell whether this version of torch writes safetensors in parts; older ones gather what is split."""
    from torch.distributed import checkpoint as distributed

    writer = getattr(distributed, "HuggingFaceStorageWriter", None)
    return writer is not None and "save_distributed" in inspect.signature(writer).parameters


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a state to resume from. All processes call it together.

    Args:
        path: of ``resume.pt``.
        state: plain values and tensors; what is split is a DTensor, the rest is that of process 0.

    Raises:
        StorageError: if the disk is full, for one of the processes; an older state then stays as it was.
    """
    tensors: dict[str, Any] = {}

    def without_rows(key: str, value: Any) -> Any:
        if not hasattr(value, "to_local"):
            return value
        tensors[key] = value
        return torch.empty(value.shape, dtype=value.dtype, device="meta")

    rest = _mapped(state, without_rows)
    if tensors:
        state = {**rest, _PARTS: _write(path, tensors)}
    if world().is_first:
        new = state[_PARTS]["folder"] if tensors else ""
        try:
            checkpoint.save_resume(path, state)
        except BaseException:
            if new:
                shutil.rmtree(path.with_name(new), ignore_errors=True)
            raise
        _remove_folders(path, but=new)
    meet()  # a collective would not wait as long for the first


def _write(path: Path, tensors: dict[str, Any]) -> dict[str, Any]:
    """Write DTensors, and return the name of their folder and the sizes of its files."""
    from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageWriter
    from torch.distributed.checkpoint import save as save_parts

    folder = path.with_name(object_from_first(f"resume-{secrets.token_hex(4)}"))
    temporary = path.with_name(f".{folder.name}.tmp")
    files, size = {}, 0
    for key, tensor in tensors.items():
        size += tensor.nbytes // world().size
        files[key] = 1 + size // _FILE_BYTES
    writer = HuggingFaceStorageWriter(str(temporary), files, save_distributed=True)
    try:
        with storage_errors(folder), exchanged_by_torch():
            try:
                save_parts(tensors, storage_writer=writer)
            except CheckpointException as error:
                causes = [cause for cause, _ in error.failures.values()]
                raise next((cause for cause in causes if isinstance(cause, OSError)), causes[0]) from error
            # A file system that machines share may be late to show one the files of the others.
            seen = objects_of_all(_sizes(temporary))
            if world().is_first:
                temporary.rename(folder)
    finally:
        if world().is_first:
            shutil.rmtree(temporary, ignore_errors=True)
    return {"folder": folder.name, "files": {name: max(s.get(name, 0) for s in seen) for each in seen for name in each}}


def read(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    """Return a state with the numbers of its tensors, each process for itself.

    Args:
        path: of ``resume.pt``.
        state: what `checkpoint.load_resume` returned, in which DTensors without numbers may have taken the place of
            tensors without them, where this process wants its own rows alone, see `SplitWeight.own`.

    Returns:
        It with plain tensors, own rows for DTensors.

    Raises:
        CheckpointError: if the folder is broken, or this torch too old.
    """
    wanted: dict[str, Any] = {}

    def note(key: str, value: Any) -> None:
        if isinstance(value, torch.Tensor) and value.is_meta:
            mesh = getattr(value, "device_mesh", None)
            wanted[key] = torch.empty_like(value, device="cpu" if mesh is None else mesh.device_type)

    def with_rows(key: str, value: Any) -> Any:
        found = wanted.get(key, value)
        return found.to_local() if hasattr(found, "to_local") else found

    _mapped(state, note)
    if not wanted:
        return state
    _read(path, state.get(_PARTS), wanted)
    return dict(_mapped(state, with_rows))


def _read(path: Path, parts: Any, wanted: dict[str, Any]) -> None:
    if not can_be_written():
        raise CheckpointError(f"{path} is in parts, which torch {torch.__version__} cannot read: install a later torch")
    from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageReader, load

    folder = path
    try:
        if not _FOLDER.fullmatch(parts["folder"]):
            raise ValueError("no name of a folder")
        folder = path.with_name(parts["folder"])
        if _sizes(folder) != parts["files"]:
            raise ValueError("files are missing or cut short")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch asks whether one process is meant: each, for itself
            load(wanted, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    except (Exception, CheckpointException) as error:  # torch reports a broken file in many ways
        failures = [cause for cause, _ in error.failures.values()] if isinstance(error, CheckpointException) else []
        for cause in (error, *failures):
            if isinstance(cause, (MemoryError, torch.OutOfMemoryError, PermissionError)):
                raise cause from error  # the state itself is well
        raise CheckpointError(
            f"{folder} is broken and training cannot be resumed from it: remove {path} and run again"
        ) from error


def remove(path: Path) -> None:
    """Remove the state at `path`, its folder with it."""
    path.unlink(missing_ok=True)
    _remove_folders(path)


def _remove_folders(path: Path, but: str = "") -> None:
    for folder in path.parent.glob("resume-*"):
        if _FOLDER.fullmatch(folder.name) and folder.name != but:
            shutil.rmtree(folder, ignore_errors=True)


def _sizes(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in folder.iterdir()}


def _mapped(value: Any, function: Callable[[str, Any], Any], key: str = "") -> Any:
    """Return nested dicts, lists and tuples with each value replaced by what the function makes of its place and it."""
    if isinstance(value, dict):
        return {name: _mapped(each, function, f"{key}/{name}") for name, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_mapped(each, function, f"{key}/{place}") for place, each in enumerate(value))
    return function(key, value)
