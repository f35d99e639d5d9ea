"""The projection's loss and its hand-written gradients against torch's own cross-entropy, in float64."""

import pytest
import torch
from torch.nn import functional as F

from recbole_llm.model.layers import item_linear_projection
from recbole_llm.model.layers.item_linear_projection import ItemLinearProjection

QUERIES, WIDTH, ITEMS = 23, 6, 12


def make(seed=0):
    torch.manual_seed(seed)
    projection = ItemLinearProjection(WIDTH, ITEMS).double()
    states = torch.randn(QUERIES, WIDTH, dtype=torch.float64)
    labels = torch.randint(1, ITEMS, (QUERIES,))
    labels[[3, 17]] = 0
    return projection, states, labels


def reference(projection, states, labels):
    """Loss and gradients by autograd."""
    states = states.clone().requires_grad_()
    weight = projection.weight.detach().clone().requires_grad_()
    loss = F.cross_entropy(states @ weight[1:].T, labels - 1, ignore_index=-1, reduction="sum")
    loss.backward()
    return loss.detach(), states.grad, weight.grad


@pytest.mark.parametrize("rows", [QUERIES, 5, 1])  # of one piece
def test_loss_and_gradients_are_those_of_autograd(monkeypatch, rows):
    monkeypatch.setattr(item_linear_projection, "_LOGITS_BYTES", 4 * ITEMS * rows)
    projection, states, labels = make()
    expected = reference(projection, states, labels)
    given = states.clone().requires_grad_()
    loss = projection.loss(given, labels, torch.float64)
    (3.0 * loss).backward()
    # The softmax is float32.
    torch.testing.assert_close(loss.double(), expected[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(given.grad, 3 * expected[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(projection.weight.grad, 3 * expected[2], rtol=1e-5, atol=1e-6)
    assert not projection.weight.grad[0].any()
    assert not given.grad[[3, 17]].any()
