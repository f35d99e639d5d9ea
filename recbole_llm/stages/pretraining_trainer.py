"""Training of a backbone that is to be tuned on other data: no validation, the backbone is kept at chosen epochs."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from recbole_llm.backbone.pretrained import save_backbone
from recbole_llm.runs.context import RunContext
from recbole_llm.trainer.packed_trainer import PackedTrainer
from recbole_llm.trainer.run_folder_trainer import RunFolderMixin


def epoch_folder(folder: Path, epoch: int) -> Path:
    """Return where the backbone after `epoch` epochs (from 1) is kept."""
    return folder / f"backbone-epoch-{epoch}"


class PretrainingTrainer(RunFolderMixin, PackedTrainer):
    """Trains for a fixed number of epochs.

    Args:
        config: the settings of the pre-training.
        model: the model.
        context: of the pre-training.
        save_epochs: after which epochs (from 1) the backbone is kept.
        record: what is to be known of the training, see `save_backbone`.
        items: the item keys of the sources, see `save_backbone`.
    """

    def __init__(
        self,
        config: Any,
        model: Any,
        context: RunContext,
        save_epochs: Collection[int],
        record: dict[str, Any],
        items: dict[str, np.ndarray],
    ) -> None:
        super().__init__(config, model, context)
        self.save_epochs = save_epochs
        self.record = record
        self.items = items

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        """Do what has to be done after an epoch; without validation data RecBole calls nothing but this."""
        if epoch < 0:
            return
        done = epoch + 1
        if done in self.save_epochs:
            record = {**self.record, "epoch": done, "seconds": round(self.fit_seconds(), 2)}
            save_backbone(
                epoch_folder(self.run_folder, done), self.model.backbone, self.model.tokenizer, record, self.items
            )
        self._last_valid: dict[str, float] = {}
        self._after_epoch(epoch, saved=True)
