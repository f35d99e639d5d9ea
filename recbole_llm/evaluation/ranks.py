"""The rank of every target, from which each metric can be computed again."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from recbole_llm.errors import TrainingError
from recbole_llm.evaluation.candidates import CandidateRanking
from recbole_llm.evaluation.recommended_items import RecommendedItemsCollector


def target_ranks(scores: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
    """Return the rank of each target among all candidates, 1 the best; a tie counts against the target.

    Args:
        scores: [users, items]; items that are no candidates have -inf.
        rows: int64 [targets], the row of each target.
        targets: int64 [targets], item ids.

    Returns:
        int64 [targets].

    Raises:
        TrainingError: if a score is not a number.
    """
    if torch.isnan(scores).any():
        raise TrainingError("the model's scores are not numbers: training diverged; lower the learning rate")
    own = scores[rows, targets][:, None]
    return (scores[rows] >= own).sum(dim=1)


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


def read_history(interaction: Any, field: str, rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the row and the item of everything in the histories that the rows have, but for their targets.

    Args:
        interaction: with `field`, int64 [rows, items], the most recent `MAX_ITEM_LIST_LENGTH`, 0 where there is none.
        field: of the histories.
        rows: int64 [targets], the row of each target.
        targets: int64 [targets], item ids; a repeated item that is a target stays a candidate, as for RecBole's general
            models.
    """
    histories = interaction[field]
    inside = histories > 0
    own = (histories[rows.to(histories.device)] == targets.to(histories.device)[:, None]).nonzero(as_tuple=True)
    inside[rows.to(histories.device)[own[0]], own[1]] = False
    row, column = inside.nonzero(as_tuple=True)
    return row, histories[row, column]


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

    Args:
        config: the settings of the run.

    Attributes:
        candidates: ranks each target among few candidates, too; None: does not.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.candidates: CandidateRanking | None = None
        self._user_field = config["USER_ID_FIELD"]
        self.clear()

    def clear(self) -> None:
        """Forget the ranks of the last evaluation."""
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._lists: list[np.ndarray] = []
        self._rows = 0
        if self.candidates is not None:
            self.candidates.clear()

    def eval_batch_collect(
        self, scores_tensor: Tensor, interaction: Any, positive_u: Tensor, positive_i: Tensor
    ) -> None:
        """Collect one batch: RecBole's resources and the ranks of its targets."""
        if scores_tensor.dim() == 2:  # one score per row, where RecBole measures labelled rows and ranks nothing
            rows, targets = positive_u.to(scores_tensor.device), positive_i.to(scores_tensor.device)
            ranks = target_ranks(scores_tensor, rows, targets).cpu().numpy()
            users = interaction[self._user_field].cpu().numpy()
            if len(users) != len(scores_tensor):
                # With sampled candidates the interaction has one line per candidate, those of a user together.
                users = users[np.concatenate([[True], users[1:] != users[:-1]])]
            if self.candidates is not None:
                self.candidates.collect(scores_tensor, targets)
            self._lists.append(self._rows + positive_u.cpu().numpy())
            self._rows += len(scores_tensor)
            self._parts.append((users[positive_u.cpu().numpy()], positive_i.cpu().numpy(), ranks))
        super().eval_batch_collect(scores_tensor, interaction, positive_u, positive_i)

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
        """Tell whether anything was ranked since `clear`."""
        return bool(self._parts)

    def collected(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return user ids, target item ids and ranks, int64 [targets] each, in the order of evaluation."""
        users, targets, ranks = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        return users, targets, ranks

    def lists(self) -> np.ndarray:
        """Return which ranked list each target of `collected` stands in, int64 [targets]."""
        return np.concatenate(self._lists)
