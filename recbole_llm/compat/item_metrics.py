"""RecBole's metrics of the recommended items themselves, as their own documentation defines them.

Repairs, in `recbole/evaluator/metrics.py`:

* :492 (`ItemCoverage.get_coverage`) and :672 (`GiniIndex.get_gini`): the padding id counts as an item of the catalogue
  (see `recbole/evaluator/collector.py:87`), so that 40 of 40 recommended items cover .9756 of it.
* :614 (`ShannonEntropy.get_entropy`): the entropy is divided by the number of different items.
* :538 (`AveragePopularity.get_pop`) and :727 (`TailPercentage.get_tail`): what fills a list that has too few candidates
  counts as recommended; the tail lacks the items that training never saw, which are the longest tail of all.

Recommended items come as int64 [lists, k], the best first, 0 where a list has no more candidates. It happens when this
module is imported.
"""

from typing import Any

import numpy as np
from recbole.evaluator import metrics


def item_counts(items: np.ndarray, number: int = 0) -> np.ndarray:
    """Return how often each item is recommended, int64 [number] (or up to the last item): ids from 1 on."""
    return np.bincount(items[items > 0], minlength=number + 1)[1:]


def coverage(self: Any, items: np.ndarray, number: int) -> float:
    """Return the share of the `number` items of the catalogue that are recommended to anybody."""
    return float(np.count_nonzero(item_counts(items, number)) / number)


def gini(self: Any, items: np.ndarray, number: int) -> float:
    """Return sum_i (2 i - n - 1) P(i) / (n sum_i P(i)) over the n items of the catalogue, P ascending."""
    counts = np.sort(item_counts(items, number))
    return float(((2 * np.arange(1, number + 1) - number - 1) * counts).sum() / max(number * counts.sum(), 1))


def entropy(self: Any, items: np.ndarray) -> float:
    """Return -sum_i p(i) ln p(i), p(i) the share of item i among all that is recommended."""
    counts = item_counts(items)
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(shares * np.log(shares)).sum())


def popularity(self: Any, items: np.ndarray, counts: dict[int, int]) -> np.ndarray:
    """Return how often training holds each recommended item, float64 [lists, k]; nan where a list has no more."""
    return _looked_up(items, counts)


def in_tail(self: Any, items: np.ndarray, counts: dict[int, int]) -> np.ndarray:
    """Return 1 for a recommended item of the long tail, else 0, float64 [lists, k]; nan where a list has no more.

    `tail_ratio` above 1: the tail is what training holds so often at most. Up to 1: that share of the catalogue, at
    least one item, the rarest first and of equals the lower id.
    """
    ordered = sorted(counts, key=lambda item: (counts[item], item))
    if self.tail > 1:
        tail = [item for item in ordered if counts[item] <= self.tail]
    else:
        tail = ordered[: max(int(len(ordered) * self.tail), 1)]
    return _looked_up(items, dict.fromkeys(tail, 1))


def _looked_up(items: np.ndarray, values: dict[int, int]) -> np.ndarray:
    table = np.zeros(max([*values, int(items.max(initial=0))]) + 1)
    table[list(values)] = list(values.values())
    table[0] = np.nan
    return table[items]


def means_of_lists(self: Any, values: np.ndarray) -> np.ndarray:
    """Return the mean over the first 1, 2, ..., k items of each list, float64 [lists, k]; 0 for an empty list."""
    filled = ~np.isnan(values)
    return np.nancumsum(values, axis=1) / np.maximum(filled.cumsum(axis=1), 1)


metrics.ItemCoverage.get_coverage = coverage
metrics.GiniIndex.get_gini = gini
metrics.ShannonEntropy.get_entropy = entropy
metrics.AveragePopularity.get_pop = popularity
metrics.TailPercentage.get_tail = in_tail
metrics.AveragePopularity.metric_info = metrics.TailPercentage.metric_info = means_of_lists
