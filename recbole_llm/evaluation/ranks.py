"""The rank of every target, from which each metric can be computed again."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.evaluator.collector import DataStruct
from torch import Tensor

from recbole_llm.data.known_histories import KnownHistories
from recbole_llm.evaluation.blocks import BestOfDrawn, ItemBlocks, rank_in_blocks
from recbole_llm.evaluation.candidates import CandidateRanking
from recbole_llm.evaluation.counting import hits_of_ranks, leave_out, target_ranks
from recbole_llm.evaluation.recommended_items import RecommendedItemsCollector, only_candidates


def gain_of_rank(metric: str) -> Callable[[Tensor], Tensor] | None:
    """Return what a metric makes of the rank of a target that is alone in its ranking.

    Hit@k, Recall@k: whether r <= k; Precision@k: that over k; NDCG@k: 1 / log2(r + 1) up to k; MRR@k, MAP@k: 1 / r up
    to k; MRR: 1 / r over the whole ranking.

    Args:
        metric: a name such as ``NDCG@10``, in any case.

    Returns:
        A function from ranks int64 [targets] to gains float64 [targets], whose mean is the metric; None for a metric
        that ranks do not determine.
    """
    name, _, cut = metric.lower().partition("@")
    gains: dict[str, Callable[[Tensor], Tensor]] = {
        "hit": torch.ones_like,
        "recall": torch.ones_like,
        "precision": lambda ranks: torch.full_like(ranks, 1 / int(cut)),
        "ndcg": lambda ranks: 1 / torch.log2(ranks + 1),
        "mrr": torch.reciprocal,
        "map": torch.reciprocal,
    }
    if name not in gains or not (cut.isdigit() or metric.lower() == "mrr"):
        return None
    return lambda ranks: torch.where(ranks <= (int(cut) if cut else torch.inf), gains[name](ranks.double()), 0.0)


def mean_reciprocal_rank(lists: np.ndarray, ranks: np.ndarray) -> float:
    """Return the mean over ranked lists of 1 / rank of the best-ranked target in each, over the whole ranking.

    The ST2SI paper's MRR; RecBole's MRR@k counts ranks beyond k as 0.

    Args:
        lists: int64 [targets], names the ranked list of each target: one per user for a general model, one per target
            for a sequential one, which ranks each after another history.
        ranks: int64 [targets], from 1.
    """
    best = pd.Series(ranks).groupby(lists).min()
    return float((1.0 / best).mean())


class RankCollector(RecommendedItemsCollector):
    """RecBole's collector, which also keeps the rank of every target.

    Scores come with all items in them, or as `ItemBlocks`. Targets are ranked among all items, or with what their users
    met before left out, or in both ways, from the same scores: they are changed in place in between.

    Args:
        config: the settings of the run.

    Attributes:
        candidates: ranks each target among few candidates, too; None: does not.
    """

    data_struct: Any

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.candidates: CandidateRanking | None = None
        self._user_field = config["USER_ID_FIELD"]
        self.begin()

    def begin(self, known: KnownHistories | None = None, repeatable: bool = True, both: bool = False) -> None:
        """Forget the last evaluation.

        Args:
            known: what the users of the evaluated part met before; None where nothing is left out.
            repeatable: whether it is ranked with the others.
            both: whether what the other answer gives is collected, too.
        """
        if known is None and (both or not repeatable):
            raise ValueError("what users met before is needed to leave it out")
        self._known, self._repeatable = known, repeatable
        self._protocols = (True, False) if both else (repeatable,)
        self._parts: list[tuple[np.ndarray, ...]] = []
        self._lists: list[np.ndarray] = []
        self._rows = 0
        self._other = DataStruct()
        if self.candidates is not None:
            self.candidates.clear()

    def eval_batch_collect(
        self, scores_tensor: Tensor | ItemBlocks, interaction: Any, positive_u: Tensor | None, positive_i: Tensor | None
    ) -> None:
        """Collect one batch: RecBole's resources and the ranks of its targets."""
        if isinstance(scores_tensor, ItemBlocks):
            assert positive_u is not None and positive_i is not None
            self._collect_blocks(scores_tensor, interaction, positive_u, positive_i)
            return
        # RecBole measures labelled rows and ranks nothing: without targets, or with a score per sampled row.
        if positive_u is None or positive_i is None or scores_tensor.dim() != 2:
            super().eval_batch_collect(scores_tensor, interaction, positive_u, positive_i)
            return
        rows, targets = positive_u.to(scores_tensor.device), positive_i.to(scores_tensor.device)
        users, lists = interaction[self._user_field].cpu().numpy(), None
        if len(users) != len(scores_tensor):
            # With sampled candidates the interaction has one line per candidate, those of a user together.
            begins = np.concatenate([[True], users[1:] != users[:-1]])
            lists, users = torch.from_numpy(np.cumsum(begins) - 1), users[begins]
        if self.candidates is not None:
            self.candidates.collect(scores_tensor, targets)
        ranks = {}
        for repeatable in self._protocols:  # what is left out is never needed again
            if not repeatable:
                assert self._known is not None
                leave_out(scores_tensor, self._known.keys(interaction, lists, scores_tensor.device), rows, targets)
            found = target_ranks(scores_tensor, rows, targets)
            ranks[repeatable] = found
            self._collect(repeatable, scores_tensor, interaction, rows, targets, found)
        self._keep(users, positive_u, positive_i, ranks, len(scores_tensor))

    def _keep(self, users: np.ndarray, rows: Tensor, targets: Tensor, ranks: dict[bool, Tensor], lines: int) -> None:
        """Keep the ranks of a batch by protocol, and whose they are."""
        of_targets = rows.cpu().numpy()
        self._lists.append(self._rows + of_targets)
        self._rows += lines
        on_host = {repeatable: found.cpu().numpy() for repeatable, found in ranks.items()}
        own = on_host.pop(self._repeatable)
        self._parts.append((users[of_targets], targets.cpu().numpy(), own, *on_host.values()))

    def _collect_blocks(self, blocks: ItemBlocks, interaction: Any, positive_u: Tensor, positive_i: Tensor) -> None:
        """Collect one batch whose scores are computed some items at a time; each row has one target."""
        device = blocks.device
        rows, targets = positive_u.to(device), positive_i.to(device)
        left_out = None
        if False in self._protocols:
            assert self._known is not None
            left_out = self._known.keys(interaction, None, device)
        best = max(self.topk) if self.register.need("rec.items") else 0
        candidates, drawn = self.candidates, None
        if candidates is not None:
            drawn = BestOfDrawn(blocks.all_rows(candidates.next_drawn(len(blocks), device)))
        rankings, scores = rank_in_blocks(blocks, targets, left_out, self._protocols, best, drawn)
        if candidates is not None and drawn is not None:
            candidates.count(scores, blocks.own_rows(blocks.largest(drawn.values)))
        for repeatable, ranking in zip(self._protocols, rankings, strict=True):
            struct = self.data_struct if repeatable == self._repeatable else self._other
            if best:
                struct.update_tensor("rec.items", ranking.top)
            if self.register.need("rec.topk"):
                struct.update_tensor("rec.topk", self._hits(scores, rows, targets, ranking.ranks, len(blocks)))
        ranks = {repeatable: each.ranks for repeatable, each in zip(self._protocols, rankings, strict=True)}
        self._keep(interaction[self._user_field].cpu().numpy(), positive_u, positive_i, ranks, len(blocks))

    def _collect(
        self, repeatable: bool, scores: Tensor, interaction: Any, rows: Tensor, targets: Tensor, ranks: Tensor
    ) -> None:
        """Collect RecBole's resources of one batch under one protocol."""
        own, self.data_struct = self.data_struct, self.data_struct if repeatable == self._repeatable else self._other
        try:
            if any(map(self.register.need, ("rec.meanrank", "rec.score", "data.label"))):
                super().eval_batch_collect(scores, interaction, rows, targets)
                if self.register.need("rec.topk"):
                    hits = self._hits(scores[rows, targets], rows, targets, ranks, len(scores))
                    self.data_struct["rec.topk"][-len(scores) :] = hits.cpu()
            elif any(map(self.register.need, ("rec.items", "rec.topk"))):
                self._collect_top(scores, rows, targets, ranks)
        finally:
            self.data_struct = own

    def _collect_top(self, scores: Tensor, rows: Tensor, targets: Tensor, ranks: Tensor) -> None:
        """Collect what RecBole does of the best items, without its table of [batch, items] for the targets.

        Stands in for `recbole/evaluator/collector.py:143-160`, whose results these are where no scores tie.
        """
        if self.register.need("rec.items"):
            top = torch.topk(scores, max(self.topk), dim=-1).indices
            self.data_struct.update_tensor("rec.items", only_candidates(scores, top))
        if self.register.need("rec.topk"):
            hits = self._hits(scores[rows, targets], rows, targets, ranks, len(scores))
            self.data_struct.update_tensor("rec.topk", hits)

    def _hits(self, own: Tensor, rows: Tensor, targets: Tensor, ranks: Tensor, lines: int) -> Tensor:
        # A target that is not ranked is no hit, also where fewer items are ranked than the cut-off.
        ranks = ranks.masked_fill(own.isneginf(), max(self.topk) + len(ranks) + 1)
        return hits_of_ranks(rows, targets, ranks, lines, max(self.topk))

    def get_data_struct(self) -> Any:
        """Return what was collected, for the metrics.

        Repairs `recbole/evaluator/collector.py:227`, which asks everything for ``.cpu()``, also the numbers and
        counters that ItemCoverage, AveragePopularity and others read.
        """
        collected = self.data_struct._data_dict
        others = {key: collected.pop(key) for key in list(collected) if not isinstance(collected[key], Tensor)}
        struct = super().get_data_struct()
        for key, value in others.items():
            collected[key] = value
            struct.set(key, value)
        return struct

    def has_ranks(self) -> bool:
        """Tell whether anything was ranked since `begin`."""
        return bool(self._parts)

    def other_data_struct(self) -> Any:
        """Return what was collected under the other protocol, for the metrics."""
        for key, value in self.data_struct._data_dict.items():
            if key.startswith("data.") and key not in self._other:
                self._other.set(key, value)
        own, self.data_struct = self.data_struct, self._other
        try:
            return self.get_data_struct()
        finally:
            self.data_struct = own

    def collected(self) -> tuple[np.ndarray, ...]:
        """Return user ids, target item ids and ranks, int64 [targets] each, in the order of evaluation.

        The ranks under the other protocol follow where both were collected.
        """
        return tuple(np.concatenate(part) for part in zip(*self._parts, strict=True))

    def lists(self) -> np.ndarray:
        """Return which ranked list each target of `collected` stands in, int64 [targets]."""
        return np.concatenate(self._lists)
