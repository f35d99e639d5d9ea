"""The item linear projection (ILP) of ST2SI, eq. 5, and its cross-entropy, eq. 7."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LOGITS_BYTES = 512 * 1024**2  # the most that the float32 logits of one piece may take


class ItemLinearProjection(nn.Module):
    """p = softmax(W h), W of shape [items, width], without a bias.

    Row 0 belongs to RecBole's padding id: its logit is always -inf, so it takes no probability and never wins.

    Args:
        width: size of the hidden states.
        items: number of item ids, the padding id included.
    """

    def __init__(self, width: int, items: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(items, width))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)  # torch.nn.Linear's own initialisation, as in the authors' code

    def forward(self, states: Tensor) -> Tensor:
        """Return the logits [queries, items] of hidden states [queries, width]."""
        logits = F.linear(states.to(self.weight.dtype), self.weight)
        return logits.index_fill(-1, torch.zeros(1, dtype=torch.long, device=logits.device), float("-inf"))

    def of_items(self, states: Tensor, begin: int, end: int) -> Tensor:
        """Return the logits [queries, end - begin] of the item ids from `begin` to `end`, that of id 0 as any other."""
        return F.linear(states.to(self.weight.dtype), self.weight[begin:end])

    def loss(self, states: Tensor, labels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the sum over queries of -log p(label), float32.

        The logits are made, used and dropped in pieces, so a large catalogue never needs [queries, items] at once.

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
    loss: Tensor = _LinearCrossEntropy.apply(states, weight, labels, dtype, padding_class)
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies of ``states @ weight.T``, without column 0 or with it.

    The gradients are computed in the forward pass, piece by piece, while the logits are there: with p = softmax(z),
    d loss / d z = p - onehot(label), so d loss / d h = (p - onehot) W and d loss / d W = (p - onehot)^T h.
    """

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, labels: Tensor, dtype: torch.dtype, padding_class: bool
    ) -> Tensor:
        low_states, low_weight = states.to(dtype), weight.to(dtype)
        piece = max(_LOGITS_BYTES // (4 * len(weight)), 1)
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
    def backward(ctx: Any, output_gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        state_gradient, weight_gradient = ctx.saved_tensors
        if state_gradient is not None:
            state_gradient = state_gradient.to(ctx.state_dtype) * output_gradient.to(ctx.state_dtype)
        if weight_gradient is not None:
            weight_gradient = weight_gradient * output_gradient
        return state_gradient, weight_gradient, None, None, None
