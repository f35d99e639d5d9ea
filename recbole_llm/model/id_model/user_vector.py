"""How each sequential model yields its user vector: the one place that says so.

A model of ours has a method ``user_vectors(interaction)``, which is asked. RecBole's models have none: how each is
called says `recbole_llm.compat.user_vectors`.

Models that score an item from more than one vector of the user and one of the item (FPMC, TransRec, RepeatNet, DIN,
DIEN, the two CPR models) and general models have no such vector.
"""

from typing import Any, Protocol, runtime_checkable

import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_llm.compat.user_vectors import CALLS, call_of
from recbole_llm.errors import SettingError, TrainingError


@runtime_checkable
class HasUserVectors(Protocol):
    """A model that says itself what its user vectors are."""

    def user_vectors(self, interaction: Interaction) -> Tensor:
        """Return the user vectors [batch, interests, size] of RecBole's rows."""


_TOWERS = ("LLMRec", "MoRec", "Recformer", "TwinBERT")
_OURS = ("ComiRec", "MLP4Rec", "S3Rec", "ZESRec", "UniSRec", "AlphaFuse", "TextInitSASRec", *_TOWERS)


def require_user_vector(model_class: type) -> None:
    """Refuse a model without a user vector, before anything is trained.

    Raises:
        SettingError: if the model has none; the models that have one are named.
    """
    if not issubclass(model_class, HasUserVectors) and call_of(model_class) is None:
        raise SettingError(
            f"the model {model_class.__name__} has no user vector: take one of {', '.join((*_OURS, *CALLS))}, or give "
            f"the class a method user_vectors(interaction) that returns [batch, interests, size]"
        )


def user_vectors(model: Any, interaction: Interaction) -> Tensor:
    """Return the user vectors [batch, interests, size] of RecBole's rows; all models but ComiRec have one interest.

    Nothing is changed: whether the model is in eval mode, and whether gradients are kept, is up to the caller.

    Args:
        model: a sequential model.
        interaction: rows with the histories, on the model's device.

    Raises:
        SettingError: if the model has no user vector.
    """
    if isinstance(model, HasUserVectors):
        return model.user_vectors(interaction)
    require_user_vector(type(model))
    call = call_of(type(model))
    assert call is not None
    return call(model, interaction)[:, None]


def user_vector_shape(model: Any) -> tuple[int, int]:
    """Return interests and size of the model's user vectors.

    Raises:
        SettingError: if the model has no user vector.
    """
    require_user_vector(type(model))
    history = torch.zeros(1, model.max_seq_length, dtype=torch.long)
    history[0, 0] = 1
    row = Interaction({model.ITEM_SEQ: history})
    row.update(Interaction({name: torch.ones(1, dtype=torch.long) for name in (model.ITEM_SEQ_LEN, model.USER_ID)}))
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            shape = user_vectors(model, row.to(model.device)).shape
    finally:
        model.train(training)
    return int(shape[1]), int(shape[2])


def check_finite(vectors: Tensor, model: Any) -> None:
    """Refuse user vectors that are not numbers. Waits for the device: call it once for all users, not in each step.

    Args:
        vectors: user vectors [rows, interests, size].
        model: where they come from.

    Raises:
        TrainingError: if a vector holds NaN or infinity.
    """
    broken = int((~vectors.isfinite()).flatten(1).any(dim=1).sum())
    if broken:
        raise TrainingError(
            f"{broken} of {len(vectors)} user vectors of {type(model).__name__} are not numbers: train it again with a "
            f"lower learning_rate"
        )
