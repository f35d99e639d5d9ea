"""A run that is interrupted, as by Ctrl-C."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from recbole_llm.trainer.run_folder_trainer import RunFolderMixin


@contextlib.contextmanager
def interrupted_after_first_epoch() -> Iterator[None]:
    """Within it a training is interrupted once its first epoch is stored; it fails if none is."""
    after_epoch = RunFolderMixin._after_epoch

    def interrupt(trainer: Any, epoch: int, saved: bool) -> None:
        after_epoch(trainer, epoch, saved)
        if epoch == 0:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunFolderMixin, "_after_epoch", interrupt)
        yield
