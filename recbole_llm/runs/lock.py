"""One process at a time works on a run: a lock in the run's folder, which the kernel releases when its holder ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from recbole_llm.errors import CheckpointError
from recbole_llm.runs.folder import refuse_finished
from recbole_llm.runs.result import has_result
from recbole_llm.utils.files import remove_unfinished, storage_errors

LOCK = ".lock"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the run in `folder` during the block.

    The lock is the kernel's (``flock``), so a process that was killed leaves none behind, and a second attempt in the
    same process is refused as one of another process is. The file stays in a run that was interrupted. A finished run
    does not need it: whoever gets the lock after that finds the result. What an ended process was writing is removed.

    Args:
        folder: of the run; it exists.

    Raises:
        CheckpointError: if the run is being worked on, or is finished.
        StorageError: if the folder may not be written.
    """
    path = folder / LOCK
    lock = FileLock(path)
    with storage_errors(path):
        try:
            lock.acquire(blocking=False)
        except Timeout:  # an OSError, too
            raise CheckpointError(
                f"the run {folder} is still running, here or in another process: wait until it ends, or stop it first"
            ) from None
    try:
        refuse_finished(folder)
        remove_unfinished(folder)
        yield
        if has_result(folder):
            path.unlink(missing_ok=True)
    finally:
        lock.release()
