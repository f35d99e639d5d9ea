"""The item linear projection (ILP) of ST2SI, eq. 5, and its cross-entropy, eq. 7."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_llm.model.layers.block_softmax import BlockSoftmax
from recbole_llm.utils.item_products import ItemProducts

_LOGITS_BYTES = 512 * 1024**2  # the most that the float32 logits of one piece may take
# Cut by queries, each piece reads W and adds to its whole gradient: that pays while a piece has this many queries, and
# half as many as W is wide. A CPU is faster with blocks that stay in its caches, so these alone are less to it.
_LEAST_QUERIES = 512
# Cut by queries on a CPU, a piece takes so many queries at least, and no more than fill this: the softmax goes over the
# logits several times, and is twice as fast where they stay in the cache.
_CPU_QUERIES, _CPU_PIECE_BYTES = 256, 1024**2


class ItemLinearProjection(nn.Module):
    """p = softmax(W h), W of shape [items, width], without a bias.

    Row 0 belongs to RecBole's padding id: its logit is always -inf, so it takes no probability and never wins.

    Args:
        width: size of the hidden states.
        items: number of item ids, the padding id included.

    Attributes:
        linear: whether a score is the product of a state and the item's row of the weight, and of nothing else.
    """

    linear: ClassVar[bool] = True

    options: Mapping[str, Any] = MappingProxyType({})  # of the optimiser's group, beside the learning rate

    def __init__(self, width: int, items: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(items, width))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)  # torch.nn.Linear's own initialisation, as in the authors' code

    @property
    def width(self) -> int:
        """The size of the hidden states."""
        return self.weight.shape[1]

    @property
    def to_choose(self) -> bool:
        """Whether `choose` is to be called before training; False here, where nothing comes from items' states."""
        return False

    def choose(self, states: Iterable[tuple[np.ndarray, Tensor]], seed: int) -> None:
        """Choose once what is fixed before training, by the states of items.

        Args:
            states: item ids int64 [n] and their states [n, width], in parts; an item without one has zeros.
            seed: of what is drawn.
        """
        raise NotImplementedError

    def forward(self, states: Tensor) -> Tensor:
        """Return the logits [queries, items] of hidden states [queries, width]."""
        logits = F.linear(states.to(self.weight.dtype), self.weight)
        return logits.index_fill(-1, torch.zeros(1, dtype=torch.long, device=logits.device), float("-inf"))

    def of_items(self, states: Tensor, items: slice | Tensor) -> Tensor:
        """Return the logits [queries, n] of some item ids, a slice or int64 [n], that of id 0 as any other."""
        return F.linear(states.to(self.weight.dtype), self.rows(items))

    def in_blocks(self, states: Tensor) -> Callable[[slice | Tensor], Tensor]:
        """Return what gives the logits of some item ids, see `of_items`."""
        return ItemProducts(states[:, None], self.rows, scores=partial(self.of_items, states))

    def rows(self, items: slice | Tensor) -> Tensor:
        """Return the rows of W [n, width] of some item ids, a slice or int64 [n]."""
        return self.weight[items]

    def of_pairs(self, states: Tensor, items: Tensor) -> Tensor:
        """Return the logit [queries] of one item [queries] for each state."""
        return (states * self.rows(items)).sum(dim=1)

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Return the optimiser's groups of the weights."""
        return [{"params": list(self.parameters()), "lr": learning_rate, **self.options}]

    def loss(self, states: Tensor, labels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the sum over queries of -log p(label), float32.

        The logits are made, used and dropped in pieces, so a large catalogue never needs [queries, items] at once: of
        some queries with all items, or of all queries with some items once the catalogue is large.

        Args:
            states: [queries, width].
            labels: int64 [queries], item ids from 1; a query with label 0 is left out.
            dtype: of the matrix products; the softmax is float32 in any case.
        """
        return cross_entropy_sum(states, self.weight, labels, dtype)


def cross_entropy_sum(
    states: Tensor, weight: Tensor, labels: Tensor, dtype: torch.dtype = torch.float32, padding_class: bool = False
) -> Tensor:
    """Return the sum over queries of -log softmax(W h)_label, float32, see `ItemLinearProjection.loss`.

    Args:
        states: h, [queries, width].
        weight: W, [items, width].
        labels: int64 [queries], item ids from 1; a query with label 0 is left out.
        dtype: of the matrix products; the softmax is float32 in any case.
        padding_class: whether row 0 is a class of the softmax, as in RecBole's models; else it takes no probability.
    """
    piece = max(_LOGITS_BYTES // (4 * len(weight)), 1)
    least = _LEAST_QUERIES if states.device.type == "cpu" else min(_LEAST_QUERIES, weight.shape[1] // 2)
    if piece >= min(len(states), least):
        if states.device.type == "cpu":
            piece = min(piece, max(_CPU_PIECE_BYTES // (4 * len(weight)), _CPU_QUERIES))
        loss: Tensor = _CutByQueries.apply(states, weight, labels, dtype, padding_class, piece)
    else:
        loss = _CutByItems.apply(states, weight, labels, dtype, padding_class)
    return loss


class _CutByQueries(torch.autograd.Function):
    """Sum of cross-entropies of ``states @ weight.T``, without column 0 or with it; `piece` queries at a time.

    The gradients are computed in the forward pass, piece by piece, while the logits are there: with p = softmax(z),
    d loss / d z = p - onehot(label), so d loss / d h = (p - onehot) W and d loss / d W = (p - onehot)^T h.
    """

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, labels: Tensor, dtype: torch.dtype, padding_class: bool, piece: int
    ) -> Tensor:
        low_states, low_weight = states.to(dtype), weight.to(dtype)
        state_gradient = torch.empty_like(low_states) if ctx.needs_input_grad[0] else None
        weight_gradient: Tensor | None = None
        loss = torch.zeros((), device=states.device)
        for part in range(0, len(states), piece):
            rows = slice(part, part + piece)
            target = labels[rows, None]
            logits = (low_states[rows] @ low_weight.T).float()
            if not padding_class:
                logits[:, 0] = float("-inf")
            logits = logits.log_softmax(dim=1)
            unlabelled = target == 0
            loss -= logits.gather(1, target).masked_fill(unlabelled, 0).sum()
            if not any(ctx.needs_input_grad):
                continue
            # In place, and queries without a label are left out where tensors are small: this is the largest there is.
            difference = logits.exp_()
            difference.scatter_add_(1, target, torch.full_like(target, -1, dtype=difference.dtype))
            low_difference = difference.to(dtype)
            if state_gradient is not None:
                state_gradient[rows] = (low_difference @ low_weight).masked_fill(unlabelled, 0)
            if ctx.needs_input_grad[1]:
                labelled_states = low_states[rows].masked_fill(unlabelled, 0)
                part_gradient = (low_difference.T @ labelled_states).to(weight.dtype)
                weight_gradient = part_gradient if weight_gradient is None else weight_gradient.add_(part_gradient)
        ctx.save_for_backward(state_gradient, weight_gradient)
        ctx.state_dtype = states.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, output_gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        state_gradient, weight_gradient = ctx.saved_tensors
        if state_gradient is not None:
            state_gradient = state_gradient.to(ctx.state_dtype) * output_gradient.to(ctx.state_dtype)
        if weight_gradient is not None:
            weight_gradient = weight_gradient * output_gradient
        return state_gradient, weight_gradient, None, None, None, None


class _CutByItems(torch.autograd.Function):
    """The same sum, for all queries at once and a block of items at a time, see `BlockSoftmax`."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, labels: Tensor, dtype: torch.dtype, padding_class: bool
    ) -> Tensor:
        softmax = BlockSoftmax(states.to(dtype), weight.__getitem__, len(weight), padding_class=padding_class)
        normaliser, label_logits = softmax.normaliser(labels)
        ctx.save_for_backward(states, weight, labels, normaliser)
        ctx.dtype, ctx.padding_class = dtype, padding_class
        return (normaliser - label_logits).masked_fill(labels == 0, 0).sum()

    @staticmethod
    def backward(ctx: Any, output_gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        states, weight, labels, normaliser = ctx.saved_tensors
        softmax = BlockSoftmax(states.to(ctx.dtype), weight.__getitem__, len(weight), padding_class=ctx.padding_class)
        weight_gradient = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        take = None if weight_gradient is None else weight_gradient.__setitem__
        scale = output_gradient * (labels > 0)
        state_gradient = softmax.gradients(labels, normaliser, scale, ctx.needs_input_grad[0], take)
        return None if state_gradient is None else state_gradient.to(states.dtype), weight_gradient, None, None, None
