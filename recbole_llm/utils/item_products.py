"""Scores that are products of users' and items' vectors: what an index of the item vectors can search."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_GATHERED_BYTES = 64 * 2**20  # of the float32 vectors of pairs that are scored together


@dataclass(frozen=True)
class ItemProducts:
    """The scores of a batch of users for some items at a time, and the vectors that they are products of.

    The score of user u and item i is ``max_k users[u, k] . vectors(i) + bias[i]``, with one vector per user in most
    models.

    Attributes:
        users: [batch, K, size].
        vectors: takes item ids, a slice or int64 [n], and returns their vectors, [n, size].
        bias: of items, [items]; None without one.
        scores: takes item ids, a slice or int64 [n], and returns the model's own scores, float [batch, n], where they
            are computed in another way; None: they are the products.
    """

    users: Tensor
    vectors: Callable[[slice | Tensor], Tensor]
    bias: Tensor | None = None
    scores: Callable[[slice | Tensor], Tensor] | None = None

    def __call__(self, items: slice | Tensor) -> Tensor:
        """Return the scores, float [batch, n], of item ids, a slice or int64 [n]."""
        if self.scores is not None:
            return self.scores(items)
        turned = self.vectors(items).T
        found = self.users[:, 0] @ turned
        for k in range(1, self.users.shape[1]):  # one after the other: never [batch, K, items] at once
            found = torch.maximum(found, self.users[:, k] @ turned)
        return found if self.bias is None else found.add_(self.bias[items])

    def with_bias(self, items: slice | Tensor) -> Tensor:
        """Return the vectors [n, size or size + 1] of item ids whose products with `users_with_one` are the scores."""
        vectors = self.vectors(items)
        return vectors if self.bias is None else torch.cat([vectors, self.bias[items, None]], dim=1)

    def users_with_one(self) -> Tensor:
        """Return the users' vectors, [batch, K, size]; with a bias [batch, K, size + 1], the last number 1."""
        if self.bias is None:
            return self.users
        return torch.cat([self.users, self.users.new_ones(*self.users.shape[:2], 1)], dim=2)

    def of_rows(self, rows: Tensor) -> "ItemProducts":
        """Return the products of some users, int64 [n], of the batch; they may differ from `scores` in the last bit."""
        return ItemProducts(self.users[rows], self.vectors, self.bias)

    def of_pairs(self, items: Tensor) -> Tensor:
        """Return the scores [batch, n] of items of each user's own, int64 [batch, n]."""
        found = []
        size = self.users.shape[2]
        for users, own in zip(*_split(_GATHERED_BYTES // (4 * size * items.shape[1]), self.users, items), strict=True):
            vectors = self.vectors(own.flatten()).view(*own.shape, size)
            found.append((vectors @ users.mT).amax(dim=2))
        scores = torch.cat(found)
        return scores if self.bias is None else scores + self.bias[items]


def _split(rows: int, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    return [tensor.split(max(rows, 1)) for tensor in tensors]
