"""The metrics of the recommended items against plain formulas on the lists that the models give."""

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from atomic_files import quick_settings, write_atomic_files
from recbole.evaluator.collector import DataStruct
from recbole.evaluator.register import metrics_dict

from recbole_llm.config.config import Config
from recbole_llm.data.popularity import item_occurrences
from recbole_llm.quick_start.run import build, load, run

METRICS = ["ItemCoverage", "AveragePopularity", "GiniIndex", "ShannonEntropy", "TailPercentage"]
TRIPLES = {
    "inter": ["user_id", "item_id", "timestamp"],
    "kg": ["head_id", "relation_id", "tail_id"],
    "link": ["item_id", "entity_id"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_atomic_files(tmp_path_factory.mktemp("data") / "tiny", users=30, items=40)


def plain(lists, counts, k, tail_ratio=0.1):
    """All five metrics by their definitions; `counts` maps every item of the catalogue to its training interactions."""
    lists = [items[:k] for items in lists]
    shown = Counter(item for items in lists for item in items)
    n, total = len(counts), sum(shown.values())
    ascending = sorted(shown[item] for item in counts)
    rarest = sorted(counts, key=lambda item: (counts[item], item))
    if tail_ratio > 1:
        tail = {item for item in counts if counts[item] <= tail_ratio}
    else:
        tail = set(rarest[: max(int(tail_ratio * n), 1)])
    return {
        "itemcoverage": len(shown) / n,
        "averagepopularity": np.mean([np.mean([counts[i] for i in items]) for items in lists]),
        # the mean difference of all pairs over twice the mean: the Gini index without ranks
        "giniindex": sum(abs(a - b) for a in ascending for b in ascending) / (2 * n * total),
        "shannonentropy": -sum(c / total * np.log(c / total) for c in shown.values()),
        "tailpercentage": np.mean([np.mean([i in tail for i in items]) for items in lists]),
    }


def measured(lists, counts, topk, tail_ratio=None):
    """The same from RecBole's classes; lists are int64 [lists, k], 0 where there is no more."""
    struct = DataStruct()
    struct.set("rec.items", torch.as_tensor(lists))
    struct.set("data.num_items", len(counts))
    struct.set("data.count_items", counts)
    config = {"topk": topk, "metric_decimal_place": 10, "tail_ratio": tail_ratio}
    found = {}
    for name in METRICS:
        found.update(metrics_dict[name.lower()](config).calculate_metric(struct))
    return found


def test_all_items_recommended_equally_often():
    lists = np.arange(1, 41).reshape(4, 10)  # 40 of 40
    found = measured(lists, dict.fromkeys(range(1, 41), 3), [10])
    expected = {"itemcoverage": 1.0, "giniindex": 0.0, "shannonentropy": np.log(40), "averagepopularity": 3.0}
    for name, value in expected.items():
        assert found[f"{name}@10"] == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("tail_ratio", [None, 0.3, 1, 5])
@pytest.mark.parametrize("shape", ["one item", "few", "many", "short lists"])
def test_metrics_are_their_definitions(shape, tail_ratio):
    random = np.random.default_rng(len(shape))
    n, k = 23, 6
    counts = {item: int(random.integers(0, 9)) for item in range(1, n + 1)}
    lists = [random.permutation(n if shape != "few" else k + 1)[:k] + 1 for _ in range(9)]
    if shape == "one item":
        lists = [[7]] * 9
    if shape == "short lists":
        lists = [items[: 1 + row % k] for row, items in enumerate(lists)]
    padded = np.array([np.pad(items, (0, k - len(items))) for items in lists])
    found = measured(padded, counts, [1, 3, 6], tail_ratio)
    for cut in (1, 3, 6):
        for name, value in plain(lists, counts, cut, tail_ratio or 0.1).items():
            assert found[f"{name}@{cut}"] == pytest.approx(value, abs=1e-9), (name, cut)


def settings_of(data, model, **settings):
    if model in ("CFKG", "CKE"):
        settings = {"load_col": TRIPLES, **settings}
    return quick_settings(data, model=model, **settings)


def counts_of_file(data):
    """How often each item stands in the file but for each user's last two interactions, by token."""
    rows = pd.read_csv(data / f"{data.name}.inter", sep="\t").sort_values("timestamp:float", kind="stable")
    rows["left"] = rows.groupby("user_id:token").cumcount(ascending=False)
    return Counter(rows.loc[rows["left"] >= 2, "item_id:token"])


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("Pop", {}),
        ("MultiVAE", {"train_neg_sample_args": None}),
        ("CFKG", {}),
        ("SASRec", {}),
        ("SASRec", {"device_table": False}),
        ("SASRec", {"MAX_ITEM_LIST_LENGTH": 3}),
        ("SASRec", {"MAX_ITEM_LIST_LENGTH": 3, "device_table": False}),
        ("DIN", {}),
        ("MLP4Rec", {}),
    ],
)
def test_popularity_counts_each_training_interaction_once(model, settings, data, workdir):
    part = build(Config(config_dict=settings_of(data, model, **settings))).train._dataset
    tokens = part.field2id_token["item_id"]
    found = {tokens[item]: count for item, count in enumerate(item_occurrences(part)) if count}
    assert found == counts_of_file(data)


@pytest.mark.parametrize("model", ["Pop", "BPR", "SASRec", "CKE"])
def test_a_run_reports_them(model, data, workdir):
    settings = settings_of(
        data, model, metrics=["NDCG", *METRICS], topk=[1, 10], metric_decimal_place=9, repeatable=True
    )
    result = run(model, settings=settings)
    parts = load(result["path"])
    tokens = parts.dataset.field2id_token["item_id"]
    lists = []
    for interaction, *_ in parts.test:
        scores = parts.model.full_sort_predict(interaction).view(len(interaction), -1).detach().double()
        scores[:, 0] = -torch.inf
        lists += scores.topk(10).indices.tolist()
    counts = {item: counts_of_file(data)[tokens[item]] for item in range(1, len(tokens))}
    for cut in (1, 10):
        for name, value in plain([items[:cut] for items in lists], counts, cut).items():
            assert result["test"][f"{name}@{cut}"] == pytest.approx(value, abs=1e-7), (name, cut)


def test_masked_items_are_not_recommended(data, workdir):
    """With almost as many places as items, each user's masked ones fill the end of the list."""
    config = settings_of(data, "Pop", metrics=["NDCG", *METRICS], topk=[30], valid_metric="mrr", repeatable=False)
    result = run("Pop", settings=config)
    parts = load(result["path"])
    counts = counts_of_file(data)
    catalogue = {str(token) for token in parts.dataset.field2id_token["item_id"][1:]}
    rows = pd.read_csv(data / "tiny.inter", sep="\t").sort_values("timestamp:float", kind="stable")
    shares = []
    for _, own in rows.groupby("user_id:token"):
        candidates = catalogue - set(own["item_id:token"][:-1])
        ranked = sorted(candidates, key=lambda token: -counts[token])[:30]
        shares.append(np.mean([counts[token] for token in ranked]))
    assert result["test"]["averagepopularity@30"] == pytest.approx(np.mean(shares), abs=1e-3)
