"""Packed batches: sequences laid end to end in one row, without padding, each attending to itself alone.

transformers' own layers are used as they are; only the attention function is replaced, through its public
``AttentionInterface``. It receives the sequence bounds as a keyword that every model passes down to its layers.
"""

import functools
import inspect
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface

from recbole_llm.packing.batch import PackedBatch, SequenceBounds

try:  # torch >= 2.10
    from torch.nn.attention.varlen import varlen_attn
except ImportError:
    varlen_attn = None  # type: ignore[assignment]

ATTENTION_NAME = "recbole_llm_packed"


def use_packed_attention(model: nn.Module) -> None:
    """Make a transformers `model` attend within the bounds that `packed_hidden_states` passes."""
    model.set_attn_implementation(ATTENTION_NAME)  # type: ignore[operator]


def packed_hidden_states(model: nn.Module, batch: PackedBatch, **keywords: Any) -> Tensor:
    """Return the last-layer hidden states [tokens, width] of a packed batch.

    Args:
        model: a transformers base model that went through `use_packed_attention`.
        batch: the tokens.
        keywords: handed to the layers.
    """
    # A mask of four dimensions is taken for finished. Without one, Llama types look for packed sequences in the
    # positions, and wait for the device to do so.
    finished = torch.empty(1, 1, 1, 1, dtype=torch.bool, device=batch.token_ids.device)
    output = model(
        input_ids=batch.token_ids[None],
        position_ids=batch.positions[None],
        attention_mask=finished,
        use_cache=False,
        sequence_bounds=batch.bounds,
        **keywords,
    )
    return output.last_hidden_state[0]


def _packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    sequence_bounds: SequenceBounds,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend within each sequence; query [1, heads, tokens, size], key and value [1, key heads, tokens, size].

    Returns [1, tokens, heads, size], as transformers' attention functions do. Grouped key heads are repeated.
    """
    groups = query.shape[1] // key.shape[1]
    if sequence_bounds.alone:
        output = F.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, is_causal=sequence_bounds.causal, scale=scaling, enable_gqa=groups > 1
        )
        return output.transpose(1, 2), None
    fast = varlen_attn is not None and query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and not dropout
    if fast:
        return _variable_length(query, key, value, sequence_bounds, scaling, groups), None
    outputs = []
    pieces = [tensor.split(sequence_bounds.lengths, dim=2) for tensor in (query, key, value)]
    for q, k, v in zip(*pieces, strict=True):
        outputs.append(
            F.scaled_dot_product_attention(
                q, k, v, dropout_p=dropout, is_causal=sequence_bounds.causal, scale=scaling, enable_gqa=groups > 1
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _variable_length(
    query: Tensor, key: Tensor, value: Tensor, bounds: SequenceBounds, scaling: float | None, groups: int
) -> Tensor:
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [tokens, heads, size]
    if groups > 1:
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    if scaling is not None and "scale" not in _varlen_parameters():
        query = query * (scaling * query.shape[-1] ** 0.5)
    options: dict[str, Any] = {}
    if "scale" in _varlen_parameters():
        options["scale"] = scaling
    if "is_causal" in _varlen_parameters():
        options["is_causal"] = bounds.causal
    elif bounds.causal:
        options["window_size"] = (-1, 0)
    output = varlen_attn(query, key, value, bounds.offsets, bounds.offsets, bounds.longest, bounds.longest, **options)
    return cast(Tensor, output)[None]


@functools.cache
def _varlen_parameters() -> frozenset[str]:
    return frozenset(inspect.signature(varlen_attn).parameters)


def _no_mask(*_: Any, **__: Any) -> None:
    """The bounds say all; without this registration transformers would build a mask and drop it silently."""


AttentionInterface.register(ATTENTION_NAME, _packed_attention)
AttentionMaskInterface.register(ATTENTION_NAME, _no_mask)
