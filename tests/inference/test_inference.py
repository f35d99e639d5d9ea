"""Recommendations: the ranking of full_sort_predict, one user as in a batch, padded buckets as plain, clear errors."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from recbole.model.general_recommender.ease import EASE
from small_data import HISTORIES, TITLES, build_parts, write_dataset

from recbole_llm.backbone.attention import packed_hidden_states
from recbole_llm.backbone.single_sequence import SEEN, SingleSequence
from recbole_llm.errors import DataError, SettingError, TrainingError
from recbole_llm.inference import best_items
from recbole_llm.inference.recommender import Recommendation, Recommender
from recbole_llm.model.sequential_recommender.st2si.single_history import SingleHistory
from recbole_llm.packing.sequences import pack

RECBOLE = {"SASRec": {"hidden_size": 16, "inner_size": 16, "n_heads": 2}, "GRU4Rec": {"embedding_size": 8}}
ITEMS = len(TITLES)
SHORT = {item: item * 3 for item in TITLES}  # whole histories fit the limit of tokens


def id_parts(data_path, model="SASRec", **settings):
    own = {"train_neg_sample_args": None, **RECBOLE.get(model, {}), **settings}
    return build_parts(data_path, model=model, **own)


@pytest.fixture
def st2si(small, tiny):
    return build_parts(small, backbone=str(tiny["llama"]), tuning="ilp")


@pytest.fixture
def sasrec(small):
    return id_parts(small)


def adapter_parts(data_path, tiny):
    own = {"embedding_size": 8, "epochs": 0}
    return build_parts(
        data_path, model="IDLEAdapter", backbone=str(tiny["bert"]), max_prompt_tokens=128, id_model_settings=own
    )


@pytest.fixture(params=["llama", "opt", "opt_projected", "one query", "IDLEAdapter", *RECBOLE])
def parts(request, small, tiny):
    if request.param == "IDLEAdapter":
        return adapter_parts(small, tiny)
    if request.param in RECBOLE:
        return id_parts(small, request.param)
    one = request.param == "one query"
    return build_parts(small, backbone=str(tiny["opt" if one else request.param]), tuning="ilp", multi_query=not one)


def recommender_of(parts, **options):
    return Recommender(parts.model, parts.train._dataset, **options)


def histories_of(parts):
    """The test histories as tokens, and the scores of full_sort_predict for them."""
    parts.model.eval()
    tokens, scores = [], []
    with torch.no_grad():
        for interaction, *_ in parts.test:
            found = parts.model.full_sort_predict(interaction).view(len(interaction), -1)
            found[:, 0] = -torch.inf
            scores.append(found)
        for user in parts.dataset.id2token("user_id", interaction["user_id"].numpy()):
            tokens.append(list(HISTORIES[user][:-1]))
    return tokens, torch.cat(scores).numpy()


def ranking(dataset, scores):
    tokens = np.asarray(dataset.field2id_token["item_id"])
    return [[str(tokens[i]) for i in np.argsort(-row, kind="stable")] for row in scores]


# -- the ranking -------------------------------------------------------------------------------------------------------


def test_top_k_is_that_of_full_sort_predict(parts):
    histories, scores = histories_of(parts)
    recommender = recommender_of(parts, allow_untrained=True)
    for k in (1, 3, ITEMS):
        found = recommender.recommend(histories, k)
        for row, expected, own in zip(found, ranking(parts.dataset, scores), scores, strict=True):
            assert row.items == expected[:k]
            np.testing.assert_allclose(row.scores, np.sort(own)[::-1][:k], rtol=1e-5, atol=1e-5)


def test_one_user_is_as_in_a_batch(parts):
    recommender = recommender_of(parts)
    histories = [list("abc"), list("de"), ["h"]]
    batch = recommender.recommend(histories, 4)
    for history, expected in zip(histories, batch, strict=True):
        found = recommender.recommend(history, 4)
        assert isinstance(found, Recommendation)
        assert found.items == expected.items
        assert found.scores == pytest.approx(expected.scores, abs=1e-5)


def test_many_users_are_scored_in_pieces(small, monkeypatch):
    recommender = recommender_of(id_parts(small, "CORE"))  # which scores all items at once
    histories = [list("abc"), list("de"), ["h"], list("gfed"), list("ab")]
    whole = recommender.recommend(histories, 3, exclude_seen=True)
    sizes = []
    scores = recommender._scores
    monkeypatch.setattr(recommender, "_scores", lambda ids, users: sizes.append(len(ids)) or scores(ids, users))
    monkeypatch.setattr(best_items, "SCORES_BYTES", 2 * 4 * (ITEMS + 1))
    pieces = recommender.recommend(histories, 3, exclude_seen=True)
    assert sizes == [2, 2, 1]
    assert [row.items for row in pieces] == [row.items for row in whole]


@pytest.mark.parametrize("parts", ["llama", "IDLEAdapter"], indirect=True)
def test_a_projection_is_read_in_blocks_of_items(parts, monkeypatch):
    histories = [list("abc"), list("de"), ["h"], list("gfed"), list("ab")]
    tokens, scores = histories_of(parts)
    recommender = recommender_of(parts, allow_untrained=True)
    whole = recommender.recommend(histories, 3, exclude_seen=True)
    blocks, of_items = [], parts.model.projection.of_items
    monkeypatch.setattr(
        parts.model.projection,
        "of_items",
        lambda states, items: blocks.append((items.start, items.stop)) or of_items(states, items),
    )
    monkeypatch.setattr(parts.model, "full_sort_predict", None)  # the table of [users, items] is not made
    monkeypatch.setattr(best_items, "SCORES_BYTES", 7 * 4 * len(histories))
    found = recommender.recommend(histories, 3, exclude_seen=True)
    assert blocks == [(0, 7), (7, ITEMS + 1)]
    assert [row.items for row in found] == [row.items for row in whole]
    rows = recommender.recommend(tokens, 3)
    assert [row.items for row in rows] == [row[:3] for row in ranking(parts.dataset, scores)]


def test_seen_items_are_left_out(parts):
    recommender = recommender_of(parts)
    histories = [list("abc"), list("defg")]
    for row, history in zip(recommender.recommend(histories, ITEMS, exclude_seen=True), histories, strict=True):
        assert set(row.items) == set(TITLES) - set(history)
        plain = recommender.recommend(list(history), ITEMS)
        assert row.items == [item for item in plain.items if item not in history]
    assert recommender.recommend(list("abcdefgh"), 2, exclude_seen=True).items == []


def test_items_out_of_the_window_are_left_out_too(small, tiny):
    write_dataset(small, titles=SHORT)
    parts = build_parts(small, backbone=str(tiny["opt"]), tuning="ilp", MAX_ITEM_LIST_LENGTH=2)
    recommender = recommender_of(parts)
    assert recommender.recommend(list("abcd"), 3) == recommender.recommend(list("cd"), 3)
    assert not set("abcd") & set(recommender.recommend(list("abcd"), ITEMS, exclude_seen=True).items)


def test_the_model_is_left_without_dropout(sasrec):
    recommender = recommender_of(sasrec)
    sasrec.model.train()
    assert recommender.recommend(list("abc"), 3) == recommender.recommend(list("abc"), 3)
    assert not sasrec.model.training


def test_a_model_that_reads_the_user(small):
    parts = id_parts(small, "FPMC", train_neg_sample_args={"distribution": "uniform", "sample_num": 1})
    recommender = recommender_of(parts, allow_untrained=True)
    histories, scores = histories_of(parts)
    users = [
        user for interaction, *_ in parts.test for user in parts.dataset.id2token("user_id", interaction["user_id"])
    ]
    found = recommender.recommend(histories, 3, users=users)
    assert [row.items for row in found] == [row[:3] for row in ranking(parts.dataset, scores)]
    assert recommender.recommend(histories[0], 3, users=users[0]).items == found[0].items
    with pytest.raises(DataError, match="FPMC also reads 'user_id': give users"):
        recommender.recommend(histories, 3)
    with pytest.raises(DataError, match="there is no user 'nobody' in small"):
        recommender.recommend(histories[0], 3, users="nobody")
    with pytest.raises(DataError, match="2 histories but 1 users"):
        recommender.recommend([["a"], ["b"]], 3, users=users[:1])


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_bad_input_is_one_clear_sentence(parts):
    recommender = recommender_of(parts)
    with pytest.raises(DataError, match="there is no item 'zz' in small"):
        recommender.recommend(["a", "zz"], 2)
    with pytest.raises(DataError, match=r"there is no item '\[PAD\]' in small"):
        recommender.recommend([["a"], ["[PAD]", "b"]], 2)
    for empty in ([], [[]], [["a"], []]):
        with pytest.raises(DataError, match="a history is empty"):
            recommender.recommend(empty, 2)
    with pytest.raises(SettingError, match=f"k={ITEMS + 1} is more than the {ITEMS} items of small"):
        recommender.recommend(["a"], ITEMS + 1)
    for k in (0, -1, 1.5, True):
        with pytest.raises(SettingError, match=r"k=.* must be a whole number from 1"):
            recommender.recommend(["a"], k)


UNTRAINED = {**HISTORIES, "u3": "hgx", "u4": "abcdefghabcdefgx"}  # x is a test target alone


def test_item_never_trained_on(small, tiny):
    write_dataset(small, histories=UNTRAINED, titles={**TITLES, "x": "Xylophone"})
    parts = id_parts(small)
    with pytest.raises(DataError, match=r"item 'x' of small was never trained on, and SASRec knows items by id: leave"):
        recommender_of(parts).recommend(["a", "x"], 2)
    assert len(recommender_of(parts, allow_untrained=True).recommend(["a", "x"], 2).items) == 2
    both = adapter_parts(small, tiny)  # its ID model knows ids
    with pytest.raises(DataError, match=r"item 'x' of small was never trained on, and IDLEAdapter knows items by id"):
        recommender_of(both).recommend(["a", "x"], 2)
    assert len(recommender_of(both).recommend(list("abcdefgh"), 2).items) == 2, "all others were trained on"
    reads_text = build_parts(small, backbone=str(tiny["opt"]), tuning="ilp")
    assert len(recommender_of(reads_text).recommend(["a", "x"], 2).items) == 2


def test_scores_that_are_not_numbers(sasrec):
    with torch.no_grad():
        sasrec.model.item_embedding.weight[3] = torch.nan
    with pytest.raises(TrainingError, match="the scores of SASRec are not numbers"):
        recommender_of(sasrec).recommend(["a"], 2)


def test_model_that_reads_no_history(sasrec):
    with pytest.raises(SettingError, match="EASE knows users by id and reads no history"):
        Recommender(object.__new__(EASE), sasrec.train._dataset)


# -- one sequence in a bucket ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["llama", "opt", "opt_projected"])
@pytest.mark.parametrize("multi_query", [True, False])
def test_padded_bucket_equals_plain(small, tiny, backbone, multi_query):
    write_dataset(small, titles=SHORT)
    parts = build_parts(small, backbone=str(tiny[backbone]), tuning="ilp", multi_query=multi_query)
    model = parts.model.eval()
    buckets = SingleSequence(model.backbone, model.projection, max_positions=128, buckets=(8, 32, 256), capture=False)
    used = set()
    for history in ("gfedcbah", "a", "abcdefgh" * 2, "abc", "a"):  # a long one first: its rest must not be seen
        ids = np.array([[parts.dataset.field2token_id["item_id"][token] for token in history]])
        sequences = model.inputs.prefix_sequences(ids, np.array([len(history)]))
        batch = pack(sequences, model.inputs.table)
        with torch.no_grad():
            state = packed_hidden_states(model.backbone, batch)[-1:]
            expected = model.projection(state)[0]
        for seen in (None, np.unique(ids)):
            if seen is not None:
                expected[torch.from_numpy(seen)] = -torch.inf
            assert buckets.fits(len(batch.token_ids))
            scores, best = buckets.top(batch.token_ids.numpy(), ITEMS, seen)
            order = expected.topk(ITEMS)
            left = np.isfinite(scores)
            assert best[left].tolist() == order.indices.numpy()[left].tolist()
            np.testing.assert_allclose(scores, order.values.numpy(), atol=1e-5)
        used.add(next(bucket for bucket in buckets.buckets if bucket >= len(batch.token_ids)))
    assert len(used) > 1


def test_recommender_takes_the_bucket_and_falls_back(small, tiny, monkeypatch):
    write_dataset(small, titles=SHORT)
    parts = build_parts(small, backbone=str(tiny["opt"]), tuning="ilp")
    plain, fast = recommender_of(parts), recommender_of(parts, cuda_graph=True)
    assert fast._single is None  # the CPU goes the plain way
    model = parts.model
    fast._single = SingleHistory(model, max_positions=128, buckets=(32,), capture=False)
    sequence, calls = fast._single._sequence, []
    top = sequence.top
    monkeypatch.setattr(sequence, "top", lambda *given: calls.append(len(given[0])) or top(*given))
    for history, exclude_seen in (("abc", False), ("abc", True), ("abcdefgh" * 3, False)):
        expected = plain.recommend(list(history), 4, exclude_seen)
        found = fast.recommend(list(history), 4, exclude_seen)
        assert found.items == expected.items
        assert found.scores == pytest.approx(expected.scores, abs=1e-5)
    assert len(calls) == 2
    assert fast.recommend([list("abc")], 4)[0].items == plain.recommend(list("abc"), 4).items
    assert len(calls) == 2, "a batch is packed"

    def broken(*_):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(sequence, "top", broken)
    assert fast.recommend(list("abc"), 4).items == plain.recommend(list("abc"), 4).items


def test_limits_of_the_buckets():
    module = torch.nn.Linear(2, 2)
    single = SingleSequence(module, module, capture=False)
    assert [single.fits(tokens) for tokens in (0, 1, 64, 1024, 1025)] == [False, True, True, True, False]
    assert [single.fits(9, seen) for seen in (SEEN, SEEN + 1)] == [True, False]


@pytest.mark.gpu
@pytest.mark.parametrize("backbone", ["llama", "opt", "opt_projected"])
@pytest.mark.parametrize("tuning", ["ilp", "full"])
def test_cuda_graph_equals_plain(small, tiny, backbone, tuning):
    write_dataset(small, titles=SHORT)
    parts = build_parts(small, backbone=str(tiny[backbone]), tuning=tuning, use_gpu=True, precision="bf16")
    plain, fast = recommender_of(parts), recommender_of(parts, cuda_graph=True)
    assert fast._single is not None
    for history in ("gfedcbah", "a", "abcdefgh" * 2, "abc", "a"):
        for exclude_seen in (False, True):
            expected = plain.recommend(list(history), ITEMS, exclude_seen)
            found = fast.recommend(list(history), ITEMS, exclude_seen)
            assert set(found.items) == set(expected.items)
            scores = dict(zip(found.items, found.scores, strict=True))
            for item, score in zip(expected.items, expected.scores, strict=True):
                assert scores[item] == pytest.approx(score, abs=0.05)
    assert all(place.graph is not None for place in fast._single._sequence._places.values())


# -- benchmarks --------------------------------------------------------------------------------------------------------


def test_both_ways_of_the_catalogue_benchmark_have_one_loss(monkeypatch, capsys):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "benchmarks")
    catalogue_size = importlib.import_module("catalogue_size")
    for name, value in (("QUERIES", 20), ("TOKENS", 64), ("SAMPLES", 4), ("SHAPE", "tiny")):
        monkeypatch.setattr(catalogue_size, name, value)
    monkeypatch.setattr("sys.argv", ["catalogue_size.py", "--items=50"])
    catalogue_size.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["step"], line["logits"]) for line in lines] == [
        (step, way) for step in ("cached", "full") for way in ("pieces", "queries", "whole", "torch")
    ]  # fmt: skip
    for step, near in (("cached", 1e-2), ("full", 1e-1)):  # dropout draws anew
        first = [line["first_loss"] for line in lines if line["step"] == step]
        assert first == pytest.approx([first[0]] * 4, rel=near)
