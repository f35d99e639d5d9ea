"""A small network that orders the best items of a linear model anew, by what their scores consist of.

With z the linear model's scores and C its best items that the history does not hold, the score of an item v of C is

    z_v + f(x_v) - min of f over C

and that of every other item z_v, so that the items of C stay in front of those. f is a network of one hidden layer;
x_v are the numbers of `FEATURES`. It is trained by the softmax of z + f over C, with z as it is: what the network
learns is where z is wrong (boosting). The scores of a training row must come from a model that has not seen the row's
user, as at evaluation nothing has seen the target; `TextSLIT` sees to that.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_llm.model.layers.item_transitions import decayed_sum

FEATURES = (
    "the score",
    "the part of it that is from transitions",
    "the part that is from texts",
    "log of the rank",
    "cosine of the texts of the item and the last one",
    "the largest such cosine with an item of the history",
    "the transition from the last item",
    "log of 1 + how often the item is a training target",
    "the same of the last item",
    "log of the history's length",
)
_ROWS = 256  # whose texts of candidates are held at once
_BATCH = 256
_WEIGHT_DECAY = 1e-4
_SAME = 1e-5


@dataclass(frozen=True)
class LinearScores:
    """What a linear model says of some rows.

    Attributes:
        histories: int64 [rows, length], the oldest item first, zeros after the last.
        transitions: [rows, items], the scores of its transitions.
        likeness: [rows, items], those of texts; both are summed.
        table: [items, items], the transitions from every item.
        scale: what the table is multiplied by in the scores.
        texts: unit vectors [items, width] of the items' texts, width 0 without any.
        counts: [items], how often an item is a training target; None where no features are asked for.
    """

    histories: Tensor
    transitions: Tensor
    likeness: Tensor
    table: Tensor
    scale: float
    texts: Tensor
    counts: Tensor | None

    def sum(self) -> Tensor:
        """Return the scores [rows, items]."""
        return self.transitions + self.likeness

    def of_rows(self, chosen: Tensor) -> "LinearScores":
        """Return those of some rows, bool [rows]."""
        parts = {name: getattr(self, name)[chosen] for name in ("histories", "transitions", "likeness")}
        return replace(self, **parts)

    def candidates(self, number: int) -> Tensor:
        """Return the `number` best items of each row that its history does not hold: int64 [rows, number], best first.

        The last of them are others where the catalogue has too few.
        """
        scores = self.sum().scatter(1, self.histories, -torch.inf)
        scores[:, 0] = -torch.inf
        return scores.topk(number, dim=1).indices

    def features(self, candidates: Tensor) -> Tensor:
        """Return `FEATURES` of candidates [rows, n]: float32 [rows, n, len(FEATURES)]."""
        parts = [each.gather(1, candidates) for each in (self.transitions, self.likeness)]
        lengths = (self.histories > 0).sum(dim=1, keepdim=True)
        last = self.histories.gather(1, lengths - 1)
        assert self.counts is not None
        log_counts = torch.log1p(self.counts)
        ranks = torch.arange(1, candidates.shape[1] + 1, device=candidates.device)
        of_last, largest = self._cosines(candidates, last)
        found = [
            parts[0] + parts[1], *parts, ranks.log().expand_as(parts[0]), of_last, largest,
            self.scale * self.table[last, candidates], log_counts[candidates], log_counts[last].expand_as(parts[0]),
            lengths.log().expand_as(parts[0]),
        ]  # fmt: skip
        return torch.stack(found, dim=2)

    def _cosines(self, candidates: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """Return those of candidates with the last item, and the largest with any of the history: [rows, n] both."""
        found = []
        for first in range(0, len(candidates), _ROWS):
            part = slice(first, first + _ROWS)
            vectors, histories = self.texts[candidates[part]], self.histories[part]
            of_last = (vectors @ self.texts[last[part, 0]][:, :, None])[:, :, 0]
            histories = histories[:, : int((histories > 0).sum(dim=1).max())]
            of_all = vectors @ self.texts[histories].transpose(1, 2)
            found.append((of_last, of_all.masked_fill(histories[:, None] == 0, -torch.inf).amax(dim=2)))
        of_last, largest = (torch.cat(each) for each in zip(*found, strict=True))
        return of_last, largest


class Reranker(nn.Module):
    """f and what it reads.

    Args:
        items: number of items, the padding id among them.
        candidates: how many items are ordered anew.
        hidden_size: of the network.

    Attributes:
        counts: of `LinearScores`, of the whole training part; kept with the weights.
    """

    counts: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, items: int, candidates: int, hidden_size: int) -> None:
        super().__init__()
        self.candidates = min(candidates, items - 1)
        self.network = nn.Sequential(
            nn.Linear(len(FEATURES), hidden_size), nn.ReLU(), nn.Linear(hidden_size, 1, bias=False)
        )
        nn.init.zeros_(self.network[2].weight)  # type: ignore[arg-type]  # training begins with the order of z
        self.register_buffer("mean", torch.zeros(len(FEATURES)))
        self.register_buffer("deviation", torch.ones(len(FEATURES)))
        self.register_buffer("counts", torch.zeros(items))

    def corrections(self, features: Tensor) -> Tensor:
        """Return f [rows, n] of features [rows, n, len(FEATURES)]."""
        found: Tensor = self.network((features - self.mean) / self.deviation)
        return found.squeeze(2)

    def forward(self, linear: LinearScores) -> Tensor:
        """Return the scores [rows, items] of all items."""
        candidates = linear.candidates(self.candidates)
        found = self.corrections(linear.features(candidates))
        return linear.sum().scatter_add(1, candidates, found - found.amin(dim=1, keepdim=True))

    @torch.enable_grad()
    def train_on(self, features: Tensor, places: Tensor, epochs: int, learning_rate: float, seed: int) -> float:
        """Train f and return the mean loss of the last epoch; the rate falls linearly to zero.

        Args:
            features: float32 [rows, candidates, len(FEATURES)].
            places: int64 [rows], which candidate is the target.
            epochs: how often each row is read.
            learning_rate: the first step's.
            seed: of the order of rows.
        """
        self.mean.copy_(features.mean(dim=(0, 1)))
        deviation = features.std(dim=(0, 1), correction=0)
        # What is the same in all training rows, but for rounding, tells nothing: it stays small where it differs later.
        self.deviation.copy_(torch.where(deviation > _SAME, deviation, 1.0))
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=learning_rate, weight_decay=_WEIGHT_DECAY)
        steps = epochs * -(-len(places) // _BATCH)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
        generator = torch.Generator().manual_seed(seed)
        total = torch.zeros((), device=features.device)
        for _ in range(epochs):
            total.zero_()
            for rows in torch.randperm(len(places), generator=generator).to(places.device).split(_BATCH):
                logits = features[rows, :, 0] + self.corrections(features[rows])
                loss = F.cross_entropy(logits, places[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.detach() * len(rows)
        return float(total) / len(places)


def linear_scores(
    histories: Tensor,
    transitions: Tensor,
    texts: Tensor,
    counts: Tensor | None,
    decays: tuple[float, float],
    weights: tuple[float, float],
) -> LinearScores:
    """Return what transitions and texts say of histories.

    Args:
        histories: int64 [rows, length], the oldest item first, zeros after the last.
        transitions: [items, items].
        texts: unit vectors [items, width]; width 0 without any.
        counts: of `LinearScores`.
        decays: of the histories, for transitions and for texts.
        weights: of both in the scores.
    """
    of_transitions = weights[0] * decayed_sum(transitions, histories, decays[0])
    if texts.shape[1]:
        likeness = weights[1] * decayed_sum(texts, histories, decays[1]) @ texts.T
    else:
        likeness = torch.zeros_like(of_transitions)
    return LinearScores(histories, of_transitions, likeness, transitions, weights[0], texts, counts)
