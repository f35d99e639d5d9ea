"""Drawn candidates: who may be drawn, how often, and the hits that follow, against plain loops."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from atomic_files import quick_settings, write_atomic_files
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import small_settings

from recbole_llm.config.config import Config
from recbole_llm.errors import DataError, SettingError, TrainingError
from recbole_llm.evaluation.candidates import CandidateRanking, draw_candidates, excluded_items
from recbole_llm.packing.ragged import RaggedTable
from recbole_llm.quick_start.run import build, load, run
from recbole_llm.runs.table import result_table


@st.composite
def exclusions(draw):
    items = draw(st.integers(6, 40))
    rows = draw(st.lists(st.sets(st.integers(1, items - 1), max_size=items - 5), min_size=1, max_size=6))
    return items, [sorted({0} | row) for row in rows]


@settings(max_examples=100)
@given(exclusions(), st.integers(0, 5))
def test_drawn_items_are_allowed_and_different(case, seed):
    items, rows = case
    table = RaggedTable.from_rows(rows)
    drawn = draw_candidates(table, items, 3, seed)
    assert drawn.shape == (len(rows), 3)
    for row, found in zip(rows, drawn, strict=True):
        assert len(set(found)) == 3
        assert not set(found) & set(row)
        assert ((found > 0) & (found < items)).all()
    assert np.array_equal(drawn, draw_candidates(table, items, 3, seed))
    everything = min(items - len(row) for row in rows)
    if len({len(row) for row in rows}) == 1:  # all that is left is drawn where it must be
        for row, found in zip(rows, draw_candidates(table, items, everything, seed), strict=True):
            assert sorted(found) == sorted(set(range(items)) - set(row))


def test_every_set_is_drawn_equally_often():
    rows = RaggedTable.from_rows([[0, 2, 5]] * 30_000)
    drawn = np.sort(draw_candidates(rows, 8, 2, seed=1), axis=1)
    pairs, counts = np.unique(drawn, axis=0, return_counts=True)
    assert {tuple(pair) for pair in pairs} == {(a, b) for a in (1, 3, 4, 6, 7) for b in (1, 3, 4, 6, 7) if a < b}
    assert abs(counts - 3000).max() < 5 * np.sqrt(3000)  # ten pairs


def test_seeds_differ():
    rows = RaggedTable.from_rows([[0]] * 50)
    assert not np.array_equal(draw_candidates(rows, 1000, 19, 0), draw_candidates(rows, 1000, 19, 1))


def test_too_small_a_catalogue_is_an_error():
    with pytest.raises(DataError, match="has 3 items outside its history where 4 are to be drawn"):
        draw_candidates(RaggedTable.from_rows([[0], [0, 1, 2]]), 6, 4, 0)


def candidate_settings(folder, **changes):
    return quick_settings(folder, **{"model": "GRU4Rec", "candidates": 6, "candidate_seeds": 3, **changes})


def test_excluded_are_padding_target_and_the_whole_history(workdir):
    folder = write_atomic_files(workdir / "tiny")
    parts = build(Config(config_dict=candidate_settings(folder, MAX_ITEM_LIST_LENGTH=3)))
    train, test = parts.train._dataset, parts.test._dataset
    excluded = excluded_items(test, [train, parts.valid._dataset])
    lines = [line.split("\t") for line in (folder / "tiny.inter").read_text().splitlines()[1:]]
    for row, user in enumerate(test.id2token("user_id", test.inter_feat["user_id"])):
        met = {line[1] for line in lines if line[0] == user}  # all of it: the test target is the last
        assert met | {"[PAD]"} == set(test.id2token("item_id", excluded.row(row)))
        assert (np.diff(excluded.row(row)) > 0).all()
    own = excluded_items(test, [])  # a row's own history is whole, too, though the model reads three items of it
    assert np.array_equal(own.values, excluded.values) and own.lengths.max() > 5


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_hits_are_those_of_a_loop(workdir, batch):
    folder = write_atomic_files(workdir / "tiny")
    parts = build(Config(config_dict=candidate_settings(folder)))
    part = parts.test._dataset
    ranking = CandidateRanking(part, [parts.train._dataset], 6, 3)
    targets = part.inter_feat["item_id"]
    # few different scores, so that there are ties
    scores = torch.randint(0, 5, (len(part), part.item_num), generator=torch.Generator().manual_seed(1)).float()
    scores[:, 0] = torch.inf  # never a candidate
    for _ in range(2):  # a second evaluation begins again
        ranking.clear()
        for start in range(0, len(part), batch):
            ranking.collect(scores[start : start + batch], targets[start : start + batch])
        found = ranking.hit_ratio()
    excluded = excluded_items(part, [parts.train._dataset])
    ratios = []
    for seed in range(3):
        others = draw_candidates(excluded, part.item_num, 5, seed)
        hits = [
            all(scores[row, other] < scores[row, targets[row]] for other in others[row]) for row in range(len(part))
        ]
        ratios.append(np.mean(hits))
    assert found == {"mean": round(np.mean(ratios), 4), "std": round(np.std(ratios, ddof=1), 4)}
    assert 0 < found["mean"] < 1


def test_scores_that_are_not_numbers_are_an_error(workdir):
    folder = write_atomic_files(workdir / "tiny", users=10)
    parts = build(Config(config_dict=candidate_settings(folder)))
    part = parts.test._dataset
    ranking = CandidateRanking(part, [], 6, 1)
    scores = torch.full((len(part), part.item_num), torch.nan)
    with pytest.raises(TrainingError, match="not numbers"):
        ranking.collect(scores, part.inter_feat["item_id"])


@pytest.mark.parametrize("model", ["GRU4Rec", "Caser", "SASRec"])
def test_a_run_of_recboles_models(workdir, model):
    folder = write_atomic_files(workdir / "tiny")
    found = run(settings=candidate_settings(folder, model=model, eval_batch_size=17))
    stored = json.loads(Path(found["path"]).read_text())["candidates"]
    assert stored == found["candidates"]
    assert f"hit@1 among 6 candidates: {stored['hit@1']['mean']:.4f} +- " in result_table(found)
    assert stored["size"] == 6 and stored["seeds"] == 3
    for name in ("hit@1", "valid_hit@1"):
        assert 0 <= stored[name]["mean"] <= 1 and stored[name]["std"] >= 0
    # The same from the stored weights, in other batches.
    parts = load(found["path"])
    part = parts.test._dataset
    ranking = CandidateRanking(part, [parts.train._dataset, parts.valid._dataset], 6, 3)
    with torch.no_grad():
        rows = part[torch.arange(len(part))]
        ranking.collect(parts.model.full_sort_predict(rows).view(len(part), -1), rows["item_id"])
    assert ranking.hit_ratio() == stored["hit@1"]


def test_all_models_meet_the_same_candidates(workdir, tiny):
    folder = write_atomic_files(workdir / "tiny")
    drawn = []
    for model, own in (("GRU4Rec", {}), ("ST2SI", {"backbone": str(tiny["llama"]), "max_sequence_tokens": 100})):
        parts = build(Config(config_dict=candidate_settings(folder, model=model, **own)))
        ranking = CandidateRanking(parts.test._dataset, [parts.train._dataset], 6, 2)
        drawn.append(parts.test._dataset.id2token("item_id", ranking._others.numpy()))
    assert np.array_equal(*drawn)


def test_a_run_of_st2si(workdir, tiny):
    folder = write_atomic_files(workdir / "tiny", users=20)
    found = run(
        settings=small_settings(
            workdir, dataset=folder.name, backbone=str(tiny["llama"]), tuning="ilp", epochs=1, candidates=5,
            candidate_seeds=1, MAX_ITEM_LIST_LENGTH=5,
        )
    )  # fmt: skip
    assert found["candidates"]["hit@1"]["std"] == 0


@pytest.mark.parametrize("mode", ["uni19", "pop19"])
def test_recboles_sampled_modes_work_with_st2si(workdir, tiny, mode):
    folder = write_atomic_files(workdir / "tiny", users=20)
    protocol = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": mode}
    settings = small_settings(
        workdir, dataset=folder.name, backbone=str(tiny["llama"]), tuning="ilp", epochs=1, eval_args=protocol,
        MAX_ITEM_LIST_LENGTH=5, topk=[20],
    )  # fmt: skip
    settings["valid_metric"] = "NDCG@20"
    result = run(settings=settings)
    assert result["test"]["hit@20"] == 1.0, "twenty candidates, the target among them"
    assert "candidates" not in result
    with pytest.raises(SettingError, match=f"set the mode of eval_args to full, not {mode}"):
        Config(config_dict={**settings, "candidates": 5})


def test_wrong_settings(workdir):
    folder = write_atomic_files(workdir / "tiny", users=20)
    with pytest.raises(SettingError, match="candidates=1 must be a whole number from 2"):
        Config(config_dict=candidate_settings(folder, candidates=1))
    with pytest.raises(SettingError, match="candidate_seeds=0 must be"):
        Config(config_dict=candidate_settings(folder, candidate_seeds=0))
    with pytest.raises(SettingError, match="needs a sequential model, which Pop is not"):
        Config(config_dict=candidate_settings(folder, model="Pop"))
    with pytest.raises(DataError, match="catalogue is too small"):
        run(settings=candidate_settings(folder, candidates=75))
    assert not list((workdir / "saved").glob("*")), "told before anything is trained"
