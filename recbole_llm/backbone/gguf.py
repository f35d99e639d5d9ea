"""GGUF files are converted once into transformers' own format, which loads in a second instead of fifteen."""

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils import logging as transformers_logging

from recbole_llm.backbone.gguf_reader import quick_reading
from recbole_llm.errors import BackboneError, StorageError
from recbole_llm.utils.files import replacing_folder
from recbole_llm.utils.hashing import content_hash
from recbole_llm.utils.paths import cache_folder

# Part of every converted folder's name: raise it when `_write_converted` writes something else than before.
CONVERSION_VERSION = 1

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and reports of unused weights: what matters is raised as our own errors."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _conversions() -> Path:
    try:
        return cache_folder("backbones")
    except OSError as error:
        raise StorageError(f"the cache cannot be made ({error}): set RECBOLE_LLM_CACHE to a folder of yours") from error


def converted_folder(name: str, gguf_file: Path) -> Path:
    """Return where the conversion of this file's content is kept, whether it is there yet or not.

    Raises:
        BackboneError: if the file cannot be read.
        StorageError: if there can be no cache.
    """
    try:
        digest = content_hash(gguf_file)
    except OSError as error:
        raise BackboneError(f"{gguf_file} cannot be read ({error.strerror}): install its package again") from error
    return converted_of_digest(name, digest)


def converted_of_digest(name: str, digest: str) -> Path:
    """Return where the conversion of a file with this sha256 is kept. Raises StorageError if there can be no cache."""
    return _conversions() / f"{name}-v{CONVERSION_VERSION}-{digest[:16]}"


def earlier_conversion(name: str) -> Path | None:
    """Return the newest conversion of backbone `name`, for when its GGUF file is not there to compare with."""
    found = _conversions().glob(f"{name}-v{CONVERSION_VERSION}-*")
    return max(
        (folder for folder in found if folder.is_dir()), key=lambda folder: folder.stat().st_mtime_ns, default=None
    )


def convert_gguf(name: str, gguf_file: Path) -> Path:
    """Return the folder with the converted model and its tokenizer; convert first if this content has not been yet.

    Any number of processes may call this at once: one converts (about 15 seconds for 135M parameters), the others
    wait for it. The lock belongs to the process and ends with it, and the folder gets its name when it is whole, so a
    process that is killed leaves nothing that another could take for a model.

    Raises:
        BackboneError: if the file cannot be read or holds no model that transformers knows.
        StorageError: if the cache is full or may not be written.
    """
    target = converted_folder(name, gguf_file)
    if target.is_dir():
        return target
    try:
        held = FileLock(target.with_name(f".{target.name}.lock")).acquire()
    except OSError as error:
        raise StorageError(f"{target.parent} may not be written ({error.strerror}): set RECBOLE_LLM_CACHE") from error
    with held:
        if not target.is_dir():
            for left_over in target.parent.glob(f".{target.name}.*.tmp"):  # of a process that was killed
                shutil.rmtree(left_over, ignore_errors=True)
            _log.info("converting %s once; this takes about 15 seconds", gguf_file.name)
            with replacing_folder(target) as temporary:
                _write_converted(gguf_file, temporary)
    return target


def _write_converted(gguf_file: Path, folder: Path) -> None:
    try:
        # The bar over the tensors is tqdm's own and heeds no setting of transformers: it writes to stderr.
        with (
            quiet_transformers(), quick_reading(), Path(os.devnull).open("w") as nowhere,
            contextlib.redirect_stderr(nowhere),
        ):  # fmt: skip
            model = AutoModelForCausalLM.from_pretrained(
                gguf_file.parent, gguf_file=gguf_file.name, quantization_config=GgufConfig(dequantize=True)
            )
            model.save_pretrained(folder)
            AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name).save_pretrained(folder)
    except ImportError as error:
        raise BackboneError(f"{gguf_file.name} needs two packages to be read: pip install gguf accelerate") from error
    except Exception as error:  # the GGUF reader raises whatever a broken file leads it to
        if getattr(error, "errno", None) or "No space left" in str(error):  # safetensors has its own type for this one
            raise OSError(
                getattr(error, "errno", None) or errno.ENOSPC, str(error)
            ) from error  # replacing_folder tells it
        raise BackboneError(
            f"{gguf_file} is cut short or holds no model that transformers knows: install its package again"
        ) from error
