"""The projection's loss and its hand-written gradients against torch's own cross-entropy."""

import pytest
import torch
from torch.nn import functional as F

from recbole_llm.model.layers import block_softmax, item_linear_projection
from recbole_llm.model.layers.item_linear_projection import ItemLinearProjection, cross_entropy_sum

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
    monkeypatch.setattr(item_linear_projection, "_LEAST_QUERIES", 0)
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


def cut_by_items(monkeypatch, block):
    """Have blocks of this many items for all queries at once; return a list that gets the shapes of their logits."""
    monkeypatch.setattr(item_linear_projection, "_LOGITS_BYTES", 4)
    monkeypatch.setattr(block_softmax, "_BLOCK_BYTES", {"cpu": 4})
    monkeypatch.setattr(block_softmax, "_LEAST_ITEMS", block)
    made, shapes = block_softmax.BlockSoftmax._blocks, []

    def recorded(softmax):
        for part, logits, rows in made(softmax):
            shapes.append(tuple(logits.shape))
            yield part, logits, rows

    monkeypatch.setattr(block_softmax.BlockSoftmax, "_blocks", recorded)
    return shapes


@pytest.mark.parametrize("block", [ITEMS, 5, 1])  # the last one leaves a block with nothing but the padding id
@pytest.mark.parametrize("padding_class", [False, True])
def test_cut_by_items_loss_and_gradients_are_the_same(monkeypatch, block, padding_class):
    shapes = cut_by_items(monkeypatch, block)
    projection, states, labels = make()
    states, weight = states.float(), projection.weight.detach().float()
    pairs = [(states.clone().requires_grad_(), weight.clone().requires_grad_()) for _ in range(2)]
    loss = cross_entropy_sum(*pairs[0], labels, padding_class=padding_class)
    (3.0 * loss).backward()
    logits = F.linear(pairs[1][0].double(), pairs[1][1].double())
    if not padding_class:
        logits = logits.index_fill(1, torch.tensor([0]), float("-inf"))
    expected = -logits.log_softmax(dim=1)[torch.arange(QUERIES), labels][labels > 0].sum()
    (3.0 * expected).backward()
    assert set(shapes) <= {(QUERIES, block), (QUERIES, ITEMS % block)}
    assert len(shapes) == 2 * -(-ITEMS // block)  # once in the forward, once in the backward pass
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-6, atol=1e-6)
    for found, right in zip(*pairs, strict=True):
        torch.testing.assert_close(found.grad, right.grad, rtol=1e-6, atol=1e-6)
    assert not pairs[0][0].grad[[3, 17]].any()
    assert padding_class or not pairs[0][1].grad[0].any()


def test_cut_by_items_or_by_queries_is_the_same_in_bfloat16(monkeypatch):
    torch.manual_seed(0)
    states, weight = torch.randn(700, 16), torch.randn(3_000, 16) / 4
    labels = torch.randint(0, 3_000, (700,))
    found = []
    for least in (0, 10**9):
        monkeypatch.setattr(item_linear_projection, "_LEAST_QUERIES", least)
        monkeypatch.setattr(item_linear_projection, "_LOGITS_BYTES", 4 * 3_000 * 600)
        given, rows = states.bfloat16().requires_grad_(), weight.clone().requires_grad_()
        loss = cross_entropy_sum(given, rows, labels, torch.bfloat16) / 700
        loss.backward()
        found.append((loss.detach(), given.grad.float(), rows.grad))
    for one, other in zip(*found, strict=True):
        assert float((one - other).norm() / one.norm()) < 2**-8  # what bfloat16 resolves


def test_cut_by_items_trains_what_needs_a_gradient_alone(monkeypatch):
    cut_by_items(monkeypatch, 5)
    projection, states, labels = make()
    expected = reference(projection, states, labels)
    projection.loss(states, labels, torch.float64).backward()
    torch.testing.assert_close(projection.weight.grad, expected[2], rtol=1e-5, atol=1e-6)
    projection.weight.requires_grad_(False)
    given = states.clone().requires_grad_()
    projection.loss(given, labels, torch.float64).backward()
    torch.testing.assert_close(given.grad, expected[1], rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        loss = projection.loss(states, labels, torch.float64)
    torch.testing.assert_close(loss.double(), expected[0], rtol=1e-6, atol=1e-6)


def test_a_large_catalogue_is_cut_by_items(monkeypatch):
    """At most 512 MiB of float32 logits, of 512 queries or more, or else of all queries; where W is narrow of fewer."""
    cuts = {}
    for name in ("_CutByQueries", "_CutByItems"):
        monkeypatch.setattr(
            getattr(item_linear_projection, name), "apply", lambda *given, name=name: cuts.update(found=name)
        )
    for queries, items, width, expected in (
        (1_600, 10_000, 2_048, "_CutByQueries"),
        (1_600, 262_144, 2_048, "_CutByQueries"),
        (1_600, 262_145, 2_048, "_CutByItems"),
        (1_600, 262_145, 64, "_CutByQueries"),
        (1_600, 5_000_000, 64, "_CutByItems"),
        (100, 1_000_000, 768, "_CutByQueries"),  # all in one piece
        (200, 1_000_000, 768, "_CutByItems"),
    ):
        weight, states = torch.empty(items, width, device="meta"), torch.empty(queries, width, device="meta")
        cross_entropy_sum(states, weight, torch.empty(queries, device="meta"))
        assert cuts["found"] == expected


def test_a_block_holds_as_many_logits_as_fit():
    for device, queries, items in (("meta", 1_600, 65_536), ("meta", 10_000, 13_421), ("meta", 10**7, 512),
                                   ("cpu", 400, 2_621)):  # fmt: skip
        assert block_softmax.block_size(torch.empty(queries, 1, device=device)) == items
