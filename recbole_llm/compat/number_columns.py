"""Several columns of numbers in a model that embeds the columns of items (FDSA, GRU4RecF, SASRecF, DIN, ...).

Repairs `recbole/model/layers.py:1143` (`ContextSeqEmbAbstractLayer.embed_input_fields`), which joins the pairs (value,
bucket) of all columns along the pair: of two columns, one of four numbers came of it, and :176 (`FLEmbedding.forward`)
failed to take it apart. It happens when this module is imported.
"""

import functools
from collections.abc import Callable
from typing import Any

from recbole.model.layers import ContextSeqEmbAbstractLayer
from torch import Tensor


def _by_pairs(own: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(own)
    def embed_float_fields(self: Any, float_fields: Tensor | None, type: str, embed: bool = True) -> Tensor | None:
        if float_fields is not None:  # [..., 1, 2 x columns], or the right form, which stays: [..., columns, 2]
            float_fields = float_fields.reshape(*float_fields.shape[:-2], -1, 2)
        found: Tensor | None = own(self, float_fields, type, embed)
        return found

    return embed_float_fields


ContextSeqEmbAbstractLayer.embed_float_fields = _by_pairs(ContextSeqEmbAbstractLayer.embed_float_fields)
