"""How each sequential model yields its user vector: the one place that says so.

A model of ours has a method ``user_vectors(interaction)``, which is asked. RecBole's models have none: their `forward`
takes what it needs in an order of its own, and two of them return the states of all positions. The table below holds a
call for each, the same as in the model's own `full_sort_predict`.

Models that score an item from more than one vector of the user and one of the item (FPMC, TransRec, RepeatNet, DIN,
DIEN, the two CPR models) and general models have no such vector.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_llm.compat.masked_items import next_item_states
from recbole_llm.errors import SettingError, TrainingError


@runtime_checkable
class HasUserVectors(Protocol):
    """A model that says itself what its user vectors are."""

    def user_vectors(self, interaction: Interaction) -> Tensor:
        """Return the user vectors [batch, interests, size] of RecBole's rows."""


def _history(model: Any, rows: Interaction) -> Tensor:
    return model(rows[model.ITEM_SEQ])


def _history_and_length(model: Any, rows: Interaction) -> Tensor:
    return model(rows[model.ITEM_SEQ], rows[model.ITEM_SEQ_LEN])


def _history_and_user(model: Any, rows: Interaction) -> Tensor:
    return model(rows[model.ITEM_SEQ], rows[model.USER_ID])


def _caser(model: Any, rows: Interaction) -> Tensor:
    return model(rows[model.USER_ID], rows[model.ITEM_SEQ])


def _hrm(model: Any, rows: Interaction) -> Tensor:
    return model(rows[model.ITEM_SEQ], rows[model.USER_ID], rows[model.ITEM_SEQ_LEN])


def _fossil(model: Any, rows: Interaction) -> Tensor:
    return model(rows[model.ITEM_SEQ], rows[model.ITEM_SEQ_LEN], rows[model.USER_ID])


# RecBole's models by their names.
_CALLS: dict[str, Callable[[Any, Interaction], Tensor]] = {
    "BERT4Rec": next_item_states,
    "CORE": _history,
    "Caser": _caser,
    "FDSA": _history_and_length,
    "FEARec": _history_and_length,
    "FOSSIL": _fossil,
    "GCSAN": _history_and_length,
    "GRU4Rec": _history_and_length,
    "GRU4RecF": _history_and_length,
    "GRU4RecKG": _history_and_length,
    "HGN": _history_and_user,
    "HRM": _hrm,
    "KSR": _history_and_length,
    "LightSANs": _history_and_length,
    "NARM": _history_and_length,
    "NPE": _history_and_user,
    "NextItNet": _history,
    "SASRec": _history_and_length,
    "SASRecF": _history_and_length,
    "SHAN": _history_and_user,
    "SINE": _history_and_length,
    "SRGNN": _history_and_length,
    "STAMP": _history_and_length,
}
_TOWERS = ("LLMRec", "MoRec", "Recformer", "TwinBERT")
_OURS = ("ComiRec", "MLP4Rec", "S3Rec", "ZESRec", "UniSRec", "AlphaFuse", "TextInitSASRec", *_TOWERS)


def require_user_vector(model_class: type) -> None:
    """Refuse a model without a user vector, before anything is trained.

    Raises:
        SettingError: if the model has none; the models that have one are named.
    """
    if not issubclass(model_class, HasUserVectors) and _call_of(model_class) is None:
        raise SettingError(
            f"the model {model_class.__name__} has no user vector: take one of {', '.join((*_OURS, *_CALLS))}, or give "
            f"the class a method user_vectors(interaction) that returns [batch, interests, size]"
        )


def _call_of(model_class: type) -> Callable[[Any, Interaction], Tensor] | None:
    # A subclass may call `forward` otherwise: only RecBole's own classes are known.
    return _CALLS.get(model_class.__name__) if model_class.__module__.startswith("recbole.") else None


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
    call = _call_of(type(model))
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
