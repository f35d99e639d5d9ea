"""How RecBole's sequential models yield their user vector, and the scores of some items at a time.

Their `forward` takes what it needs in an order of its own, and two of them return the states of all positions. The
table below holds a call for each, the same as in the model's own `full_sort_predict`.
"""

from collections.abc import Callable
from typing import Any

from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_llm.compat.masked_items import next_item_states
from recbole_llm.utils.item_products import ItemProducts


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
CALLS: dict[str, Callable[[Any, Interaction], Tensor]] = {
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
# These score an item by other vectors than their item embeddings.
_OTHER_ITEMS = ("CORE", "HGN", "KSR", "NPE")


def call_of(model_class: type) -> Callable[[Any, Interaction], Tensor] | None:
    """Return what gives the user vectors [rows, size] of a model of RecBole; None for any other, and without one."""
    # A subclass may call `forward` otherwise: only RecBole's own classes are known.
    return CALLS.get(model_class.__name__) if model_class.__module__.startswith("recbole.") else None


def has_item_scores(model_class: type) -> bool:
    """Tell whether `item_scores` answers for the models of a class."""
    return call_of(model_class) is not None and model_class.__name__ not in _OTHER_ITEMS


def item_scores(model: Any, interaction: Interaction) -> ItemProducts | None:
    """Return what scores some items for a batch, see `ModelHooks.scores_of_items`; None for an unknown model."""
    call = call_of(type(model))
    if call is None or type(model).__name__ in _OTHER_ITEMS:
        return None
    bias = getattr(model, "output_bias", None)  # BERT4Rec's
    return ItemProducts(call(model, interaction)[:, None], model.item_embedding.weight.__getitem__, bias)
