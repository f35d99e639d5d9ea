"""Training on packed batches: optimiser steps of a fixed number of samples, in passes within a budget of tokens."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.trainer import Trainer
from torch import Tensor
from tqdm import tqdm
from transformers import get_scheduler

from recbole_llm.data.packing import Sequences, within_budget
from recbole_llm.errors import SettingError, TrainingError, nearest

_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
_SECONDS_BETWEEN_LOSSES = 1.0  # reading a loss waits for the device, so it is not done after every step


class PackedTrainer(Trainer):
    """RecBole's Trainer for models that give `training_sequences`.

    The gradient of a step is that of the mean cross-entropy over all queries of its `train_batch_size` samples, however
    many passes it takes: the budget changes memory and speed, never the result.
    """

    def __init__(self, config: Any, model: Any) -> None:
        super().__init__(config, model)
        if config["lr_scheduler"] not in _SCHEDULES:
            close = nearest(str(config["lr_scheduler"]), _SCHEDULES)
            raise SettingError(f"lr_scheduler={config['lr_scheduler']} is not one of {', '.join(_SCHEDULES)}{close}")
        self.batch_size = config["train_batch_size"]
        self.scheduler = get_scheduler(
            _SCHEDULES[config["lr_scheduler"]], self.optimizer, config["warmup_steps"], self._total_steps()
        )

    def _build_optimizer(self, **_: Any) -> torch.optim.Optimizer:
        groups = self.model.parameter_groups(self.config)
        return torch.optim.AdamW(groups, weight_decay=self.weight_decay)

    def _samples(self, epoch: int) -> Sequences:
        # The epoch's own generator: a resumed run draws what the uninterrupted one draws.
        return self.model.training_sequences(np.random.default_rng([self.config["seed"], epoch]))

    def _total_steps(self) -> int:
        return -(-len(self._samples(0)) // self.batch_size) * self.epochs

    def precompute(self, *evaluated: Any, show_progress: bool = False) -> None:
        """Compute the hidden states of a frozen backbone once, if its windows never change.

        Args:
            evaluated: loaders of the parts that will be evaluated; None is skipped.
            show_progress: whether to show a bar.
        """
        if not self.model.frozen or self.model.settings.train_window == "random":
            return
        parts = [loader.dataset for loader in evaluated if loader is not None]

        def bar(passes: Any) -> Any:
            return tqdm(passes, desc="Hidden states", ncols=100, disable=not show_progress)

        self.model.fill_state_cache(parts, Path(self.config["run_folder"]), bar)

    def _train_epoch(
        self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False
    ) -> float:
        """Train one epoch and return the mean loss over its steps."""
        self.model.train()
        samples = self._samples(epoch_idx)
        order = np.random.default_rng([self.config["seed"], epoch_idx, 1]).permutation(len(samples))
        steps = np.split(order, np.arange(self.batch_size, len(order), self.batch_size))
        losses: list[Tensor] = []
        shown = time.monotonic()
        with tqdm(steps, desc=f"Train {epoch_idx:>5}", ncols=100, disable=not show_progress) as bar:
            for step in bar:
                losses.append(self._step(samples, step))
                if time.monotonic() - shown > _SECONDS_BETWEEN_LOSSES:
                    bar.set_postfix_str(f"loss {self._mean(losses[-20:], epoch_idx, len(losses)):.4f}")
                    shown = time.monotonic()
        return self._mean(losses, epoch_idx, len(losses))

    def _step(self, samples: Sequences, indices: np.ndarray) -> Tensor:
        """Take one optimiser step and return its mean loss, a scalar on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        queries = max(int(samples.select(indices).queries().sum()), 1)
        for part in self._passes(samples, indices):
            loss = part / queries
            loss.backward()
            total += loss.detach()
        if self.clip_grad_norm:
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, **self.clip_grad_norm)
        self.optimizer.step()
        self.scheduler.step()
        return total

    def _passes(self, samples: Sequences, indices: np.ndarray) -> Iterator[Tensor]:
        """Yield the loss sum of every pass of a step."""
        if self.model.state_cache is not None:
            yield self.model.cached_loss_sum(indices)
            return
        step = samples.select(indices)
        for group in within_budget(step.tokens(self.model.table), self.model.settings.train_batch_tokens):
            yield self.model.loss_sum(step.select(group))

    def _mean(self, losses: list[Tensor], epoch: int, done: int) -> float:
        values = torch.stack(losses).tolist()
        for index, value in enumerate(values):
            if not np.isfinite(value):
                step = done - len(values) + index
                raise TrainingError(
                    f"the training loss is {value} at step {step} of epoch {epoch}: lower learning_rate, or raise "
                    f"warmup_steps"
                )
        return float(np.mean(values))

    def more_resume_state(self) -> dict[str, Any]:
        """Return the state of the learning rate schedule."""
        return {"scheduler": self.scheduler.state_dict()}

    def load_more_resume_state(self, state: dict[str, Any]) -> None:
        """Take back the state of the learning rate schedule."""
        self.scheduler.load_state_dict(state["scheduler"])
