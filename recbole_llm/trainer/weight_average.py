"""The exponential moving average of the weights over the steps of training, which is evaluated in their place."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from recbole_llm.errors import CheckpointError, SettingError


class WeightAverage:
    """a_t = d_t a_(t-1) + (1 - d_t) w_t after step t = 1, 2, ..., with d_t = min(decay, (1 + t) / (10 + t)).

    a_0 are the weights at the start; d_t is small at first, so that they are soon forgotten.

    Args:
        weights: the trained weights of the model, in any precision.
        trained: what the optimiser updates, float32, in the same order: the weights themselves, or their masters.
        decay: d, above 0 and below 1.

    Attributes:
        averages: a_t, float32, in the order of `trained`.

    Raises:
        SettingError: for another decay.
    """

    def __init__(self, weights: Sequence[Tensor], trained: Sequence[Tensor], decay: float) -> None:
        check_decay(decay)
        self._weights = list(weights)
        self._trained = list(trained)
        self._decay = decay
        self._steps = 0
        self.averages = [weight.detach().clone() for weight in trained]

    @torch.no_grad()
    def restart(self) -> None:
        """Take the weights of this moment as a_0."""
        self._steps = 0
        torch._foreach_copy_(self.averages, self._trained)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after one more step. Nothing waits for the device."""
        self._steps += 1
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        torch._foreach_lerp_(self.averages, self._trained, 1 - decay)

    @contextlib.contextmanager
    def in_model(self) -> Iterator[None]:
        """Give the model the averages, in its own precision, until the context ends. They may not be written to."""
        # Memory is exchanged, not copied: what a CUDA graph trains lies where it lay when training resumes.
        plain = [weight.data for weight in self._weights]
        try:
            for weight, average in zip(self._weights, self.averages, strict=True):
                weight.data = average.to(weight.dtype)
            yield
        finally:
            for weight, data in zip(self._weights, plain, strict=True):
                weight.data = data

    def state(self) -> dict[str, Any]:
        """Return the averages and how many steps they have."""
        return {"steps": self._steps, "averages": list(self.averages)}

    @torch.no_grad()
    def load_state(self, state: dict[str, Any] | None) -> None:
        """Take back what `state` returned.

        Raises:
            CheckpointError: if there is none.
        """
        if state is None:
            raise CheckpointError(
                "the interrupted run kept no average of its weights: resume it with weight_average=None, or start again"
            )
        self._steps = state["steps"]
        for average, stored in zip(self.averages, state["averages"], strict=True):
            average.copy_(stored)


def check_decay(decay: object) -> None:
    """Refuse a `weight_average` that is not a number above 0 and below 1. Raises SettingError."""
    if not isinstance(decay, float) or not 0 < decay < 1:
        raise SettingError(f"weight_average={decay} must be a number above 0 and below 1, such as 0.999, or ~")
