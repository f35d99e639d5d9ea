"""What `RunFolderMixin` asks of the trainer behind it, with the answer of RecBole's own trainers."""

import contextlib
from typing import Any

import torch
from recbole.trainer import Trainer
from torch import Tensor

from recbole_llm.config.hooks import hooks_of
from recbole_llm.utils.processes import world


class TrainerHooks(Trainer):
    """A RecBole trainer with nothing of its own to prepare, evaluate or store."""

    def precompute(self, *evaluated: Any, show_progress: bool = False) -> None:
        """Compute what training and evaluation only read, before the first epoch. By default nothing.

        Args:
            evaluated: loaders of the parts that will be evaluated; None is skipped.
            show_progress: whether to show a bar.
        """

    def evaluated_weights(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the model has the weights to evaluate and keep; by default the trained ones."""
        return contextlib.nullcontext()

    def stored_weights(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the model has the weights to keep, as `in_first` asks for them."""
        return contextlib.nullcontext()

    def in_first(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return weights of the model, whole in process 0, which stores them; nothing in the others.

        All processes call it together.

        Args:
            state: by name; by default they are whole.
        """
        return state if world().is_first else {}

    def whole_backbone(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which a backbone that several processes split is whole; by default it always is."""
        return contextlib.nullcontext()

    def after_training(self) -> None:
        """Make the model whole for good where several processes split it and cannot rank so; by default it is."""

    def before_storing(self) -> None:
        """Let the model measure what its result holds, and make it whole in process 0, which stores the run."""
        hooks_of(self.model).before_storing()

    def own_rows(self) -> dict[str, slice]:
        """Return which rows of weights this process has, by name, where several split them; by default all of all."""
        return {}

    def in_parts(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return weights to resume from, those that several processes split as `runs.resume_parts` wants them.

        All processes call it together.

        Args:
            weights: by name; by default they are whole.
        """
        first = world().is_first  # it writes them
        return {name: weight.detach().cpu() if first else weight.detach() for name, weight in weights.items()}

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return the state of an optimiser, what is split of it as `in_parts` returns it."""
        return optimizer.state_dict()

    def own_part(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return a state to resume from, reduced to this process' rows of what is split; by default unchanged.

        Args:
            state: of whole tensors, which may have no numbers yet, see `runs.resume_parts`.
        """
        return state

    def restore_best(self) -> None:
        """Give the model the best weights of the run so far, those that a validation chose; by default nothing."""

    def more_resume_state(self) -> dict[str, Any]:
        """Return what must be stored, beside weights and optimisers, to resume: plain values and tensors."""
        return {}

    def weights_of_more(self, state: dict[str, Any] | None = None) -> dict[str, Tensor]:
        """Return the model's weights that follow from what `more_resume_state` returned, and are not stored beside it.

        Args:
            state: what it returned; None for now, where the names alone are asked for.
        """
        del state
        return {}

    def load_more_resume_state(self, state: dict[str, Any]) -> None:
        """Take back what `more_resume_state` returned."""
