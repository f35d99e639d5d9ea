"""Scores that are computed a block of items at a time, and ranks by them: no table of [rows, items] is made."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_llm.config.hooks import ScoresOfItems
from recbole_llm.errors import TrainingError

_NUMBERS = 4  # of four bytes that a score takes in a block: itself, its comparison, and room
_LEAST_ITEMS = 512  # of a block
# A CPU is faster with blocks that stay in its caches.
_CPU_BYTES = 8 * 2**20  # of the float32 scores of a block there


class ItemBlocks:
    """The scores of a batch of rows for all items, a block at a time.

    Every block is computed in the same shape, so that items with equal vectors have equal scores wherever they stand,
    and ties stay ties.

    Args:
        scores_of: see `ModelHooks.scores_of_items`.
        rows: of the batch.
        items: item ids, the padding id included, which is never a candidate.
        memory: what a block may take, in bytes.
        device: where the scores are.
    """

    def __init__(self, scores_of: ScoresOfItems, rows: int, items: int, memory: int, device: torch.device) -> None:
        self._scores_of = scores_of
        self.rows, self.items, self.device = rows, items, device
        self.size = min(_block_size(memory, rows, device), items)

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        """Give the first item of each block and its scores, float [rows, items of the block]."""
        for begin in range(0, self.items, self.size):
            first = min(begin, self.items - self.size)  # the last block reaches back
            scores = self._scores_of(slice(first, first + self.size))[:, begin - first :]
            if begin == 0:
                scores[:, 0] = -torch.inf
            yield begin, scores

    def of(self, rows: Tensor, items: Tensor) -> Tensor:
        """Return the score of each pair of a row and an item, float [pairs].

        Args:
            rows: int64 [pairs].
            items: int64 [pairs], no padding id among them.
        """
        wanted, places = torch.unique(items, return_inverse=True)
        found = None
        for begin in range(0, len(wanted), self.size):
            part = wanted[begin : begin + self.size]
            full = torch.cat([part, part.new_ones(self.size - len(part))])
            scores = self._scores_of(full)
            inside = (places >= begin) & (places < begin + self.size)
            found = scores.new_empty(len(items)) if found is None else found
            found[inside] = scores[rows[inside], places[inside] - begin]
        assert found is not None
        return found


def _block_size(memory: int, rows: int, device: torch.device) -> int:
    size = memory // (4 * _NUMBERS * rows)
    if device.type == "cpu":
        size = min(size, max(_CPU_BYTES // (4 * rows), _LEAST_ITEMS))
    return max(size, 1)


class _ByItem:
    """Pairs of a row and an item, by item, so that those of a block stand together."""

    def __init__(self, rows: Tensor, items: Tensor) -> None:
        self.items, self.order = torch.sort(items, stable=True)
        self.rows = rows[self.order]

    def between(self, begin: int, end: int) -> tuple[slice, Tensor, Tensor]:
        """Return which of the sorted pairs have an item of a block, their rows, and their places in the block."""
        ends = torch.searchsorted(self.items, torch.tensor([begin, end], device=self.items.device)).tolist()
        pairs = slice(*ends)
        return pairs, self.rows[pairs], self.items[pairs] - begin


class Candidates:
    """What is ranked in a batch, to be asked block by block.

    Args:
        rows: int64 [targets], the row of each target.
        targets: int64 [targets], item ids.
        items: item ids, the padding id included.
        left_out: int64 [left out], ``row * items + item``, what is no candidate though no target; None: nothing.
    """

    def __init__(self, rows: Tensor, targets: Tensor, items: int, left_out: Tensor | None = None) -> None:
        self._targets = _ByItem(rows, targets)
        self._left_out = None if left_out is None else _ByItem(left_out // items, left_out % items)

    def leave_out(self, begin: int, scores: Tensor) -> None:
        """Set what is left out to -inf in a block, in place; `put_targets` puts a target among it back."""
        if self._left_out is not None:
            _, rows, places = self._left_out.between(begin, begin + scores.shape[1])
            scores[rows, places] = -torch.inf

    def put_targets(self, begin: int, scores: Tensor, own: Tensor) -> None:
        """Set the targets' scores in a block to `own`, [targets], in place."""
        pairs, rows, places = self._targets.between(begin, begin + scores.shape[1])
        scores[rows, places] = own[self._targets.order[pairs]]


@dataclass
class Ranking:
    """What one protocol makes of a batch.

    Attributes:
        ranks: int64 [targets], 1 the best; a tie counts against the target.
        top: int64 [rows, k], the best items, 0 where there are fewer candidates.
    """

    ranks: Tensor
    top: Tensor


def rank_in_blocks(
    blocks: ItemBlocks,
    rows: Tensor,
    targets: Tensor,
    left_out: Tensor | None,
    protocols: tuple[bool, ...],
    k: int = 0,
) -> tuple[list[Ranking], Tensor]:
    """Rank targets under one or both answers to `repeatable`, in one pass over the items.

    Args:
        blocks: the scores.
        rows: int64 [targets], the row of each target.
        targets: int64 [targets], item ids.
        left_out: int64 [left out], ``row * items + item``; needed where a protocol is False.
        protocols: answers to `repeatable`, True before False.
        k: how many of the best items are wanted; 0: none.

    Returns:
        A ranking for each protocol, and the targets' scores, float [targets].

    Raises:
        TrainingError: if a score is not a number.
    """
    own = blocks.of(rows, targets)
    candidates = Candidates(rows, targets, blocks.items, left_out)
    counts = [_Counts(rows, own, blocks.rows, k) for _ in protocols]
    wrong = torch.isnan(own).any()
    for begin, scores in blocks:
        wrong |= torch.isnan(scores.amax())  # the maximum is one if any is
        for repeatable, count in zip(protocols, counts, strict=True):
            if not repeatable:
                candidates.leave_out(begin, scores)
            candidates.put_targets(begin, scores, own)
            count.add(begin, scores)
    if wrong:
        raise TrainingError("the model's scores are not numbers: training diverged; lower the learning rate")
    return [Ranking(count.ranks, count.top()) for count in counts], own


class _Counts:
    """Adds up the ranks of targets and keeps the best items, block by block."""

    def __init__(self, rows: Tensor, own: Tensor, lines: int, k: int) -> None:
        # Where each row has its one target, as for sequential models, the blocks are compared as they are.
        one_each = len(rows) == lines and torch.equal(rows, torch.arange(lines, device=rows.device))
        self._rows, self._own = None if one_each else rows, own[:, None]
        self.ranks = torch.zeros(len(rows), dtype=torch.int64, device=own.device)
        self._k = k
        self._values = own.new_empty(lines, 0)
        self._items = rows.new_empty(lines, 0)

    def add(self, begin: int, scores: Tensor) -> None:
        """Take the next block."""
        lines = scores if self._rows is None else scores[self._rows]
        self.ranks += (lines >= self._own).sum(dim=1, dtype=torch.int32)
        if self._k:
            values, places = scores.topk(min(self._k, scores.shape[1]), dim=1)
            values = torch.cat([self._values, values], dim=1)
            items = torch.cat([self._items, places + begin], dim=1)
            self._values, places = values.topk(min(self._k, values.shape[1]), dim=1)
            self._items = items.gather(1, places)

    def top(self) -> Tensor:
        """Return the best items, see `Ranking`."""
        return self._items.masked_fill(self._values.isneginf(), 0)
