"""The losses on user and item vectors, against numpy by hand."""

import numpy as np
import pytest
import torch

from recbole_llm.model.layers.table_loss import (
    Candidates,
    ResidualCrossing,
    Similarity,
    binary_cross_entropy,
    full_cross_entropy,
    in_batch_cross_entropy,
    sampled_cross_entropy,
    table_cross_entropy,
)

USERS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
ITEMS = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)  # of the item ids 2, 3, 5, 7, 8
CANDIDATES = Candidates(
    labels=torch.tensor([3, 7, 3, 2]),
    targets=torch.tensor([1, 3, 1, 0]),
    negatives=torch.tensor([[0, 4], [1, 3], [4, 2], [4, 4]]),  # the second row has its own target among them
    known=torch.tensor([[7, 8], [5, 0], [2, 0]]),
    owners=torch.tensor([0, 1, 1, 2]),
)


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def minus_log_softmax(scores):
    return np.log(np.exp(scores).sum()) - scores[0]


@pytest.mark.parametrize(("kind", "score"), [("dot", np.dot), ("cosine", cosine)])
def test_losses_by_hand(kind, score):
    similarity = Similarity(kind, 0.5)
    users, items = torch.from_numpy(USERS), torch.from_numpy(ITEMS)

    def s(user, item):
        return score(USERS[user], ITEMS[item]) / 0.5

    sampled = [[1, 0, 4], [3, 1], [1, 4, 2], [0, 4, 4]]
    expected = sum(minus_log_softmax(np.array([s(u, i) for i in row])) for u, row in enumerate(sampled))
    torch.testing.assert_close(
        sampled_cross_entropy(similarity, users, items, CANDIDATES).item(), expected, rtol=1e-5, atol=1e-5
    )

    rows = CANDIDATES.targets.tolist()
    expected = sum(
        minus_log_softmax(np.array([s(u, i) for i in [rows[u], *({*range(5)} - {rows[u]})]])) for u in range(4)
    )
    torch.testing.assert_close(
        full_cross_entropy(similarity, users, items, CANDIDATES).item(), expected, rtol=1e-5, atol=1e-5
    )
    table = torch.cat([torch.full((1, 3), 9.0), items])  # row 0 is no item
    found = table_cross_entropy(similarity, users, table, CANDIDATES.targets + 1)
    torch.testing.assert_close(found.item(), expected, rtol=1e-5, atol=1e-5)

    log_popularity = np.log(np.arange(1, 10) / 45).astype(np.float32)
    # Row 0 (target 3) has met 7 and shares its target with row 2: item 2 is left. Rows 1 and 2 have met 5, of nobody.
    others = {0: [3], 1: [0, 2, 3], 2: [1, 3], 3: [0, 1, 2]}
    labels = CANDIDATES.labels.tolist()
    for correction in (None, log_popularity):
        expected = 0.0
        for row, columns in others.items():
            at = [row, *columns]
            scores = np.array([s(row, rows[c]) - (0 if correction is None else correction[labels[c]]) for c in at])
            expected += minus_log_softmax(scores)
        given = None if correction is None else torch.from_numpy(correction)
        found = in_batch_cross_entropy(similarity, users, items, CANDIDATES, given)
        torch.testing.assert_close(found.item(), expected, rtol=1e-5, atol=1e-5)

    negatives = CANDIDATES.negatives.tolist()
    expected = sum(
        np.log1p(np.exp(-s(u, rows[u]))) + np.mean([np.log1p(np.exp(s(u, i))) for i in negatives[u]]) for u in range(4)
    )
    torch.testing.assert_close(
        binary_cross_entropy(similarity, users, items, CANDIDATES).item(), expected, rtol=1e-5, atol=1e-5
    )


def test_a_table_without_gradient_takes_none():
    """Users get the gradient of autograd's own cross-entropy; the table gets nothing."""
    similarity = Similarity("cosine", 0.1)
    table = torch.cat([torch.zeros(1, 3), torch.from_numpy(ITEMS)])
    users = torch.from_numpy(USERS).requires_grad_()
    table_cross_entropy(similarity, users, table, CANDIDATES.targets + 1).backward()
    found, users.grad = users.grad, None
    full_cross_entropy(similarity, users, table[1:], CANDIDATES).backward()
    torch.testing.assert_close(found, users.grad, rtol=1e-5, atol=1e-6)
    assert table.grad is None


def test_residual_crossing_by_hand():
    """x = max(u, v), y = relu(W x + b) + x, w . y + c, for pairs and for all."""
    torch.manual_seed(0)
    crossing = ResidualCrossing(3)
    inner, bias, outer, constant = (p.detach().numpy() for p in crossing.parameters())
    expected = np.empty((4, 5))
    for u in range(4):
        for i in range(5):
            x = np.maximum(USERS[u], ITEMS[i])
            expected[u, i] = outer[0] @ (np.maximum(inner @ x + bias, 0) + x) + constant[0]
    users, items = torch.from_numpy(USERS), torch.from_numpy(ITEMS)
    found = crossing.matrix(users, items).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    pairs = crossing.pairs(users[:, None], items[CANDIDATES.negatives]).detach().numpy()
    np.testing.assert_allclose(
        pairs, np.take_along_axis(expected, CANDIDATES.negatives.numpy(), 1), rtol=1e-5, atol=1e-6
    )


def test_a_learned_temperature_begins_at_the_given_one():
    similarity = Similarity("cosine", 0.07, learned=True)
    users, items = torch.from_numpy(USERS), torch.from_numpy(ITEMS)
    plain = Similarity("cosine", 0.07).matrix(users, items)
    torch.testing.assert_close(similarity.matrix(users, items), plain)
    similarity.matrix(users, items).sum().backward()
    # d(s) / d(log tau) = -s
    torch.testing.assert_close(similarity.log_temperature.grad, -plain.sum(), rtol=1e-4, atol=1e-4)
