"""The two-level softmax against numpy and autograd, in float64, and its clusters."""

import numpy as np
import pytest
import torch

from recbole_llm.model.layers import two_level_softmax
from recbole_llm.model.layers.balanced_clusters import balanced_clusters, interaction_vectors
from recbole_llm.model.layers.two_level_softmax import TwoLevelSoftmax

QUERIES, WIDTH, ITEMS = 9, 5, 24  # 23 items in 5 clusters of 5, one of which has 3


@pytest.fixture(params=[2 * 1024**2, 1], ids=["together", "one cluster at a time"])
def given(request, monkeypatch):
    monkeypatch.setitem(two_level_softmax._NUMBERS, "cpu", request.param)
    torch.manual_seed(0)
    softmax = TwoLevelSoftmax(WIDTH, ITEMS).double()
    softmax.choose_clusters(np.random.default_rng(0).normal(size=(ITEMS - 1, 3)), seed=1)
    states, table = torch.randn(QUERIES, WIDTH).double(), torch.randn(ITEMS, WIDTH).double()
    return softmax, states.requires_grad_(), table.requires_grad_(), torch.randint(1, ITEMS, (QUERIES,))


def plain(softmax, states, table):
    """p(i | h) by its formula: numpy [queries, items]."""
    states, table = states.detach().numpy(), table.detach().numpy()
    outer = np.exp(states @ softmax.cluster_weight.detach().numpy().T)
    outer /= outer.sum(axis=1, keepdims=True)
    cluster_of, found = softmax.cluster_of.numpy(), np.zeros((len(states), len(table)))
    for cluster in range(softmax.clusters):
        items = [item for item in range(1, len(table)) if cluster_of[item] == cluster]
        inner = np.exp(states @ table[items].T)
        found[:, items] = outer[:, [cluster]] * inner / inner.sum(axis=1, keepdims=True)
    return found


def test_probabilities_are_the_formulas_and_sum_to_one(given):
    softmax, states, table, _ = given
    with torch.no_grad():
        found = softmax.scores(states, table).exp().numpy()
    np.testing.assert_allclose(found, plain(softmax, states, table), rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)
    assert (found[:, 0] == 0).all()


def test_blocks_of_items_have_the_same_probabilities(given):
    softmax, states, table, _ = given
    with torch.no_grad():
        of_items = softmax.in_blocks(states, table)
        found = torch.cat([of_items(slice(1, 8)), of_items(torch.arange(8, ITEMS))], dim=1).exp().numpy()
    np.testing.assert_allclose(found, plain(softmax, states, table)[:, 1:], rtol=1e-5)


@pytest.mark.parametrize("sparse", [False, True])
def test_loss_and_gradients_are_those_of_the_formula(given, sparse):
    softmax, states, table, labels = given
    softmax.sparse = sparse
    labels[3] = 0  # left out
    (2.0 * softmax.summed(states, table, labels, torch.float64)).backward()
    found = [states.grad, table.grad.to_dense(), softmax.cluster_weight.grad]
    assert table.grad.is_sparse == sparse
    chances = plain(softmax, states, table)
    loss = softmax.summed(states, table, labels, torch.float64)
    kept = [q for q in range(QUERIES) if q != 3]
    assert loss.item() == pytest.approx(-np.log(chances[kept, labels[kept]]).sum(), rel=1e-6)

    states.grad = table.grad = softmax.cluster_weight.grad = None
    outer = (states @ softmax.cluster_weight.T).log_softmax(dim=1)
    total = 0.0
    for q in kept:
        cluster = softmax.cluster_of[labels[q]]
        items = (softmax.cluster_of == cluster).nonzero()[:, 0]
        items = items[items > 0]
        inner = (table[items] @ states[q]).log_softmax(dim=0)
        total = total - outer[q, cluster] - inner[items == labels[q]].sum()
    (2.0 * total).backward()
    for gradient, expected in zip(found, [states.grad, table.grad, softmax.cluster_weight.grad], strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)


def test_a_sparse_gradient_has_the_clusters_of_the_labels_alone(given):
    softmax, states, table, _ = given
    softmax.sparse = True
    labels = torch.full((QUERIES,), 7)
    softmax.summed(states, table, labels).backward()
    rows = table.grad.coalesce().indices()[0]
    same = (softmax.cluster_of == softmax.cluster_of[7]).nonzero()[:, 0]
    assert rows.tolist() == same[same > 0].tolist()


def test_without_labels_there_is_no_loss(given):
    softmax, states, table, labels = given
    for sparse in (False, True):
        softmax.sparse = sparse
        loss = softmax(states, table, torch.zeros_like(labels))
        loss.backward()
        assert loss.item() == 0
        assert not states.grad.any()
        assert not table.grad.to_dense().any()
        table.grad = None


def test_clusters_are_part_of_a_checkpoint(given):
    softmax, states, table, labels = given
    other = TwoLevelSoftmax(WIDTH, ITEMS).double()
    assert not other.chosen
    other.load_state_dict(softmax.state_dict())
    assert other.chosen
    assert torch.equal(other.members, softmax.members)
    assert other(states, table, labels).item() == softmax(states, table, labels).item()


# -- clusters ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "clusters"), [(23, 5), (100, 10), (7, 7), (50, 1)])
def test_clusters_are_of_equal_size(number, clusters):
    vectors = np.random.default_rng(0).normal(size=(number, 4)).astype(np.float32)
    sizes = np.bincount(balanced_clusters(vectors, clusters, seed=0), minlength=clusters)
    assert sizes.sum() == number
    assert sizes.max() - sizes.min() <= 1
    assert sizes.max() == -(-number // clusters)


def test_clusters_find_what_lies_together():
    """Eight heaps of 20 vectors far from one another."""
    rng = np.random.default_rng(3)
    heap = np.repeat(np.arange(8), 20)
    vectors = (10 * rng.normal(size=(8, 6))[heap] + 0.1 * rng.normal(size=(160, 6))).astype(np.float32)
    shuffled = rng.permutation(160)
    found = balanced_clusters(vectors[shuffled], 8, seed=0)
    pairs = len(set(zip(heap[shuffled].tolist(), found.tolist(), strict=True)))
    assert pairs == 8


def test_equal_vectors_are_divided_too():
    assert np.bincount(balanced_clusters(np.zeros((12, 3), np.float32), 4, seed=0)).tolist() == [3, 3, 3, 3]


def test_the_seed_decides():
    vectors = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    first, again = (balanced_clusters(vectors, 8, seed=5) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (balanced_clusters(vectors, 8, seed=6) != first).any()


def test_interaction_vectors_are_those_of_a_whole_decomposition():
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 30, 200), rng.integers(0, 12, 200)
    found = interaction_vectors(users, items, 13, 4, seed=0)  # the last item was met by nobody
    met = np.zeros((30, 13))
    met[users, items] = 1
    _, values, vectors = np.linalg.svd(met, full_matrices=False)
    expected = (values[:4, None] * vectors[:4]).T
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-4)
    assert not np.abs(found[12]).max() > 1e-5
