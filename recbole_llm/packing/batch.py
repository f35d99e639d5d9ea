"""Packed batches: sequences laid end to end in one row, without padding, and the places in it that are read."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


@dataclass(eq=False)  # not frozen: of frozen ones torch.compile reads every field in torch 2.11, so `lengths`, too
class SequenceBounds:
    """Where each sequence of a packed row begins and ends. Nobody changes one.

    Attributes:
        lengths: tokens of each sequence; their sum is the length of the row.
        offsets: int32 [sequences + 1] on the device of the batch, the running sum of `lengths` from 0.
        causal: whether a token sees only itself and what came before it (decoders).
        longest: at least the longest of `lengths`, a power of two, so that a compiled model meets few values.
        alone: whether there is but one sequence, for torch's own attention. (Said by who knows it: a compiled model
            that asked for the number of `lengths` would be compiled again for every number.)
        drops_attention: whether attention weights are dropped out in training at the backbone's own rate. The fast
            kernel of packed sequences cannot: with a rate above 0 each sequence is computed by itself. (A Longformer,
            which reads padded batches, drops them out in any case.)
    """

    lengths: tuple[int, ...]
    offsets: Tensor
    causal: bool
    longest: int
    alone: bool = False
    drops_attention: bool = True


@dataclass(frozen=True)
class PackedBatch:
    """One packed row and the places in it that are read.

    Attributes:
        token_ids: int64 [tokens].
        positions: int64 [tokens], counted from 0 in every sequence.
        bounds: the sequences.
        query_index: int64 [queries], the row index of every query token whose hidden state is read.
        labels: int64 [queries], the item id to predict at each query, or None where there is none.
    """

    token_ids: Tensor
    positions: Tensor
    bounds: SequenceBounds
    query_index: Tensor
    labels: Tensor | None = None

    def to(self, device: torch.device | str) -> "PackedBatch":
        """Return the batch on `device`, without waiting for the copies of pinned memory."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "PackedBatch":
        """Return the batch in page-locked memory, from where it can be copied while the device computes."""
        return self._map(Tensor.pin_memory)

    def _map(self, move: Callable[[Tensor], Tensor]) -> "PackedBatch":
        return PackedBatch(
            move(self.token_ids),
            move(self.positions),
            replace(self.bounds, offsets=move(self.bounds.offsets)),
            move(self.query_index),
            None if self.labels is None else move(self.labels),
        )


def sequence_bounds(lengths: np.ndarray, causal: bool) -> SequenceBounds:
    """Return the bounds of sequences of the given `lengths` (tokens, each at least 1) on the CPU."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    longest = 1 << (int(lengths.max(initial=1)) - 1).bit_length()
    return SequenceBounds(tuple(lengths.tolist()), torch.from_numpy(offsets), causal, longest)
