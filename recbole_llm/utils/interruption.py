"""What an interruption leaves on the disk, noted on the KeyboardInterrupt that ends the work."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def noting_what_is_stored(folder: Path, is_stored: Callable[[], bool]) -> Iterator[None]:
    """Note `folder` on a KeyboardInterrupt of the block if it holds what the same work can resume from.

    Args:
        folder: where the block stores its work.
        is_stored: whether there is something to resume from.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if is_stored():
            interrupt.stored = [*stored_folders(interrupt), folder]  # type: ignore[attr-defined]
        raise


def stored_folders(interrupt: BaseException) -> list[Path]:
    """Return the folders that were noted on an interruption, the innermost work first."""
    return list(getattr(interrupt, "stored", []))
