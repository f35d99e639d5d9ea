"""The probes under both protocols, against numpy with the histories of the file left out, and the runs' own results."""

import json

import numpy as np
import pytest
import torch
from learnable_data import USERS, write_learnable
from plain_ranks import assert_metrics, plain_metrics, plain_ranks
from probed_runs import FinishedRuns

from recbole_llm.quick_start.run import load

METRICS = ("hit@5", "ndcg@5", "hit@10", "ndcg@10", "mrr")
LAST = {"test": 1, "valid": 2}  # the target of each part, from the end of a user's items


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The learnable dataset, in which some users meet their first item again as a target."""
    root = write_learnable(tmp_path_factory.mktemp("left_out"))
    known = histories(root)
    for number, items in enumerate(known.values()):
        if number % 6 < 2:
            items[-1 - number % 6] = items[0]
    lines = [f"{user}\t{item}\t{time}" for user, items in known.items() for time, item in enumerate(items, start=1)]
    path = inter_file(root)
    path.write_text("\n".join([path.read_text().splitlines()[0], *lines]) + "\n")
    return root


@pytest.fixture(scope="module", params=[True, False], ids=["kept", "left_out"])
def finished(request, root, tiny):
    """The folder of a finished run by model, trained under either protocol; it reads less than the whole history."""
    return FinishedRuns(root, tiny, repeatable=request.param, MAX_ITEM_LIST_LENGTH=3)


def inter_file(root):
    return root / "small" / "small.inter"


def histories(root):
    """The items of every user in the order of the file."""
    found = {}
    for line in inter_file(root).read_text().splitlines()[1:]:
        user, item, _ = line.split("\t")
        found.setdefault(user, []).append(item)
    return found


def without_histories(scores, dataset, users, part, root):
    """Scores of the items from 1 on [rows, items - 1], -inf for all of the file before the target but the target."""
    scores = np.array(scores, dtype=np.float64)
    item_id = dataset.field2token_id["item_id"]
    for row, user in enumerate(dataset.id2token("user_id", users)):
        items = histories(root)[user]
        known = set(items[: -LAST[part]]) - {items[-LAST[part]]}
        scores[row, [item_id[item] - 1 for item in known]] = -np.inf
    return scores


def assert_both(line, scores, dataset, rows, part, root):
    """A line has the metrics of numpy under both protocols."""
    targets = rows["item_id"].numpy()
    assert_metrics(line, plain_ranks(scores, targets))
    left_out = without_histories(scores, dataset, rows["user_id"].numpy(), part, root)
    assert_metrics(ending_left_out(line), plain_ranks(left_out, targets))


def ending_left_out(line):
    return {name.removesuffix("_left_out"): value for name, value in line.items() if name.endswith("_left_out")}


def assert_as_in_result(line, folder, part):
    """A line has the run's own metrics of a part under both protocols."""
    result = json.loads((folder / "result.json").read_text())
    names = (part, f"{part}_other") if result["protocol"]["repeatable"] else (f"{part}_other", part)
    for values, name in zip((line, ending_left_out(line)), names, strict=True):
        for metric in METRICS:
            assert values[metric.replace("@", "")] == pytest.approx(result[name][metric], abs=1e-4), (name, metric)


def rows_of(parts, part):
    dataset = getattr(parts, part)._dataset
    return dataset[np.arange(len(dataset))]


@torch.no_grad()
def scores_of(model, rows, **other):
    """Scores of the items from 1 on, of rows that are given by hand: some fields are replaced."""
    rows.interaction.pop("history_end", None)
    rows.interaction.update(other)
    return model.full_sort_predict(rows).numpy()[:, 1:]


def last_item(rows):
    last = rows["item_id_list"][torch.arange(len(rows)), rows["item_length"] - 1]
    return {"item_id_list": last[:, None], "item_length": torch.ones_like(rows["item_length"])}


def test_the_data_tell_the_protocols_apart(finished, root):
    """Histories are longer than what is read, some targets stand in theirs, and the protocols differ."""
    result = json.loads((finished("ComiRec") / "result.json").read_text())
    assert max(map(len, histories(root).values())) > 4
    assert all(5 < count < USERS / 2 for count in result["protocol"]["repeated_targets"].values())
    assert all(result[part]["mrr"] != result[f"{part}_other"]["mrr"] for part in LAST)


def test_adapter(finished, probe, root):
    folder = finished("IDLEAdapter")
    lines = {line["inputs"]: line for line in probe("what_the_adapter_reads", f"--run={folder}")}
    assert_as_in_result(lines["as trained"], folder, "test")
    parts = load(folder)
    model, rows = parts.model, rows_of(parts, "test")
    shuffled = np.random.default_rng(0).permutation(USERS)
    vectors, others = model.user_vectors(rows), parts.test._dataset[shuffled]
    for name, read, shown in (
        ("as trained", vectors, {}),
        ("prompts shuffled", vectors, {field: others[field] for field in ("item_id_list", "item_length")}),
        ("user vectors shuffled", vectors[torch.from_numpy(shuffled)], {}),
        ("user vectors replaced by their mean", vectors.mean(dim=0).expand_as(vectors), {}),
        ("last item alone", vectors, last_item(rows)),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model, "user_vectors", lambda _, read=read: read)
            scores = scores_of(model, rows_of(parts, "test"), **shown)
        assert_both(lines.pop(name), scores, parts.dataset, rows, "test", root)
    assert not lines


def test_prompts_of_one_item_have_no_line_of_the_last(finished, probe):
    lines = probe("what_the_adapter_reads", f"--run={finished('IDLEAdapter', max_items=1)}")
    assert [line["inputs"] for line in lines] == [
        "as trained", "prompts shuffled", "user vectors shuffled", "user vectors replaced by their mean",
    ]  # fmt: skip


def test_drawn_rows_of_the_adapter_keep_their_histories(finished, probe, root):
    folder = finished("IDLEAdapter")
    line = probe("what_the_adapter_reads", f"--run={folder}", "--rows=20")[0]
    parts = load(folder)
    rows = parts.test._dataset[probe("probing").drawn_rows(USERS, 20)]
    targets = type(rows)({name: rows[name] for name in ("item_id", "user_id")})
    assert_both(line, scores_of(parts.model, rows), parts.dataset, targets, "test", root)


def test_st2si(finished, probe, root):
    folder = finished("ST2SI")
    lines = probe("what_st2si_reads", f"--run={folder}")
    parts = load(folder)
    model = parts.model
    over_fitting = {line["part"]: line for line in lines if line["probe"] == "over-fitting"}
    for part in ("valid", "test"):
        assert_as_in_result(over_fitting[part], folder, part)
        rows = rows_of(parts, part)
        assert_both(over_fitting[part], scores_of(model, rows_of(parts, part)), parts.dataset, rows, part, root)
    assert not ending_left_out(over_fitting["train"])
    history = {line["history"]: line for line in lines if line["probe"] == "history"}
    assert all(ending_left_out(line).keys() == plain_metrics([1]).keys() for line in history.values())
    rows = rows_of(parts, "test")
    order = np.random.default_rng(0).permutation(USERS)
    source = np.empty(USERS, dtype=np.int64)
    source[order] = np.roll(order, 1)
    others = parts.test._dataset[source]
    shown = {
        "as it is": {},
        "the last item": last_item(rows),
        "of another row": {field: others[field] for field in ("item_id_list", "item_length")},
    }
    for name, fields in shown.items():
        scores = scores_of(model, rows_of(parts, "test"), **fields)
        assert_both(history[name], scores, parts.dataset, rows, "test", root)


# -- score_mix ---------------------------------------------------------------------------------------------------------


def shares_by_user(folder, part):
    """Log-softmax in float64 by user [users, items - 1], and targets and ids in this order; of a general model, too."""
    parts = load(folder)
    dataset = getattr(parts, part)._dataset
    rows = dataset[np.arange(len(dataset))]
    rows = rows[rows["user_id"].argsort()]
    with torch.no_grad():
        scores = parts.model.full_sort_predict(rows).reshape(len(rows), -1).double().numpy()[:, 1:]
    shares = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    return shares, rows["item_id"].numpy(), rows["user_id"].numpy(), parts.dataset


def test_mix_of_a_sequential_and_a_general_model(finished, probe, root):
    models = ("GRU4Rec", "BPR")
    folders = [finished(model) for model in models]
    lines = probe("score_mix", f"--runs={folders[0]},{folders[1]}")
    found = {(line["scores"], line["part"]): line for line in lines if "scores" in line}
    weights = [(n / 20, 1 - n / 20) for n in range(21)]
    values, ranks = {}, {}
    for part in ("valid", "test"):
        (one, targets, users, dataset), (other, *_) = (shares_by_user(folder, part) for folder in folders)
        mixed = [
            plain_ranks(without_histories(a * one + b * other, dataset, users, part, root), targets) for a, b in weights
        ]
        ranks[part] = mixed
        values[part] = np.array([plain_metrics(rank)["ndcg10"] for rank in mixed])
        for name, folder, point in (("GRU4Rec", folders[0], 20), ("BPR", folders[1], 0)):
            assert_as_in_result(found[name, part], folder, part)
            assert_metrics(ending_left_out(found[name, part]), mixed[point])
        oracle = ending_left_out(found["oracle (a bound)", part])
        assert_metrics(oracle, np.minimum(mixed[0], mixed[20]))
    for part in ("valid", "test"):
        for name, chosen_by in (("mix", "valid"), ("mix best on test (a bound)", "test")):
            line = found[name, part]
            place = round(20 * line["weights_left_out"]["GRU4Rec"])
            assert tuple(line["weights_left_out"].values()) == pytest.approx(weights[place])
            assert values[chosen_by][place] == pytest.approx(values[chosen_by].max())
            assert_metrics({k: v for k, v in ending_left_out(line).items() if k != "weights"}, ranks[part][place])
    check_overlap(lines, ranks["test"][20], ranks["test"][0])
    for by in ("popularity", "history_length", "text_length"):
        groups = [line for line in lines if line.get("by") == by]
        for name in (*models, "mix"):
            mean = sum(line["targets"] * line["ndcg10_left_out"][name] for line in groups) / USERS
            assert mean == pytest.approx(found[name, "test"]["ndcg10_left_out"], abs=1e-4)


def check_overlap(lines, first, second):
    (line,) = (line for line in lines if "hits10_on_test" in line)
    one, other = ({row for row, rank in enumerate(ranks) if rank <= 10} for ranks in (first, second))
    assert ending_left_out(line) == {
        "both": len(one & other), "only_first": len(one - other), "only_second": len(other - one),
        "neither": USERS - len(one | other),
    }  # fmt: skip
