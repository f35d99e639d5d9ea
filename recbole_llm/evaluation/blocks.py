"""Scores that are computed a block of items at a time, and ranks by them: no table of [rows, items] is made."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recbole_llm.config.hooks import ScoresOfItems
from recbole_llm.evaluation.counting import require_numbers

_NUMBERS = 4  # of four bytes that a score takes in a block: itself, its comparison, and room
_LEAST_ITEMS = 512  # of a block
# A CPU is faster with blocks that stay in its caches.
_CPU_BYTES = 8 * 2**20  # of the float32 scores of a block there
_GROUP = 256  # neighbours of which the maximum is looked at first


class ItemBlocks:
    """The scores of a batch of rows for all items, a block at a time.

    Rows and items may be shared with other processes, see `evaluation.split_blocks`: what these have is what some
    methods ask for, which here return what they are given.

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
        self.begin, self.end = 0, items
        self.size = min(_block_size(memory, rows, device), items)

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        """Give the first item of each block and its scores, float [rows, items of the block]."""
        for begin in range(self.begin, self.end, self.size):
            first = max(min(begin, self.end - self.size), self.begin)  # the last block reaches back
            block: slice | Tensor = slice(first, first + self.size)
            if first + self.size > self.end:  # fewer items than a block has
                block = torch.arange(first, first + self.size, device=self.device).clamp_(max=self.end - 1)
            scores = self._scores_of(block)[:, begin - first : self.end - first]
            if begin == 0:
                scores[:, 0] = -torch.inf
            yield begin, scores

    def of(self, items: Tensor) -> Tensor:
        """Return the score of one item per row, float [rows].

        Args:
            items: int64 [rows], no padding id among them.
        """
        return self._of_pairs(torch.arange(len(items), device=items.device), items)

    def _of_pairs(self, rows: Tensor, items: Tensor) -> Tensor:
        """Return the scores of items [pairs] for rows [pairs]; there is one pair at least."""
        wanted, places = torch.unique(items, return_inverse=True)
        found = None
        for begin in range(0, len(wanted), self.size):
            part = wanted[begin : begin + self.size]
            scores = self._scores_of(torch.cat([part, part[-1:].expand(self.size - len(part))]))
            pairs = ((places >= begin) & (places < begin + self.size)).nonzero()[:, 0]
            found = scores.new_empty(len(items)) if found is None else found
            found[pairs] = scores[rows[pairs], places[pairs] - begin]
        assert found is not None
        return found

    # -- what other processes have ---------------------------------------------------------------------------------

    def all_rows(self, own: Tensor) -> Tensor:
        """Return what all rows that are ranked together have, of what the own ones have: [rows, ...]."""
        return own

    def all_keys(self, own: Tensor) -> Tensor:
        """Return the keys ``row * items + item`` of all rows, of those of the own ones."""
        return own

    def own_rows(self, of_all: Tensor) -> Tensor:
        """Return what the own rows have, of what all have."""
        return of_all

    def added_up(self, counts: Tensor) -> Tensor:
        """Return counts over all items, of those over the own ones."""
        return counts

    def largest(self, values: Tensor) -> Tensor:
        """Return the largest of some values over all items, of those over the own ones."""
        return values

    def best(self, found: "BestItems") -> Tensor:
        """Return the best of all items [rows, k], 0 where there is none, of the best among the own ones."""
        return found.candidates()

    def require_numbers(self, largest: Tensor) -> None:
        """Raise TrainingError if the largest score is not a number."""
        require_numbers(largest)


def _block_size(memory: int, rows: int, device: torch.device) -> int:
    size = memory // (4 * _NUMBERS * rows)
    if device.type == "cpu":
        size = min(size, max(_CPU_BYTES // (4 * rows), _LEAST_ITEMS))
    return max(size, 1)


class PairsByItem:
    """Pairs of a row and an item, by item, so that those of a block stand together.

    Args:
        rows: int64 [pairs].
        items: int64 [pairs], item ids.
    """

    def __init__(self, rows: Tensor, items: Tensor) -> None:
        self._items, order = torch.sort(items)
        self._rows = rows[order]
        self._sorted = self._items.cpu().numpy()  # looked up there, no block waits for the device

    def between(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Return the rows of the pairs with an item from `begin` to `end`, and their items, counted from `begin`."""
        first, last = np.searchsorted(self._sorted, [begin, end])
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
        self._targets = PairsByItem(torch.arange(len(targets), device=targets.device), targets)
        self._left_out = None
        if left_out is not None:
            rows, others = left_out // items, left_out % items
            kept = others != targets[rows]
            self._left_out = PairsByItem(rows[kept], others[kept])

    def left_out(self, begin: int, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows and places of what is left out in a block."""
        if self._left_out is None:
            nothing = torch.empty(0, dtype=torch.int64, device=scores.device)
            return nothing, nothing
        return self._left_out.between(begin, begin + scores.shape[1])

    def put_targets(self, begin: int, scores: Tensor, own: Tensor) -> None:
        """Set the targets' scores in a block to `own`, [rows], in place."""
        rows, places = self._targets.between(begin, begin + scores.shape[1])
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


class BestOfDrawn:
    """Keeps the best score among drawn items, for every row and draw, block by block.

    Args:
        drawn: int64 [rows, draws, n], item ids.

    Attributes:
        values: [rows, draws], -inf before the first block.
    """

    def __init__(self, drawn: Tensor) -> None:
        rows, self._draws, each = drawn.shape
        slots = torch.arange(rows * self._draws, device=drawn.device).repeat_interleave(each)
        self._pairs = PairsByItem(slots, drawn.flatten())
        self.values = torch.full((rows, self._draws), -torch.inf, device=drawn.device)

    def add(self, begin: int, scores: Tensor) -> None:
        """Take the next block [rows, items of the block], whose first item is `begin`."""
        slots, places = self._pairs.between(begin, begin + scores.shape[1])
        found = scores[slots // self._draws, places].float()
        self.values.view(-1).scatter_reduce_(0, slots, found, "amax")


def rank_in_blocks(
    blocks: ItemBlocks,
    targets: Tensor,
    left_out: Tensor | None,
    protocols: tuple[bool, ...],
    k: int = 0,
    drawn: BestOfDrawn | None = None,
) -> tuple[list[Ranking], Tensor]:
    """Rank a target per row under one or both answers to `repeatable`, in one pass over the items.

    Args:
        blocks: the scores.
        targets: int64 [rows], item ids.
        left_out: int64 [left out], ``row * items + item``; needed where a protocol is False.
        protocols: answers to `repeatable`, True before False.
        k: how many of the best items are wanted; 0: none.
        drawn: is given every block, before anything is left out; of several processes each gives it its own.

    Returns:
        A ranking for each protocol, and the targets' scores, float [rows].

    Raises:
        TrainingError: if a score is not a number.
    """
    targets, left_out = blocks.all_rows(targets), None if left_out is None else blocks.all_keys(left_out)
    own = blocks.of(targets)
    candidates = Candidates(targets, blocks.items, left_out)
    in_front, left_out_in_front = torch.zeros(2, len(targets), dtype=torch.int64, device=own.device)
    best = [BestItems(k) for _ in protocols] if k else []
    largest = own.amax()  # not a number if any of them is none
    for begin, scores in blocks:
        largest = torch.maximum(largest, scores.amax())
        candidates.put_targets(begin, scores, own)
        if drawn is not None:
            drawn.add(begin, scores)
        in_front += (scores >= own[:, None]).sum(dim=1, dtype=torch.int32)
        rows, places = candidates.left_out(begin, scores)
        left_out_in_front.index_add_(0, rows, (scores[rows, places] >= own[rows]).long())
        for repeatable, list_of_best in zip(protocols if k else (), best, strict=True):
            if not repeatable:
                scores[rows, places] = -torch.inf
            list_of_best.add(begin, scores)
    blocks.require_numbers(largest)
    in_front, left_out_in_front = blocks.own_rows(
        blocks.added_up(torch.stack([in_front, left_out_in_front], dim=1))
    ).unbind(dim=1)
    ranks = {True: in_front, False: in_front - left_out_in_front}
    none = torch.empty(len(targets), 0, dtype=torch.int64, device=own.device)
    tops = [blocks.own_rows(found) for found in ([blocks.best(each) for each in best] or [none] * len(protocols))]
    found = [Ranking(ranks[repeatable], top) for repeatable, top in zip(protocols, tops, strict=True)]
    return found, blocks.own_rows(own)


class BestItems:
    """Keeps the best items of every row, block by block.

    Args:
        k: how many, at least 1.

    Attributes:
        k: how many, at least 1.
        values: [rows, k], their scores, best first; fewer while fewer items were given. None before the first block.
        items: int64 [rows, k], their ids.
    """

    values: Tensor | None = None
    items: Tensor

    def __init__(self, k: int) -> None:
        self.k = k

    def add(self, begin: int, scores: Tensor) -> None:
        """Take the next block [rows, items of the block], whose first item is `begin`."""
        values, places = top_by_groups(scores, min(self.k, scores.shape[1]))
        if self.values is None:
            self.values, self.items = values, places + begin
            return
        values, items = torch.cat([self.values, values], dim=1), torch.cat([self.items, places + begin], dim=1)
        self.values, places = values.topk(min(self.k, values.shape[1]), dim=1)
        self.items = items.gather(1, places)

    def candidates(self) -> Tensor:
        """Return the items, 0 where there is none: no candidate has the score -inf."""
        assert self.values is not None
        return self.items.masked_fill(self.values.isneginf(), 0)


def top_by_groups(scores: Tensor, k: int, group: int = _GROUP) -> tuple[Tensor, Tensor]:
    """Return what ``scores.topk(k, dim=1)`` does, values and places [rows, k], for long rows in a fraction of the time.

    The best k scores lie in the k groups of neighbours whose maxima are the best: no other group has one that is
    better than all of theirs. So one pass for maxima, and a search among k groups.

    Args:
        scores: [rows, items].
        k: at most `items`.
        group: how many neighbours have a maximum in common.
    """
    rows, items = scores.shape
    groups = items // group
    if groups < 4 * k:
        return scores.topk(k, dim=1)
    maxima = scores[:, : groups * group].unflatten(1, (groups, group)).amax(dim=2)
    first = maxima.topk(k, dim=1).indices * group
    within = torch.arange(group, device=scores.device)
    rest = torch.arange(groups * group, items, device=scores.device).expand(rows, -1)
    places = torch.cat([(first[:, :, None] + within).flatten(1), rest], dim=1)
    values, best = scores.gather(1, places).topk(k, dim=1)
    return values, places.gather(1, best)
