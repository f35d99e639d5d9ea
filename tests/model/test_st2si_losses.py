"""ST2SI with other losses than the full softmax: the same model, the same ranking, another way to train it."""

import numpy as np
import pytest
import torch
from small_data import HISTORIES, build_parts
from st2si_parts import gradients, prefix_rows

from recbole_llm.config.config import Config
from recbole_llm.errors import SettingError
from recbole_llm.model.layers.balanced_clusters import balanced_clusters

LOSSES = ["BCE", "gBCE", "SampledCE"]


def one_pass_loss(parts):
    model = parts.model
    model.train()
    torch.manual_seed(0)
    return model.loss_sum(model.inputs.training_sequences(np.random.default_rng(0)))


@pytest.mark.parametrize("loss", LOSSES)
def test_weights_and_ranking_are_those_of_the_full_softmax(build_st2si, loss):
    full, other = build_st2si(), build_st2si(loss_type=loss, num_negatives=3)
    assert other.model.state_dict().keys() == full.model.state_dict().keys()
    other.model.load_state_dict(full.model.state_dict())
    for interaction, _ in prefix_rows(full.valid):
        with torch.no_grad():
            scores = [parts.model.eval().full_sort_predict(interaction) for parts in (full, other)]
        torch.testing.assert_close(*scores, rtol=0, atol=0)


def test_gbce_is_the_numpy_formula(build_st2si, monkeypatch):
    """All seven other items are drawn against each of the queries, each once."""
    parts = build_st2si(loss_type="gBCE", num_negatives=7, gbce_calibration=0.5)
    weight = parts.model.projection.weight.detach().numpy()
    states = np.random.default_rng(0).normal(size=(3, weight.shape[1])).astype(np.float32)
    labels = np.array([1, 8, 3])
    others = np.stack([[item for item in range(1, 9) if item != label] for label in labels])
    monkeypatch.setattr(
        parts.model.projection.position_loss, "_others", lambda labels, number: torch.from_numpy(others)
    )
    z, expected, alpha = states @ weight.T, 0.0, 7 / 7
    beta = alpha * (0.5 * (1 - 1 / alpha) + 1 / alpha)
    for q, label in enumerate(labels):
        expected -= beta * np.log(1 / (1 + np.exp(-z[q, label])))
        expected -= np.log(1 - 1 / (1 + np.exp(-z[q, others[q]]))).sum()
    found = parts.model.projection.loss(torch.from_numpy(states), torch.from_numpy(labels))
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_labels_are_counted_with_alignment_inputs(build_st2si):
    """A target is an item after another that is held out for nobody; each item with a text is one more."""
    ids = build_st2si().dataset.field2token_id["item_id"]
    expected = np.zeros(9, dtype=int)
    for items in HISTORIES.values():
        held_out = min(2, len(items) - 2)  # one target stays to train on
        for item in items[1 : len(items) - held_out]:
            expected[ids[item]] += 1
    for alignment in (False, True):
        found = build_st2si(alignment=alignment).model.inputs.label_counts().numpy()
        np.testing.assert_array_equal(found, expected + alignment * (np.arange(9) > 0))


def test_the_language_model_is_trained_by_drawn_items_too(build_st2si):
    parts = build_st2si(tuning="full", loss_type="SampledCE", num_negatives=50)
    one_pass_loss(parts).backward()
    found = gradients(parts.model)
    assert any(name.startswith("backbone.") and gradient.any() for name, gradient in found.items())
    assert found["projection.weight"].any()


def test_two_levels_cluster_items_by_their_texts_once(build_st2si):
    """The states of alignment inputs, whose clusters stay as they are when training goes on."""
    parts = build_st2si(loss_type="TwoLevel")
    model, softmax = parts.model, parts.model.projection.softmax
    ((labels, states),) = model._alignment_states(model.inputs.alignment_sequences())
    vectors = np.zeros((9, 32), dtype=np.float32)
    vectors[labels] = states.detach().numpy()
    model.before_epoch(0)
    expected = balanced_clusters(vectors[1:], softmax.clusters, model.seed)
    np.testing.assert_array_equal(softmax.cluster_of[1:].numpy(), expected)
    assert not model.backbone.training
    with torch.no_grad():
        softmax.cluster_of[1:] = 0
    model.before_epoch(1)
    assert not softmax.cluster_of.any()


@pytest.mark.parametrize("tuning", ["ilp", "full"])
def test_two_levels_train_and_rank_exactly(build_st2si, tuning):
    parts = build_st2si(loss_type="TwoLevel", tuning=tuning, item_optimizer="adamw")
    parts.model.before_epoch(0)
    one_pass_loss(parts).backward()
    assert gradients(parts.model)["projection.weight"].is_sparse
    parts.model.eval()
    with torch.no_grad():
        for interaction, _ in prefix_rows(parts.valid):
            scores = parts.model.full_sort_predict(interaction)
            torch.testing.assert_close(scores.exp().sum(dim=1), torch.ones(len(scores)))
            blocks = parts.model.scores_of_items(interaction)
            torch.testing.assert_close(torch.cat([blocks(slice(1, 4)), blocks(slice(4, 9))], dim=1), scores[:, 1:])
            interaction.interaction["item_id"] = torch.full((len(interaction),), 3)
            torch.testing.assert_close(parts.model.predict(interaction), scores[:, 3])
            table = parts.model.projection
            torch.testing.assert_close(table.of_items(parts.model.row_states(interaction), slice(2, 5)), scores[:, 2:5])


def test_codes_train_what_ranks(build_st2si):
    parts = build_st2si(item_codes="4x3", alignment=False)
    model = parts.model
    assert model.projection.to_choose
    model.before_epoch(0)
    assert not model.projection.to_choose
    loss = one_pass_loss(parts)
    loss.backward()
    assert set(gradients(model)) == {"projection.codebooks"}
    assert {"projection.codebooks", "projection.codes", "projection.chosen"} == set(model.stored_state())
    assert model.projection.width == 32
    model.eval()
    with torch.no_grad():
        for interaction, _ in prefix_rows(parts.valid):
            scores = model.full_sort_predict(interaction)
            plain = model.row_states(interaction) @ model.projection.weight.T
            torch.testing.assert_close(scores[:, 1:], plain[:, 1:])
            torch.testing.assert_close(model.scores_of_items(interaction)(slice(2, 6)), scores[:, 2:6])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"item_codes": "8"}, "item_codes=8 must be two whole numbers such as 8x256"),
        ({"item_codes": "5x3"}, "item_codes=5x3 cuts states into 5 parts, but theirs have 32 numbers"),
        ({"item_codes": "4x9"}, "item_codes=4x9 has 9 values of a code for 8 items"),
        ({"item_codes": "4x3", "loss_type": "gBCE"}, "item_codes=4x3 goes with loss_type=CE, not gBCE"),
    ],
)
def test_codes_that_do_not_fit_are_refused(build_st2si, settings, message):
    with pytest.raises(SettingError, match=message):
        build_st2si(**settings)


def test_a_loss_of_rows_is_refused(small, tiny):
    with pytest.raises(SettingError, match="loss_type=BPR must be CE, BCE, gBCE"):
        build_parts(small, backbone=str(tiny["llama"]), loss_type="BPR")


def test_more_negatives_than_items_are_refused(build_st2si):
    with pytest.raises(SettingError, match="num_negatives=8 of gBCE must be below 8"):
        build_st2si(loss_type="gBCE", num_negatives=8)


def test_idleadapter_has_none_of_them(small):
    with pytest.raises(SettingError, match="loss_type"):
        Config("IDLEAdapter", config_dict={"dataset": "small", "data_path": str(small), "loss_type": "SampledCE"})
