"""The item linear projection with its rows split over the processes of a run, and its cross-entropy.

Every process has the hidden states of its own queries and the rows of its own items. For a step they exchange the
states, [queries, width], and the normaliser and label logit of each query; never a gradient of W, the largest weight.
"""

from typing import Any

import torch
from torch import Tensor, nn

from recbole_llm.model.layers.item_linear_projection import ItemLinearProjection
from recbole_llm.trainer.split_rows import SplitRows
from recbole_llm.utils.collectives import numbers_of_all, rows_of_all, sum_
from recbole_llm.utils.processes import world

_BLOCK_BYTES = {"cpu": 4 * 1024**2}  # of the float32 logits of one block of items: what stays in the caches of a CPU
_OTHER_BYTES = 512 * 1024**2
_LEAST_ITEMS, _MOST_ITEMS = 512, 65_536  # of a block


class SplitItemProjection(ItemLinearProjection):
    """`ItemLinearProjection` of which this process trains the rows of `split`.

    All processes call `loss` together, those without queries too, and so its backward pass. What ranks items needs all
    rows, see `SplitRows.joined`.

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
        found = numbers_of_all([len(states), int(ctx.needs_input_grad[0])])
        counts = found[:, 0].tolist()
        low_states = rows_of_all(states.detach().to(dtype), counts)
        all_labels = rows_of_all(labels, counts)
        normaliser, label_logits = _own_items(low_states, weight, all_labels, split)
        both = rows_of_all(torch.stack([normaliser, label_logits])[None], [1] * world().size)
        normaliser = both[:, 0].logsumexp(dim=0)
        ctx.save_for_backward(low_states, weight, all_labels, normaliser)
        ctx.counts, ctx.split, ctx.state_dtype = counts, split, states.dtype
        ctx.states_need_gradient = bool(found[:, 1].any())
        losses = (normaliser - both[:, 1].sum(dim=0)).masked_fill(all_labels == 0, 0)
        return losses[_own_queries(counts)].sum()

    @staticmethod
    def backward(ctx: Any, output_gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        low_states, weight, labels, normaliser = ctx.saved_tensors
        counts = torch.tensor(ctx.counts, device=labels.device)
        of_each = rows_of_all(output_gradient.reshape(1), [1] * world().size)
        scale = of_each.repeat_interleave(counts, output_size=len(labels)) * (labels > 0)
        state_gradient = torch.zeros(low_states.shape, device=labels.device) if ctx.states_need_gradient else None
        weight_gradient = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for start in range(0, len(weight), _block_size(low_states)):
            difference, low_weight = _block_logits(low_states, weight, start, ctx.split)
            difference.sub_(normaliser[:, None]).exp_()
            place, inside = _places(labels, ctx.split.begin + start, len(low_weight))
            difference.scatter_add_(1, place[:, None], -inside[:, None].to(difference.dtype))
            low_difference = difference.mul_(scale[:, None]).to(low_states.dtype)
            del difference
            if state_gradient is not None:
                state_gradient += low_difference @ low_weight
            if weight_gradient is not None:
                weight_gradient[start : start + len(low_weight)] = low_difference.T @ low_states
        own = None
        if state_gradient is not None:
            own = sum_(state_gradient)[_own_queries(ctx.counts)].to(ctx.state_dtype)
        return own if ctx.needs_input_grad[0] else None, weight_gradient, None, None, None


def _own_items(low_states: Tensor, weight: Tensor, labels: Tensor, split: SplitRows) -> tuple[Tensor, Tensor]:
    """Return for each query the normaliser over own items, and the logit of its label if that is one of them, else 0.

    Both float32 [queries]; without own items the normaliser is -inf.
    """
    normaliser = torch.full((len(low_states),), float("-inf"), device=low_states.device)
    label_logits = torch.zeros(len(low_states), device=low_states.device)
    for start in range(0, len(weight), _block_size(low_states)):
        logits, _ = _block_logits(low_states, weight, start, split)
        place, inside = _places(labels, split.begin + start, logits.shape[1])
        label_logits += logits.gather(1, place[:, None])[:, 0].masked_fill(~inside, 0)
        normaliser = torch.logaddexp(normaliser, logits.logsumexp(dim=1))
        del logits  # before the next block's are made
    return normaliser, label_logits


def _own_queries(counts: list[int]) -> slice:
    begin = sum(counts[: world().rank])
    return slice(begin, begin + counts[world().rank])


def _block_size(low_states: Tensor) -> int:
    room = _BLOCK_BYTES.get(low_states.device.type, _OTHER_BYTES)
    return min(max(room // (4 * max(len(low_states), 1)), _LEAST_ITEMS), _MOST_ITEMS)


def _block_logits(low_states: Tensor, weight: Tensor, start: int, split: SplitRows) -> tuple[Tensor, Tensor]:
    """Return the float32 logits [queries, block] of own items from `start` on, and their rows of W in low precision."""
    low_weight = weight.detach()[start : start + _block_size(low_states)].to(low_states.dtype)
    with torch.autocast(weight.device.type, enabled=False):  # the backward pass, which makes them again, has none
        logits = (low_states @ low_weight.T).float()
    if split.begin + start == 0:
        logits[:, 0] = float("-inf")  # RecBole's padding id
    return logits, low_weight


def _places(labels: Tensor, start: int, items: int) -> tuple[Tensor, Tensor]:
    """Return where in a block each label is, and whether it is there; nothing waits for a GPU."""
    place = labels - start
    return place.clamp(0, items - 1), (place >= 0) & (place < items)
