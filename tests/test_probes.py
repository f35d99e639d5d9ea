"""The probes of runs in benchmarks/, against numpy in float64, plain transformers and the runs' own results."""

import json

import numpy as np
import pytest
import torch
from learnable_data import USERS, write_learnable
from plain_ranks import assert_metrics, plain_metrics, plain_ranks
from probed_runs import SMALL, FinishedRuns
from torch import nn
from transformers import AutoModel, AutoTokenizer

from recbole_llm.errors import DataError, SettingError
from recbole_llm.packing.ragged import RaggedTable
from recbole_llm.quick_start.run import load


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A dataset in which the next item is mostly the one after the last, so that there is something to learn."""
    return write_learnable(tmp_path_factory.mktemp("probes"))


@pytest.fixture(scope="module")
def finished(root, tiny):
    """The folder of a finished run by model."""
    return FinishedRuns(root, tiny, repeatable=True)


# -- score_mix ---------------------------------------------------------------------------------------------------------


def log_softmax_of(folder, part):
    """Log-softmax of a sequential run's scores in float64, the targets and the users' tokens."""
    parts = load(folder)
    dataset, model = getattr(parts, part)._dataset, parts.model
    rows = dataset[np.arange(len(dataset))]
    with torch.no_grad():
        scores = model.full_sort_predict(rows).double().numpy()[:, 1:]
    scores = scores - scores.max(axis=1, keepdims=True)
    shares = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    return shares, rows["item_id"].numpy(), dataset.id2token("user_id", rows["user_id"].numpy())


@pytest.mark.parametrize(("models", "points"), [(("SASRec", "GRU4Rec"), 21), (("SASRec", "GRU4Rec", "ComiRec"), 66)])
def test_mix_is_that_of_numpy(finished, probe, models, points):
    folders = [finished(model) for model in models]
    lines = probe("score_mix", f"--runs={','.join(map(str, folders))}")
    if len(models) == 2:
        weights = [(n / 20, 1 - n / 20) for n in range(21)]
    else:
        weights = [(a / 10, b / 10, 1 - (a + b) / 10) for a in range(11) for b in range(11 - a)]
    assert len(weights) == points
    ranks, values = {}, {}
    for part in ("valid", "test"):
        shares, targets, _ = zip(*(log_softmax_of(folder, part) for folder in folders), strict=True)
        own = [plain_ranks(share, targets[0]) for share in shares]
        mixed = [
            plain_ranks(sum(w * share for w, share in zip(point, shares, strict=True)), targets[0]) for point in weights
        ]
        ranks[part] = {**dict(zip(models, own, strict=True)), "oracle (a bound)": np.min(own, axis=0), "all": mixed}
        values[part] = np.array([plain_metrics(found)["ndcg10"] for found in mixed])
    found = {(line["scores"], line["part"]): line for line in lines if "scores" in line}
    assert len(found) == 2 * (len(models) + 3)
    for part in ("valid", "test"):
        for name in (*models, "oracle (a bound)"):
            assert_metrics(found[name, part], ranks[part][name])
        # the weights are those of the best point, and its metrics belong to them
        for name, chosen_by in (("mix", "valid"), ("mix best on test (a bound)", "test")):
            point = tuple(found[name, part]["weights"][model] for model in models)
            place = int(np.argmin(np.abs(np.array(weights) - point).sum(axis=1)))
            assert point == pytest.approx(weights[place])
            assert values[chosen_by][place] == pytest.approx(values[chosen_by].max())
            assert_metrics(found[name, part], ranks[part]["all"][place])
    check_overlap(lines, models, ranks["test"])


def check_overlap(lines, models, ranks):
    pairs = [line for line in lines if "hits10_on_test" in line]
    assert len(pairs) == len(models) * (len(models) - 1) // 2
    for line in pairs:
        first, second = ({n for n, rank in enumerate(ranks[model]) if rank <= 10} for model in line["hits10_on_test"])
        counts = len(first & second), len(first - second), len(second - first), len(ranks[models[0]])
        assert (line["both"], line["only_first"], line["only_second"]) == counts[:3]
        assert sum(line[name] for name in ("both", "only_first", "only_second", "neither")) == counts[3]


def test_runs_alone_have_their_own_results_and_groups_add_up(finished, probe, root):
    """Also a general model's, whose loader goes user by user; groups hold every target once."""
    folders = [finished("GRU4Rec"), finished("BPR")]
    lines = probe("score_mix", f"--runs={folders[0]},{folders[1] / 'result.json'}", f"--data_path={root}")
    for folder, model in zip(folders, ("GRU4Rec", "BPR"), strict=True):
        result = json.loads((folder / "result.json").read_text())
        for part in ("valid", "test"):
            (line,) = (line for line in lines if (line.get("scores"), line.get("part")) == (model, part))
            assert line["rows"] == result["counts"][part]
            for name in ("hit@5", "ndcg@5", "hit@10", "ndcg@10", "mrr"):
                assert line[name.replace("@", "")] == pytest.approx(result[part][name], abs=1e-4)
    for by in ("popularity", "history_length", "text_length"):
        groups = [line for line in lines if line.get("by") == by]
        assert sum(line["targets"] for line in groups) == USERS
        for name in ("GRU4Rec", "BPR", "mix"):
            (whole,) = (line for line in lines if (line.get("scores"), line.get("part")) == (name, "test"))
            mean = sum(line["targets"] * line["ndcg10"][name] for line in groups) / USERS
            assert mean == pytest.approx(whole["ndcg10"], abs=1e-4)


def test_runs_that_do_not_belong_together_are_refused(finished, probe, root):
    one = finished("GRU4Rec")
    cut = finished("GRU4Rec", user_inter_num_interval="[5,inf)")
    with pytest.raises(DataError, match="different users"):
        probe("score_mix", f"--runs={one},{cut}")
    with pytest.raises(SettingError, match="two or three runs"):
        probe("score_mix", f"--runs={one},{one}")
    sampled = {"split": {"LS": "valid_and_test"}, "group_by": "user", "order": "TO", "mode": "uni5"}
    with pytest.raises(DataError, match="has no valid part in which each target is ranked among all items"):
        probe("score_mix", f"--runs={one},{finished('GRU4Rec', eval_args=sampled)}")
    module = probe("score_mix")
    runs = {"one": load(one), "two": load(one)}
    part = runs["two"].valid._dataset
    part.inter_feat = part.inter_feat[torch.arange(len(part) - 1, -1, -1)]
    with pytest.raises(DataError, match="valid rows of one and two differ"):
        module.part_ranks(runs, "valid", module.grid(2))


# -- what_st2si_reads --------------------------------------------------------------------------------------------------


def test_st2si_is_measured_as_in_its_result(finished, probe):
    folder = finished("ST2SI")
    lines = probe("what_st2si_reads", f"--run={folder}")
    parts, result = load(folder), json.loads((folder / "result.json").read_text())
    for part in ("valid", "test"):
        (line,) = (line for line in lines if (line["probe"], line.get("part")) == ("over-fitting", part))
        dataset = getattr(parts, part)._dataset
        for name in ("hit@5", "ndcg@10", "mrr"):
            assert line[name.replace("@", "")] == pytest.approx(result[part][name], abs=1e-4)
        with torch.no_grad():
            loss = parts.model.calculate_loss(dataset[np.arange(len(dataset))])
        assert line["cross_entropy"] == pytest.approx(float(loss), rel=1e-4)
    (train,) = (line for line in lines if line.get("part") == "train")
    assert train["rows"] == USERS
    histories = {line["history"]: line for line in lines if line["probe"] == "history"}
    test = next(line for line in lines if line.get("part") == "test")
    for name in ("cross_entropy", "hit10", "mrr"):
        assert histories["as it is"][name] == pytest.approx(test[name], rel=1e-5)
    # the last item alone, from rows that are written here
    rows = parts.test._dataset[np.arange(USERS)]
    last = rows["item_id_list"][torch.arange(USERS), rows["item_length"] - 1]
    rows["item_id_list"], rows["item_length"] = last[:, None], torch.ones(USERS, dtype=torch.int64)
    with torch.no_grad():
        scores = parts.model.full_sort_predict(rows).numpy()[:, 1:]
    assert_metrics(histories["the last item"], plain_ranks(scores, rows["item_id"].numpy()), abs=1e-6)


def test_an_id_model_is_left_out_of_what_st2si_reads(finished, probe):
    folder = finished("ST2SI", id_model="SASRec", id_model_settings={**SMALL, "epochs": 1}, epochs=1, id_weight=0.5)
    line = probe("what_st2si_reads", f"--run={folder}", "--rows=30")[0]
    parts = load(folder)
    parts.model.id_scores = None
    rows = parts.train._dataset[probe("probing").drawn_rows(len(parts.train._dataset), 30)]
    with torch.no_grad():
        loss = parts.model.calculate_loss(rows)
    assert (line["part"], line["cross_entropy"]) == ("train", pytest.approx(float(loss), rel=1e-4))


def test_changed_histories(probe):
    module = probe("what_st2si_reads")
    lengths = np.array([4, 1, 6, 3])
    histories = np.where(np.arange(6) < lengths[:, None], np.arange(1, 25).reshape(4, 6), 0)
    rows = module.Rows(histories, lengths, np.arange(4))
    two = module.last_items(rows, 2)
    assert two.histories[:, :2].tolist() == [[3, 4], [7, 0], [17, 18], [20, 21]]
    assert not two.histories[:, 2:].any()
    assert two.lengths.tolist() == [2, 1, 2, 2]
    for kept in (0, 1):
        new = module.shuffled(rows, kept)
        assert (np.sort(new.histories, axis=1) == np.sort(histories, axis=1)).all()
        assert ((new.histories > 0) == (histories > 0)).all()
        assert (new.histories != histories).any()
        if kept:
            last = lengths - 1
            assert (new.histories[np.arange(4), last] == histories[np.arange(4), last]).all()
    others = module.of_others(rows)
    assert sorted(others.histories[:, 0]) == sorted(histories[:, 0])
    assert (others.histories[:, 0] != histories[:, 0]).all()
    assert others.targets.tolist() == [0, 1, 2, 3]


def test_text_similarity_is_that_of_plain_transformers(finished, probe, tiny):
    folder = finished("ST2SI")
    lines = [line for line in probe("what_st2si_reads", f"--run={folder}") if line["probe"] == "text similarity"]
    parts = load(folder)
    tokenizer, model = AutoTokenizer.from_pretrained(tiny["llama"]), AutoModel.from_pretrained(tiny["llama"])
    texts = parts.dataset.item_texts_by_id(["title"])["title"].tolist()
    with torch.no_grad():
        states = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in texts[1:]]
    vectors = np.stack([state.double().numpy().mean(axis=0) for state in states])
    vectors -= vectors.mean(axis=0)
    rows = parts.test._dataset[np.arange(USERS)]
    for line in lines:
        ranks = []
        for history, length, target in zip(
            *(rows[name].numpy() for name in ("item_id_list", "item_length", "item_id")), strict=True
        ):
            user = vectors[history[:length][-line["items_of_history"] :] - 1].mean(axis=0)
            scores = vectors @ user / np.linalg.norm(vectors, axis=1) / np.linalg.norm(user)
            if line["history_masked"]:
                scores[history[:length] - 1] = -np.inf
            ranks.append(int((scores >= scores[target - 1] - 1e-7).sum()))  # items of one title tie
        assert_metrics(line, ranks)
    assert [(line["items_of_history"], line["history_masked"]) for line in lines] == [
        (1, False), (1, True), (5, False), (5, True),
    ]  # fmt: skip


@pytest.mark.parametrize("backbone", ["llama", "opt"])
def test_text_vectors_of_tokens(probe, tiny, backbone):
    """In passes of a few items each; an item without text has no direction."""
    rows = [[], [5, 6, 9], [], [7], [8, 7, 6, 5]]
    vectors = probe("what_st2si_reads").text_vectors(str(tiny[backbone]), RaggedTable.from_rows(rows), 5, "cpu")
    model = AutoModel.from_pretrained(tiny[backbone]).eval()
    with torch.no_grad():
        alone = [model(input_ids=torch.tensor([row])).last_hidden_state[0].mean(dim=0) for row in rows if row]
    assert not vectors[[0, 2]].any()
    assert torch.allclose(vectors[[1, 3, 4]], torch.stack(alone) - torch.stack(alone).mean(dim=0), atol=1e-5)


# -- frozen_text_probe, user_vector_probe, what_the_adapter_reads ------------------------------------------------------


def test_states_are_those_of_plain_transformers(finished, probe, tiny):
    module, parts = probe("frozen_text_probe"), load(finished("IDLEAdapter"))
    tokenizer, model = AutoTokenizer.from_pretrained(tiny["bert"]), AutoModel.from_pretrained(tiny["bert"])
    texts = parts.dataset.item_texts_by_id(["title"])["title"].tolist()
    picked = np.array([0, 3, 7])
    states, targets = module.states_of(parts.model, parts.test._dataset, picked)
    rows = parts.test._dataset[picked]
    assert targets.tolist() == rows["item_id"].tolist()
    assert list(states) == ["mean of the whole prompt", "mean of the history", "last token"]
    noun = parts.config["prompt_noun"]
    for place in range(3):
        history = rows["item_id_list"][place, : rows["item_length"][place]].tolist()
        titles = ", ".join(texts[item] for item in history)
        encoded = tokenizer(f"Recommend {noun}: {titles}.", return_tensors="pt")
        with torch.no_grad():
            hidden = model(**encoded).last_hidden_state[0]
        begin = len(tokenizer(f"Recommend {noun}:")["input_ids"]) - 1  # [CLS] counts, [SEP] does not
        wanted = {
            "mean of the whole prompt": hidden.mean(dim=0),
            "mean of the history": hidden[begin:-2].mean(dim=0),  # without the full stop and [SEP]
            "last token": hidden[-1],
        }
        for name, state in wanted.items():
            assert torch.allclose(states[name][place].float(), state, atol=2e-3), name


def test_linear_head_standardises_and_learns(probe):
    module, probing = probe("frozen_text_probe"), probe("probing")
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(1, 9, (400,), generator=generator)
    vectors = 50 + 0.01 * (torch.eye(9)[targets] + 0.1 * torch.randn(400, 9, generator=generator))
    head = module.LinearHead(vectors, 9)
    linear, head.linear = head.linear, nn.Identity()
    read = head(vectors).double().numpy()
    assert np.abs(read.mean(axis=0)).max() < 0.05
    assert read[:, 1:].std(axis=0) == pytest.approx(np.ones(8), rel=0.05)
    head.linear = linear
    best, epoch = probing.train_head(head, (vectors[:300], targets[:300]), (vectors[300:], targets[300:]), 60, 0.05)
    assert probing.head_metrics(best, vectors[300:], targets[300:])["mrr"] > 0.99
    assert 0 <= epoch < 60


def test_probes_of_the_adapter(finished, probe):
    """A head on a shuffled side does no better than the run; the run as it is has its own result."""
    folder = finished("IDLEAdapter")
    states = probe("frozen_text_probe", f"--run={folder}", "--rows=50", "--epochs=3")
    assert [(line["state"], line["train_rows"]) for line in states] == [
        ("mean of the whole prompt", 50), ("mean of the history", 50), ("last token", 50),
    ]  # fmt: skip
    test = json.loads((folder / "result.json").read_text())["test"]
    lines = probe("what_the_adapter_reads", f"--run={folder}")
    assert lines[0]["mrr"] == pytest.approx(test["mrr"], abs=1e-4)
    assert [line["inputs"] for line in lines] == [
        "as trained", "prompts shuffled", "user vectors shuffled", "user vectors replaced by their mean",
        "last item alone",
    ]  # fmt: skip
    own = json.loads((finished("ComiRec") / "result.json").read_text())["test"]
    heads = probe("user_vector_probe", f"--run={finished('ComiRec')}", "--epochs=2")
    assert heads[0]["mrr"] == pytest.approx(own["mrr"], abs=1e-4)
    assert [line["head"] for line in heads] == ["the model's own", "linear", "one hidden layer"]


def test_table_head_is_the_sum_of_its_parts(probe):
    module = probe("item_table_probe")
    generator = torch.Generator().manual_seed(0)
    vectors, table = (torch.randn(*size, generator=generator) for size in ((40, 6), (9, 3)))
    for own in (False, True):
        head = module.TableHead(vectors, table, own)
        read = (vectors.double() - vectors.double().mean(dim=0)) / vectors.double().std(dim=0, correction=0)
        layers = [head.to_table.linear, *([head.own.linear] if own else [])]
        maps = [read @ layer.weight.double().T + layer.bias.double() for layer in layers]
        expected = maps[0] @ table.double().T + (maps[1] if own else 0)
        torch.testing.assert_close(head(vectors).double(), expected, atol=1e-4, rtol=1e-4)
        assert not any(parameter is head.table for parameter in head.parameters())


def test_item_table_probe_begins_with_the_run_itself(finished, probe):
    """The run's own projection, mixed, has the run's own weight and test metrics."""
    given = {"tuning": "ilp", "id_model_path": str(finished("SASRec"))}
    folder = finished("ST2SI", **given)
    lines = probe("item_table_probe", f"--run={folder}", "--epochs=2")
    result = json.loads((folder / "result.json").read_text())
    assert [line["head"] for line in lines[::2]] == [
        "the run's own projection", "projection", "tied to the item table", "both",
    ]  # fmt: skip
    assert [line["scores"] for line in lines] == ["alone", "mixed"] * 4
    assert lines[1]["weight"] == pytest.approx(result["id_model"]["weight"])
    for name in ("mrr", "ndcg@10", "hit@5"):
        assert lines[1][name.replace("@", "")] == pytest.approx(result["test"][name], abs=1e-4)
    with pytest.raises(SettingError, match="is no run of ST2SI with an ID model"):
        probe("item_table_probe", f"--run={finished('GRU4Rec')}")


def test_probes_refuse_a_run_of_another_model(finished, probe):
    for name, wanted in (("frozen_text_probe", "IDLEAdapter"), ("what_st2si_reads", "ST2SI")):
        with pytest.raises(SettingError, match=f"is a run of GRU4Rec: give one of {wanted}"):
            probe(name, f"--run={finished('GRU4Rec')}")
