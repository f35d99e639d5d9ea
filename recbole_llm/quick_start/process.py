"""A run leaves the process that called it as it found it."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any

import torch
from recbole.utils import init_logger

_log_files: set[logging.Handler] = set()  # the open log files of runs


@contextlib.contextmanager
def unchanged_process() -> Iterator[None]:
    """Restore, at the end of a run, the root logger and cuDNN's switches, which RecBole sets for the whole process.

    (`recbole/utils/logger.py:116`, `recbole/utils/utils.py:186`.) Random generators have moved on.
    """
    root, cudnn = logging.getLogger(), torch.backends.cudnn
    level, handlers = root.level, list(root.handlers)
    benchmark, deterministic = cudnn.benchmark, cudnn.deterministic
    try:
        yield
    finally:
        for handler in root.handlers:
            if handler not in handlers:
                _log_files.discard(handler)
                handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
        cudnn.benchmark, cudnn.deterministic = benchmark, deterministic


def start_log(config: Any) -> None:
    """Begin the log of a run, inside of `unchanged_process`: a file of its own, and lines on the terminal.

    A process that has a logger of its own, such as a notebook's or a service's, shows the lines as it likes, and
    RecBole's handler for the terminal is left out. A nested run writes to its own file, not to that of the run around
    it.
    """
    root = logging.getLogger()
    handlers, level = [handler for handler in root.handlers if handler not in _log_files], root.level
    root.handlers.clear()
    streams = sys.stdout, sys.stderr
    try:
        init_logger(config)
    finally:
        sys.stdout, sys.stderr = streams  # which colorama replaces
        own = list(root.handlers)
        files = [handler for handler in own if isinstance(handler, logging.FileHandler)]
        _log_files.update(files)
        root.handlers[:] = [*handlers, *files] if handlers else own
        if handlers:  # each of the new handlers has a level, and these may want to see more
            root.setLevel(min(level, root.level))


def stay_silent(config: Any) -> None:
    """Let this process log and show nothing, inside of `unchanged_process`: another one speaks for the run."""
    root = logging.getLogger()
    root.handlers[:] = [logging.NullHandler()]
    config["show_progress"] = config["log_wandb"] = False
