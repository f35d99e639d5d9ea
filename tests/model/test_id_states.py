"""ST2SI whose query tokens carry an id model's user states: against transformers, and evaluation against training."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from small_data import HISTORIES, SHORT, build_parts, small_settings, write_dataset
from transformers import AutoModel, AutoTokenizer

from recbole_llm.errors import SettingError
from recbole_llm.quick_start.run import load, run
from recbole_llm.runs import checkpoint
from recbole_llm.runs.ranks import read_ranks


@pytest.fixture
def build(small, rough_models, id_runs):
    """The parts of a run; W_u is large enough that the states move the scores."""

    def make(backbone="llama", id_run="SASRec", interests=1, larger=True, **settings):
        write_dataset(small, titles=SHORT)
        given = {
            "backbone": str(rough_models[backbone]), "tuning": "ilp", "id_model_path": id_runs(id_run, interests),
            "id_states": True, "id_weight": 0.0, "MAX_ITEM_LIST_LENGTH": 6, **settings,
        }  # fmt: skip
        parts = build_parts(small, **given)
        if larger:
            with torch.no_grad():
                for parameter in parts.model.id_states.parameters():
                    parameter.mul_(20)
        return parts

    return make


def state_after(model, items):
    """The id model's user state after `items`, from its own forward on one unpadded-left row."""
    row = torch.zeros(1, 6, dtype=torch.long)
    row[0, : len(items)] = torch.tensor(items)
    with torch.no_grad():
        return model(row, torch.tensor([len(items)]))[0]


def reference_state(folder, model, items, tokens_of, multi_query=True):
    """The last hidden state by transformers alone, with ``E[Q] + W_u u_k + b_u`` at every query token."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    embed = plain.get_input_embeddings().weight.detach()
    query = tokenizer.get_vocab()["."]
    weight, bias = (parameter.detach() for parameter in model.id_states.projection.parameters())
    rows = []
    for index, item in enumerate(items):
        rows += [embed[token] for token in tokenizer(SHORT[tokens_of[item]], add_special_tokens=False)["input_ids"]]
        if multi_query or index == len(items) - 1:
            rows.append(embed[query] + weight @ state_after(model.id_scores.model, items[: index + 1]) + bias)
    with torch.no_grad():
        return plain(inputs_embeds=torch.stack(rows)[None]).last_hidden_state[0, -1].numpy()


@pytest.mark.parametrize(("backbone", "multi_query"), [("llama", True), ("llama", False), ("opt", True)])
def test_scores_are_those_of_transformers_with_states_at_the_queries(build, rough_models, backbone, multi_query):
    parts = build(backbone, multi_query=multi_query)
    model = parts.model.eval()
    weight = model.projection.weight.detach().numpy()
    with torch.no_grad():
        for interaction, *_ in parts.test:
            histories, lengths = interaction["item_id_list"], interaction["item_length"]
            found = model._last_states(interaction).numpy()
            scores = model.projection(model._last_states(interaction)).numpy()
            for row, length in enumerate(lengths.tolist()):
                items = histories[row, :length].tolist()
                names = parts.dataset.field2id_token["item_id"]
                state = reference_state(rough_models[backbone], model, items, names, multi_query)
                np.testing.assert_allclose(found[row], state, atol=1e-4)
                np.testing.assert_allclose(scores[row, 1:], weight[1:] @ state, atol=1e-3)


@pytest.mark.parametrize(("id_run", "interests"), [("SASRec", 1), ("GRU4Rec", 1), ("ComiRec", 2)])
def test_training_reads_the_states_that_evaluation_reads(build, id_run, interests):
    """The loss of one row a user is that of its prefixes, whose states are computed from RecBole's rows."""
    parts = build(id_run=id_run, interests=interests, alignment=False, MAX_ITEM_LIST_LENGTH=50)  # no history is cut
    model = parts.model.eval()
    rows = list(parts.train)
    by_prefix = sum(float(model.calculate_loss(rows_)) * len(rows_) for rows_ in rows)
    sequences = model.inputs.training_sequences(np.random.default_rng(0))
    together = float(model.loss_sum(sequences))
    assert together == pytest.approx(by_prefix, rel=1e-4)
    with torch.no_grad():
        for parameter in model.id_states.parameters():
            parameter.zero_()
    assert float(model.loss_sum(sequences)) != pytest.approx(together, rel=1e-3)


def test_short_windows_have_states_of_whole_histories(build):
    """The id model reads MAX_ITEM_LIST_LENGTH items, also where the language model reads the last one alone."""
    parts = build(max_window_items=1)
    model = parts.model.eval()
    with torch.no_grad():
        interaction = next(iter(parts.test))[0]
        before = model._last_states(interaction)
        other = interaction["item_id_list"].clone()
        long = (interaction["item_length"] > 1).nonzero()[:, 0]
        other[long, 0] = other[long, 0] % 7 + 1
        interaction.interaction["item_id_list"] = other
        after = model._last_states(interaction)
    assert len(long)
    assert (before != after).any(dim=1)[long].all()


def test_held_out_items_are_never_read_in_training(build):
    parts = build()
    histories, states = parts.model.inputs.histories, parts.model.id_states.trained_vectors()
    for start in np.unique(histories.user_start):
        length = int((histories.user_start == start).sum())
        kept = states[start : start + length].abs().sum(dim=1) > 0
        # The last training target is followed by those of validation and test; RecBole leaves one to training.
        read = max(length - 3, 1)
        assert kept.tolist() == [True] * read + [False] * (length - read)


def test_states_are_those_of_the_id_model_in_its_own_precision(build):
    """The backbone's bf16 is not the id model's, wherever its states are computed first."""
    trained, alone = build(precision="bf16", tuning="full").model, build(precision="bf16", tuning="full").model
    assert trained.precision == torch.bfloat16
    trained.loss_sum(trained.inputs.training_sequences(np.random.default_rng(0)))
    assert torch.equal(trained.id_states.trained_vectors(), alone.id_states.trained_vectors())


def test_owners_are_the_users_of_the_items(build):
    parts = build()
    dataset = parts.train._dataset
    names = dataset.field2id_token["user_id"]
    items = dataset.field2id_token["item_id"]
    found = {}
    for owner, item in zip(dataset.owners(), dataset.history_items.tolist(), strict=True):
        found.setdefault(str(names[owner]), []).append(str(items[item]))
    found.pop("[PAD]", None)  # users without a training row
    assert found
    assert all(found[user] == list(HISTORIES[user]) for user in found)


def test_alignment_inputs_have_no_state(build):
    parts = build()
    model = parts.model.eval()
    aligned = model.inputs.alignment_sequences()
    with torch.no_grad():
        before = model.states_of(aligned)
        for parameter in model.id_states.parameters():
            parameter.mul_(3)
        torch.testing.assert_close(model.states_of(aligned), before)


@pytest.mark.parametrize("tuning", ["ilp", "lora", "full"])
def test_run_trains_the_states_projection_and_stands_alone(small, rough_models, id_runs, tuning):
    """A run with new states differs from the one without, its checkpoint has W_u, and loading it ranks the same."""
    write_dataset(small, titles=SHORT)
    given = {
        "backbone": str(rough_models["llama"]), "tuning": tuning, "id_model_path": id_runs("SASRec", 1), "epochs": 2,
        "MAX_ITEM_LIST_LENGTH": 6, "train_batch_size": 4, "learning_rate": 0.01, "lora_rank": 2, "weight_average": 0.5,
    }  # fmt: skip
    without = run(settings=small_settings(small, **given))
    result = run(settings=small_settings(small, **given, id_states=True))
    assert [epoch["train_loss"] for epoch in result["history"]] != [epoch["train_loss"] for epoch in without["history"]]
    folder = Path(result["path"]).parent
    names = checkpoint.read_weights(folder / checkpoint.WEIGHTS)[1]
    assert [name for name in names if "id_s" in name] == [
        "id_scores.weight", "id_states.projection.bias", "id_states.projection.weight"
    ]  # fmt: skip
    assert not (folder / "scenario.safetensors").exists()
    parts = load(folder)
    assert float(parts.model.id_states.projection.weight.abs().max()) > 0.02  # beyond where it started
    found = parts.recommend(["a", "b", "c"], k=3)
    assert len(found.items) == 3
    with torch.no_grad():
        interaction = next(iter(parts.test))[0]
        scores = parts.model.full_sort_predict(interaction).numpy()
    own = scores[np.arange(len(scores)), interaction["item_id"].numpy()]
    assert (scores >= own[:, None]).sum(axis=1).tolist() == read_ranks(folder / "ranks-test.tsv.gz")["rank"].tolist()


def test_gradients_reach_the_states_projection_through_a_frozen_backbone(build):
    model = build().model
    model.loss_sum(model.inputs.training_sequences(np.random.default_rng(0))).backward()
    trained = {id(p) for group in model.parameter_groups() for p in group["params"]}
    assert {id(p) for p in model.parameters() if p.grad is not None} == trained
    assert all(p.grad.abs().sum() > 0 for p in model.id_states.parameters())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"id_states": True}, "id_states=True has no effect: no id_model is named"),
        ({"id_states": True, "id_model": "FPMC"}, "FPMC has no user vector"),
        ({"id_states": "yes", "id_model": "SASRec"}, "id_states=yes must be True or False"),
    ],
)
def test_wrong_settings_are_refused_before_the_id_model_is_trained(small, tiny, settings, said):
    with pytest.raises(SettingError, match=re.escape(said)):
        run(settings=small_settings(small, backbone=str(tiny["llama"]), **settings))
    assert not list((small / "saved").glob("id-*"))
