"""The folder of one run: `config.yaml`, weights, ranks and `result.json`."""

import contextlib
import datetime
import glob
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

import recbole_llm
from recbole_llm.errors import CheckpointError, StorageError
from recbole_llm.runs.result import RESULT, has_result
from recbole_llm.utils.files import read_yaml, storage_errors, write_text

CONFIG = "config.yaml"


def create(root: Path, settings: dict[str, Any], wanted: str | Path | None = None) -> Path:
    """Make the folder ``<root>/<model>-<dataset>-<time>-<hash of the settings>`` and write `config.yaml` into it.

    Args:
        root: where runs are stored.
        settings: of the run.
        wanted: the folder itself, if it has a name already; it must not exist.

    Raises:
        StorageError: if the folder cannot be made or written.
    """
    if wanted is not None:
        folder = Path(wanted)
        with storage_errors(folder):
            folder.mkdir(parents=True)
        write_settings(folder, settings)
        return folder
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    name = f"{settings['model']}-{settings['dataset']}-{now}-{digest(settings)}"
    for number in range(1000):
        folder = root / (f"{name}-{number}" if number else name)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if folder.is_dir():
                continue  # another process started the same run in the same second
            raise StorageError(f"{root} is not a folder: set checkpoint_dir to one") from None
        except OSError as error:
            raise StorageError(f"the run's folder {folder} cannot be made: {error.strerror}") from error
        write_settings(folder, settings)
        return folder
    raise StorageError(f"{root} holds a thousand runs of this second: remove some")


def digest(settings: dict[str, Any]) -> str:
    """Return the hash of the settings that ends the name of a run's folder."""
    return hashlib.sha256(json.dumps(plain(settings), sort_keys=True, default=str).encode()).hexdigest()[:6]


def created_with(root: Path, settings: dict[str, Any]) -> list[Path]:
    """Return the folders in `root` that `create` made for these settings, oldest first."""
    prefix = re.escape(f"{settings['model']}-{settings['dataset']}-")
    pattern = re.compile(rf"{prefix}\d{{8}}-\d{{6}}-{digest(settings)}(-\d+)?")
    return sorted(folder for folder in root.glob("*") if pattern.fullmatch(folder.name))


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write `config.yaml`. Raises StorageError."""
    header = f"# recbole_llm {recbole_llm.__version__}; all settings of the run\n"
    write_text(folder / CONFIG, header + yaml.safe_dump(plain(settings), allow_unicode=True, sort_keys=True))


def open_existing(run: str | Path) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a run, given by itself or by a file in it, and its settings.

    Raises:
        CheckpointError: if it is not the folder of a run.
    """
    folder = Path(run)
    if folder.is_file():
        folder = folder.parent
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{run} is not a run: a run is a folder with {CONFIG} in it, such as saved/<run>")
    return folder, read_yaml(folder / CONFIG)


def require_finished(run: str | Path) -> None:
    """Refuse a run that has no result yet. Raises CheckpointError, which says how to resume it."""
    folder, _ = open_existing(run)
    if not has_result(folder):
        raise CheckpointError(
            f"the run {folder} is not finished: resume it with recbole-llm run --resume={folder}, or start it again"
        )


def open_unfinished(run: str | Path) -> tuple[Path, dict[str, Any]]:
    """Return what `open_existing` does for a run to resume.

    Raises:
        CheckpointError: if it is not the folder of a run, or the run is finished.
    """
    folder, settings = open_existing(run)
    refuse_finished(folder)
    return folder, settings


def refuse_finished(folder: Path) -> None:
    """Raise CheckpointError if the run in `folder` is finished."""
    if has_result(folder):
        raise CheckpointError(f"the run {folder} is finished, its results are in {folder / RESULT}: start a new run")


def finished_runs(pattern: str) -> list[Path]:
    """Return the folders of the finished runs that are named, in the order of their names.

    Args:
        pattern: a folder or its `result.json`, or a pattern such as ``saved/*``, which passes over unfinished runs.

    Raises:
        CheckpointError: if no finished run is there.
    """
    names = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]  # noqa: PTH207 (may be absolute)
    folders = [Path(name).parent if Path(name).name == RESULT else Path(name) for name in names]
    finished = [folder for folder in dict.fromkeys(folders) if has_result(folder)]
    if not finished:
        raise CheckpointError(
            f"{pattern} names no finished run: a run is a folder with {RESULT} in it, such as saved/<run>"
        )
    return finished


def plain(value: Any) -> Any:
    """Return `value` with nothing in it but what YAML and JSON know; anything else becomes its text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def git_commit() -> str | None:
    """Return the commit of the checkout that the package runs from, with ``-dirty`` if files differ.

    Where only the files travelled, ``$RECBOLE_LLM_COMMIT`` names it; else None.
    """
    if os.environ.get("RECBOLE_LLM_COMMIT"):
        return os.environ["RECBOLE_LLM_COMMIT"]
    root = Path(recbole_llm.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        commit = _git(root, "rev-parse", "HEAD")
        return commit + ("-dirty" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()  # noqa: S603


def parameter_counts(model: torch.nn.Module) -> dict[str, int]:
    """Return how many numbers of the model are trained and how many are frozen."""
    counts = {"trained": 0, "frozen": 0}
    for parameter in model.parameters():
        counts["trained" if parameter.requires_grad else "frozen"] += parameter.numel()
    return counts


def peak_memory_bytes() -> dict[str, int]:
    """Return the most memory that this process held, and the most that its tensors took on a CUDA device."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    peak = {"peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        peak["peak_gpu_memory_bytes"] = torch.cuda.max_memory_allocated()
    return peak
