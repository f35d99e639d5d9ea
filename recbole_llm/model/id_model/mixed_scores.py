"""The mix of two models' log-probabilities for some items at a time."""

import torch
from torch import Tensor

from recbole_llm.config.hooks import ScoresOfItems

_BLOCK_BYTES = 64 * 2**20  # of the scores that the denominators are summed over at once


class MixedScores:
    """``(1 - w) log p(v) + w log p_id(v)`` of some items v, see `IdScores`.

    The denominators of both softmaxes are summed over all items once, a block at a time.

    Args:
        own: gives the scores of one model, float [rows, n].
        other: gives those of the other.
        weight: w, float32 [].
        rows: how many rows they score.
        items: item ids, the padding id included, which has no probability.
    """

    def __init__(self, own: ScoresOfItems, other: ScoresOfItems, weight: Tensor, rows: int, items: int) -> None:
        self._parts = own, other
        self._weight = weight
        size = max(_BLOCK_BYTES // (4 * rows), 1)
        self._log_sums = [_log_sums(part, items, size) for part in self._parts]

    def __call__(self, items: slice | Tensor) -> Tensor:
        """Return the scores float32 [rows, n] of item ids, a slice or int64 [n]."""
        own, other = (part(items).float() - sums for part, sums in zip(self._parts, self._log_sums, strict=True))
        return own.lerp_(other, self._weight)


def _log_sums(scores_of: ScoresOfItems, items: int, size: int) -> Tensor:
    """Return log sum exp of all items' scores but the padding id's, float32 [rows, 1]."""
    total: Tensor | None = None
    for begin in range(1, items, size):
        part = scores_of(slice(begin, min(begin + size, items))).float().logsumexp(dim=1, keepdim=True)
        total = part if total is None else torch.logaddexp(total, part)
    assert total is not None
    return total
