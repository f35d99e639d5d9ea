"""From the hidden states of a packed row to one vector per sequence."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recbole_llm.backbone.preset import Pooling


@dataclass(frozen=True)
class Segments:
    """Which rows of each packed sequence are pooled, and how.

    Attributes:
        pooling: mean, cls (the first row) or last.
        bounds: int64 [2 x sequences + 1], where the rows that are not pooled and those that are begin and end, by
            turns: 0, first pooled row, end, first pooled row of the next, ...
    """

    pooling: Pooling
    bounds: Tensor

    def pool(self, hidden: Tensor) -> Tensor:
        """Return [sequences, width], float32, of hidden states [tokens, width]."""
        if self.pooling == "cls":
            return hidden.index_select(0, self.bounds[1::2]).float()
        if self.pooling == "last":
            return hidden.index_select(0, self.bounds[2::2] - 1).float()
        # Sums segment by segment, in one order: an index_add on a GPU would give other digits every time.
        means = torch.segment_reduce(hidden.float(), "mean", offsets=self.bounds, unsafe=True, initial=0)
        return means[1::2]

    def to(self, device: torch.device | str) -> "Segments":
        """Return the segments on `device`, without waiting for a copy of pinned memory."""
        return Segments(self.pooling, self.bounds.to(device, non_blocking=True))

    def pin_memory(self) -> "Segments":
        """Return the segments in page-locked memory."""
        return Segments(self.pooling, self.bounds.pin_memory())


def segments(pooling: Pooling, lengths: np.ndarray, skipped: int = 0) -> Segments:
    """Return the segments of packed sequences of `lengths` tokens, whose first `skipped` are not pooled."""
    ends = np.cumsum(lengths)
    inner = np.stack([ends - lengths + skipped, ends], axis=1).ravel()
    return Segments(pooling, torch.from_numpy(np.concatenate([[0], inner])))
