"""The losses of positions against plain numpy formulas, in float64, and their gradients against autograd's."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from recbole_llm.errors import SettingError
from recbole_llm.model.layers import position_loss
from recbole_llm.model.layers.item_linear_projection import cross_entropy_sum
from recbole_llm.model.layers.position_loss import (
    PositionLoss,
    binary,
    bpr,
    calibrated_beta,
    sampled_softmax,
    scores_of,
)

QUERIES, SIZE, ITEMS = 7, 5, 11  # the padding id is one of the items


@pytest.fixture
def given():
    torch.manual_seed(0)
    states, table = torch.randn(QUERIES, SIZE).double(), torch.randn(ITEMS, SIZE).double()
    labels = torch.randint(1, ITEMS, (QUERIES,))
    return states, table, labels


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


def test_cross_entropy_has_a_class_for_the_padding_id_as_recboles(given):
    states, table, labels = given
    found = PositionLoss("CE", torch.ones(ITEMS))(states.requires_grad_(), table.requires_grad_(), labels)
    found.backward()
    gradients = states.grad.clone(), table.grad.clone()
    states.grad = table.grad = None
    expected = F.cross_entropy(states @ table.T, labels)
    expected.backward()
    torch.testing.assert_close(found.double(), expected.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradients, (states.grad, table.grad), rtol=1e-5, atol=1e-6)


def test_cross_entropy_in_pieces_is_the_same(given, monkeypatch):
    states, table, labels = given
    whole = cross_entropy_sum(states, table, labels, torch.float64, padding_class=True)
    monkeypatch.setattr("recbole_llm.model.layers.item_linear_projection._LOGITS_BYTES", 4 * ITEMS * 2)
    monkeypatch.setattr("recbole_llm.model.layers.item_linear_projection._LEAST_QUERIES", 0)
    pieces = cross_entropy_sum(states, table, labels, torch.float64, padding_class=True)
    torch.testing.assert_close(pieces, whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dense", [0, 100])  # scores from the items' vectors alone, and from the whole table
def test_bpr(given, monkeypatch, dense):
    monkeypatch.setattr(position_loss, "_DENSE", dense)
    states, table, labels = given
    negatives = torch.randint(1, ITEMS, (QUERIES, 1))
    z = (states @ table.T).numpy()
    expected = [-np.log(1e-10 + sigmoid(z[q, labels[q]] - z[q, negatives[q, 0]])) for q in range(QUERIES)]
    np.testing.assert_allclose(bpr(states, table, labels, negatives), expected, rtol=1e-12)


@pytest.mark.parametrize("dense", [0, 100])
@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_binary_cross_entropy(given, monkeypatch, dense, beta):
    monkeypatch.setattr(position_loss, "_DENSE", dense)
    states, table, labels = given
    negatives = torch.randint(1, ITEMS, (QUERIES, 4))
    z = (states @ table.T).numpy()
    expected = [
        -(beta * np.log(sigmoid(z[q, labels[q]])) + sum(np.log(1 - sigmoid(z[q, j])) for j in negatives[q].tolist()))
        for q in range(QUERIES)
    ]
    np.testing.assert_allclose(binary(states, table, labels, negatives, beta), expected, rtol=1e-12)


def test_beta_of_gbce():
    """N = 101, k = 25, t = 0.75: alpha = 25 / 100, beta = .25 (.75 (1 - 4) + 4) = .4375."""
    assert calibrated_beta(0.75, 25, 101) == pytest.approx(0.4375)
    assert calibrated_beta(0.0, 25, 101) == pytest.approx(1.0)
    assert calibrated_beta(1.0, 25, 101) == pytest.approx(0.25)
    assert PositionLoss("gBCE", torch.ones(102), 25, 0.75).beta == pytest.approx(0.4375)


def test_sampled_softmax(given):
    states, table, labels = given
    drawn = torch.tensor([3, 1, int(labels[0]), 7, 3])
    log_expected = torch.tensor([0.5, 0.1, 0.2, 0.9, 0.5]).double().log()
    found = sampled_softmax(states, table, labels, drawn, log_expected)
    z = (states @ table.T).numpy()
    for q in range(QUERIES):
        y = int(labels[q])
        others = sum(np.exp(z[q, j] - log_expected[n].item()) for n, j in enumerate(drawn.tolist()) if j != y)
        chance = np.exp(z[q, y]) / (np.exp(z[q, y]) + others)
        assert found[q].item() == pytest.approx((1 - chance) * (np.log(others) - z[q, y]), rel=1e-12)


def test_sampled_softmax_of_all_items_has_the_gradient_of_the_whole(given):
    states, table, labels = given
    states.requires_grad_()
    every = torch.arange(1, ITEMS)  # each once: m q_j = 1
    sampled_softmax(states, table, labels, every, torch.zeros(ITEMS - 1).double()).sum().backward()
    found, states.grad = states.grad, None
    F.cross_entropy(states @ table[1:].T, labels - 1, reduction="sum").backward()
    torch.testing.assert_close(found, states.grad)


def test_the_gradient_of_a_table_is_that_of_the_whole_softmax_too(given):
    states, table, labels = given
    loss = PositionLoss("SampledCE", torch.ones(ITEMS), ITEMS - 1, sampling="uniform")
    table.requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "searchsorted", lambda *_, **__: torch.arange(1, ITEMS))  # each item once
        loss.summed(states, table, labels).backward()
    found, table.grad = table.grad, None
    F.cross_entropy(states @ table[1:].T, labels - 1, reduction="sum").backward()
    torch.testing.assert_close(found, table.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sampling", ["uniform", "mixed"])
def test_mean_of_the_sampled_gradient_over_many_draws_is_the_wholes(given, sampling):
    """The estimate of log sum exp is biased by 1 / m, so m is large beside the number of items."""
    states, table, labels = given
    states, table = 0.5 * states, table.requires_grad_()
    F.cross_entropy(states @ table[1:].T, labels - 1, reduction="sum").backward()
    whole, draws = table.grad.clone(), []
    loss = PositionLoss("SampledCE", torch.arange(ITEMS), 2_000, sampling=sampling)
    torch.manual_seed(0)
    for _ in range(300):
        table.grad = None
        loss.summed(states, table, labels).backward()
        draws.append(table.grad.clone())
    draws = torch.stack(draws)
    error = draws.std(dim=0) / len(draws) ** 0.5
    assert (error[1:] > 0).all()
    assert ((draws.mean(dim=0) - whole).abs() <= 5 * error + 2e-3).all()
    assert (draws[0] - whole).abs().max() > 10 * (draws.mean(dim=0) - whole).abs().max()  # a draw alone is far off


def test_plain_correction_corrects_the_label_too(given):
    states, table, labels = given
    loss = PositionLoss("SampledCE", torch.arange(ITEMS), 5, sampling="popularity", correction="plain")
    drawn = torch.tensor([3, 1, int(labels[0]), 7, 3])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "searchsorted", lambda *_, **__: drawn)
        found = loss.summed(states, table, labels)
    corrected = (states @ table.T).numpy() - np.log(5 * np.maximum(np.arange(ITEMS), 1) / np.arange(ITEMS).sum())
    expected = 0.0
    for q in range(QUERIES):
        y = int(labels[q])
        others = sum(np.exp(corrected[q, j]) for j in drawn.tolist() if j != y)
        expected += np.log(np.exp(corrected[q, y]) + others) - corrected[q, y]
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_sampled_softmax_where_the_label_alone_was_drawn_is_no_loss(given):
    states, table, labels = given
    states.requires_grad_()
    loss = sampled_softmax(states[:1], table, labels[:1], labels[:1].repeat(3), torch.zeros(3).double())
    loss.sum().backward()
    assert loss.item() == 0
    assert not states.grad.any()


@pytest.mark.parametrize("sampling", ["uniform", "popularity", "mixed"])
def test_items_are_drawn_from_what_the_correction_says(sampling):
    popularity = torch.tensor([0, 5, 0, 1, 2])
    loss = PositionLoss("SampledCE", popularity, 20_000, sampling=sampling)
    seen = []

    def spy(states, table, labels, drawn, log_expected, *_):
        seen.append((drawn, log_expected))
        return states.sum(dim=1)

    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(position_loss, "sampled_softmax", spy)
        loss(torch.ones(1, 2), torch.ones(5, 2), torch.tensor([1]))
    drawn, log_expected = seen[0]
    uniform, popular = np.array([0, 1, 1, 1, 1]) / 4, np.array([0, 5, 0, 1, 2]) / 8
    share = {"uniform": uniform, "popularity": popular, "mixed": (uniform + popular) / 2}[sampling]
    counts = np.bincount(drawn.numpy(), minlength=5)
    assert (counts[share == 0] == 0).all()
    np.testing.assert_allclose(counts / 20_000, share, atol=0.015)
    np.testing.assert_allclose(log_expected.exp() / 20_000, share[drawn.numpy()], rtol=1e-4)


def test_drawn_items_are_all_but_the_label():
    loss = PositionLoss("BCE", torch.ones(5), 3)
    torch.manual_seed(0)
    labels = torch.tensor([1, 2, 3, 4])
    drawn = loss._others(labels, 4000)
    for label, row in zip(labels.tolist(), drawn, strict=True):
        counts = torch.bincount(row, minlength=5)
        assert counts[0] == counts[label] == 0
        assert sorted(row.unique().tolist()) == [item for item in range(1, 5) if item != label]
        assert counts[counts > 0].min() > 1200  # a third of 4000 each


@pytest.mark.parametrize("loss_type", ["CE", "BPR", "BCE", "gBCE", "SampledCE"])
def test_mean_is_over_labelled_queries_alone(given, loss_type):
    states, table, labels = given
    loss = PositionLoss(loss_type, torch.ones(ITEMS), 4)
    labels[[1, 4]] = 0
    states = states.float().requires_grad_()
    table = table.float()
    torch.manual_seed(1)
    found = loss(states, table, labels)
    found.backward()
    assert not states.grad[[1, 4]].any()
    changed = states.detach().clone()
    changed[[1, 4]] = 100.0
    torch.manual_seed(1)
    assert loss(changed, table, labels).item() == pytest.approx(found.item(), rel=1e-6)
    assert loss(states, table, torch.zeros_like(labels)).item() == 0


def test_scores_are_the_same_both_ways(given, monkeypatch):
    states, table, _ = given
    items = torch.randint(1, ITEMS, (QUERIES, 3))
    found = []
    for dense in (0, 100):
        monkeypatch.setattr(position_loss, "_DENSE", dense)
        found.append(scores_of(states, table, items))
    torch.testing.assert_close(*found)


def test_more_items_than_there_are_cannot_be_drawn():
    with pytest.raises(SettingError, match="num_negatives=10 of gBCE must be below 10"):
        PositionLoss("gBCE", torch.ones(11), 10)


def test_a_checkpoint_holds_nothing_of_it():
    assert not PositionLoss("SampledCE", torch.ones(5), 3).state_dict()
