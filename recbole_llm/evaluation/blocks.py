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

    def of(self, items: Tensor) -> Tensor:
        """Return the score of one item per row, float [rows].

        Args:
            items: int64 [rows], no padding id among them.
        """
        wanted, places = torch.unique(items, return_inverse=True)
        found = None
        for begin in range(0, len(wanted), self.size):
            part = wanted[begin : begin + self.size]
            scores = self._scores_of(torch.cat([part, part.new_ones(self.size - len(part))]))
            rows = ((places >= begin) & (places < begin + self.size)).nonzero()[:, 0]
            found = scores.new_empty(len(items)) if found is None else found
            found[rows] = scores[rows, places[rows] - begin]
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
        self._items, order = torch.sort(items)
        self._rows = rows[order]

    def in_block(self, begin: int, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows and places in a block, [rows, items], of the pairs whose item is in it; `begin` is its first."""
        ends = torch.tensor([begin, begin + scores.shape[1]], device=self._items.device)
        first, last = torch.searchsorted(self._items, ends).tolist()
        return self._rows[first:last], self._items[first:last] - begin


class Candidates:
    """What is ranked in a batch, to be asked block by block.

    Args:
        targets: int64 [rows], an item id per row.
        items: item ids, the padding id included.
        left_out: int64 [left out], ``row * items + item``, what is no candidate, unless it is its row's target; None:
            nothing.
    """

    def __init__(self, targets: Tensor, items: int, left_out: Tensor | None = None) -> None:
        self._targets = _ByItem(torch.arange(len(targets), device=targets.device), targets)
        self._left_out = None
        if left_out is not None:
            rows, others = left_out // items, left_out % items
            kept = others != targets[rows]
            self._left_out = _ByItem(rows[kept], others[kept])

    def left_out(self, begin: int, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows and places of what is left out in a block."""
        if self._left_out is None:
            nothing = torch.empty(0, dtype=torch.int64, device=scores.device)
            return nothing, nothing
        return self._left_out.in_block(begin, scores)

    def put_targets(self, begin: int, scores: Tensor, own: Tensor) -> None:
        """Set the targets' scores in a block to `own`, [rows], in place."""
        rows, places = self._targets.in_block(begin, scores)
        scores[rows, places] = own[rows]


@dataclass
class Ranking:
    """What one answer to `repeatable` makes of a batch.

    Attributes:
        ranks: int64 [rows], of the targets, 1 the best; a tie counts against the target.
        top: int64 [rows, k], the best items, 0 where there are fewer candidates.
    """

    ranks: Tensor
    top: Tensor


def rank_in_blocks(
    blocks: ItemBlocks, targets: Tensor, left_out: Tensor | None, protocols: tuple[bool, ...], k: int = 0
) -> tuple[list[Ranking], Tensor]:
    """Rank a target per row under one or both answers to `repeatable`, in one pass over the items.

    Args:
        blocks: the scores.
        targets: int64 [rows], item ids.
        left_out: int64 [left out], ``row * items + item``; needed where a protocol is False.
        protocols: answers to `repeatable`, True before False.
        k: how many of the best items are wanted; 0: none.

    Returns:
        A ranking for each protocol, and the targets' scores, float [rows].

    Raises:
        TrainingError: if a score is not a number.
    """
    own = blocks.of(targets)
    candidates = Candidates(targets, blocks.items, left_out)
    in_front, left_out_in_front = (torch.zeros(len(targets), dtype=torch.int64, device=own.device) for _ in range(2))
    best = [_Best(own, k) for _ in protocols]
    wrong = torch.isnan(own).any()
    for begin, scores in blocks:
        wrong |= torch.isnan(scores.amax())  # the maximum is one if any is
        candidates.put_targets(begin, scores, own)
        in_front += (scores >= own[:, None]).sum(dim=1, dtype=torch.int32)
        rows, places = candidates.left_out(begin, scores)
        left_out_in_front += torch.bincount(rows[scores[rows, places] >= own[rows]], minlength=len(targets))
        for repeatable, list_of_best in zip(protocols, best, strict=True):
            if k and not repeatable:
                scores[rows, places] = -torch.inf
            list_of_best.add(begin, scores)
    if wrong:
        raise TrainingError("the model's scores are not numbers: training diverged; lower the learning rate")
    ranks = {True: in_front, False: in_front - left_out_in_front}
    return [Ranking(ranks[repeatable], each.items()) for repeatable, each in zip(protocols, best, strict=True)], own


class _Best:
    """Keeps the best items of every row, block by block.

    Args:
        own: float [rows], of the scores' type and device.
        k: how many; 0: none.
    """

    def __init__(self, own: Tensor, k: int) -> None:
        self._k = k
        self._values = own.new_empty(len(own), 0)
        self._items = torch.empty(len(own), 0, dtype=torch.int64, device=own.device)

    def add(self, begin: int, scores: Tensor) -> None:
        """Take the next block."""
        if self._k:
            values, places = scores.topk(min(self._k, scores.shape[1]), dim=1)
            values = torch.cat([self._values, values], dim=1)
            items = torch.cat([self._items, places + begin], dim=1)
            self._values, places = values.topk(min(self._k, values.shape[1]), dim=1)
            self._items = items.gather(1, places)

    def items(self) -> Tensor:
        """Return the best items, see `Ranking`."""
        return self._items.masked_fill(self._values.isneginf(), 0)
