"""Recommendations to users of the dataset: the model's own ranking, one user or a thousand at a time."""

import logging

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.utils import ModelType
from small_data import HISTORIES, TITLES, build_parts, small_settings, write_dataset

from recbole_llm.errors import DataError, SettingError
from recbole_llm.inference.recommender import Recommendation
from recbole_llm.inference.user_histories import user_histories
from recbole_llm.inference.users import UserRecommender
from recbole_llm.quick_start.run import load, run

ITEMS = "abcdefgh"
LONGEST = 5
SAMPLED = {"distribution": "uniform", "sample_num": 1, "dynamic": False, "alpha": 1.0, "candidate_num": 0}
FULL = {"train_neg_sample_args": None}
MODELS = {
    "SASRec": {"hidden_size": 16, "inner_size": 16, "n_heads": 2, **FULL},
    "SASRec in RecBole's dataset": {"hidden_size": 16, "inner_size": 16, "n_heads": 2, "device_table": False, **FULL},
    "FPMC": {"train_neg_sample_args": SAMPLED},
    "ComiRec": FULL,
    "MLP4Rec": {"hidden_size": 16, **FULL},
    "ST2SI": {"tuning": "ilp"},
    "IDLEAdapter": {"id_model": "ComiRec", "id_model_settings": {"epochs": 1}, "max_prompt_tokens": 90},
    "Pop": {},
    "BPR": {},
    "EASE": FULL,
    "ItemKNN": FULL,
    "LightGCN": {"n_layers": 1},
    "NeuMF": {},  # has no full_sort_predict: RecBole's trainer predicts every pair
}
BACKBONES = {"ST2SI": "opt", "IDLEAdapter": "bert"}


@pytest.fixture(scope="module")
def histories():
    """A thousand users with 3 to 9 interactions, and one with a single interaction."""
    random = np.random.default_rng(0)
    # nobody knows all items: RecBole then has no negative samples to draw
    drawn = {
        f"u{n}": list(random.choice(random.permutation(list(ITEMS))[:7], random.integers(3, 10))) for n in range(1000)
    }
    return {**drawn, "once": ["a"]}


@pytest.fixture
def big(workdir, histories):
    return write_dataset(workdir, histories)


@pytest.fixture(params=MODELS)
def parts(request, big, tiny):
    name = request.param.split()[0]
    backbone = {"backbone": str(tiny[BACKBONES[name]])} if name in BACKBONES else {}
    settings = {"MAX_ITEM_LIST_LENGTH": LONGEST, **backbone, **MODELS[request.param]}
    parts = build_parts(big, model=name, **settings)
    parts.model.eval()
    if name == "Pop":
        count(parts)
    return parts


def count(parts):
    """Train Pop, which has no scores before: it counts."""
    for batch in parts.train:
        parts.model.calculate_loss(batch)


def own_scores(parts, histories, users):
    """What the model itself gives, from rows that are written here: [users, items], -inf for the padding id."""
    dataset, model = parts.dataset, parts.model
    ids = dataset.field2token_id["item_id"]
    columns = {"user_id": torch.tensor([dataset.field2token_id["user_id"][user] for user in users])}
    if model.type == ModelType.SEQUENTIAL:
        recent = [[ids[item] for item in histories[user]][-LONGEST:] for user in users]
        columns["item_id_list"] = torch.tensor([row + [0] * (LONGEST - len(row)) for row in recent])
        columns["item_length"] = torch.tensor([len(row) for row in recent])
    with torch.no_grad():
        if type(model).__name__ == "NeuMF":
            every = torch.arange(dataset.item_num)
            rows = [Interaction({"user_id": user.expand(len(every)), "item_id": every}) for user in columns["user_id"]]
            scores = torch.stack([model.predict(row) for row in rows])
        else:
            scores = model.full_sort_predict(Interaction(columns)).view(len(users), -1).clone()
    scores[:, 0] = -torch.inf
    return scores.numpy()


def assert_best(parts, scores, found, k, seen=()):
    """Assert that `found` has the `k` best of `scores` without `seen`, whatever the order of equal scores."""
    tokens = np.asarray(parts.dataset.field2id_token["item_id"])
    scores = np.where(np.isin(tokens, list(seen)), -np.inf, scores)
    expected = np.sort(scores[scores > -np.inf])[::-1][:k]
    np.testing.assert_allclose(found.scores, expected, rtol=1e-4, atol=1e-5)
    own = [scores[parts.dataset.field2token_id["item_id"][item]] for item in found.items]
    np.testing.assert_allclose(found.scores, own, rtol=1e-4, atol=1e-5)
    assert len(set(found.items)) == len(found.items)


def test_top_k_is_that_of_full_sort_predict(parts, histories):
    users = [user for user in histories if user != "once"]
    scores = own_scores(parts, histories, users)
    thousand = parts.recommend_to(users, 3)
    for user, row, found in zip(users, scores, thousand, strict=True):
        assert_best(parts, row, found, 3)
        assert parts.user_recommender.history(user)[-LONGEST:] == histories[user][-LONGEST:] or not sequential(parts)
    for place in (0, 500, 999):
        alone = parts.recommend_to(users[place], 3)
        assert isinstance(alone, Recommendation)
        assert_best(parts, scores[place], alone, 3)
    for place, found in zip((7, 8), parts.recommend_to([users[7], users[8]], 8, exclude_seen=True), strict=True):
        assert_best(parts, scores[place], found, 8, seen=histories[users[place]])


def sequential(parts):
    return parts.model.type == ModelType.SEQUENTIAL


def test_histories_are_those_of_the_files(parts, histories):
    recommender = parts.user_recommender
    found = {user: recommender.history(user) for user in recommender.users}
    assert found.keys() == {user for user in histories if user != "once" or not sequential(parts)}
    padded = parts.config["device_table"] is False
    for user, items in found.items():
        if padded:  # RecBole keeps the most recent only; the earlier ones are there, each once
            recent = histories[user][-LONGEST - 1 :]
            assert items[-len(recent) :] == recent
            assert set(items) == set(histories[user])
        else:
            assert items == histories[user]


def test_the_histories_of_files_that_give_the_split(workdir, tiny):
    folder = workdir / "given"
    folder.mkdir()
    rows = {"train": ["u1 a b", "u1 a,b c"], "valid": ["u1 b,c d", "u2 a,c e"], "test": ["u2 c,e f", "u3 a g"]}
    for part, lines in rows.items():
        table = ["user_id:token\titem_id_list:token_seq\titem_id:token"]
        table += ["\t".join(field.replace(",", " ") for field in line.split(" ")) for line in lines]
        (folder / f"given.{part}.inter").write_text("\n".join(table) + "\n")
    (folder / "given.item").write_text(
        "item_id:token\ttitle:token_seq\n" + "".join(f"{i}\t{t}\n" for i, t in TITLES.items())
    )
    given = {
        "dataset": "given", "benchmark_filename": ["train", "valid", "test"], "alias_of_item_id": ["item_id_list"],
        "load_col": {"inter": ["user_id", "item_id_list", "item_id"], "item": ["item_id"]}, "MAX_ITEM_LIST_LENGTH": 4,
    }  # fmt: skip
    expected = {"u1": "abcd", "u2": "acef", "u3": "ag"}
    for model in (
        {"model": "SASRec", "hidden_size": 8, "inner_size": 8, "n_heads": 1, **FULL},
        {"model": "ST2SI", "backbone": str(tiny["opt"]), "tuning": "ilp"},
    ):
        dataset = build_parts(workdir, **given, **model).dataset
        table = user_histories(dataset)
        users, items = dataset.field2id_token["user_id"], dataset.field2id_token["item_id"]
        found = {str(users[row]): "".join(items[table.row(row)]) for row in range(1, len(table))}
        assert found.keys() == expected.keys()
        for user, history in found.items():
            assert sorted(history) == sorted(expected[user])
            assert history[-2:] == expected[user][-2:]


# -- what cannot be answered -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["SASRec", "Pop"])
def test_bad_input_is_one_clear_sentence(big, model):
    parts = build_parts(big, model=model, **MODELS[model])
    if model == "Pop":
        count(parts)
    with pytest.raises(DataError, match="there is no user 'u10000' in small; did you mean 'u100"):
        parts.recommend_to("u10000", 2)
    with pytest.raises(DataError, match=r"there is no user '\[PAD\]' in small"):
        parts.recommend_to(["[PAD]"], 2)
    with pytest.raises(DataError, match="no user is named"):
        parts.recommend_to([], 2)
    with pytest.raises(SettingError, match="k=9 is more than the 8 items of small"):
        parts.recommend_to("u1", 9)
    with pytest.raises(SettingError, match="k=0 must be a whole number from 1"):
        parts.recommend_to("u1", 0)
    if model == "SASRec":
        with pytest.raises(DataError, match="user 'once' of small has fewer than two interactions"):
            parts.recommend_to("once", 2)
    else:
        assert len(parts.recommend_to("once", 2).items) == 2
        with pytest.raises(SettingError, match="Pop knows users by id and reads no history: name users of its data"):
            parts.recommend(["a"], 2)


def test_a_model_that_reads_more_than_user_and_item(small):
    load_col = {"inter": ["user_id", "item_id", "timestamp"]}
    sampled = {"train_neg_sample_args": SAMPLED, "load_col": load_col, "numerical_features": ["timestamp"]}
    write_dataset(small, histories={"u1": "abc", "u2": "bcd", "u3": "cdea"}, titles=None)
    parts = build_parts(small, model="FM", metrics=["NDCG", "Recall"], **sampled)
    with pytest.raises(SettingError, match="FM also reads 'timestamp' of an interaction"):
        parts.recommend_to("u1", 2)


# x is a target of validation and test alone
UNTRAINED = {**HISTORIES, "u2": "cdexh", "u4": "abcdefghabcdefgx", "u9": "abx"}


def test_items_never_trained_on_are_left_out_of_histories(small, tiny, caplog):
    titles = {**TITLES, "x": "Xylophone"}
    write_dataset(small, histories=UNTRAINED, titles=titles)
    parts = build_parts(small, model="SASRec", **MODELS["SASRec"])
    recommender = UserRecommender(parts)
    assert recommender.history("u4")[-1] == "x"
    with caplog.at_level(logging.WARNING):
        found = recommender.recommend(["u4", "u9"], 3)
        recommender.recommend("u4", 3)
    said = [record.getMessage() for record in caplog.records if "never trained on" in record.getMessage()]
    assert len(said) == 1
    assert "the first is item 'x' of user 'u4' of small" in said[0]
    assert "SASRec knows items by id alone" in said[0]
    assert found[0].items == parts.recommend(list("abcdefghabcdefg"), 3).items
    assert found[1].items == parts.recommend(list("ab"), 3).items
    # what is left out of the history was seen all the same
    everything = parts.dataset.item_num - 1
    assert set(recommender.recommend("u9", everything, exclude_seen=True).items) == set(titles) - set("abx")
    for k in range(1, everything - 3 + 1):
        assert len(recommender.recommend("u9", k, exclude_seen=True).items) == k
    kept = UserRecommender(parts, allow_untrained=True).recommend("u9", everything, exclude_seen=True)
    assert set(kept.items) == set(titles) - set("abx")
    reads_text = build_parts(small, backbone=str(tiny["opt"]), tuning="ilp")
    caplog.clear()
    assert reads_text.recommend_to("u9", 3).items == reads_text.recommend(list("abx"), 3).items
    assert not caplog.records


def test_a_history_without_a_trained_item(small):
    recommender = UserRecommender(build_parts(small, model="SASRec", **MODELS["SASRec"]))
    recommender._sequential.trained[:] = False
    with pytest.raises(DataError, match="no item in the history of user 'u3' of small can be read: they were never"):
        recommender.recommend("u3", 2)


# -- a loaded run ------------------------------------------------------------------------------------------------------


def test_a_loaded_run_recommends(small):
    path = run(settings=small_settings(small, model="SASRec", epochs=1, **MODELS["SASRec"]))["path"]
    parts = load(path)
    assert (parts.model.training, parts.dataset.dataset_name) == (False, "small")
    assert parts.recommend(["a", "b"], 3) == load(path).recommend(["a", "b"], 3)
    assert parts.recommender is parts.recommender
    assert parts.recommend_to("u1", 3) == parts.recommend(list(HISTORIES["u1"]), 3)
