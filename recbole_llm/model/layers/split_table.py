"""Scores of some items from a table whose rows are split over the processes of a run, for the losses on drawn items.

Every process has the states of its own queries and the vectors of its own items. It asks for the scores of its queries;
all processes gather the states, compute the scores of the items that they have, and add up: of each score one process
has the item. The gradients of the scores go the same way back: d loss / d w_j needs the row's process alone, d loss /
d h is added up.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from recbole_llm.trainer.split_rows import SplitRows
from recbole_llm.utils.collectives import from_first_, numbers_of_all, rows_of_all, sum_
from recbole_llm.utils.processes import world

_PIECE_BYTES = 64 * 2**20  # of the vectors of pairs that are looked at together
_Gradients = tuple[Tensor | None, Tensor, None, None, None]


class SplitTable:
    """The vectors [items, width] of all items, of which this process has the rows of `split`.

    All processes call its methods together, one without queries too, and so their backward passes.

    Args:
        weight: the rows of this process.
        split: how they are split.
        sparse: whether the gradient of the rows is a sparse tensor, of those that a step reads.
    """

    def __init__(self, weight: nn.Parameter, split: SplitRows, sparse: bool = False) -> None:
        self.weight, self.split, self.sparse = weight, split, sparse

    @property
    def dtype(self) -> torch.dtype:
        """The type of the vectors."""
        return self.weight.dtype

    def drawn(self, items: Tensor) -> Tensor:
        """Return what process 0 has drawn for the queries of all, int64 [m], of what each has."""
        from_first_([items])
        return items

    def of_pairs(self, states: Tensor, items: Tensor) -> Tensor:
        """Return the scores [queries, k] of items int64 [queries, k] for the states [queries, width] of own queries."""
        found: Tensor = _PairScores.apply(states, self.weight, items, self.split, self.sparse)
        return found

    def of_all(self, states: Tensor, items: Tensor) -> Tensor:
        """Return the scores [queries, m] of items int64 [m] that are the same for the queries of all processes."""
        found: Tensor = _CommonScores.apply(states, self.weight, items, self.split, self.sparse)
        return found


class _PairScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, items: Tensor, split: SplitRows, sparse: bool) -> Tensor:
        all_states = states_of_all(ctx, states, split)
        ctx.sparse = sparse
        all_items = rows_of_all(items, ctx.counts)
        ctx.save_for_backward(all_states, weight, all_items)
        scores = all_states.new_zeros(all_items.shape)
        for queries, places, rows in _own_pairs(all_items, split, weight):
            scores[queries, places] = (all_states[queries] * weight[rows]).sum(dim=1)
        return sum_(scores)[ctx.own]

    @staticmethod
    def backward(ctx: Any, output_gradient: Tensor) -> _Gradients:
        states, weight, items = ctx.saved_tensors
        gradient = rows_of_all(output_gradient.contiguous(), ctx.counts)
        of_states, of_weight = torch.zeros_like(states), _RowGradient(weight, ctx.sparse)
        for queries, places, rows in _own_pairs(items, ctx.split, weight):
            scale = gradient[queries, places][:, None]
            of_weight.add(rows, scale * states[queries])
            if ctx.states_need_gradient:
                of_states.index_add_(0, queries, scale * weight[rows])
        return _gradients(ctx, of_states, of_weight)


class _CommonScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, items: Tensor, split: SplitRows, sparse: bool) -> Tensor:
        all_states = states_of_all(ctx, states, split)
        ctx.sparse = sparse
        columns = ((items >= split.begin) & (items < split.end)).nonzero()[:, 0]
        rows = items[columns] - split.begin
        ctx.save_for_backward(all_states, weight, columns, rows)
        scores = all_states.new_zeros(len(all_states), len(items))
        scores[:, columns] = all_states @ weight[rows].T
        return sum_(scores)[ctx.own]

    @staticmethod
    def backward(ctx: Any, output_gradient: Tensor) -> _Gradients:
        states, weight, columns, rows = ctx.saved_tensors
        gradient = rows_of_all(output_gradient.contiguous(), ctx.counts)[:, columns]
        of_weight = _RowGradient(weight, ctx.sparse)
        of_weight.add(rows, gradient.T @ states)
        return _gradients(ctx, gradient @ weight[rows], of_weight)


def states_of_all(ctx: Any, states: Tensor, split: SplitRows) -> Tensor:
    """Return the states of all processes, and remember who has which, for the backward pass."""
    ctx.split = split
    if split.queries is not None and split.trains_states is not None:
        ctx.counts, ctx.states_need_gradient = split.queries, split.trains_states
    else:
        found = numbers_of_all([len(states), int(ctx.needs_input_grad[0])])
        ctx.counts, ctx.states_need_gradient = found[:, 0].tolist(), bool(found[:, 1].any())
    if len(states) != ctx.counts[world().rank]:
        raise RuntimeError(
            f"the projection got {len(states)} states, and the other processes wait for {ctx.counts[world().rank]}"
        )
    begin = sum(ctx.counts[: world().rank])
    ctx.own = slice(begin, begin + len(states))
    return rows_of_all(states.detach(), ctx.counts)


def _gradients(ctx: Any, of_states: Tensor, of_weight: "_RowGradient") -> _Gradients:
    """Return the gradients of the arguments; that of the states is added up over the items of all."""
    if ctx.states_need_gradient:
        sum_(of_states)
    return of_states[ctx.own] if ctx.needs_input_grad[0] else None, of_weight.whole(), None, None, None


class _RowGradient:
    """The gradient of a weight [rows, width] of which some rows are read, perhaps more than once.

    Args:
        weight: whose it is.
        sparse: whether it shall be a sparse tensor.
    """

    def __init__(self, weight: Tensor, sparse: bool) -> None:
        self._weight = weight
        self._dense = None if sparse else torch.zeros_like(weight)
        self._rows, self._values = (
            [torch.zeros(0, dtype=torch.int64, device=weight.device)],
            [weight.new_zeros(0, weight.shape[1])],
        )

    def add(self, rows: Tensor, values: Tensor) -> None:
        """Add values [n, width] to the rows int64 [n]."""
        if self._dense is not None:
            self._dense.index_add_(0, rows, values)
            return
        self._rows.append(rows)
        self._values.append(values)

    def whole(self) -> Tensor:
        """Return all that was added."""
        if self._dense is not None:
            return self._dense
        rows, values = torch.cat(self._rows), torch.cat(self._values)
        return torch.sparse_coo_tensor(rows[None], values, self._weight.shape, check_invariants=False)


def _own_pairs(items: Tensor, split: SplitRows, weight: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield the pairs of a query and an item of this process, some at a time: query, place, and row of the weight."""
    queries, places = ((items >= split.begin) & (items < split.end)).nonzero(as_tuple=True)
    size = max(_PIECE_BYTES // (weight.shape[1] * weight.element_size()), 1)
    for some, at in zip(queries.split(size), places.split(size), strict=True):
        yield some, at, items[some, at] - split.begin
