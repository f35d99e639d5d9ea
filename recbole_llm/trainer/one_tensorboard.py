"""Only process 0 of a run writes for tensorboard."""

import contextlib
from collections.abc import Iterator
from typing import Any

from recbole.trainer import trainer

from recbole_llm.utils.processes import world


class _NoWriter:
    """Takes what a `SummaryWriter` takes, and writes nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


@contextlib.contextmanager
def one_tensorboard() -> Iterator[None]:
    """Let a trainer of RecBole, made in the block, make a folder for tensorboard in process 0 alone.

    Its constructor makes one in any case (`recbole/trainer/trainer.py:117`).
    """
    if world().is_first:
        yield
        return
    own = trainer.get_tensorboard
    trainer.get_tensorboard = lambda logger: _NoWriter()
    try:
        yield
    finally:
        trainer.get_tensorboard = own
