"""The item linear projection with its rows split over the processes of a run, and its cross-entropy.

Every process has the hidden states of its own queries and the rows of its own items. For a step they exchange the
states, [queries, width], and the normaliser and label logit of each query; never a gradient of W, the largest weight.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from recbole_llm.model.layers.block_softmax import BlockSoftmax
from recbole_llm.model.layers.item_linear_projection import ItemLinearProjection
from recbole_llm.model.layers.position_loss import PositionLoss
from recbole_llm.model.layers.split_table import SplitTable, states_of_all
from recbole_llm.trainer.split_rows import SplitRows
from recbole_llm.utils.collectives import rows_of_all, stacked_of_all, sum_
from recbole_llm.utils.processes import world


class SplitItemProjection(ItemLinearProjection):
    """`ItemLinearProjection` of which this process trains the rows of `split`.

    All processes call `loss` together, those without queries too, and so its backward pass. Items are ranked by
    `in_blocks` of each process's own items, see `evaluation.split_blocks`; what scores any other item needs all rows,
    see `SplitRows.joined`.

    Args:
        weight: W, split already.
        split: how.
    """

    def __init__(self, weight: nn.Parameter, split: SplitRows) -> None:
        nn.Module.__init__(self)
        self.weight = weight
        self.split = split

    def loss(self, states: Tensor, labels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the sum over the queries of this process of -log p(label), p over the items of all; float32.

        Args:
            states: [queries, width]; their number may differ between processes, and be 0.
            labels: int64 [queries], item ids from 1; a query with label 0 is left out.
            dtype: of the matrix products; the softmax is float32 in any case.
        """
        loss: Tensor = _SplitCrossEntropy.apply(states, self.weight, labels, dtype, self.split)
        return loss

    def rows(self, items: slice | Tensor) -> Tensor:
        """Return the rows of W [n, width] of some items that this process has, which it scores alone."""
        begin = self.split.begin if self.split.is_split else 0
        return super().rows(
            slice(items.start - begin, items.stop - begin) if isinstance(items, slice) else items - begin
        )

    def of_pairs(self, states: Tensor, items: Tensor) -> Tensor:
        """Return the logit of one item for each state, while the rows are joined."""
        self._require_all_rows()
        return super().of_pairs(states, items)

    def forward(self, states: Tensor) -> Tensor:
        """Return the logits of all items, while the rows are joined."""
        self._require_all_rows()
        return super().forward(states)

    def _require_all_rows(self) -> None:
        if self.split.is_split:
            raise RuntimeError("this process has a part of the projection: join its rows first")


class SplitDrawnItems(SplitItemProjection):
    """`SplitItemProjection` that is trained on drawn items, by a loss of `PositionLoss`.

    Args:
        weight: W, split already.
        split: how.
        position_loss: its loss.
        options: what the optimiser's group of W has of its own, see `row_options`.
    """

    def __init__(
        self, weight: nn.Parameter, split: SplitRows, position_loss: PositionLoss, options: Mapping[str, Any]
    ) -> None:
        super().__init__(weight, split)
        self.position_loss, self.options = position_loss, options

    def loss(self, states: Tensor, labels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the sum of the losses of own queries, float32. See `SplitItemProjection`; `dtype` has no effect."""
        table = SplitTable(self.weight, self.split, self.position_loss.sparse)
        return self.position_loss.summed(states, table, labels)


class _SplitCrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies of ``states @ weight.T`` over own queries, with own rows of the weight.

    With the queries of all processes, the normaliser of one is ``log sum_r exp(normaliser_r)`` over the items of each
    process r; its label's logit is known where the label's row is. d loss / d W_r = (p - onehot)^T h needs own rows
    alone, and d loss / d h = sum_r (p - onehot)_r W_r is added up over processes.
    """

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, labels: Tensor, dtype: torch.dtype, split: SplitRows
    ) -> Tensor:
        low_states = states_of_all(ctx, states.to(dtype), split)
        all_labels = rows_of_all(labels, ctx.counts)
        normaliser, label_logits = _over_own_items(low_states, weight, split).normaliser(all_labels)
        both = stacked_of_all(torch.stack([normaliser, label_logits]))
        normaliser = both[:, 0].logsumexp(dim=0)
        ctx.save_for_backward(low_states, weight, all_labels, normaliser)
        ctx.state_dtype = states.dtype
        losses = (normaliser - both[:, 1].sum(dim=0)).masked_fill(all_labels == 0, 0)
        return losses[ctx.own].sum()

    @staticmethod
    def backward(ctx: Any, output_gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        low_states, weight, labels, normaliser = ctx.saved_tensors
        own_scale = output_gradient.expand(ctx.counts[world().rank])
        scale = rows_of_all(own_scale, ctx.counts) * (labels > 0)
        weight_gradient = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        take = None if weight_gradient is None else weight_gradient.__setitem__
        softmax = _over_own_items(low_states, weight, ctx.split)
        state_gradient = softmax.gradients(labels, normaliser, scale, ctx.states_need_gradient, take)
        own = None
        if state_gradient is not None:
            own = sum_(state_gradient)[ctx.own].to(ctx.state_dtype)
        return own if ctx.needs_input_grad[0] else None, weight_gradient, None, None, None


def _over_own_items(low_states: Tensor, weight: Tensor, split: SplitRows) -> BlockSoftmax:
    return BlockSoftmax(low_states, weight.__getitem__, len(weight), first=split.begin)
