"""Ranks and the metrics that follow from them, against plain numpy and RecBole's own evaluator."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.evaluator import Evaluator, metrics
from small_data import HISTORIES, build_parts, write_dataset

from recbole_llm.errors import DataError, TrainingError
from recbole_llm.evaluation.counting import target_ranks
from recbole_llm.evaluation.ranks import RankCollector, gain_of_rank, mean_reciprocal_rank
from recbole_llm.runs.ranks import read_ranks, write_ranks

TOPK = [1, 3, 5]


def rank_by_loop(scores, target):
    """How many candidates score at least as much as the target."""
    return sum(1 for score in scores if score >= scores[target])


@pytest.fixture
def parts(workdir):
    histories = {user: items[:6] for user, items in HISTORIES.items()}  # nobody knows all items
    write_dataset(workdir, histories)
    return build_parts(workdir, model="Pop", topk=TOPK, metrics=["Recall", "NDCG", "Hit", "MRR"], valid_metric="NDCG@3")


def random_scores(users, items, seed=0):
    scores = torch.randn(users, items, generator=torch.Generator().manual_seed(seed))
    scores[:, 0] = -torch.inf
    return scores


def test_rank_counts_those_in_front_and_ties_against_the_target():
    inf = torch.inf
    scores = torch.tensor([[-inf, 3.0, 1.0, 2.0], [-inf, 2.0, 2.0, 2.0], [-inf, 0.0, 5.0, 5.0]])
    rows = torch.tensor([0, 0, 0, 1, 2, 2])
    targets = torch.tensor([1, 2, 3, 2, 3, 1])
    assert target_ranks(scores, rows, targets).tolist() == [1, 3, 2, 3, 2, 3]


def test_masked_target_is_last():
    scores = torch.tensor([[-torch.inf, 3.0, -torch.inf, 2.0]])
    assert target_ranks(scores, torch.tensor([0]), torch.tensor([2])).item() >= 3


@pytest.mark.parametrize("metrics", [["Hit", "NDCG"], ["Hit", "NDCG", "GAUC"]])  # by our way and by RecBole's
def test_what_is_not_ranked_is_no_hit(workdir, metrics):
    """A model that ranks some items alone gives the others -inf: they fill a short list, in any order."""
    write_dataset(workdir, {user: items[:6] for user, items in HISTORIES.items()})
    parts = build_parts(workdir, model="Pop", topk=[5], metrics=metrics, valid_metric="NDCG@5")
    scores = torch.full((6, 8), -torch.inf)
    scores[:, 3], scores[:, 5] = 2.0, 1.0
    targets = torch.tensor([1, 2, 3, 4, 5, 6])
    collector = RankCollector(parts.config)
    rows = Interaction({"user_id": torch.arange(6) + 1})
    collector.eval_batch_collect(scores, rows, torch.arange(6), targets)
    found = Evaluator(parts.config).evaluate(collector.get_data_struct())
    assert found["hit@5"] == pytest.approx(2 / 6, abs=1e-4)
    assert found["ndcg@5"] == pytest.approx((1 + 1 / np.log2(3)) / 6, abs=1e-4)
    assert [rank > 5 for rank in collector.collected()[2]] == [True, True, False, True, False, True]


@pytest.mark.parametrize("place", [(0, 1), (2, 3)])
def test_scores_that_are_not_numbers_are_an_error(place):
    scores = random_scores(3, 5)
    scores[place] = torch.nan
    with pytest.raises(TrainingError, match="not numbers"):
        target_ranks(scores, torch.arange(3), torch.ones(3, dtype=torch.long))


def test_metrics_equal_plain_numpy_and_recboles_own(parts):
    users, items = 200, 40
    scores = random_scores(users, items)
    targets = torch.randint(1, items, (users,), generator=torch.Generator().manual_seed(1))
    collector = RankCollector(parts.config)
    for start in range(0, users, 64):  # in batches, as in evaluation
        rows = scores[start : start + 64]
        interaction = Interaction({"user_id": torch.arange(start, start + len(rows)) + 1})
        collector.eval_batch_collect(rows.clone(), interaction, torch.arange(len(rows)), targets[start : start + 64])
    found = Evaluator(parts.config).evaluate(collector.get_data_struct())
    of_users, of_items, ranks = collector.collected()
    assert of_users.tolist() == list(range(1, users + 1))
    assert of_items.tolist() == targets.tolist()
    by_loop = np.array([rank_by_loop(row, target) for row, target in zip(scores.numpy(), targets.numpy(), strict=True)])
    assert ranks.tolist() == by_loop.tolist()
    for k in TOPK:
        inside = by_loop <= k
        expected = {
            "recall": inside.mean(),
            "hit": inside.mean(),
            "ndcg": np.where(inside, 1 / np.log2(by_loop + 1), 0).mean(),
            "mrr": np.where(inside, 1 / by_loop, 0).mean(),
        }
        for name, value in expected.items():
            assert found[f"{name}@{k}"] == pytest.approx(value, abs=1e-4), f"{name}@{k}"  # RecBole rounds to 4 digits
    assert mean_reciprocal_rank(of_users, ranks) == pytest.approx((1 / by_loop).mean())


def test_mrr_takes_the_best_target_of_a_list():
    assert mean_reciprocal_rank(np.array([7, 7, 9]), np.array([4, 2, 10])) == pytest.approx((1 / 2 + 1 / 10) / 2)


@pytest.mark.parametrize("model", ["SASRec", "Pop"])
def test_mrr_where_users_have_several_targets_is_recboles_with_a_long_cut(workdir, model):
    """A sequential model ranks each target by itself, a general one those of a user in one list: so does `mrr`."""
    write_dataset(workdir, {user: items[:6] for user, items in HISTORIES.items()})
    split = {"split": {"RS": [0.4, 0.2, 0.4]}, "order": "TO", "group_by": "user", "mode": "full"}
    options = {"topk": [8], "metrics": ["MRR"], "valid_metric": "MRR@8", "eval_args": split}
    parts = build_parts(workdir, model=model, **options)
    if model == "Pop":
        parts.model.item_cnt = torch.arange(parts.dataset.item_num)[:, None]  # no ties
        parts.model.max_cnt = parts.model.item_cnt.max()
    trainer = parts.trainer(Path(parts.config["data_path"]))
    trainer.eval_collector.data_collect(parts.train)
    result = trainer.evaluate(parts.test, load_best_model=False)
    users, _, ranks = trainer.eval_collector.collected()
    assert len(set(users.tolist())) < len(users)
    assert ranks.max() <= 8
    assert result["mrr"] == result["mrr@8"]


def test_trainer_adds_mrr_over_the_whole_ranking_and_forgets_the_last_evaluation(parts):
    trainer = parts.trainer(Path(parts.config["data_path"]))
    trainer.eval_collector.data_collect(parts.train)
    parts.model.item_cnt = torch.arange(parts.dataset.item_num)[:, None]  # popularity = the item's id
    parts.model.max_cnt = parts.model.item_cnt.max()
    for _ in range(2):
        result = trainer.evaluate(parts.test, load_best_model=False)
        users, targets, ranks = trainer.eval_collector.collected()
        assert len(users) == len(parts.test.dataset)
        assert ranks.tolist() == (parts.dataset.item_num - targets).tolist()
        assert result["mrr"] == pytest.approx((1 / ranks).mean(), abs=1e-4)


# -- files -------------------------------------------------------------------------------------------------------------


def test_file_of_ranks_round_trip_and_bytes(parts, tmp_path):
    users, targets, ranks = np.array([1, 2, 3]), np.array([2, 3, 1]), np.array([5, 1, 3])
    for name in ("one", "two"):
        write_ranks(tmp_path / f"{name}.tsv.gz", parts.dataset, users, targets, ranks)
    frame = read_ranks(tmp_path / "one.tsv.gz")
    assert frame["user"].tolist() == parts.dataset.id2token("user_id", users).tolist()
    assert frame["item"].tolist() == parts.dataset.id2token("item_id", targets).tolist()
    assert frame["rank"].tolist() == ranks.tolist()
    assert (tmp_path / "one.tsv.gz").read_bytes() == (tmp_path / "two.tsv.gz").read_bytes()
    first, *rest = gzip.decompress((tmp_path / "one.tsv.gz").read_bytes()).decode().splitlines()
    assert first == "user\titem\trank"
    assert rest[0].split("\t") == [str(frame["user"][0]), str(frame["item"][0]), "5"]


def damage(content, how):
    if how == "cut short":
        return content[: len(content) // 2]
    if how == "changed":
        return content[:15] + bytes(byte ^ 0xFF for byte in content[15:25]) + content[25:]
    return {"empty": b"", "text": b"user\titem\trank\n", "other columns": gzip.compress(b"a\tb\n1\t2\n")}.get(
        how, gzip.compress(b"user\titem\trank\nu1\ti1\tmany\n")
    )


@pytest.mark.parametrize("how", ["cut short", "changed", "empty", "text", "other columns", "rank is a word"])
def test_broken_file_of_ranks_is_an_error(parts, tmp_path, how):
    path = tmp_path / "ranks.tsv.gz"
    write_ranks(path, parts.dataset, np.arange(1, 7), np.arange(1, 7), np.arange(1, 7))
    path.write_bytes(damage(path.read_bytes(), how))
    with pytest.raises(DataError, match=r"ranks\.tsv\.gz"):
        read_ranks(path)


def test_missing_file_of_ranks_is_an_error(tmp_path):
    with pytest.raises(DataError, match="none"):
        read_ranks(tmp_path / "none.tsv.gz")


@pytest.mark.parametrize("name", ["Hit", "Recall", "Precision", "NDCG", "MRR", "MAP"])
@pytest.mark.parametrize("cut", [1, 3, 10])
def test_gain_of_a_rank_is_recboles_metric(name, cut):
    ranks = np.arange(1, 15)
    hits = ranks[:, None] == np.arange(1, 11)
    metric = object.__new__(getattr(metrics, name))
    arguments = (hits, np.ones(len(ranks), dtype=int)) if name in ("Recall", "NDCG", "MAP") else (hits,)
    expected = metric.metric_info(*arguments)[:, cut - 1]
    found = gain_of_rank(f"{name}@{cut}")(torch.from_numpy(ranks))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_gain_of_a_rank_over_the_whole_ranking():
    np.testing.assert_allclose(gain_of_rank("MRR")(torch.tensor([1, 4, 100])).numpy(), [1, 0.25, 0.01])


@pytest.mark.parametrize("name", ["GAUC", "ItemCoverage@10", "NDCG", "ndcg@x"])
def test_metrics_that_ranks_do_not_determine(name):
    assert gain_of_rank(name) is None
