"""Whether two models differ: paired tests over users, with Holm's correction, and bootstrap intervals.

RecBole's own script (`significance_test.py` of its repository) runs each model with several seeds and tests the
few means of the seeds against each other. That asks whether the *random numbers* of training could have made the
difference. With three to ten seeds a test has next to no power, the seeds' deviation says nothing of other users, and a
model without random numbers (Pop) has none. What a table claims is that a model is better for *users like these*: the
users are the sample, there are hundreds to a hundred thousand of them, and every model is measured on each, so the test
is paired. Several seeds are averaged user by user first, which leaves less of the random numbers of training in the
difference; the table has the deviation over seeds beside it.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats

DRAWS = 2000
SEED = 2020
_DECIMALS = 12  # of the differences that are ranked
_WEIGHTS = 1_000_000  # maximum number of numbers of one piece of the bootstrap, which a processor's cache then holds


@dataclass
class Comparison:
    """One pair of models in one dataset and metric.

    Attributes:
        label, against: the models.
        difference: the mean over users of `label`'s value less `against`'s.
        low, high: the bootstrap interval of the difference.
        p_t, p_wilcoxon: two-sided p-values over users.
        p_t_holm, p_wilcoxon_holm: the same, corrected for all pairs of the table.
        users: how many users were compared.
        mark: ``**`` if both corrected p-values are below 0.01, ``*`` if below 0.05, else empty.
    """

    label: str
    against: str
    difference: float
    low: float
    high: float
    p_t: float
    p_wilcoxon: float
    p_t_holm: float
    p_wilcoxon_holm: float
    users: int
    mark: str


def compare_pairs(labels: Sequence[str], values: np.ndarray, means: np.ndarray) -> list[Comparison]:
    """Test every pair of models against each other.

    Args:
        labels: the models.
        values: float [users, models], each user's value of one metric.
        means: what `bootstrap_means` returns for `values`, float [draws, models].

    Returns:
        One entry a pair, in the order of the labels; the pairs are one family for Holm's correction.
    """
    pairs = list(combinations(range(len(labels)), 2))
    if not pairs:
        return []
    differences = np.stack([values[:, a] - values[:, b] for a, b in pairs], axis=1)
    # Both models of a pair meet the same draws: the mean difference of a draw is the difference of its means.
    low, high = percentiles(np.stack([means[:, a] - means[:, b] for a, b in pairs], axis=1))
    p_t = [paired_t(differences[:, n]) for n in range(len(pairs))]
    p_wilcoxon = [wilcoxon(differences[:, n]) for n in range(len(pairs))]
    holm_t, holm_wilcoxon = holm(p_t), holm(p_wilcoxon)
    return [
        Comparison(
            label=labels[a],
            against=labels[b],
            difference=float(differences[:, n].mean()),
            low=float(low[n]),
            high=float(high[n]),
            p_t=p_t[n],
            p_wilcoxon=p_wilcoxon[n],
            p_t_holm=holm_t[n],
            p_wilcoxon_holm=holm_wilcoxon[n],
            users=len(values),
            mark=mark(max(holm_t[n], holm_wilcoxon[n])),
        )
        for n, (a, b) in enumerate(pairs)
    ]


def mark(p: float) -> str:
    """Return ``**`` below 0.01, ``*`` below 0.05, else an empty string."""
    return "**" if p < 0.01 else "*" if p < 0.05 else ""


def paired_t(differences: np.ndarray) -> float:
    """Return the two-sided p-value of Student's t-test that the mean difference is 0.

    With fewer than two users nothing can be said, and where no user differs nothing does: 1. If all users differ by the
    very same amount the limit is returned: 0.
    """
    if len(differences) < 2 or not differences.any():
        return 1.0
    if np.ptp(differences) == 0:
        return 0.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def wilcoxon(differences: np.ndarray) -> float:
    """Return the two-sided p-value of Wilcoxon's signed-rank test; users without a difference are left out of it.

    Where no user differs: 1. Differences are equal up to rounding: 1/2 - 1/3 and 1/3 - 1/6 are a tie, and so are means
    over the same values of seeds in another order.
    """
    differences = np.round(differences, _DECIMALS)
    differing = differences[differences != 0]
    if not len(differing):
        return 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a small sample is approximated
        return float(stats.wilcoxon(differing).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's step-down adjusted p-values (Holm 1979), in the order given: reject those below the level."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(stepped, 1)
    return [float(value) for value in adjusted]


def bootstrap_intervals(
    sums: np.ndarray, counts: np.ndarray | None = None, draws: int = DRAWS, seed: int = SEED
) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95% percentile bootstrap interval of the mean of every column: low and high, float64 [columns] each.

    The arguments are those of `bootstrap_means`.
    """
    return percentiles(bootstrap_means(sums, counts, draws, seed))


def percentiles(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return between which bounds 95% of the means [draws, columns] of a bootstrap lie: [columns] each."""
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return low, high


def bootstrap_means(
    sums: np.ndarray, counts: np.ndarray | None = None, draws: int = DRAWS, seed: int = SEED
) -> np.ndarray:
    """Return the mean of every column for each draw, float64 [draws, columns]; users are drawn with replacement.

    Args:
        sums: float [users, columns], each user's value, or with `counts` the sum of its values.
        counts: int [users], how many values each user has. Users are drawn whole, since the values of one user are not
            independent.
        draws: how often users are drawn; every column meets the same draws.
        seed: of the draws.
    """
    users, columns = sums.shape
    rng = np.random.default_rng(seed)
    together = np.column_stack([sums, np.ones(users) if counts is None else counts])
    drawn = np.empty((draws, columns))
    step = max(1, _WEIGHTS // users)
    for start in range(0, draws, step):
        size = min(step, draws - start)
        chosen = rng.integers(0, users, size=(size, users)) + np.arange(size)[:, None] * users
        # how often each user was drawn: one matrix product then gives the sums of all columns
        weights = np.bincount(chosen.ravel(), minlength=size * users).reshape(size, users)
        totals = weights.astype(float) @ together
        drawn[start : start + size] = totals[:, :-1] / totals[:, -1:]
    return drawn
