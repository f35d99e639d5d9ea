"""The base class of models that read item texts with a language model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor, nn

from recbole_llm.backbone.feature_cache import QueryStateCache
from recbole_llm.config.hooks import ModelHooks


class TextRecommender(ModelHooks, SequentialRecommender):
    """A sequential model of RecBole with every hook that this package calls.

    Hooks that any model may have are those of `ModelHooks`: what is declared (`dataset_class`, `trainer_class`,
    `stages`, ...), `check_before_stages`, `stored_state`, `before_validation`, `extra_results`, `save_extras` and
    `single_sequence`. What follows is called by `PackedTrainer` alone.

    Args:
        config: the settings of the run.
        dataset: the training part.

    Attributes:
        state_cache: the stored hidden states that training takes the place of its samples, once `fill_state_cache` was
            called; else None.
        backbone_is_sharded: whether several processes split `backbone`, see `trainer.sharded_backbone`: they then
            compute the same number of passes, and an empty one goes through the backbone, too.
    """

    input_type = InputType.POINTWISE
    state_cache: QueryStateCache | None = None
    backbone_is_sharded: bool = False

    @property
    def states_never_change(self) -> bool:
        """Whether each training sample has the same hidden states in every epoch; they are then computed once."""
        return False

    def fill_state_cache(
        self, evaluated: list[Any], folder: Path, progress: Callable[..., Any], in_parts: bool = False
    ) -> None:
        """Compute the hidden states that training and the `evaluated` parts read, once, where `states_never_change`.

        Args:
            evaluated: validation and test parts.
            folder: where a large table may be memory-mapped.
            progress: from the number of sequences to a bar with ``update(n)``, a context, such as `tqdm.tqdm`.
            in_parts: whether each of several processes keeps the states that it computes alone; else all keep all.
        """
        raise NotImplementedError(f"{type(self).__name__} says that its states never change, but stores none")

    def before_epoch(self, epoch: int) -> None:
        """Prepare for an epoch of training that is about to begin, such as by a new table of item vectors.

        By default nothing.

        Args:
            epoch: its number, from 0.
        """

    def training_samples(self, rng: np.random.Generator) -> Any:
        """Return the samples of one epoch: with a length, and a method ``select(indices)``.

        Args:
            rng: the epoch's own.
        """
        raise NotImplementedError(f"{type(self).__name__} has no training_samples, which PackedTrainer asks for")

    def prepared_step(self, samples: Any) -> tuple[int, list[Any]]:
        """Return how many queries the samples of one optimiser step have, and its packed passes, on the CPU.

        Each pass has a method `pin_memory`. This is called in a thread of its own, ahead of training.

        Args:
            samples: selected from those of the epoch.
        """
        raise NotImplementedError(f"{type(self).__name__} has no prepared_step, which PackedTrainer asks for")

    def pass_loss_sum(self, part: Any) -> Tensor:
        """Return the loss of one pass, summed over its queries: a scalar on the device.

        Args:
            part: a pass of `prepared_step`, or stored queries of `state_cache`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no pass_loss_sum, which PackedTrainer asks for")

    def sample_tokens(self, samples: Any) -> np.ndarray:
        """Return the size of each sample, int64 [samples], by which processes share a step; by default all equal.

        Args:
            samples: selected from those of the epoch.
        """
        return np.ones(len(samples), dtype=np.int64)

    def layers_to_shard(self) -> list[nn.Module]:
        """Return the layers of `backbone` that several processes split one by one; none (the default) if they cannot.

        Asked before the backbone is split.
        """
        return []

    def empty_pass_loss(self) -> Tensor:
        """Return 0, for a pass without samples: it takes part in what processes exchange during a pass."""
        return torch.zeros((), device=self.device, requires_grad=True)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return AdamW's groups with their rates; by default one, of all trained weights, with RecBole's own rate."""
        return [{"params": [parameter for parameter in self.parameters() if parameter.requires_grad]}]
