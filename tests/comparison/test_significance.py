"""Values of users, tests, corrections and intervals against RecBole's metrics, scipy and plain loops in float64."""

import itertools
import math
import warnings

import numpy as np
import pandas as pd
import pytest
from kept_runs import ML_100K
from recbole.evaluator.metrics import MAP, MRR, NDCG, Hit, Precision, Recall
from scipy import stats

import recbole_llm.compat.numpy_names  # noqa: F401 (names that RecBole's metrics read)
from recbole_llm.comparison.analysis import analyse
from recbole_llm.comparison.collect import Collected
from recbole_llm.comparison.significance import (
    bootstrap_intervals,
    bootstrap_means,
    compare_pairs,
    holm,
    paired_t,
    wilcoxon,
)
from recbole_llm.comparison.user_values import (
    has_user_values,
    list_values,
    mean_over_seeds,
    ranked_together,
    user_values,
)
from recbole_llm.errors import DataError
from recbole_llm.runs.archive import archived_run

KEPT = ["Pop", "GRU4Rec-default", "SASRec-default", "BERT4Rec-default", "ST2SI-ILP-50-items"]
METRICS = {"hit": Hit, "mrr": MRR, "ndcg": NDCG, "recall": Recall, "precision": Precision, "map": MAP}


def kept_values(metric):
    tables = [user_values(archived_run(ML_100K / n / "seed-2020").ranks(), [metric], False) for n in KEPT]
    return np.stack([table[metric].to_numpy() for table in tables], axis=1)


# -- values of users ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("cut", [1, 5, 10])
@pytest.mark.parametrize("most", [1, 4])
def test_lists_have_recboles_own_values(name, cut, most):
    """Against RecBole's metric classes, which read the hits among the top items."""
    rng = np.random.default_rng(cut)
    users, items = 60, 14
    truth = [rng.choice(items, size=rng.integers(1, most + 1), replace=False) for _ in range(users)]
    hits = np.zeros((users, items), dtype=int)
    for user, places in enumerate(truth):
        hits[user, places] = 1
    metric = METRICS[name]({"topk": [cut], "metric_decimal_place": 15})
    lengths = np.array([len(places) for places in truth])
    top = hits[:, :cut]
    expected = metric.metric_info(top, lengths) if name in ("ndcg", "recall", "map") else metric.metric_info(top)
    lists = np.repeat(np.arange(users), lengths)
    order = rng.permutation(len(lists))
    found = list_values(f"{name}@{cut}", lists[order], np.concatenate(truth)[order] + 1)
    np.testing.assert_allclose(found, expected[:, -1], atol=1e-12)


def test_values_of_users_average_to_the_stored_metrics():
    """The means are RecBole's own numbers of the kept runs, up to their rounding."""
    for name in KEPT[1:]:  # Pop's scores tie, where RecBole's order is arbitrary
        run = archived_run(ML_100K / name / "seed-2020")
        stored = run.result["test"]
        table = user_values(run.ranks(), list(stored), together=False)
        for metric, value in stored.items():
            assert table[metric].mean() == pytest.approx(value, abs=6e-5), (name, metric)


def test_several_targets_of_one_user():
    ranks = pd.DataFrame({"user": ["b", "a", "b"], "item": ["x", "x", "y"], "rank": [1, 3, 20]})
    one_list = user_values(ranks, ["recall@10", "ndcg@10", "mrr"], together=True)
    assert list(one_list.index) == ["a", "b"]
    np.testing.assert_allclose(one_list["recall@10"], [1, 0.5])
    np.testing.assert_allclose(one_list["ndcg@10"], [0.5, 1 / (1 + 1 / math.log2(3))])
    np.testing.assert_allclose(one_list["mrr"], [1 / 3, 1])
    own_lists = user_values(ranks, ["recall@10", "ndcg@10", "mrr"], together=False)
    np.testing.assert_allclose(own_lists["ndcg@10"], [0.5, 0.5])
    np.testing.assert_allclose(own_lists["mrr"], [1 / 3, (1 + 1 / 20) / 2])
    assert ranked_together(False, ranks) and not ranked_together(True, ranks)
    assert not ranked_together(False, ranks.iloc[:2])


def test_seeds_are_averaged_user_by_user():
    first = user_values(pd.DataFrame({"user": ["a", "b"], "item": "x", "rank": [1, 4]}), ["mrr"], False)
    second = user_values(pd.DataFrame({"user": ["b", "a"], "item": "x", "rank": [2, 2]}), ["mrr"], False)
    assert mean_over_seeds([first, second])["mrr"].to_dict() == {"a": 0.75, "b": 0.375}
    other = user_values(pd.DataFrame({"user": ["a", "c"], "item": "x", "rank": [1, 4]}), ["mrr"], False)
    with pytest.raises(DataError, match=r"different users: only one of them has the user '[bc]'"):
        mean_over_seeds([first, other])


def test_names_that_follow_from_ranks():
    assert all(has_user_values(name) for name in ("mrr", "mrr@5", "ndcg@10", "hit@1", "map@20"))
    assert not any(has_user_values(name) for name in ("auc", "itemcoverage@10", "ndcg", "ndcg@0", "giniindex@10"))
    with pytest.raises(ValueError, match="does not follow"):
        list_values("auc", np.array([0]), np.array([1]))
    with pytest.raises(DataError, match="no target was tested"):
        user_values(pd.DataFrame({"user": [], "item": [], "rank": []}), ["mrr"], False)


# -- tests -------------------------------------------------------------------------------------------------------------


def plain_t(differences):
    """Student's paired t-test, summed in plain Python."""
    n = len(differences)
    mean = math.fsum(differences) / n
    variance = math.fsum((d - mean) ** 2 for d in differences) / (n - 1)
    return 2 * stats.t.sf(abs(mean / math.sqrt(variance / n)), n - 1)


def plain_wilcoxon(differences):
    """Wilcoxon's signed-rank test with the normal approximation, ties corrected, no zeros."""
    ordered = sorted(d for d in differences if d != 0)
    sizes = sorted(abs(d) for d in ordered)
    rank = {}
    correction = 0.0
    for size, group in itertools.groupby(enumerate(sizes, 1), key=lambda pair: pair[1]):
        places = [place for place, _ in group]
        rank[size] = sum(places) / len(places)
        correction += len(places) ** 3 - len(places)
    n = len(ordered)
    above = math.fsum(rank[abs(d)] for d in ordered if d > 0)
    below = n * (n + 1) / 2 - above
    deviation = math.sqrt(n * (n + 1) * (2 * n + 1) / 24 - correction / 48)
    return 2 * stats.norm.cdf((min(above, below) - n * (n + 1) / 4) / deviation)


@pytest.mark.parametrize("metric", ["ndcg@10", "recall@10", "mrr"])
def test_tests_of_kept_runs_equal_scipy_and_plain_computations(metric):
    values = kept_values(metric)
    pairs = compare_pairs(KEPT, values, bootstrap_means(values, draws=20))
    assert [(p.label, p.against) for p in pairs] == list(itertools.combinations(KEPT, 2))
    for pair in pairs:
        a, b = values[:, KEPT.index(pair.label)], values[:, KEPT.index(pair.against)]
        assert pair.users == 943
        assert pair.difference == pytest.approx(a.mean() - b.mean(), abs=1e-15)
        assert pair.p_t == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-12)
        assert pair.p_t == pytest.approx(plain_t((a - b).tolist()), rel=1e-9)
        # 1/2 - 1/3 and 1/3 - 1/6 are a tie, which their rounding must not break: scipy's pages say so
        exact = np.round(a - b, 12)
        assert pair.p_wilcoxon == pytest.approx(stats.wilcoxon(exact).pvalue, rel=1e-12)
        assert pair.p_wilcoxon == pytest.approx(stats.wilcoxon(a, b).pvalue, rel=1e-2)
        assert pair.p_wilcoxon == pytest.approx(plain_wilcoxon(exact.tolist()), rel=1e-9)
        worst = max(pair.p_t_holm, pair.p_wilcoxon_holm)
        assert pair.mark == ("**" if worst < 0.01 else "*" if worst < 0.05 else "")
    for name in ("p_t", "p_wilcoxon"):
        adjusted = plain_holm([getattr(pair, name) for pair in pairs])
        assert [getattr(pair, f"{name}_holm") for pair in pairs] == pytest.approx(adjusted, rel=1e-12)


def plain_holm(p_values):
    """Holm's adjusted p-value: the largest of (m - i + 1) p_(i) over all p-values at most as large."""
    ordered = sorted(p_values)
    m = len(ordered)
    return [min(1.0, max((m - i) * ordered[i] for i in range(m) if ordered[i] <= p)) for p in p_values]


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
    rng = np.random.default_rng(0)
    p_values = rng.random(40) ** 3
    assert holm(p_values) == pytest.approx(plain_holm(p_values.tolist()))


def pairs_of(labels, values):
    return compare_pairs(labels, values, bootstrap_means(values))


def test_degenerate_cases_are_clear_and_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert paired_t(np.zeros(5)) == wilcoxon(np.zeros(5)) == 1
        assert paired_t(np.array([0.3])) == wilcoxon(np.array([0.3])) == 1
        assert paired_t(np.array([])) == wilcoxon(np.array([])) == 1
        assert paired_t(np.full(9, 0.25)) == 0
        assert wilcoxon(np.full(4, 0.25)) == pytest.approx(2 / 2**4)  # all of the 16 signs that are as extreme
        (pair,) = pairs_of(["a", "b"], np.full((7, 2), 0.5))
        assert (pair.difference, pair.low, pair.high, pair.p_t_holm, pair.mark) == (0, 0, 0, 1, "")
        assert pairs_of(["a"], np.zeros((3, 1))) == []
        assert pairs_of(["a", "b"], np.array([[1.0, 0.0]]))[0].mark == ""


def test_the_order_of_seeds_makes_no_difference():
    """(a + b + c) / 3 and (c + a + b) / 3 differ by rounding: users with the same values do not differ."""
    seeds = np.random.default_rng(3).random((3, 500))
    one = np.mean(list(seeds), axis=0)
    other = np.mean([seeds[2], seeds[0], seeds[1]], axis=0)
    assert (one != other).any()
    assert wilcoxon(one - other) == 1
    rounding = one - other
    signs = np.where(np.arange(500) % 3 == 0, -0.5, 0.5)  # all are tied
    assert wilcoxon(signs + rounding) == pytest.approx(stats.wilcoxon(signs).pvalue, rel=1e-12)


# -- intervals ---------------------------------------------------------------------------------------------------------


def test_bootstrap_equals_a_loop_over_the_draws():
    rng = np.random.default_rng(1)
    values = rng.random((37, 3))
    low, high = bootstrap_intervals(values, draws=200, seed=5)
    draw = np.random.default_rng(5)
    means = []
    for _ in range(200):
        chosen = draw.integers(0, 37, size=37)
        means.append([math.fsum(values[user, column] for user in chosen) / 37 for column in range(3)])
    for column in range(3):
        ordered = sorted(mean[column] for mean in means)
        for bound, share in ((low, 0.025), (high, 0.975)):
            place = share * 199
            below = ordered[int(place)]
            expected = below + (place - int(place)) * (ordered[int(place) + 1] - below)
            assert bound[column] == pytest.approx(expected, abs=1e-12)


def test_bootstrap_is_the_same_in_pieces(monkeypatch):
    values = np.random.default_rng(2).random((50, 2))
    whole = bootstrap_intervals(values, draws=100)
    monkeypatch.setattr("recbole_llm.comparison.significance._WEIGHTS", 7 * 50)
    for bound, expected in zip(bootstrap_intervals(values, draws=100), whole, strict=True):
        np.testing.assert_allclose(bound, expected, atol=1e-15)


def test_interval_of_a_pair_is_that_of_its_differences():
    values = np.random.default_rng(4).random((60, 3))
    differences = np.stack([values[:, a] - values[:, b] for a, b in ((0, 1), (0, 2), (1, 2))], axis=1)
    low, high = bootstrap_intervals(differences, draws=150, seed=6)
    pairs = compare_pairs("abc", values, bootstrap_means(values, draws=150, seed=6))
    np.testing.assert_allclose([(pair.low, pair.high) for pair in pairs], np.stack([low, high], axis=1), atol=1e-14)


def test_bootstrap_agrees_with_scipys():
    values = kept_values("ndcg@10")[:, :1]
    low, high = bootstrap_intervals(values, draws=4000)
    theirs = stats.bootstrap((values[:, 0],), np.mean, n_resamples=4000, method="percentile", rng=0, batch=500)
    width = high[0] - low[0]
    assert low[0] == pytest.approx(theirs.confidence_interval.low, abs=0.05 * width)
    assert high[0] == pytest.approx(theirs.confidence_interval.high, abs=0.05 * width)


def test_users_with_several_values_are_drawn_whole():
    rng = np.random.default_rng(3)
    counts = rng.integers(1, 5, size=20)
    values = [rng.random(count) for count in counts]
    low, high = bootstrap_intervals(np.array([[v.sum()] for v in values]), counts, draws=300, seed=1)
    draw = np.random.default_rng(1)
    means = [np.concatenate([values[u] for u in draw.integers(0, 20, size=20)]).mean() for _ in range(300)]
    np.testing.assert_allclose([low[0], high[0]], np.percentile(means, [2.5, 97.5]), atol=1e-12)


# -- what the notes say ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("users", "told"),
    [(["u1", "u1", "u1", "u2"], "has several targets a user"), (["u1", "u2", "u3", "u4"], "many items the same score")],
)
def test_a_table_that_differs_from_its_tests_says_why(users, told):
    """The first case weighs targets and users differently: (1 + 1 + 1 + 0) / 4 against (1 + 0) / 2."""
    ranks = pd.DataFrame({"user": users, "item": list("abcd"), "rank": [1, 1, 1, 9]})
    test = {"hit@1": 0.75 if users[0] == users[1] else 0.5}
    cell = {"dataset": "D", "label": "SASRec", "model": "SASRec", "seed": 1, "status": "done", "counts": {}}
    nowhere = {"model": "SASRec", "dataset": "no-such"}
    found = analyse([Collected({**cell, "test": test}, settings=nowhere, ranks=ranks)], show=["hit@1"])
    (note,) = [note for note in found["notes"] if "by group" not in note]
    assert told in note
    assert found["intervals"][0]["mean"] == (0.5 if users[0] == users[1] else 0.75)
