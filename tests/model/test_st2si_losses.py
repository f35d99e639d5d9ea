"""ST2SI with other losses than the full softmax: the same model, the same ranking, another way to train it."""

import numpy as np
import pytest
import torch
from small_data import HISTORIES, build_parts
from st2si_parts import gradients, prefix_rows

from recbole_llm.config.config import Config
from recbole_llm.errors import SettingError

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


def test_a_loss_of_rows_is_refused(small, tiny):
    with pytest.raises(SettingError, match="loss_type=BPR must be CE, BCE, gBCE"):
        build_parts(small, backbone=str(tiny["llama"]), loss_type="BPR")


def test_more_negatives_than_items_are_refused(build_st2si):
    with pytest.raises(SettingError, match="num_negatives=8 of gBCE must be below 8"):
        build_st2si(loss_type="gBCE", num_negatives=8)


def test_idleadapter_has_none_of_them(small):
    with pytest.raises(SettingError, match="loss_type"):
        Config("IDLEAdapter", config_dict={"dataset": "small", "data_path": str(small), "loss_type": "SampledCE"})
