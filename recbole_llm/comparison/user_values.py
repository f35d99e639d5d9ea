"""The value of a metric for every user, computed again from the ranks that a run leaves."""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from recbole_llm.errors import DataError

_NAME = re.compile(r"(hit|recall|ndcg|mrr|map|precision)@([1-9][0-9]*)|mrr")


def has_user_values(metric: str) -> bool:
    """Tell whether `metric` can be computed from ranks: not so coverage, popularity, and values such as AUC."""
    return _NAME.fullmatch(metric) is not None


def list_values(metric: str, lists: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Return RecBole's value of `metric` for every ranked list (`recbole/evaluator/metrics.py`).

    Where scores are equal RecBole's order is arbitrary, and the ranks count against the target: values can be lower
    than RecBole's.

    Args:
        metric: such as ``ndcg@10``, or ``mrr`` over the whole ranking.
        lists: int64 [targets], the list of each target, 0 to lists - 1, none left out.
        ranks: int64 [targets], from 1.

    Returns:
        float64 [lists].

    Raises:
        ValueError: if the metric does not follow from ranks.
    """
    match = _NAME.fullmatch(metric)
    if match is None:
        raise ValueError(f"{metric} does not follow from the ranks of the targets")
    name, cut = (match[1], int(match[2])) if match[1] else ("mrr", np.iinfo(np.int64).max)
    targets = np.bincount(lists)
    ideal_length = np.minimum(targets, cut)
    inside = ranks <= cut
    hits = np.bincount(lists, weights=inside)
    match name:
        case "hit":
            return (hits > 0).astype(float)
        case "recall":
            return hits / targets
        case "precision":
            return hits / cut
        case "mrr":
            best = np.full(len(targets), np.inf)
            np.minimum.at(best, lists, np.where(inside, ranks, np.inf))
            return 1 / best
        case "ndcg":
            gains = np.bincount(lists, weights=inside / np.log2(ranks + 1))
            return gains / np.cumsum(1 / np.log2(np.arange(ideal_length.max()) + 2))[ideal_length - 1]
    # map: the precision at every hit
    order = np.lexsort((ranks, lists))
    first = np.cumsum(targets) - targets
    place = np.empty(len(ranks))
    place[order] = np.arange(len(ranks)) - first[lists[order]] + 1
    return np.bincount(lists, weights=inside * place / ranks) / ideal_length


def ranked_together(is_sequential: bool, ranks: pd.DataFrame) -> bool:
    """Tell whether a user's targets share one ranked list: RecBole does so for models that read no history.

    Args:
        is_sequential: whether the model reads histories, see `RunResult.is_sequential`.
        ranks: columns user, item and rank, from `read_ranks`; with one target per user there is no difference.
    """
    return not is_sequential and bool(ranks["user"].duplicated().any())


def user_values(ranks: pd.DataFrame, metrics: Sequence[str], together: bool) -> pd.DataFrame:
    """Return the value of each metric for each user.

    Args:
        ranks: columns user, item and rank, from `read_ranks`.
        metrics: names that `has_user_values`.
        together: whether a user's targets share one ranked list, see `ranked_together`. Otherwise each has its own, as
            for RecBole's sequential models, and a user's value is their mean.

    Returns:
        float64 [users, metrics], indexed by user token in sorted order.

    Raises:
        DataError: if there are no ranks.
    """
    if ranks.empty:
        raise DataError("there are no ranks: no target was tested")
    users, owner = np.unique(ranks["user"].to_numpy(dtype=str), return_inverse=True)
    lists = owner if together else np.arange(len(ranks))
    columns = {}
    for metric in metrics:
        values = list_values(metric, lists, ranks["rank"].to_numpy())
        columns[metric] = values if together else np.bincount(owner, weights=values) / np.bincount(owner)
    return pd.DataFrame(columns, index=pd.Index(users, name="user"))


def mean_over_seeds(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return the mean of the runs' `user_values`, user by user.

    Raises:
        DataError: if the runs have not the same users.
    """
    first = tables[0]
    for table in tables[1:]:
        if not table.index.equals(first.index):
            other = first.index.symmetric_difference(table.index)[0]
            raise DataError(f"two runs were tested on different users: only one of them has the user '{other}'")
    return pd.DataFrame(np.mean([t.to_numpy() for t in tables], axis=0), index=first.index, columns=first.columns)
