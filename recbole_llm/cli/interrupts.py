"""Ctrl-C and SIGTERM: both end a command in order, and are answered by what is stored."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from recbole_llm.cli.show import show
from recbole_llm.utils.processes import is_told_elsewhere


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise Terminated in the block on SIGTERM; a second one does not disturb what the first has begun to clean up."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what a signal does
        return
    before = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT)}

    def end(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    for name in before:
        signal.signal(name, end)
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def interrupted(interrupt: KeyboardInterrupt, stored: str | None = None) -> int:
    """Print what is stored, and return the exit code: 130 for Ctrl-C, 143 for SIGTERM.

    Args:
        interrupt: what ended the command.
        stored: how to resume; None if nothing is stored.
    """
    if not is_told_elsewhere(interrupt):
        show(f"interrupted; {stored or 'nothing was kept'}", file=sys.stderr)
    return 143 if isinstance(interrupt, Terminated) else 130
