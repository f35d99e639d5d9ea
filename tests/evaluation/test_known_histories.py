"""`repeatable`: what users met before is in the ranking or not, whole, for every kind of model; by plain numpy."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from atomic_files import quick_settings, write_atomic_files
from small_data import TITLES, build_parts, small_settings, write_dataset

from recbole_llm.config.config import Config
from recbole_llm.data.known_histories import KnownHistories
from recbole_llm.errors import SettingError
from recbole_llm.quick_start.run import build, load, run
from recbole_llm.runs.ranks import read_ranks

LETTERS = "abcdefgh"
# Longer than what the models read, u2 and u4 with a target that they met before; nobody knows all items.
REPEATS = {"u1": "abcabcad", "u2": "hgfehgfhg", "u3": "bcdef", "u4": "deabdeabdead", "u5": "ghga", "u6": "ab"}
DISTINCT = {"u1": "abcdef", "u2": "hgfedc", "u3": "bcdea", "u4": "dach", "u5": "ghfa"}
SMALL = {"hidden_size": 8, "inner_size": 8}
MODELS = {
    "SASRec": SMALL,
    "SASRec without tables": {**SMALL, "device_table": False},
    "ST2SI": {"tuning": "ilp", "id_model": "SASRec", "id_model_settings": {**SMALL, "epochs": 1}},
    "BPR": {"embedding_size": 8},
    "FM": {"embedding_size": 8, "train_neg_sample_args": {"distribution": "uniform", "sample_num": 1}},
}


def settings_of(data_path, tiny, name, **settings):
    model = name.split()[0]
    own = {**MODELS[name], **({"backbone": str(tiny["llama"])} if model == "ST2SI" else {})}
    length = {"MAX_ITEM_LIST_LENGTH": 3} if model in ("SASRec", "ST2SI") else {}
    return small_settings(data_path, model=model, epochs=1, **own, **length, **settings)


def met_before(histories, part):
    """What each user met before the target of leave-one-out, and the target."""
    place = {"valid": -2, "test": -1}[part]
    return {user: (set(items[:place]), items[place]) for user, items in histories.items() if len(items) > 2}


def plain_ranks(row, tokens, met, target):
    """The rank of a target with all items ranked, and with what its user met left out."""
    score = dict(zip(tokens, row, strict=True))
    ahead = [item for item in tokens if item != "[PAD]" and score[item] >= score[target]]
    return len(ahead), sum(1 for item in ahead if item == target or item not in met)


def scores_of(parts, loader):
    """The scores that RecBole's trainer gives to all items, by user token."""
    trainer, found = parts.trainer(), {}
    trainer.item_tensor = loader._dataset.get_item_feature()
    trainer.tot_item_num = parts.dataset.item_num
    with torch.no_grad():
        for batch in loader:
            interaction, scores, *_ = trainer._full_sort_batch_eval(batch)
            users = parts.dataset.id2token("user_id", interaction["user_id"].numpy())
            found |= dict(zip(users, scores.numpy(), strict=True))
    return found


@pytest.mark.parametrize("repeatable", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_ranks_of_both_protocols_are_those_of_plain_numpy(small, tiny, name, repeatable):
    write_dataset(small, REPEATS, TITLES)
    result = run(settings=settings_of(small, tiny, name, repeatable=repeatable))
    folder = Path(result["path"]).parent
    parts = load(folder)
    tokens = parts.dataset.field2id_token["item_id"]
    for part in ("valid", "test"):
        ranks = read_ranks(folder / f"ranks-{part}.tsv.gz").set_index("user")
        scores, changed, repeated = scores_of(parts, getattr(parts, part)), 0, 0
        for user, (met, target) in met_before(REPEATS, part).items():
            kept, left_out = plain_ranks(scores[user], tokens, met, target)
            own, other = (kept, left_out) if repeatable else (left_out, kept)
            assert ranks.loc[user].tolist() == [target, own, other]
            changed, repeated = changed + (kept != left_out), repeated + (target in met)
        assert changed and repeated == result["protocol"]["repeated_targets"][part] > 0
        own = ranks["rank"].to_numpy()
        other = ranks["other_rank"].to_numpy()
        for key, found in ((part, own), (f"{part}_other", other)):
            assert result[key]["hit@3"] == pytest.approx(np.mean(found <= 3), abs=1e-4)
            assert result[key]["mrr"] == pytest.approx(np.mean(1 / found), abs=1e-4)
    assert result["protocol"]["repeatable"] is repeatable


@pytest.mark.parametrize("name", ["SASRec", "BPR"])
def test_one_pass_gives_what_two_evaluations_give(workdir, name):
    folder = write_atomic_files(workdir / "tiny")
    settings = {"metrics": ["Recall", "NDCG", "Hit", "MRR", "MAP", "ItemCoverage", "GiniIndex"], "topk": [1, 5]}
    settings |= {"valid_metric": "NDCG@5", **MODELS[name]}
    result = run(settings=quick_settings(folder, model=name, **settings))
    path = Path(result["path"]).parent
    assert result["protocol"] == {"repeatable": False, "repeats": 0, "repeated_targets": {"valid": 0, "test": 0}}
    for repeatable, suffix in ((False, ""), (True, "_other")):
        parts = load(path, {"repeatable": repeatable})
        trainer = parts.trainer()
        trainer.eval_collector.data_collect(parts.train)
        for part in ("valid", "test"):
            found = trainer.evaluate(getattr(parts, part), load_best_model=False)
            assert dict(found) == result[f"{part}{suffix}"]
    assert result["test"]["ndcg@5"] > result["test_other"]["ndcg@5"]
    # The best epoch is that of the run's own protocol.
    assert result["history"][result["best_epoch"]]["valid"] == result["valid"]


@pytest.mark.parametrize("repeatable", [True, False])
@pytest.mark.parametrize("model", ["SASRec", "BPR"])
def test_sampled_candidates_leave_the_history_out(small, model, repeatable):
    """With uni4 the ranking is that of the drawn items; without repeats, none of them is of the history."""
    write_dataset(small, REPEATS, TITLES)
    mode = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "uni4"}
    settings = {"MAX_ITEM_LIST_LENGTH": 2, **SMALL} if model == "SASRec" else {"embedding_size": 8}
    parts = build_parts(small, model=model, eval_args=mode, repeatable=repeatable, **settings)
    trainer, batches = parts.trainer(), list(parts.test)
    trainer.both_protocols = True
    test = _Replayed(parts.test, batches)
    trainer.evaluate(test, load_best_model=False)
    users, _, *ranks = trainer.eval_collector.collected()
    tokens = parts.dataset.field2id_token["item_id"]
    expected = {}
    with torch.no_grad():
        for lines, *_ in batches:
            scores = parts.model.predict(lines).numpy()
            rows = pd.DataFrame({"user": lines["user_id"], "item": tokens[lines["item_id"].numpy()], "score": scores})
            for user, drawn in rows.groupby("user"):
                met, target = met_before(REPEATS, "test")[parts.dataset.id2token("user_id", user)]
                drawn = drawn.drop_duplicates("item").set_index("item")["score"]
                ahead = drawn.index[drawn >= drawn[target]]
                expected[user] = [len(ahead), sum(item == target or item not in met for item in ahead)]
                if not repeatable and model == "BPR":  # drawn outside
                    assert not (set(drawn.index) & met) - {target}
    assert {user: [int(rank[n]) for rank in ranks] for n, user in enumerate(users)} == {
        user: both if repeatable else both[1:] for user, both in expected.items()
    }
    assert (trainer.other_result is None) is not repeatable


class _Replayed:
    """A loader whose batches are drawn already."""

    def __init__(self, loader, batches):
        self._dataset, self._batches = loader._dataset, batches

    def __iter__(self):
        return iter(self._batches)

    def __len__(self):
        return len(self._batches)


def test_auto_asks_the_data(small, tiny):
    write_dataset(small, DISTINCT, TITLES)
    assert build_parts(small, model="SASRec", **SMALL).dataset.item_protocol.entry() == {
        "repeatable": False, "repeats": 0, "repeated_targets": {"valid": 0, "test": 0},
    }  # fmt: skip
    write_dataset(small, {**DISTINCT, "u6": "aba"}, TITLES)
    for model in ("SASRec", "BPR"):
        own = {name: value for name, value in MODELS[model].items()}
        assert build_parts(small, model=model, **own).dataset.item_protocol.entry() == {
            "repeatable": True, "repeats": 1, "repeated_targets": {"valid": 0, "test": 1},
        }  # fmt: skip
    repeats = sum(len(items) - len(set(items)) for items in REPEATS.values())
    write_dataset(small, REPEATS, TITLES)
    for device_table in (True, False):
        parts = build_parts(small, model="SASRec", device_table=device_table, **SMALL)
        assert parts.dataset.item_protocol.repeats == repeats


@pytest.mark.parametrize("model", ["SASRec", "BPR"])
def test_repeats_that_are_left_out_are_told(small, caplog, model):
    write_dataset(small, REPEATS, TITLES)
    build_parts(small, model=model, repeatable=False, state="WARNING", **MODELS[model])
    targets = [met_before(REPEATS, part).values() for part in ("valid", "test")]
    valid, test = (sum(target in met for met, target in part) for part in targets)
    assert f"{valid} of the 5 validation targets and {test} of the 5 test targets of small are such" in caplog.text
    caplog.clear()
    build_parts(small, model=model, repeatable=True, state="WARNING", **MODELS[model])
    assert "targets of small" not in caplog.text


def test_the_old_name_and_other_values_are_refused(small):
    with pytest.raises(SettingError, match=r"'mask_history' is called 'repeatable' .* repeatable=False"):
        Config(config_dict=small_settings(small, mask_history=True))
    with pytest.raises(SettingError, match="repeatable=never must be True or False, or auto"):
        Config(config_dict=small_settings(small, model="SASRec", repeatable="never"))


@pytest.mark.parametrize("device_table", [True, False])
@pytest.mark.parametrize("split", [{"LS": "valid_and_test"}, {"RS": [0.6, 0.2, 0.2]}], ids=["one", "several"])
def test_known_is_all_before_the_target(workdir, split, device_table):
    """Rows of one user with several targets know the earlier targets, too."""
    folder = write_atomic_files(workdir / "tiny")
    protocol = {"split": split, "order": "TO", "group_by": "user", "mode": "full"}
    own = {"eval_args": protocol, "MAX_ITEM_LIST_LENGTH": 2, "device_table": device_table}
    parts = build(Config(config_dict=quick_settings(folder, model="SASRec", **own)))
    lines = pd.read_csv(folder / "tiny.inter", sep="\t").sort_values("timestamp:float")
    items = parts.dataset.item_num
    for part in (parts.valid._dataset, parts.test._dataset):
        rows = part[np.arange(len(part))]
        keys = part.known_histories.keys(rows).numpy()
        for row, (user, target) in enumerate(zip(rows["user_id"].tolist(), rows["item_id"].tolist(), strict=True)):
            of_user = lines[lines["user_id:token"] == part.id2token("user_id", user)]["item_id:token"].tolist()
            before = of_user[: of_user.index(part.id2token("item_id", target))]
            found = part.id2token("item_id", keys[keys // items == row] % items)
            assert sorted(found) == sorted(before) and len(before) > 2


@pytest.mark.parametrize("model", ["SASRec", "ST2SI"])
def test_histories_that_files_give_are_whole(workdir, tiny, model):
    rows = {
        "train": [("u1", "a b c d", "e"), ("u2", "h", "g")],
        "valid": [("u1", "c d e a b c", "f"), ("u3", "b", "c")],
        "test": [("u1", "f g h g", "a"), ("u2", "a b c d", "e")],
    }
    folder = workdir / "small"
    folder.mkdir()
    for part, lines in rows.items():
        text = "".join(f"{user}\t{items}\t{target}\n" for user, items, target in lines)
        (folder / f"small.{part}.inter").write_text("user_id:token\titem_id_list:token_seq\titem_id:token\n" + text)
    write_dataset(workdir)
    own = {"backbone": str(tiny["llama"])} if model == "ST2SI" else SMALL
    parts = build_parts(
        workdir, model=model, MAX_ITEM_LIST_LENGTH=2, benchmark_filename=["train", "valid", "test"],
        alias_of_item_id=["item_id_list"], load_col={"inter": ["user_id", "item_id_list", "item_id"]}, **own,
    )  # fmt: skip
    part = parts.test._dataset
    keys, items = part.known_histories.keys(part[np.arange(2)]).numpy(), part.item_num
    found = [set(part.id2token("item_id", keys[keys // items == row] % items)) for row in range(2)]
    assert found == [set("fgh") | set("abcde") | {"f"}, set("abcd") | set("hg")]
    assert parts.dataset.item_protocol.repeats == 1  # c in u1's row of validation, g in that of the test: at least one
    assert parts.dataset.item_protocol.repeated_targets == {"valid": 0, "test": 1}


def test_the_table_is_moved_once(small):
    write_dataset(small, DISTINCT, TITLES)
    part = build_parts(small, model="SASRec", **SMALL).test._dataset
    known = KnownHistories(part, [])
    first = known._on_device(torch.device("cpu"))
    known.keys(part[np.arange(2)])
    assert known._on_device(torch.device("cpu")) is first


def test_recommendations_leave_out_what_the_evaluation_left_out(small):
    for histories, leaves_out in ((DISTINCT, True), (REPEATS, False)):
        write_dataset(small, histories, TITLES)
        for model in ("SASRec", "BPR"):
            parts = build_parts(small, model=model, **MODELS[model])
            items = len(LETTERS)
            for user in ("u1", "u3"):
                found = parts.recommend_to(user, items)
                assert set(found.items) == set(LETTERS) - (set(histories[user]) if leaves_out else set())
                assert len(parts.recommend_to(user, items, exclude_seen=False).items) == items
            if model == "SASRec":
                assert (set(parts.recommend(list("ab"), items).items) & set("ab") == set()) is leaves_out
