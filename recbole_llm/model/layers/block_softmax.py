"""The cross-entropy of queries over all rows of an item table, a block of rows at a time.

The forward pass adds up the normaliser, ``log sum_i exp(z_i)`` with z = W h, block by block, and keeps that of each
query alone. The backward pass makes the logits again, and so a block's p = exp(z - normaliser): d loss / d h = (p -
onehot(label)) W is added up over blocks, and a block's rows of d loss / d W = (p - onehot(label))^T h are final at
once. Each row of W is read twice, and [queries, items] never exists.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

# A CPU is faster with blocks whose float32 logits stay in its caches.
_BLOCK_BYTES = {"cpu": 4 * 1024**2}
_OTHER_BYTES = 512 * 1024**2
_LEAST_ITEMS, _MOST_ITEMS = 512, 65_536  # of a block


class BlockSoftmax:
    """The softmax of queries over the rows of a table.

    Args:
        states: h, [queries, width], in the type of the matrix products; the softmax is float32.
        rows_of: gives the rows of a slice, [n, width].
        rows: how many rows there are.
        first: the item id of the first row.
        padding_class: whether item id 0 is a class; else it takes no probability.
    """

    def __init__(
        self,
        states: Tensor,
        rows_of: Callable[[slice], Tensor],
        rows: int,
        first: int = 0,
        padding_class: bool = False,
    ) -> None:
        self.states, self.rows_of, self.rows, self.first, self.padding_class = (
            states,
            rows_of,
            rows,
            first,
            padding_class,
        )

    def normaliser(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return for each query the normaliser, and the logit of its label if that is one of the rows, else 0.

        Args:
            labels: int64 [queries], item ids.

        Returns:
            Both float32 [queries]; without rows the normaliser is -inf.
        """
        normaliser = torch.full((len(self.states),), float("-inf"), device=self.states.device)
        label_logits = torch.zeros(len(self.states), device=self.states.device)
        for block, logits, _ in self._blocks():
            place, inside = self._places(labels, block)
            label_logits += logits.gather(1, place[:, None])[:, 0].masked_fill(~inside, 0)
            normaliser = torch.logaddexp(normaliser, logits.logsumexp(dim=1))
            del logits  # before the next block's are made
        return normaliser, label_logits

    def gradients(
        self,
        labels: Tensor,
        normaliser: Tensor,
        scale: Tensor,
        of_states: bool,
        take: Callable[[slice, Tensor], object] | None,
    ) -> Tensor | None:
        """Return the gradient of the states, float32 [queries, width], and hand on that of the rows.

        Args:
            labels: int64 [queries].
            normaliser: of each query, over all items.
            scale: the gradient of each query's loss, [queries].
            of_states: whether that of the states is asked for; None is returned else.
            take: called with each block of rows and their gradient [n, width]; None where it is not asked for.
        """
        gradient = torch.zeros(self.states.shape, device=self.states.device) if of_states else None
        for block, difference, rows in self._blocks():
            difference.sub_(normaliser[:, None]).exp_()
            place, inside = self._places(labels, block)
            difference.scatter_add_(1, place[:, None], -inside[:, None].to(difference.dtype))
            low_difference = difference.mul_(scale[:, None]).to(self.states.dtype)
            del difference
            if gradient is not None:
                gradient += low_difference @ rows
            if take is not None:
                take(block, low_difference.T @ self.states)
        return gradient

    def _blocks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield each block, its float32 logits [queries, n], and its rows in the type of the states."""
        size = block_size(self.states)
        for start in range(0, self.rows, size):
            block = slice(start, min(start + size, self.rows))
            rows = self.rows_of(block).detach().to(self.states.dtype)
            yield block, self._logits(block, rows), rows  # without a name: who has used them can let them go

    def _logits(self, block: slice, rows: Tensor) -> Tensor:
        with torch.autocast(rows.device.type, enabled=False):  # the backward pass, which makes them again, has none
            logits = (self.states @ rows.T).float()
        if self.first + block.start == 0 and not self.padding_class:
            logits[:, 0] = float("-inf")
        return logits

    def _places(self, labels: Tensor, block: slice) -> tuple[Tensor, Tensor]:
        """Return where in a block each label is, and whether it is there; nothing waits for a GPU."""
        items = block.stop - block.start
        place = labels - self.first - block.start
        return place.clamp(0, items - 1), (place >= 0) & (place < items)


def block_size(states: Tensor) -> int:
    """Return how many items a block has for the queries of `states`."""
    room = _BLOCK_BYTES.get(states.device.type, _OTHER_BYTES)
    return min(max(room // (4 * max(len(states), 1)), _LEAST_ITEMS), _MOST_ITEMS)
