"""Metrics by group against a plain computation from the files themselves."""

import math
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from atomic_files import quick_settings, write_atomic_files
from small_data import HISTORIES, TITLES, small_settings, write_dataset

from recbole_llm.comparison.groups import group_metrics, popularity_groups, quartile_groups, read_facts, target_groups
from recbole_llm.comparison.significance import bootstrap_intervals
from recbole_llm.errors import DataError
from recbole_llm.quick_start.run import run
from recbole_llm.runs.ranks import read_ranks


def test_popularity_by_hand():
    counts = np.array([10, 0, 30, 3, 15, 10, 4, 5, 8, 5, 10])
    names = np.array(["head", "middle", "tail", "never"])[popularity_groups(counts)]
    found = dict(zip(counts.tolist(), names.tolist(), strict=True))
    # above 30: 0. above 15: 30 %. below 8: 5 + 5 + 4 + 3 = 17 %. below 10: 25 %
    assert found == {
        30: "head", 15: "middle", 10: "middle", 8: "tail", 5: "tail", 4: "tail", 3: "tail", 0: "never",
    }  # fmt: skip


def test_equal_popularity_is_one_group():
    assert popularity_groups(np.array([4, 4, 4, 0])).tolist() == [1, 1, 1, 3]
    assert popularity_groups(np.zeros(3, dtype=int)).tolist() == [3, 3, 3]
    # the two most popular share the place above which nothing is; 10 is exactly the last fifth: not less than it
    assert popularity_groups(np.array([40, 40, 10, 10])).tolist() == [0, 0, 2, 2]


def plain_popularity(counts):
    total = sum(counts)
    names = []
    for own in counts:
        more = sum(c for c in counts if c > own) < 0.2 * total
        less = sum(c for c in counts if c < own) < 0.2 * total
        names.append(3 if own == 0 else 0 if more and not less else 2 if less and not more else 1)
    return names


def test_popularity_equals_a_plain_computation():
    rng = np.random.default_rng(0)
    for most in (3, 30, 3000):
        counts = (rng.pareto(1.2, size=200) * 3).astype(int).clip(0, most)
        assert popularity_groups(counts).tolist() == plain_popularity(counts.tolist())


def test_quartiles_are_named_by_what_they_hold():
    group, names = quartile_groups(np.array([3, 3, 4, 9, 5, 6, 7, 20]))
    assert names == ["3", "4-5", "6-7", "9-20"]
    assert group.tolist() == [0, 0, 1, 3, 1, 2, 2, 3]
    group, names = quartile_groups(np.array([2, 2, 2]))
    assert (names, group.tolist()) == (["2"], [0, 0, 0])
    group, names = quartile_groups(np.array([1, 1, 1, 1, 8]))
    assert (names, group.tolist()) == (["1", "8"], [0, 0, 0, 0, 1])


@pytest.mark.parametrize("model", ["SASRec", "Pop"])
def test_facts_are_those_of_the_files(workdir, model):
    """Popularity counts what is neither a validation nor a test target, first interactions of histories included."""
    histories = {user: history for user, history in HISTORIES.items() if len(history) > 3}
    write_dataset(workdir, histories, {**TITLES, "h": "Light &amp;  more light"})
    facts = read_facts(small_settings(workdir, model=model))
    trained = Counter(item for history in histories.values() for item in history[:-2])
    assert facts.popularity.to_dict() == {item: trained[item] for item in TITLES}
    assert facts.history_length.to_dict() == {user: len(history) - 1 for user, history in histories.items()}
    assert facts.text_length.to_dict() == {**{item: len(text.split()) for item, text in TITLES.items()}, "h": 4}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two runs of SASRec on a random dataset, and its files."""
    root = tmp_path_factory.mktemp("groups")
    folder = write_atomic_files(root / "random")
    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for seed in (1, 2):
            settings = quick_settings(folder, item_text_fields=["title", "class"], load_col=None, seed=seed)
            results.append(run("SASRec", settings={**settings, "n_layers": 1, "hidden_size": 16}))
    return folder, [root / result["path"] for result in results], results[0]["settings"]


def test_group_metrics_equal_a_plain_computation(finished):
    folder, paths, settings = finished
    runs = [read_ranks(path.parent / "ranks-test.tsv.gz") for path in paths]
    facts = read_facts({**settings, "data_path": str(folder.parent)})
    entries = group_metrics(facts, {"both": runs, "first": runs[:1]}, ["ndcg@10", "mrr"], draws=50, seed=3)
    first = group_metrics(facts, {"first": runs[:1]}, ["ndcg@10", "mrr"], draws=50, seed=3)
    beside = [entry for entry in entries if entry["label"] == "first"]
    for one, other in zip(beside, first, strict=True):  # a model's intervals do not depend on who stands beside it
        assert one["targets"] == other["targets"]
        for metric in ("ndcg@10", "mrr"):
            assert one["metrics"][metric] == pytest.approx(other["metrics"][metric], abs=1e-14)
    entries = [entry for entry in entries if entry["label"] == "both"]

    inter = pd.read_csv(folder / f"{folder.name}.inter", sep="\t").sort_values("timestamp:float", kind="stable")
    histories = {user: rows["item_id:token"].tolist() for user, rows in inter.groupby("user_id:token")}
    trained = Counter(item for history in histories.values() for item in history[:-2])
    item = pd.read_csv(folder / f"{folder.name}.item", sep="\t").set_index("item_id:token")
    words = {i: len(f"{row['title:token_seq']} {row['class:token_seq']}".split()) for i, row in item.iterrows()}
    catalogue = sorted({i for history in histories.values() for i in history})
    place = dict(zip(catalogue, plain_popularity([trained[i] for i in catalogue]), strict=True))
    names = ["head", "middle", "tail", "never"]
    users = sorted(histories)
    ranks = [dict(zip(r["user"], r["rank"], strict=True)) for r in runs]
    value = {
        user: {
            "ndcg@10": sum(1 / math.log2(r[user] + 1) if r[user] <= 10 else 0.0 for r in ranks) / 2,
            "mrr": sum(1 / r[user] for r in ranks) / 2,
        }
        for user in users
    }
    groups = {
        "popularity": {u: names[place[histories[u][-1]]] for u in users},
        "history_length": {u: len(histories[u]) - 1 for u in users},
        "text_length": {u: words[histories[u][-1]] for u in users},
    }
    seen = dict.fromkeys(groups, 0)
    for entry in entries:
        by, name = entry["by"], entry["group"]
        if by == "popularity":
            inside = [u for u in users if groups[by][u] == name]
            assert entry["order"] == names.index(name)
        else:
            least, _, most = name.partition("-")
            inside = [u for u in users if int(least) <= groups[by][u] <= int(most or least)]
        assert entry["targets"] == len(inside) > 0
        seen[by] += len(inside)
        for metric, found in entry["metrics"].items():
            values = np.array([value[u][metric] for u in inside])
            assert found["mean"] == pytest.approx(math.fsum(values) / len(values), abs=1e-12)
            draw = np.random.default_rng(3)
            means = [values[draw.integers(0, len(values), size=len(values))].mean() for _ in range(50)]
            expected = np.percentile(means, [2.5, 97.5])
            np.testing.assert_allclose([found["low"], found["high"]], expected, atol=1e-12)
    assert seen == dict.fromkeys(groups, len(users))
    assert len({e["group"] for e in entries if e["by"] == "popularity"}) >= 3


def test_several_targets_of_a_user_are_drawn_together():
    from recbole_llm.comparison.groups import Facts

    facts = Facts(pd.Series({"x": 5, "y": 5}), pd.Series({"a": 2, "b": 2, "c": 2}), None)
    ranks = pd.DataFrame({"user": list("aabc"), "item": list("xyxy"), "rank": [1, 2, 4, 5]})
    entries = group_metrics(facts, {"model": [ranks]}, ["mrr"], draws=100, seed=0)
    assert {entry["by"] for entry in entries} == {"popularity", "history_length"}
    low, high = bootstrap_intervals(np.array([[1.5], [0.25], [0.2]]), np.array([2, 1, 1]), draws=100, seed=0)
    for entry in entries:
        assert entry["targets"] == 4
        mean, bounds = (1 + 0.5 + 0.25 + 0.2) / 4, entry["metrics"]["mrr"]
        assert (bounds["mean"], bounds["low"], bounds["high"]) == pytest.approx((mean, low[0], high[0]))


def test_ranks_of_other_data_are_refused(small):
    facts = read_facts(small_settings(small))
    ranks = pd.DataFrame({"user": ["u1", "u2"], "item": ["a", "no such item"], "rank": [1, 2]})
    with pytest.raises(DataError, match="the item 'no such item' that was tested is not in the data here"):
        target_groups(facts, ranks)
    with pytest.raises(DataError, match="the user 'nobody'"):
        target_groups(facts, ranks.assign(item="a", user=["u1", "nobody"]))
    with pytest.raises(DataError, match="different targets"):
        group_metrics(facts, {"a": [ranks.assign(item="a")], "b": [ranks.assign(item="b")]}, ["mrr"])


def test_items_without_a_text_file_have_no_groups_by_text(workdir):
    write_dataset(workdir, titles=None)
    assert read_facts(small_settings(workdir, model="SASRec")).text_length is None
