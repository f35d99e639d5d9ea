"""Attention of many short sequences in one row: tiles on the diagonal of the row, each of several sequences.

FlashAttention gives every sequence tiles of its own, of 128 tokens, nearly empty where a text has some twenty. Here the
row is cut into blocks of 128 tokens, whatever sequences they belong to, and a tile is visited where two blocks share a
sequence: a block sees those from that in which the sequence of its first token begins to that in which the sequence of
its last token ends. Which tokens of two such blocks see each other is asked by torch's `flex_attention`, whose kernel
torch.compile makes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from recbole_llm.packing.batch import SequenceBounds

# Up to so many tokens a sequence on average a row is cut into blocks: with more, half of a sequence's own tile is in
# use, and a block's neighbours, which it looks at as well, cost as much. Reasoned: texts of some twenty tokens gained 8
# to 15% of a step, and no mean near this one was measured. With 0 no row is.
LONGEST_MEAN = 64
BLOCK = 128  # tokens; torch's tiles of the backward pass are as large on some devices, and have to divide it
_SMALLEST_HEAD = 16  # of torch's kernel


@dataclass(eq=False)  # not frozen: see `SequenceBounds`
class RowBlocks:
    """Which blocks of a packed row share a sequence; blocks of 128 tokens, the last of which may be shorter.

    The lists are as torch's `BlockMask` has them: of row i of an index the first numbers[i] are meant, the rest is not.

    Attributes:
        sequence: int32 [tokens], the number of each token's sequence.
        keys: int32 [1, 1, blocks], how many blocks of keys a block of queries sees.
        key_index: int32 [1, 1, blocks, blocks], which ones, in rising order: 17 MB for a row of 262,144 tokens.
        queries: int32 [1, 1, blocks], how many blocks of queries see a block of keys.
        query_index: int32 [1, 1, blocks, blocks], which ones, in rising order.
        causal: whether a token sees only itself and what came before it.
    """

    sequence: Tensor
    keys: Tensor
    key_index: Tensor
    queries: Tensor
    query_index: Tensor
    causal: bool


def pays_in_blocks(bounds: SequenceBounds, tokens: int) -> bool:
    """Tell whether a row of so many `tokens` is to be cut into blocks: its sequences are short, and it has several."""
    return not bounds.alone and 2 * BLOCK <= tokens <= LONGEST_MEAN * len(bounds.lengths)


def row_blocks(bounds: SequenceBounds, tokens: int) -> RowBlocks:
    """Return the blocks of a row of so many `tokens`, on the device of the bounds and without waiting for it."""
    device = bounds.offsets.device
    count = -(-tokens // BLOCK)
    places = torch.arange(tokens, dtype=torch.int32, device=device)
    sequence = torch.searchsorted(bounds.offsets[1:], places, right=True, out_int32=True)
    own = torch.arange(count, dtype=torch.int32, device=device)
    last_tokens = (own * BLOCK + (BLOCK - 1)).clamp_max(tokens - 1)
    first = bounds.offsets[sequence[::BLOCK]] // BLOCK
    last = (bounds.offsets[sequence[last_tokens] + 1] - 1) // BLOCK
    keys, key_index = _listed(first, own if bounds.causal else last)
    queries, query_index = _listed(own if bounds.causal else first, last)
    return RowBlocks(sequence, keys, key_index, queries, query_index, bounds.causal)


def _listed(first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many blocks lie from `first` to `last` [blocks], and their numbers, as `RowBlocks` keeps them."""
    count = len(first)
    steps = torch.arange(count, dtype=torch.int32, device=first.device)
    numbers, index = last[None, None] - first[None, None] + 1, (first[None, None, :, None] + steps).clamp_max(count - 1)
    # A layer compiled with a number of blocks that happens to equal another size of its input would hold them equal
    # from then on, and be compiled again. (These are no views: for a view torch.compile looks at the tensor behind it.)
    torch._dynamo.maybe_mark_dynamic(numbers, 2)
    torch._dynamo.maybe_mark_dynamic(index, (2, 3))
    return numbers, index


def fits_blocks(query: Tensor) -> bool:
    """Tell whether the kernel takes heads of this size; `query` [1, heads, tokens, size]."""
    return query.shape[-1] >= _SMALLEST_HEAD


def attend_in_blocks(query: Tensor, key: Tensor, value: Tensor, blocks: RowBlocks, scaling: float | None) -> Tensor:
    """Attend within each sequence; query [1, heads, tokens, size], key and value [1, key heads, tokens, size].

    Returns [1, heads, tokens, size]. To be called while torch.compile traces: else all pairs of tokens are computed.
    """
    sequence = blocks.sequence

    def same(batch: Tensor, head: Tensor, of_query: Tensor, of_key: Tensor) -> Tensor:
        return sequence[of_query] == sequence[of_key]

    def before(batch: Tensor, head: Tensor, of_query: Tensor, of_key: Tensor) -> Tensor:
        return (sequence[of_query] == sequence[of_key]) & (of_query >= of_key)

    mask = BlockMask(
        seq_lengths=(query.shape[2], query.shape[2]),
        kv_num_blocks=blocks.keys,
        kv_indices=blocks.key_index,
        full_kv_num_blocks=None,
        full_kv_indices=None,
        q_num_blocks=blocks.queries,
        q_indices=blocks.query_index,
        full_q_num_blocks=None,
        full_q_indices=None,
        BLOCK_SIZE=(BLOCK, BLOCK),
        mask_mod=before if blocks.causal else same,
    )
    groups = query.shape[1] // key.shape[1]
    # The kernel is made for one scale, and a layer's own is a variable to torch.compile: if it is not the usual one,
    # queries are multiplied by what it is more.
    factor = 1.0 if scaling is None else scaling * query.shape[-1] ** 0.5
    if factor < 1 - 1e-6 or factor > 1 + 1e-6:
        query = query * factor
    return flex_attention(query, key, value, block_mask=mask, enable_gqa=groups > 1)
