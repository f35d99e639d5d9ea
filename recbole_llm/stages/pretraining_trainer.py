"""Training of weights that are to be tuned on other data: no validation, they are kept at chosen epochs."""

import functools
from collections.abc import Callable, Collection
from typing import Any

from recbole_llm.runs.context import RunContext
from recbole_llm.trainer.packed_trainer import PackedTrainer
from recbole_llm.trainer.run_folder_trainer import RunFolderMixin
from recbole_llm.utils.processes import world


class KeepingMixin(RunFolderMixin):
    """Stands in front of a trainer that trains for a fixed number of epochs.

    Args:
        config: the settings of the pre-training.
        model: the model.
        context: of the pre-training.
        save_epochs: after which epochs (from 1) the weights are kept.
        keep: keeps them, given the number of the epoch and what is to be known of it.
    """

    def __init__(
        self,
        config: Any,
        model: Any,
        context: RunContext,
        save_epochs: Collection[int],
        keep: Callable[[int, dict[str, Any]], None],
    ) -> None:
        super().__init__(config, model, context)
        self.save_epochs = save_epochs
        self.keep = keep

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        """Do what has to be done after an epoch; without validation data RecBole calls nothing but this."""
        if epoch < 0:
            return
        done = epoch + 1
        if done in self.save_epochs:
            with self.whole_backbone():
                if world().is_first:
                    self.keep(done, {"epoch": done, "seconds": round(self.fit_seconds(), 2)})
        self._last_valid: dict[str, float] = {}
        self._after_epoch(epoch, saved=True)


class PretrainingTrainer(KeepingMixin, PackedTrainer):
    """Pre-trains a language model on packed batches."""


class OwnLossMixin(KeepingMixin):
    """Pre-trains a model by its `pretraining_loss`."""

    def _train_epoch(
        self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False
    ) -> float | tuple[float, ...] | None:
        loss_func = loss_func or self.model.pretraining_loss
        return super()._train_epoch(train_data, epoch_idx, loss_func, show_progress)


@functools.cache
def with_own_loss(trainer_class: type) -> type:
    """Return a trainer that pre-trains as `trainer_class` (of `trainer.choose`) trains.

    Args:
        trainer_class: `RunFolderMixin` in front of a trainer of RecBole.
    """
    bases = tuple(base for base in trainer_class.__bases__ if base is not RunFolderMixin)
    return type(f"Pretraining{trainer_class.__name__}", (OwnLossMixin, *bases), {})
