"""Ranking by scores of which every process has those of its own items, for the rows of all processes.

The processes of a run rank a batch together: each brings its own rows, computes the scores of all rows for its own
items, a block at a time, and gets the ranks of its own rows. What they exchange are the score of each target, which one
process has, the number of items in front of it, and the best few items of each process: never a table of scores.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from recbole_llm.config.hooks import ScoresOfItems
from recbole_llm.evaluation.blocks import BestItems, ItemBlocks
from recbole_llm.evaluation.counting import require_numbers
from recbole_llm.utils.collectives import max_, numbers_of_all, rows_of_all, stacked_of_all, sum_
from recbole_llm.utils.processes import world


class SplitItemBlocks(ItemBlocks):
    """`ItemBlocks` of the items of this process, for the rows of all. All processes use it together.

    Its length is the number of own rows, of which `rank_in_blocks` is given the targets and gives the ranks.

    Args:
        scores_of: gives the scores of some of this process's items, of the rows of all processes, those of process 0
            first.
        counts: how many rows each process has; 0 for some, perhaps.
        bounds: the first item id of each process, and how many item ids there are.
        memory: what a block may take, in bytes.
        device: where the scores are.
    """

    def __init__(
        self,
        scores_of: ScoresOfItems,
        counts: Sequence[int],
        bounds: Sequence[int],
        memory: int,
        device: torch.device,
    ) -> None:
        rank = world().rank
        super().__init__(scores_of, sum(counts), bounds[-1], memory, device)
        self.begin, self.end = bounds[rank], bounds[rank + 1]
        # One shape in all processes: equal vectors have equal scores, whoever has them.
        self.size = max(min(self.size, bounds[1] - bounds[0]), 1)
        self._counts = list(counts)
        self._own = slice(sum(counts[:rank]), sum(counts[: rank + 1]))

    def __len__(self) -> int:
        return self._counts[world().rank]

    def of(self, items: Tensor) -> Tensor:
        """Return the score of one item per row, float32 [rows], which one of the processes computes."""
        inside = ((items >= self.begin) & (items < self.end)).nonzero()[:, 0]
        found = torch.zeros(len(items), device=items.device)
        if len(inside):
            found[inside] = self._of_pairs(inside, items[inside]).float()
        return sum_(found)

    def all_rows(self, own: Tensor) -> Tensor:
        """Return what all processes have of their rows: [rows of all, ...]."""
        return rows_of_all(own, self._counts)

    def all_keys(self, own: Tensor) -> Tensor:
        """Return the keys ``row * items + item`` of all processes, by the rows of all."""
        return rows_of_all(own + self._own.start * self.items, numbers_of_all([len(own)])[:, 0].tolist())

    def own_rows(self, of_all: Tensor) -> Tensor:
        """Return the part of this process, of what all rows have."""
        return of_all[self._own]

    def added_up(self, counts: Tensor) -> Tensor:
        """Return counts over the items of all processes."""
        return sum_(counts)

    def largest(self, values: Tensor) -> Tensor:
        """Return the largest of values over the items of all processes."""
        return max_(values)

    def best(self, found: BestItems) -> Tensor:
        """Return the best items among those of all processes: int64 [rows of all, k], 0 where there is none."""
        values = torch.full((self.rows, found.k), -torch.inf, device=self.device)
        items = torch.zeros(self.rows, found.k, dtype=torch.int64, device=self.device)
        if found.values is not None:
            values[:, : found.values.shape[1]], items[:, : found.items.shape[1]] = found.values.float(), found.items
        return merged_best(stacked_of_all(values), stacked_of_all(items))

    def require_numbers(self, largest: Tensor) -> None:
        """Raise TrainingError in all processes if the largest score of one is not a number."""
        found = sum_(torch.isnan(largest).to(torch.int64).reshape(1))
        require_numbers(torch.where(found > 0, torch.nan, 0.0))


def merged_best(values: Tensor, items: Tensor) -> Tensor:
    """Return the best items of every row among the best of several parts: int64 [rows, k].

    Args:
        values: [parts, rows, k], the best scores in each part, -inf where it has fewer.
        items: int64 [parts, rows, k].
    """
    parts, rows, k = values.shape
    best, places = values.permute(1, 0, 2).reshape(rows, parts * k).topk(k, dim=1)
    return items.permute(1, 0, 2).reshape(rows, parts * k).gather(1, places).masked_fill(best.isneginf(), 0)
