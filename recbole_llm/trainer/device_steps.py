"""RecBole's training epoch without waiting for the device after every step."""

import time
from typing import Any

import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.trainer import Trainer
from torch import Tensor
from tqdm import tqdm

from recbole_llm.trainer.graphed_loss import GraphedLoss, is_capturable

_STEPS_BETWEEN_LOSSES = 256  # reading losses waits for the device
_SECONDS_BETWEEN_NOTES = 1.0  # of the progress bar


class EpochLoss:
    """Adds up the losses of an epoch as RecBole does, read from the device many at a time.

    RecBole (`recbole/trainer/trainer.py:247-257`) reads every step's loss, which waits until the device is done with
    it; the sum, in double precision and in the order of the steps, is the same here to the last bit.
    """

    def __init__(self) -> None:
        self._waiting: list[Tensor] = []
        self._total: list[float] | None = None
        self._is_tuple = False

    def add(self, losses: Tensor | tuple[Tensor, ...]) -> None:
        """Add the loss of a step, a scalar, or its parts."""
        self._is_tuple = isinstance(losses, tuple)
        if isinstance(losses, tuple):
            self._waiting.append(torch.stack([part.detach().reshape(()) for part in losses]))
        else:
            self._waiting.append(losses.detach().reshape(1))
        if len(self._waiting) == _STEPS_BETWEEN_LOSSES:
            self._read()

    def _read(self) -> None:
        for step in torch.stack(self._waiting).tolist():
            # RecBole checks the sum of the parts.
            if any(value != value for value in (*step, sum(step))):
                raise ValueError("Training loss is nan")
            self._total = step if self._total is None else [a + b for a, b in zip(self._total, step, strict=True)]
        self._waiting.clear()

    def total(self) -> float | tuple[float, ...] | None:
        """Return the sum over all steps, of each part if there are several; None without a step.

        Raises:
            ValueError: if a loss is not a number, with RecBole's words.
        """
        if self._waiting:
            self._read()
        if self._total is None:
            return None
        return tuple(self._total) if self._is_tuple else self._total[0]


def attention_mask(item_seq: Tensor, bidirectional: bool = False) -> Tensor:
    """Return what `SequentialRecommender.get_attention_mask` returns, made on the device alone.

    There (`recbole/model/abstract_recommender.py:183`) ``torch.where`` copies its two numbers to the device and waits
    for each.

    Args:
        item_seq: int64 [batch, length], 0 where no item is.
        bidirectional: whether a position also sees those after it.

    Returns:
        float32 [batch, 1, length or 1, length]: 0 where a position is seen, -10000 where not.
    """
    seen = (item_seq != 0)[:, None, None]
    if not bidirectional:
        seen = torch.tril(seen.expand(-1, -1, item_seq.size(-1), -1))
    return torch.zeros(seen.shape, device=item_seq.device).masked_fill_(~seen, -10000.0)


class DeviceSteps(Trainer):
    """Stands between a trainer of RecBole and its `Trainer`, whose epoch it takes the place of."""

    def __init__(self, config: Any, model: Any) -> None:
        super().__init__(config, model)
        if getattr(type(model), "get_attention_mask", None) is SequentialRecommender.get_attention_mask:
            model.get_attention_mask = attention_mask
        self.graphed_loss: GraphedLoss | None = None
        if is_capturable(config, model, torch.device(self.device)):
            self.graphed_loss = GraphedLoss(model, model.calculate_loss)

    def _train_epoch(
        self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False
    ) -> float | tuple[float, ...] | None:
        """Train one epoch with RecBole's steps (`recbole/trainer/trainer.py:203`) and return the sum of the losses.

        A loss that is not a number is noticed some steps later than in RecBole.
        """
        if not self.config["single_spec"]:
            return super()._train_epoch(train_data, epoch_idx, loss_func, show_progress)
        self.model.train()
        loss_func = loss_func or self.model.calculate_loss
        scaler = torch.amp.GradScaler("cuda", enabled=self.enable_scaler)
        total = EpochLoss()
        noted = time.monotonic()
        with tqdm(train_data, desc=f"Train {epoch_idx:>5}", ncols=100, disable=not show_progress) as bar:
            for interaction in bar:
                total.add(self._step(interaction.to(self.device), loss_func, scaler))
                if self.gpu_available and show_progress and time.monotonic() - noted > _SECONDS_BETWEEN_NOTES:
                    noted = time.monotonic()
                    bar.set_postfix_str(f"GPU {torch.cuda.max_memory_reserved(self.device) / 2**30:.1f} GiB")
        return total.total()

    def _step(self, interaction: Any, loss_func: Any, scaler: Any) -> Tensor | tuple[Tensor, ...]:
        losses: Tensor | tuple[Tensor, ...]
        if self.graphed_loss is not None and loss_func == self.model.calculate_loss:
            losses = self.graphed_loss(interaction)
        else:
            self.optimizer.zero_grad()
            with torch.autocast(device_type=self.device.type, enabled=self.enable_amp):
                losses = loss_func(interaction)
            scaler.scale(sum(losses) if isinstance(losses, tuple) else losses).backward()
        self._update(scaler)
        return losses

    def _update(self, scaler: Any) -> None:
        if self.clip_grad_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), **self.clip_grad_norm)
        scaler.step(self.optimizer)
        scaler.update()
