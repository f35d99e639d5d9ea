"""ST2SI with an ID model's scores: the mixture, the choice of its weight, and what a run keeps."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from small_data import HISTORIES, TITLES, build_parts, small_settings, write_dataset

from recbole_llm.cli import main as cli
from recbole_llm.config.config import Config
from recbole_llm.errors import BackboneError, DataError, SettingError
from recbole_llm.evaluation import blocks
from recbole_llm.model.id_model.scores import WEIGHTS, IdScores, log_probabilities, mixed
from recbole_llm.model.sequential_recommender.st2si import model as model_module
from recbole_llm.quick_start.run import build, load, run
from recbole_llm.runs import checkpoint
from recbole_llm.runs.ranks import read_ranks

SASREC = {"hidden_size": 8, "inner_size": 8, "epochs": 3, "MAX_ITEM_LIST_LENGTH": 4}
WITHOUT_U4 = {user: items for user, items in HISTORIES.items() if user != "u4"}  # who knows all items


def settings_of(data_path, tiny, **settings):
    given = {
        "backbone": str(tiny["llama"]), "tuning": "ilp", "id_model": "SASRec", "id_model_settings": SASREC,
        "MAX_ITEM_LIST_LENGTH": 6, "epochs": 3, "train_batch_size": 8, "learning_rate": 0.01, **settings,
    }  # fmt: skip
    return small_settings(data_path, **given)


@pytest.fixture
def finished(small, tiny):
    result = run(settings=settings_of(small, tiny))
    return small, Path(result["path"]).parent, result


def plain_log_softmax(scores):
    """In float64, over all items but the padding id."""
    real = scores[:, 1:].double().numpy()
    real = real - real.max(axis=1, keepdims=True)
    return real - np.log(np.exp(real).sum(axis=1, keepdims=True))


def test_mixture_is_that_of_the_log_probabilities():
    own, theirs = torch.randn(5, 9), torch.randn(5, 9) * 4
    found = mixed(log_probabilities(own), log_probabilities(theirs), torch.tensor(0.3))
    expected = 0.7 * plain_log_softmax(own) + 0.3 * plain_log_softmax(theirs)
    np.testing.assert_allclose(found[:, 1:].numpy(), expected, rtol=1e-5, atol=1e-6)
    assert (found[:, 0] == float("-inf")).all()
    for weight in (0.0, 1.0):  # no NaN from 0 times infinity
        found = mixed(log_probabilities(own), log_probabilities(theirs), torch.tensor(weight))
        assert (found[:, 0] == float("-inf")).all() and found[:, 1:].isfinite().all()


def test_run_ranks_by_the_mixture_of_its_two_models(finished):
    """The test ranks of the run are those of two models loaded and mixed by hand, in numpy."""
    small, folder, result = finished
    weight = result["id_model"]["weight"]
    parts, other = load(folder), load(next((small / "saved").glob("id-SASRec-*")))
    assert float(parts.model.id_scores.weight) == pytest.approx(weight)
    ranks = []
    with torch.no_grad():
        for interaction, *_ in parts.test:
            own = parts.model.projection(parts.model.row_states(interaction))
            histories, lengths = interaction["item_id_list"], interaction["item_length"]
            kept = torch.zeros(len(histories), 4, dtype=torch.long)  # the last four items, which SASRec reads
            for row, length in enumerate(lengths.tolist()):
                recent = histories[row, max(length - 4, 0) : length]
                kept[row, : len(recent)] = recent
            rows = Interaction({"item_id_list": kept, "item_length": lengths.clamp(max=4)})
            theirs = other.model.full_sort_predict(rows)
            scores = (1 - weight) * plain_log_softmax(own) + weight * plain_log_softmax(theirs)
            targets = interaction["item_id"].numpy() - 1
            ranks += list((scores >= scores[np.arange(len(scores)), targets][:, None]).sum(axis=1))
    assert ranks == read_ranks(folder / "ranks-test.tsv.gz")["rank"].tolist()


@torch.no_grad()
def gains_by_weight(model, batches, gain):
    """The sum of `gain(*batch)` under each weight."""
    gains = []
    for weight in WEIGHTS:
        model.id_scores.weight.fill_(weight)
        gains.append(sum(gain(*batch) for batch in batches))
    return gains


GAINS = {
    "NDCG@3": lambda rank: np.where(rank <= 3, 1 / np.log2(rank + 1), 0),
    "Hit@1": lambda rank: rank == 1,
    "MRR@3": lambda rank: np.where(rank <= 3, 1 / rank, 0),
    "mrr": lambda rank: 1 / rank,
}


@pytest.mark.parametrize("repeatable", [True, False])
def test_the_weight_is_chosen_by_the_same_ranks_in_blocks_of_items(small, tiny, repeatable, monkeypatch):
    parts = build(Config(config_dict=settings_of(small, tiny, repeatable=repeatable)))
    parts.model.eval()
    monkeypatch.setattr(blocks, "_block_size", lambda *_: 4)
    scores, found = parts.model.id_scores, []
    gain = scores._gain
    for in_blocks in (False, True):
        ranks = []
        scores._gain = lambda each, ranks=ranks: ranks.append(each) or gain(each)
        monkeypatch.setattr(parts.valid, "in_blocks", in_blocks)
        if in_blocks:
            monkeypatch.setattr(scores.model, "full_sort_predict", None)
        parts.model.before_validation(parts.valid)
        found.append((float(scores.weight), torch.cat(ranks, dim=1)))
    assert found[0][0] == found[1][0] and torch.equal(found[0][1], found[1][1])
    assert found[0][1].shape == (len(WEIGHTS), len(parts.valid._dataset))


class Scores(torch.nn.Module):
    """Stands for an ID model: its scores lie in the rows."""

    def full_sort_predict(self, rows):
        return rows["scores"]


@pytest.mark.parametrize("metric", GAINS)
def test_weight_has_the_best_valid_metric(metric):
    """Of all weights, none has a better value than the chosen one, whichever the metric is, and they differ."""
    chosen = {name: weight_for(name) for name in GAINS}
    assert len({weight for weight, _ in chosen.values()}) > 1
    weight, values = chosen[metric]
    assert max(values) > min(values)
    assert values[round(weight * 20)] == pytest.approx(max(values))


def weight_for(metric):
    """The weight that is chosen for random scores, and the value of the metric under each weight, in numpy."""
    generator = torch.Generator().manual_seed(6)
    own, theirs = (torch.randn(60, 9, generator=generator) for _ in range(2))
    targets = torch.randint(1, 9, (60,), generator=generator)
    for scores in (own, theirs):  # each knows something of the targets
        scores[torch.arange(60), targets] += 0.7
    config = {
        "id_weight": None, "valid_metric": metric, "ITEM_ID_FIELD": "item_id", "LIST_SUFFIX": "_list",
        "ITEM_LIST_LENGTH_FIELD": "item_length",
    }  # fmt: skip
    mixing = IdScores(config, Scores())
    mixing.choose_weight(iter([(Interaction({"scores": theirs}), own, (torch.arange(60), targets), None, None)]))
    values = []
    for weight in WEIGHTS:
        scores = (1 - weight) * plain_log_softmax(own) + weight * plain_log_softmax(theirs)
        wanted = scores[np.arange(60), targets.numpy() - 1]
        values.append(GAINS[metric]((scores >= wanted[:, None]).sum(axis=1)).mean())
    return float(mixing.weight), values


def test_weight_is_the_best_on_validation(small, tiny):
    """Of all weights, none has a better `valid_metric` on the validation part than the chosen one."""
    settings = settings_of(small, tiny, valid_metric="mrr")
    parts = build_parts(small, **{k: v for k, v in settings.items() if k not in ("data_path",)})
    model = parts.model
    torch.nn.init.normal_(model.projection.weight, generator=torch.Generator().manual_seed(3))
    model.before_validation(parts.valid)
    chosen = float(model.id_scores.weight)

    def gain(interaction, *_):
        scores = model.full_sort_predict(interaction).numpy()
        own = scores[np.arange(len(scores)), interaction["item_id"].numpy()]
        rank = (scores >= own[:, None]).sum(axis=1)
        return GAINS["mrr"](rank).sum()

    gains = gains_by_weight(model, parts.valid, gain)
    assert max(gains) > min(gains)  # the weight matters here
    assert gains[round(chosen * 20)] == pytest.approx(max(gains))


def test_given_weight_stays(small, tiny):
    result = run(settings=settings_of(small, tiny, id_weight=0.25))
    assert result["id_model"]["weight"] == 0.25


def test_weight_is_the_best_among_sampled_candidates(small, tiny):
    """With `mode: uni4` a line is a candidate: a user's ranking is that of these, as RecBole's trainer ranks them."""
    write_dataset(small, WITHOUT_U4)
    mode = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "uni4"}
    settings = settings_of(small, tiny, eval_args=mode)
    parts = build_parts(small, **{k: v for k, v in settings.items() if k not in ("data_path",)})
    model = parts.model
    torch.nn.init.normal_(model.projection.weight, generator=torch.Generator().manual_seed(6))
    batches = list(parts.valid)  # other candidates are drawn every time
    model.before_validation(batches)
    chosen = float(model.id_scores.weight)

    def gain(interaction, lines, _, targets):
        scores = model.predict(interaction).numpy()
        ranked = np.full((len(targets), 9), -np.inf)
        ranked[lines.numpy(), interaction["item_id"].numpy()] = scores  # a candidate may be drawn twice
        own = ranked[np.arange(len(targets)), targets.numpy()]
        rank = (ranked >= own[:, None]).sum(axis=1)
        return GAINS["NDCG@3"](rank).sum()

    gains = gains_by_weight(model, batches, gain)
    assert max(gains) > min(gains)
    best = np.flatnonzero(np.isclose(gains, max(gains)))
    assert chosen == pytest.approx(WEIGHTS[min(best, key=lambda index: abs(WEIGHTS[index] - 0.5))])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"id_model": "NeuMF", "id_model_settings": {}}, "id_model=NeuMF does not score all items at once"),
        ({"id_model": "DeepFM", "id_model_settings": {}}, "id_model=DeepFM does not score all items at once"),
        ({"id_model": 3}, "id_model=3 must be the name of a model, or ~"),
        ({"id_model": ["SASRec"]}, r"id_model=\['SASRec'\] must be the name of a model, or ~"),
        ({"weight_average": 2}, "weight_average=2 must be a number above 0 and below 1"),
        ({"backbone": "opt-12m"}, "unknown backbone 'opt-12m'"),
        (
            {"valid_metric": "GAUC", "metrics": ["NDCG", "GAUC"]},
            "which valid_metric=GAUC does not measure: give id_weight",
        ),
        ({"max_items": 7}, "max_items=7 is more than MAX_ITEM_LIST_LENGTH=6"),
        ({"id_model": None, "id_weight": 0.3}, "id_weight=0.3 has no effect: no id_model is named"),
        ({"id_model": None}, "id_model_settings={.*} has no effect: no id_model is named"),
    ],
)
def test_wrong_settings_are_refused_before_the_id_model_is_trained(small, tiny, settings, message):
    with pytest.raises(SettingError, match=message):
        run(settings=settings_of(small, tiny, **settings))
    assert not list((small / "saved").glob("id-*"))


def test_encoder_is_refused_before_the_id_model_is_trained(small, tiny):
    with pytest.raises(BackboneError, match="ST2SI needs a decoder"):
        run(settings=settings_of(small, tiny, backbone=str(tiny["bert"])))
    assert not list((small / "saved").glob("id-*"))


def test_finished_id_model_that_does_not_score_all_items_is_refused(small, tiny):
    write_dataset(small, WITHOUT_U4)
    settings = small_settings(small, model="NeuMF", epochs=1)
    path = run(settings={k: v for k, v in settings.items() if k not in ("max_sequence_tokens", "train_batch_tokens")})
    settings = settings_of(small, tiny, id_model="NeuMF", id_model_settings={}, id_model_path=path["path"])
    with pytest.raises(SettingError, match="id_model=NeuMF does not score all items at once"):
        run(settings=settings)


def test_one_user_on_a_gpu_is_ranked_by_both_models(finished, monkeypatch):
    """The CUDA graph of one sequence knows the projection alone: a run with an ID model goes the plain way."""
    _, folder, _ = finished
    parts = load(folder)
    parts.model.device = torch.device("cuda")
    monkeypatch.setattr(model_module, "SingleHistory", lambda *_, **__: pytest.fail("ranks without the ID model"))
    assert parts.model.single_sequence() is None


def test_histories_by_hand_need_users_where_the_id_model_knows_them(small, tiny):
    write_dataset(small, WITHOUT_U4)
    own = {"embedding_size": 8, "epochs": 1}
    result = run(settings=settings_of(small, tiny, id_model="FPMC", id_model_settings=own))
    parts = load(result["path"])
    with pytest.raises(DataError, match="also reads 'user_id': give users"):
        parts.recommend(["c", "d"], k=3)
    found = parts.recommend(["a", "b", "c", "d", "e"], k=3, users="u1")
    assert found == parts.recommend_to("u1", k=3)


def test_items_that_were_never_trained_on_are_read_without_an_id_model_alone(small, tiny):
    histories = {**WITHOUT_U4, "u1": "abcdz"}  # z is held out for the test
    write_dataset(small, histories, {**TITLES, "z": "Zither"})
    parts = load(run(settings=settings_of(small, tiny))["path"])
    with pytest.raises(DataError, match=r"item 'z' .* was never trained on"):
        parts.recommend(["a", "z"], k=3)
    alone = settings_of(small, tiny, id_model=None, id_model_settings={})
    assert len(load(run(settings=alone)["path"]).recommend(["a", "z"], k=3).items) == 3


@pytest.mark.parametrize("weight", [-0.1, 1.5, "half", True])
def test_wrong_weight_is_refused(small, tiny, weight):
    with pytest.raises(SettingError, match="id_weight"):
        run(settings=settings_of(small, tiny, id_weight=weight))
    assert not list((small / "saved").glob("*"))


@pytest.mark.parametrize("tuning", ["full", "ilp"])
def test_weights_hold_no_id_model_and_the_run_stands_alone(small, tiny, tuning):
    result = run(settings=settings_of(small, tiny, tuning=tuning))
    folder = Path(result["path"]).parent
    names = checkpoint.read_weights(folder / checkpoint.WEIGHTS)[1]
    assert [name for name in names if name.startswith("id_scores")] == ["id_scores.weight"]
    shutil.rmtree(next((small / "saved").glob("id-SASRec-*")))
    assert load(folder).model.id_run.folder == folder / "id_model"
    assert not (folder / "scenario.safetensors").exists()  # which would rank without the ID model


def test_id_model_is_not_trained(small, tiny):
    parts = build_parts(small, **{k: v for k, v in settings_of(small, tiny).items() if k not in ("data_path",)})
    frozen = {id(parameter) for parameter in parts.model.id_scores.parameters()}
    trained = {id(p) for group in parts.model.parameter_groups() for p in group["params"]}
    assert frozen and not frozen & trained
    parts.model.train()
    assert not any(module.training for module in parts.model.id_scores.model.modules())


def test_predict_is_the_score_of_the_full_ranking(finished):
    _, folder, _ = finished
    parts = load(folder)
    interaction = next(iter(parts.test))[0]
    with torch.no_grad():
        scores, own = parts.model.full_sort_predict(interaction), parts.model.predict(interaction)
    assert torch.equal(own, scores[torch.arange(len(scores)), interaction["item_id"]])


def test_idle_adapter_as_id_model(small, tiny):
    """Both papers in one model: the adapter, with its own ID model, gives the scores; the run needs no other folder."""
    adapter = {
        "id_model": "SASRec", "id_model_settings": SASREC, "backbone": str(tiny["bert"]), "epochs": 1,
        "train_batch_size": 8, "max_prompt_tokens": 128,
    }  # fmt: skip
    result = run(settings=settings_of(small, tiny, id_model="IDLEAdapter", id_model_settings=adapter))
    folder = Path(result["path"]).parent
    for other in (small / "saved").glob("id-*"):
        shutil.rmtree(other)
    parts = load(folder)
    assert isinstance(parts.model.id_scores, IdScores) and result["id_model"]["model"] == "IDLEAdapter"
    trainer_ranks = read_ranks(folder / "ranks-test.tsv.gz")["rank"].tolist()
    with torch.no_grad():
        interaction = next(iter(parts.test))[0]
        scores = parts.model.full_sort_predict(interaction).numpy()
    own = scores[np.arange(len(scores)), interaction["item_id"].numpy()]
    assert (scores >= own[:, None]).sum(axis=1).tolist() == trainer_ranks


@pytest.mark.parametrize("name", ["FPMC", "FDSA", "BPR"])
def test_other_id_models(small, tiny, name):
    """Models that read the user's id or item attributes, a general one too: with weight 1 the ranks are their own."""
    own = {"embedding_size": 8} if name != "FDSA" else {**SASREC, "selected_features": ["title"]}
    # without the user who knows all items: nothing would be left to sample
    write_dataset(small, WITHOUT_U4)
    settings = settings_of(small, tiny, id_model=name, id_model_settings={**own, "epochs": 2}, id_weight=1)
    result = run(settings=settings)
    theirs = json.loads((next((small / "saved").glob(f"id-{name}-*")) / "result.json").read_text())
    assert result["test"] == pytest.approx(theirs["test"], abs=2e-4)


def test_from_the_command_line(small, tiny, capsys):
    arguments = [
        f"--{name}={json.dumps(value) if isinstance(value, (dict, bool, list)) else value}"
        for name, value in settings_of(small, tiny).items()
    ]
    assert cli.main(["run", *arguments]) == 0
    path = Path(capsys.readouterr().out.strip().splitlines()[-1])
    assert 0 <= json.loads(path.read_text())["id_model"]["weight"] <= 1


def test_histories_of_a_validation_are_read_once_and_never_from_before_more_training(small, tiny):
    """Choosing the weight leaves the states to the evaluation after it; what was left over is not used later."""
    parts = build_parts(small, **{k: v for k, v in settings_of(small, tiny).items() if k not in ("data_path",)})
    model, batches = parts.model, list(parts.valid)
    read = []
    states_of = model.row_states
    model.row_states = lambda rows: read.append(len(rows)) or states_of(rows)
    model.before_validation(batches)
    rows = [len(interaction) for interaction, *_ in batches]
    assert read == rows
    first = model.full_sort_predict(batches[0][0])
    assert read == rows
    torch.testing.assert_close(model.full_sort_predict(batches[0][0]), first)  # read anew: remembered for one use
    assert len(read) == len(rows) + 1
    model.before_validation(batches)
    model.train()
    model.eval()
    read.clear()
    for interaction, *_ in batches:
        model.full_sort_predict(interaction)
    assert read == rows


def test_language_model_may_read_fewer_items_than_the_id_model(small, tiny):
    """With `max_items: 1` another last but one item changes the ID model's share of the scores alone."""
    settings = settings_of(small, tiny, max_items=1)
    parts = build_parts(small, **{k: v for k, v in settings.items() if k not in ("data_path",)})
    model, (interaction, *_) = parts.model, next(iter(parts.test))
    row = int(interaction["item_length"].argmax())
    place = int(interaction["item_length"][row]) - 2
    changed = type(interaction)({name: value.clone() for name, value in interaction.interaction.items()})
    for rows in (interaction, changed):  # not those of the dataset any more
        del rows.interaction["history_end"]
    changed["item_id_list"][row, place] = changed["item_id_list"][row, place] % (model.n_items - 1) + 1
    own = [model.row_states(rows)[row] for rows in (interaction, changed)]
    theirs = [model.id_scores(rows)[row] for rows in (interaction, changed)]
    torch.testing.assert_close(*own)
    assert not torch.allclose(theirs[0][1:], theirs[1][1:])
    assert model.inputs.training_sequences(np.random.default_rng(0)).queries().max() == 1
