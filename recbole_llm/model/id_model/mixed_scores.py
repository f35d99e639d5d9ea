"""The mix of two models' log-probabilities for some items at a time."""

from collections.abc import Callable

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
        begin: the first of them, where other processes score those before, and perhaps more behind.
        of_all: from the logarithms of the sums over these items, float32 [rows, 1], to those over the items of all
            processes; None where these are all.
    """

    def __init__(
        self,
        own: ScoresOfItems,
        other: ScoresOfItems,
        weight: Tensor,
        rows: int,
        items: int,
        begin: int = 0,
        of_all: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._parts = own, other
        self._weight = weight
        size = max(_BLOCK_BYTES // (4 * rows), 1)
        none = torch.full((rows, 1), -torch.inf, device=weight.device)
        self._log_sums = [_log_sums(part, max(begin, 1), items, size, none) for part in self._parts]
        if of_all is not None:
            self._log_sums = [of_all(sums) for sums in self._log_sums]

    def __call__(self, items: slice | Tensor) -> Tensor:
        """Return the scores float32 [rows, n] of item ids, a slice or int64 [n]."""
        own, other = (part(items).float() - sums for part, sums in zip(self._parts, self._log_sums, strict=True))
        return own.lerp_(other, self._weight)


def _log_sums(scores_of: ScoresOfItems, begin: int, end: int, size: int, total: Tensor) -> Tensor:
    """Return log sum exp of the scores of the items from `begin` to `end` and of `total`, float32 [rows, 1]."""
    for first in range(begin, end, size):
        part = scores_of(slice(first, min(first + size, end))).float().logsumexp(dim=1, keepdim=True)
        total = torch.logaddexp(total, part)
    return total
