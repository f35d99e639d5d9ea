"""Packed batches of prompts with virtual tokens before each."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from recbole_llm.backbone.pooling import Segments, segments
from recbole_llm.backbone.preset import Pooling
from recbole_llm.packing.batch import PackedBatch
from recbole_llm.packing.ragged import RaggedTable, ranges
from recbole_llm.packing.sequences import Sequences, pack


@dataclass(frozen=True)
class PackedPrompts:
    """One packed row of prompts.

    Attributes:
        packed: the row; `labels` has one item per prompt.
        segments: the rows of each prompt that are pooled: all but the virtual ones.
        virtual_index: int64 [prompts x virtual], the places of the virtual rows.
    """

    packed: PackedBatch
    segments: Segments
    virtual_index: Tensor

    def to(self, device: torch.device | str) -> "PackedPrompts":
        """Return the batch on `device`, without waiting for the copies of pinned memory."""
        return PackedPrompts(
            self.packed.to(device), self.segments.to(device), self.virtual_index.to(device, non_blocking=True)
        )

    def pin_memory(self) -> "PackedPrompts":
        """Return the batch in page-locked memory."""
        return PackedPrompts(self.packed.pin_memory(), self.segments.pin_memory(), self.virtual_index.pin_memory())


@dataclass(frozen=True)
class PromptStyle:
    """How a backbone wants its prompts.

    Attributes:
        causal: whether it is a decoder.
        pooling: how hidden states become one vector.
        absolute: whether positions are looked up in a table, which has none below 0.
        first_position: the position of a text's first token (RoBERTa: 2).
    """

    causal: bool
    pooling: Pooling
    absolute: bool
    first_position: int = 0


def pack_prompts(sequences: Sequences, table: RaggedTable, style: PromptStyle, virtual: int) -> PackedPrompts:
    """Lay prompts in one row; the first `virtual` tokens of each are placeholders.

    Real tokens keep the positions that they have without virtual tokens. Those of the virtual ones are -virtual..-1
    where positions rotate (as an ordinary prefix), and the first of all where they are looked up: there the looked-up
    row is overwritten.
    """
    packed = pack(sequences, table, style.causal)
    positions = packed.positions - virtual
    if style.absolute:
        positions = positions.clamp_min(0)
    packed = replace(packed, positions=positions + style.first_position)
    lengths = np.asarray(packed.bounds.lengths)
    begins = np.cumsum(lengths) - lengths
    index = ranges(begins, np.full(len(lengths), virtual))
    return PackedPrompts(packed, segments(style.pooling, lengths, virtual), torch.from_numpy(index))
