"""How alike two text vectors are, and the losses that follow: over all items, drawn ones, or those of the batch."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_llm.model.layers.item_linear_projection import cross_entropy_sum

_PAIRS = 1 << 18  # user-item pairs that a crossing scores at once


class Similarity(nn.Module):
    """The score of a user and an item vector: ``u . v / tau``, or ``cos(u, v) / tau``. Always float32.

    In bfloat16 a logit near 20 (a cosine of 1 at tau = .05) would have steps of .125.

    Args:
        kind: dot or cosine.
        temperature: tau.
        learned: whether log tau is trained.
    """

    def __init__(self, kind: str, temperature: float, learned: bool = False) -> None:
        super().__init__()
        self.kind = kind
        self.temperature = temperature
        self.log_temperature = nn.Parameter(torch.tensor(temperature).log()) if learned else None

    def users(self, vectors: Tensor) -> Tensor:
        """Return user vectors [..., d] such that the scores are their plain products with `items`."""
        scale = self.temperature if self.log_temperature is None else self.log_temperature.exp()
        return self.items(vectors) / scale

    def items(self, vectors: Tensor) -> Tensor:
        """Return item vectors [..., d], normalised where the score is a cosine."""
        vectors = vectors.float()
        return F.normalize(vectors, dim=-1) if self.kind == "cosine" else vectors

    def pairs(self, users: Tensor, items: Tensor) -> Tensor:
        """Return the scores [...] of users [..., d] and items [..., d], whose shapes broadcast."""
        return (self.users(users) * self.items(items)).sum(dim=-1)

    def matrix(self, users: Tensor, items: Tensor) -> Tensor:
        """Return the scores [users, items] of all users [users, d] with all items [items, d]."""
        return self.users(users) @ self.items(items).T


class ResidualCrossing(nn.Module):
    """TwinBERT's second crossing: ``x = max(u, v)``, ``y = relu(W x + b) + x``, score ``w . y + c``.

    Args:
        width: of the vectors.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.output = nn.Linear(width, 1)

    def pairs(self, users: Tensor, items: Tensor) -> Tensor:
        """Return the scores [...] of users [..., d] and items [..., d], whose shapes broadcast."""
        crossed = torch.maximum(users.float(), items.float())
        return self.output(self.inner(crossed).relu() + crossed)[..., 0]

    def matrix(self, users: Tensor, items: Tensor) -> Tensor:
        """Return the scores [users, items] of all users [users, d] with all items [items, d], some at a time."""
        parts = users.split(max(_PAIRS // len(items), 1))
        return torch.cat([self.pairs(part[:, None], items[None]) for part in parts])


@dataclass(frozen=True)
class Candidates:
    """Among which items each row's target is to be found.

    Attributes:
        labels: int64 [rows], item ids of the targets.
        targets: int64 [rows], the targets' rows among the item vectors.
        negatives: int64 [rows, k], rows among the item vectors of items drawn for each row.
        known: int64 [users, n], item ids that a user has met, padded with 0; an in-batch loss leaves them out.
        owners: int64 [rows], the user of each row, a row of `known`.
    """

    labels: Tensor
    targets: Tensor
    negatives: Tensor
    known: Tensor
    owners: Tensor

    def to(self, device: torch.device | str) -> "Candidates":
        """Return them on `device`, without waiting for the copies of pinned memory."""
        return Candidates(*(value.to(device, non_blocking=True) for value in vars(self).values()))

    def pin_memory(self) -> "Candidates":
        """Return them in page-locked memory."""
        return Candidates(*(value.pin_memory() for value in vars(self).values()))


def table_cross_entropy(similarity: Similarity, users: Tensor, table: Tensor, labels: Tensor) -> Tensor:
    """Return the sum of -log p(label) over all items of a table whose row 0 is no item; made in pieces.

    Args:
        similarity: the score.
        users: [rows, d].
        table: [items, d], with or without a gradient.
        labels: int64 [rows], item ids.
    """
    return cross_entropy_sum(similarity.users(users), similarity.items(table), labels)


def full_cross_entropy(
    similarity: Similarity | ResidualCrossing, users: Tensor, items: Tensor, candidates: Candidates
) -> Tensor:
    """Return the sum of -log p(target) over all of `items` [items, d]; `users` are [rows, d]."""
    return F.cross_entropy(similarity.matrix(users, items), candidates.targets, reduction="sum")


def sampled_cross_entropy(
    similarity: Similarity | ResidualCrossing, users: Tensor, items: Tensor, candidates: Candidates
) -> Tensor:
    """Return the sum of -log p(target) among the target and the row's negatives.

    A negative that is the target does not count.
    """
    chosen = torch.cat([candidates.targets[:, None], candidates.negatives], dim=1)
    scores = similarity.pairs(users[:, None], items[chosen])
    same = candidates.negatives == candidates.targets[:, None]
    scores = torch.cat([scores[:, :1], scores[:, 1:].masked_fill(same, float("-inf"))], dim=1)
    return F.cross_entropy(scores, torch.zeros_like(candidates.targets), reduction="sum")


def in_batch_cross_entropy(
    similarity: Similarity | ResidualCrossing,
    users: Tensor,
    items: Tensor,
    candidates: Candidates,
    log_popularity: Tensor | None = None,
) -> Tensor:
    """Return the sum of -log p(target) among the targets of all rows.

    Another row's target does not count where it is the same item, or one that the row's user has met. Popular items
    are negatives more often than others: ``s - log p`` takes that out (p, the share of an item among all targets).

    Args:
        similarity: the score.
        users: [rows, d].
        items: [items, d].
        candidates: where the targets are.
        log_popularity: log p by item id, [items]; None for no correction.
    """
    labels = candidates.labels
    scores = similarity.matrix(users, items[candidates.targets])
    if log_popularity is not None:
        scores = scores - log_popularity[labels]
    met = (labels[None, :, None] == candidates.known[:, None, :]).any(dim=2)[candidates.owners]
    left_out = met | (labels[None] == labels[:, None])
    left_out = left_out & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    places = torch.arange(len(labels), device=labels.device)
    return F.cross_entropy(scores.masked_fill(left_out, float("-inf")), places, reduction="sum")


def binary_cross_entropy(
    similarity: Similarity | ResidualCrossing, users: Tensor, items: Tensor, candidates: Candidates
) -> Tensor:
    """Return the sum over rows of -log sigmoid(s) of the target and the mean of -log(1 - sigmoid(s)) of negatives."""
    positive = similarity.pairs(users, items[candidates.targets])
    negative = similarity.pairs(users[:, None], items[candidates.negatives])
    return F.softplus(-positive).sum() + F.softplus(negative).mean(dim=1).sum()


def loss_among_items(
    kind: str,
    similarity: Similarity | ResidualCrossing,
    users: Tensor,
    items: Tensor,
    candidates: Candidates,
    log_popularity: Tensor | None = None,
) -> Tensor:
    """Return the loss of users [rows, d] among item vectors [items, d], summed over the rows.

    Args:
        kind: full, sampled, in-batch or bce.
        similarity: the score.
        users: [rows, d].
        items: [items, d].
        candidates: where targets and negatives are.
        log_popularity: of an in-batch loss, see `in_batch_cross_entropy`.
    """
    if kind == "in-batch":
        return in_batch_cross_entropy(similarity, users, items, candidates, log_popularity)
    losses = {"full": full_cross_entropy, "sampled": sampled_cross_entropy, "bce": binary_cross_entropy}
    return losses[kind](similarity, users, items, candidates)
