"""Packed batches: sequences laid end to end in one row, without padding, each attending to itself alone.

transformers' own layers are used as they are; only the attention function is replaced, through its public
``AttentionInterface``. It receives the sequence bounds as a keyword that every model passes down to its layers. A
Longformer, which takes no other attention, reads the same batches in padded form: `recbole_llm.backbone.padded`.
"""

import inspect
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface

from recbole_llm.backbone.padded import padded_hidden_states, reads_padded
from recbole_llm.backbone.precision import has_fast_bf16, in_autocast_type
from recbole_llm.backbone.short_sequences import RowBlocks, attend_in_blocks, fits_blocks, pays_in_blocks, row_blocks
from recbole_llm.errors import BackboneError
from recbole_llm.packing.batch import PackedBatch, SequenceBounds

try:  # torch >= 2.10
    from torch.nn.attention.varlen import varlen_attn
except ImportError:
    varlen_attn = None  # type: ignore[assignment]

ATTENTION_NAME = "recbole_llm_packed"
_COMPILED = "recbole_llm_compiled"  # attribute of a model whose layers are compiled
# What this torch's kernel can be told; asked here, as torch.compile cannot trace the question.
_VARLEN_PARAMETERS = frozenset(() if varlen_attn is None else inspect.signature(varlen_attn).parameters)


def use_packed_attention(model: nn.Module) -> None:
    """Make a transformers `model` attend within the bounds that `packed_hidden_states` passes."""
    if reads_padded(model.config):
        return
    model.set_attn_implementation(ATTENTION_NAME)  # type: ignore[operator]


def compile_packed_layers(model: nn.Module, layers: nn.ModuleList) -> None:
    """Compile each of the `layers` of a `model` that went through `use_packed_attention` with torch.compile."""
    for layer in layers:
        layer.compile(dynamic=True)
    setattr(model, _COMPILED, True)


def packed_hidden_states(model: nn.Module, batch: PackedBatch, **keywords: Any) -> Tensor:
    """Return the last-layer hidden states [tokens, width] of a packed batch.

    Args:
        model: a transformers base model that went through `use_packed_attention`.
        batch: the tokens.
        keywords: given to the model; `inputs_embeds` [tokens, width] takes the place of the tokens' word embeddings.
    """
    if reads_padded(model.config):
        return padded_hidden_states(model, batch, **keywords)
    # A mask of four dimensions is taken for finished. Without one, Llama types look for packed sequences in the
    # positions, and wait for the device to do so.
    finished = torch.empty(1, 1, 1, 1, dtype=torch.bool, device=batch.token_ids.device)
    embedded = keywords.pop("inputs_embeds", None)
    tokens = {"input_ids": batch.token_ids[None]} if embedded is None else {"inputs_embeds": embedded[None]}
    output = model(
        **tokens,
        position_ids=batch.positions[None],
        attention_mask=finished,
        use_cache=False,
        sequence_bounds=batch.bounds,
        row_blocks=_blocks_of(model, batch),
        **keywords,
    )
    return output.last_hidden_state[0]


def _blocks_of(model: nn.Module, batch: PackedBatch) -> RowBlocks | None:
    """Return the blocks of a row of short sequences for layers that are compiled; others have no use for them."""
    tokens = len(batch.token_ids)
    if not getattr(model, _COMPILED, False) or not pays_in_blocks(batch.bounds, tokens):
        return None
    return row_blocks(batch.bounds, tokens) if _has_kernel(batch.token_ids.device) else None


# Keywords of layers that do not change what attention computes, given the bounds.
_HARMLESS = frozenset(
    {"is_causal", "position_ids", "cache_position", "use_cache", "output_attentions", "deterministic"}
)


def _packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    *,
    sequence_bounds: SequenceBounds,
    row_blocks: RowBlocks | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend within each sequence; query [1, heads, tokens, size], key and value [1, key heads, tokens, size].

    A layer that is compiled computes the sequences of a row that has `row_blocks` in the blocks' tiles.

    With `sliding_window` w a token of a decoder sees itself and the w - 1 tokens before it, as in transformers' masks.

    Returns [1, tokens, heads, size], as transformers' attention functions do. Grouped key heads are repeated only where
    the kernel does not know them.

    Raises:
        BackboneError: for a keyword that changes attention in a way that is not known here.
    """
    _refuse_unknown(module, sliding_window, sequence_bounds, others)
    # Rotary embeddings of float32 weights make queries and keys float32 again, under autocast too.
    query, key, value = in_autocast_type(query, key, value)
    dropout = dropout if sequence_bounds.drops_attention else 0.0
    # Shorter sequences lie inside the window: they take the fast way of a model that has none.
    window = None if sliding_window is None or sequence_bounds.longest <= sliding_window else sliding_window
    groups = query.shape[1] // key.shape[1]
    if sequence_bounds.alone:
        return _one_sequence(query, key, value, sequence_bounds.causal, scaling, dropout, window).transpose(1, 2), None
    if _fits_kernel(query, value, dropout, window):
        if row_blocks is not None and torch.compiler.is_compiling() and window is None and fits_blocks(query):
            return attend_in_blocks(query, key, value, row_blocks, scaling).transpose(1, 2), None
        return _variable_length(query, key, value, sequence_bounds, scaling, groups, window), None
    pieces = [tensor.split(sequence_bounds.lengths, dim=2) for tensor in (query, key, value)]
    outputs = [
        _one_sequence(q, k, v, sequence_bounds.causal, scaling, dropout, window)
        for q, k, v in zip(*pieces, strict=True)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _refuse_unknown(module: nn.Module, window: int | None, bounds: SequenceBounds, others: dict[str, Any]) -> None:
    unknown = [name for name, given in others.items() if given is not None and name not in _HARMLESS]
    if window is not None and not bounds.causal:
        unknown.append("sliding_window of an encoder")
    if unknown:
        raise BackboneError(
            f"{type(module).__name__} changes attention by {unknown[0]}, which packed batches do not have: choose "
            f"another backbone, such as one of a Llama, OPT, Qwen, Mistral or BERT type"
        )


def _fits_kernel(query: Tensor, value: Tensor, dropout: float, window: int | None) -> bool:
    """Tell whether the kernel of all sequences at once, FlashAttention, computes this."""
    size = query.shape[-1]
    return (
        query.dtype in (torch.float16, torch.bfloat16)
        and not dropout
        and size % 8 == 0
        and size <= 256
        and value.shape[-1] == size
        and _has_kernel(query.device)
        and (window is None or "window_size" in _VARLEN_PARAMETERS)
    )


@torch.compiler.assume_constant_result  # torch.compile cannot trace what is asked of the driver
def _has_kernel(device: torch.device) -> bool:
    """Tell whether torch has the kernel for `device`: of NVIDIA's those with units for bfloat16, Ampere and later."""
    return varlen_attn is not None and device.type == "cuda" and has_fast_bf16(device)


def _one_sequence(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    causal: bool,
    scaling: float | None,
    dropout: float,
    window: int | None,
) -> Tensor:
    """Attend within one sequence; [1, heads, tokens, size] in and out."""
    groups = query.shape[1] // key.shape[1]
    mask = None if window is None or query.shape[2] <= window else _band(query.shape[2], window, query.device)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=causal and mask is None,
        scale=scaling,
        enable_gqa=groups > 1,
    )


def _band(tokens: int, window: int, device: torch.device) -> Tensor:
    """Return whether token i sees token j: bool [tokens, tokens], i - window < j <= i."""
    seen = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril_()
    return seen.triu_(1 - window)


def _variable_length(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: SequenceBounds,
    scaling: float | None,
    groups: int,
    window: int | None,
) -> Tensor:
    # [tokens, heads, size]; not tensor[0], whose backward pass fills and copies a gradient of the whole.
    query, key, value = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
    options: dict[str, Any] = {}
    if groups > 1 and "enable_gqa" in _VARLEN_PARAMETERS:
        options["enable_gqa"] = True
    elif groups > 1:  # several times the memory of keys and values
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    if scaling is not None and "scale" not in _VARLEN_PARAMETERS:
        query = query * (scaling * query.shape[-1] ** 0.5)
    if "scale" in _VARLEN_PARAMETERS:
        options["scale"] = scaling
    if "is_causal" in _VARLEN_PARAMETERS:
        options["is_causal"] = bounds.causal
    elif bounds.causal:
        options["window_size"] = (-1, 0)
    if window is not None:
        options["window_size"] = (window - 1, 0)
    output = varlen_attn(query, key, value, bounds.offsets, bounds.offsets, bounds.longest, bounds.longest, **options)
    return cast(Tensor, output)[None]


def _no_mask(*_: Any, **__: Any) -> None:
    """The bounds say all; without this registration transformers would build a mask and drop it silently."""


AttentionInterface.register(ATTENTION_NAME, _packed_attention)
AttentionMaskInterface.register(ATTENTION_NAME, _no_mask)
