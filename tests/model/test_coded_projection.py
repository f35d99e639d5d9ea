"""The projection of codes against the whole projection that they stand for."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from recbole_llm.model.layers import block_softmax
from recbole_llm.model.layers.coded_projection import CodedProjection, quantile_codes
from recbole_llm.model.layers.item_linear_projection import ItemLinearProjection

QUERIES, WIDTH, ITEMS, PARTS, VALUES = 6, 8, 30, 4, 5


@pytest.fixture(params=[512, 4], ids=["one block", "blocks of four items"])
def coded(request, monkeypatch):
    monkeypatch.setattr(block_softmax, "_LEAST_ITEMS", request.param)
    monkeypatch.setattr(block_softmax, "_MOST_ITEMS", request.param)
    torch.manual_seed(0)
    projection = CodedProjection(WIDTH, ITEMS, PARTS, VALUES).double()
    with torch.no_grad():
        projection.codebooks.normal_()
        projection.codes[1:] = torch.randint(0, VALUES, (ITEMS - 1, PARTS))
    return projection


def batch():
    torch.manual_seed(1)
    return torch.randn(QUERIES, WIDTH).double().requires_grad_(), torch.tensor([1, 29, 7, 0, 7, 3])


def whole(projection):
    """W by its definition, one number after the other."""
    books, codes = projection.codebooks.detach().numpy(), projection.codes.numpy()
    size = WIDTH // PARTS
    return np.array([[books[d // size, codes[i, d // size], d % size] for d in range(WIDTH)] for i in range(ITEMS)])


def test_scores_are_those_of_the_rows_that_codes_stand_for(coded):
    states, _ = batch()
    expected = states.detach().numpy() @ whole(coded).T
    with torch.no_grad():
        found = coded(states).numpy()
        np.testing.assert_allclose(coded.weight.numpy(), whole(coded))
        np.testing.assert_allclose(coded.of_items(states, slice(3, 9)).numpy(), expected[:, 3:9], rtol=1e-12)
        items = torch.tensor([1, 2, 3, 4, 5, 29])
        np.testing.assert_allclose(coded.of_items(states, items).numpy(), expected[:, items.numpy()], rtol=1e-12)
        np.testing.assert_allclose(coded.of_pairs(states, items), expected[range(QUERIES), items.numpy()], rtol=1e-12)
    np.testing.assert_allclose(found[:, 1:], expected[:, 1:], rtol=1e-12)
    assert np.isneginf(found[:, 0]).all()


def test_loss_and_gradients_are_those_of_the_whole_softmax(coded):
    states, labels = batch()
    (3.0 * coded.loss(states, labels, torch.float64)).backward()
    found = states.grad, coded.codebooks.grad
    loss = coded.loss(states, labels, torch.float64).item()
    states.grad = coded.codebooks.grad = None
    kept = labels > 0
    plain = F.cross_entropy((states @ coded.weight[1:].T)[kept], labels[kept] - 1, reduction="sum")
    (3.0 * plain).backward()
    assert loss == pytest.approx(plain.item(), rel=1e-6)
    torch.testing.assert_close(found, (states.grad, coded.codebooks.grad), rtol=1e-5, atol=1e-6)


def test_a_code_of_its_own_for_each_item_is_the_whole_projection():
    torch.manual_seed(0)
    full, coded = ItemLinearProjection(WIDTH, ITEMS).double(), CodedProjection(WIDTH, ITEMS, 1, ITEMS).double()
    with torch.no_grad():
        coded.codebooks[0] = full.weight
    states, labels = batch()
    found = []
    for projection in (full, coded):
        states.grad = None
        loss = projection.loss(states, labels, torch.float64)
        loss.backward()
        found.append((loss.detach(), states.grad.clone()))
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(coded.codebooks.grad[0], full.weight.grad, rtol=1e-5, atol=1e-6)


def test_codes_are_quantiles_of_leading_directions():
    """Along the axes, the second wider than the first: its order is the first code's, the first axis' the second's."""
    rng = np.random.default_rng(0)
    vectors = np.stack([rng.permutation(20), 10.0 * rng.permutation(20)], axis=1).astype(np.float32)
    vectors[:, 0] -= np.polyval(np.polyfit(vectors[:, 1], vectors[:, 0], 1), vectors[:, 1])  # uncorrelated
    codes = quantile_codes(vectors, 2, 4)
    for part, axis in enumerate((1, 0)):
        expected = np.argsort(np.argsort(vectors[:, axis])) * 4 // 20
        assert (codes[:, part] == expected).all() or (codes[:, part] == 3 - expected).all()
        assert np.bincount(codes[:, part]).tolist() == [5, 5, 5, 5]


def test_more_codes_than_directions_are_zero():
    codes = quantile_codes(np.random.default_rng(0).normal(size=(10, 2)).astype(np.float32), 3, 2)
    assert codes.shape == (10, 3)
    assert not codes[:, 2].any()


def test_codes_are_part_of_a_checkpoint(coded):
    other = CodedProjection(WIDTH, ITEMS, PARTS, VALUES).double()
    coded.choose([(np.arange(1, ITEMS), torch.randn(ITEMS - 1, WIDTH))], seed=0)
    assert other.to_choose
    other.load_state_dict(coded.state_dict())
    assert not other.to_choose
    torch.testing.assert_close(other.weight, coded.weight)
