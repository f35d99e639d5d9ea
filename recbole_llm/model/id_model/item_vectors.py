"""The item vectors of an ID model: one per item of the catalogue, as its history and its ranking read them.

A model of text vectors or towers says itself what they are (`item_table`). Those of RecBole and of this package with a
table of items keep it as `item_embedding`; BERT4Rec's has a row for the mask token behind the items.
"""

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from recbole_llm.errors import SettingError, TrainingError


@runtime_checkable
class HasItemTable(Protocol):
    """A model that says itself what its item vectors are."""

    def item_table(self) -> Tensor:
        """Return the vectors of all items: [items, size]."""
        raise NotImplementedError


@torch.no_grad()
def item_vectors(model: Any, items: int) -> Tensor:
    """Return the vectors of all items: float32 [items, size], row 0, the padding id, zero; a copy without gradients.

    Args:
        model: a sequential model, trained.
        items: number of item ids, the padding id included.

    Raises:
        SettingError: if the model has no vector of every item.
        TrainingError: if a vector is not a number.
    """
    if isinstance(model, HasItemTable):
        table = model.item_table()
    else:
        embedding = getattr(model, "item_embedding", None)
        if not isinstance(embedding, nn.Embedding):
            raise SettingError(
                f"the model {type(model).__name__} has no item vectors: take one such as SASRec, GRU4Rec, Caser, "
                f"ComiRec or UniSRec as id_model, or give the class a method item_table() that returns [items, size]"
            )
        table = embedding.weight
    if len(table) < items:
        raise SettingError(f"the model {type(model).__name__} has {len(table)} item vectors for {items} items")
    found = table[:items].detach().float().clone()
    found[0] = 0
    if not found.isfinite().all():
        raise TrainingError(
            f"item vectors of {type(model).__name__} are not numbers: train it again with a lower learning_rate"
        )
    return found
