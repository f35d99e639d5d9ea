"""Ranks in blocks are those of the whole, by counting in plain Python; and how much of a batch is scored at once."""

import numpy as np
import pytest
import torch
from small_data import build_parts, write_dataset

from recbole_llm.errors import TrainingError
from recbole_llm.evaluation.candidates import CandidateRanking
from recbole_llm.evaluation.counting import hits_of_ranks, leave_out, target_ranks
from recbole_llm.model.id_model import mixed_ranks as mixing
from recbole_llm.model.id_model.mixed_ranks import mixed_ranks

ITEMS = 40
BLOCK = 7 * 5  # bytes of seven float32 scores and seven answers


def scores_with_ties(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 9, (rows, ITEMS), generator=generator).float()
    scores[:, 0] = -torch.inf
    return scores


def by_loop(scores, rows, targets):
    return [
        sum(1 for score in scores[row].tolist() if score >= scores[row, target])
        for row, target in zip(rows.tolist(), targets.tolist(), strict=True)
    ]


@pytest.mark.parametrize("piece", [1, BLOCK, 3 * 5 * ITEMS, 2**20])
@pytest.mark.parametrize("several", [False, True])
def test_blocks_of_items_and_users_give_the_ranks_of_the_whole(piece, several):
    scores = scores_with_ties(11, seed=1)
    rows = torch.tensor([0, 0, 3, 3, 3, 10]) if several else torch.arange(11)
    targets = torch.randint(1, ITEMS, (len(rows),), generator=torch.Generator().manual_seed(2))
    before = scores.clone()
    assert target_ranks(scores, rows, targets, piece).tolist() == by_loop(scores, rows, targets)
    assert torch.equal(scores, before)


@pytest.mark.parametrize("way", ["_where_tables_disagree", "_of_all_items"])  # on a CPU, on a GPU
@pytest.mark.parametrize("piece", [1, 100 * ITEMS * 2, 2**20])
def test_every_weight_ranks_as_the_mixed_table_does(monkeypatch, piece, way):
    """Candidates alone are in the ranking; the other table is not looked at where there are none."""
    monkeypatch.setattr(mixing, "_of_piece", getattr(mixing, way))
    generator = torch.Generator().manual_seed(4)
    own, other = (torch.randn(9, ITEMS, generator=generator).round(decimals=1) for _ in range(2))
    own[:, [0, 5, 6]] = -torch.inf
    other[:, 0] = -torch.inf
    other[:, 5] = 99.0
    rows = torch.tensor([0, 1, 1, 4, 8])
    targets = torch.tensor([3, 7, 12, 39, 1])
    weights = torch.linspace(0, 1, 21)
    found = mixed_ranks(own, other, rows, targets, weights, piece)
    assert found.shape == (21, 5)
    for number, weight in enumerate(weights):
        mixed = torch.lerp(own, other, weight)
        mixed[:, [0, 5, 6]] = -torch.inf
        assert found[number].tolist() == by_loop(mixed, rows, targets)
    assert len({tuple(ranks) for ranks in found.tolist()}) > 3  # the weight matters


def test_no_weight_makes_the_host_wait_for_a_gpu(monkeypatch):
    """What a mix of all items asks of the device depends on their number alone, not on what the tables hold."""
    monkeypatch.setattr(mixing, "_of_piece", mixing._of_all_items)
    own, other = torch.randn(2, 9, ITEMS, generator=torch.Generator().manual_seed(4))
    with torch.profiler.profile() as profile:
        mixed_ranks(own, other, torch.arange(9), torch.arange(1, 10), torch.linspace(0, 1, 21))
    asked = [event.key for event in profile.key_averages() for _ in range(event.count)]
    assert "aten::nonzero" not in asked and "aten::bincount" not in asked
    assert asked.count("aten::_local_scalar_dense") <= 2  # whether the scores of each table are numbers, once


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_mixes_all_items_and_nobody_waits_for_it():
    own, other = torch.randn(2, 9, ITEMS, device="cuda", generator=torch.Generator("cuda").manual_seed(4))
    targets, weights = torch.arange(1, 10, device="cuda"), torch.linspace(0, 1, 21, device="cuda")
    rows = torch.arange(9, device="cuda")
    given = (own, other, own[rows, targets], other[rows, targets])
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = mixing._of_piece(*given, weights)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found.cpu(), mixing._of_piece(*(each.cpu() for each in given), weights.cpu()))


def test_what_is_left_out_is_out_and_targets_stay():
    scores = scores_with_ties(3, seed=3)
    before = scores.clone()
    keys = torch.tensor([4, 9, ITEMS + 4, 2 * ITEMS + 1])
    leave_out(scores, keys, torch.tensor([0, 1]), torch.tensor([9, 8]))
    expected = before.clone()
    expected[0, 4] = expected[1, 4] = expected[2, 1] = -torch.inf
    assert torch.equal(scores, expected)


def test_scores_that_are_not_numbers_are_an_error():
    scores = scores_with_ties(3, seed=3)
    scores[2, 1] = torch.nan
    with pytest.raises(TrainingError, match="not numbers"):
        mixed_ranks(scores_with_ties(3, 0), scores, torch.arange(3), torch.ones(3, dtype=torch.long), torch.ones(1))


@pytest.mark.parametrize(
    ("model", "own", "rows_of_a_mebibyte"),
    [
        ("FPMC", {"embedding_size": 8, "MAX_ITEM_LIST_LENGTH": 5}, 39),
        ("BPR", {"embedding_size": 8}, 39),
        ("SASRec", {"hidden_size": 8, "inner_size": 8, "MAX_ITEM_LIST_LENGTH": 5}, 128),
    ],
)
def test_a_batch_is_no_larger_than_its_memory(workdir, model, own, rows_of_a_mebibyte):
    """More items than fit: 40 rows of 4 numbers of 4 bytes for each of 1,639 items are 1 MiB.

    SASRec scores some items at a time: 128 rows of 512 items are as much. So are its drawn candidates.
    """
    histories = {f"u{n}": [f"i{(n * 17 + place) % 1638}" for place in range(30)] for n in range(60)}
    histories |= {"first": [f"i{place}" for place in range(900)], "last": [f"i{place}" for place in range(900, 1638)]}
    write_dataset(workdir, histories, titles=None)
    steps, ranks, metrics, hits = {}, {}, {}, {}
    for memory in (1, 4096):
        sizes = {"train_batch_size": 2048, "eval_batch_size": 100 * 1639}
        parts = build_parts(
            workdir, model=model, eval_memory=memory, metrics=["NDCG", "Hit", "ItemCoverage"], **sizes, **own
        )
        steps[memory] = parts.test.step
        trainer = parts.trainer()
        trainer.eval_collector.data_collect(parts.train)
        if model == "SASRec":
            earlier = [parts.train._dataset, parts.valid._dataset]
            trainer.eval_collector.candidates = CandidateRanking(parts.test._dataset, earlier, 6, 2)
        rows = []
        collect = trainer.eval_collector.eval_batch_collect
        trainer.eval_collector.eval_batch_collect = lambda scores, *rest, into=rows, to=collect: (
            into.append(len(scores)),
            to(scores, *rest),
        )
        metrics[memory] = trainer.evaluate(parts.test, load_best_model=False)
        assert parts.test.in_blocks == (model == "SASRec" and memory == 1)
        assert max(rows) <= steps[memory]
        ranks[memory] = trainer.eval_collector.collected()
        if model == "SASRec":
            hits[memory] = trainer.eval_collector.candidates._hits.tolist()
    assert steps[1] == rows_of_a_mebibyte and steps[4096] >= 61
    assert metrics[1] == metrics[4096]
    assert hits.get(1) == hits.get(4096) != [0, 0]
    for found, expected in zip(ranks[1], ranks[4096], strict=True):
        assert np.array_equal(found, expected)


def test_a_general_model_ranks_as_many_users_at_once_as_asked(workdir):
    """RecBole asks for pairs of user and item: with more items than eval_batch_size one user at a time."""
    write_dataset(
        workdir, {f"u{n}": [f"i{(n * 5 + place) % 40}" for place in range(8)] for n in range(20)}, titles=None
    )
    found = {}
    for size in (1, 6):
        parts = build_parts(workdir, model="BPR", embedding_size=8, train_batch_size=64, eval_batch_size=size)
        trainer = parts.trainer()
        trainer.eval_collector.data_collect(parts.train)
        users = [len(batch) for batch, *_ in parts.test]
        assert users == [size] * (20 // size) + [20 % size] * (size == 6)
        metrics = trainer.evaluate(parts.test, load_best_model=False)
        found[size] = (metrics, [ranks.tolist() for ranks in trainer.eval_collector.collected()])
    assert found[1] == found[6]


def test_ties_count_against_targets_in_the_table_of_hits():
    """Against a plain walk: what is not a target stands before a target of the same score."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 5, (40, 30), generator=generator).float()  # many ties
    rows = torch.randint(0, 40, (90,), generator=generator)
    targets = torch.randint(1, 30, (90,), generator=generator)
    found = hits_of_ranks(rows, targets, target_ranks(scores, rows, targets), 40, 10)
    for line in range(40):
        own = set(targets[rows == line].tolist())
        order = sorted(range(30), key=lambda item: (-scores[line, item].item(), item in own))
        assert found[line].tolist() == [int(item in own) for item in order[:10]] + [len(own)]
