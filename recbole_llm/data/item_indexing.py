"""What the IDs of items look like to a language model that generates them (P5).

The ways are those of Hua et al. 2023, "How to Index Item IDs for Recommendation Foundation Models".

All is made from training interactions alone, and from the items' own tokens: what is held out has no influence on any
ID. (P5's public code numbers items along whole sequences, test items included, so that a target is often the last
item's number plus one.) No ID begins another, so none needs a token that ends it.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.cluster import SpectralClustering

from recbole_llm.packing.ragged import RaggedTable

_ONE_CLUSTER = 0.9  # a share of the items from which on a clustering has told nothing


@dataclass(frozen=True)
class TrainingItems:
    """The training interactions, user by user in time order.

    Attributes:
        items: int64 [interactions], item ids from 1.
        counts: int64 [users], interactions of each user.
        names: [items], the token of every item id, that of the padding id included.
    """

    items: np.ndarray
    counts: np.ndarray
    names: np.ndarray

    def by_name(self) -> np.ndarray:
        """Return the item ids in the order of their tokens, int64 [items - 1].

        RecBole numbers items as the file has them, held-out interactions included; tokens do not depend on these.
        """
        return np.argsort(self.names[1:].astype(str), kind="stable") + 1


def random_order(training: TrainingItems, seed: int) -> np.ndarray:
    """Return the item ids in a random order, int64 [items - 1]."""
    return np.random.default_rng(seed).permutation(training.by_name())


def sequential_order(training: TrainingItems) -> np.ndarray:
    """Return the item ids as users meet them, user by user: int64 [items - 1]; those never trained on come last."""
    _, first = np.unique(training.items, return_index=True)
    met = training.items[np.sort(first)]
    others = training.by_name()
    return np.concatenate([met, others[~np.isin(others, met)]])


def numbers(order: np.ndarray) -> list[str]:
    """Return the number of every item id as text, row 0 empty; all have as many digits, so none begins another.

    The first item has 1001 (10001, ... in a large catalogue).

    Args:
        order: int64 [items - 1], item ids.
    """
    begin = 1000
    while len(order) > 9 * begin - 1:
        begin *= 10
    texts = [""] * (len(order) + 1)
    for place, item in enumerate(order.tolist()):
        texts[item] = str(begin + 1 + place)
    return texts


def independent_codes(training: TrainingItems) -> RaggedTable:
    """Return a code of one number of its own for every item, row = item id."""
    codes = np.zeros(len(training.names), dtype=np.int64)
    codes[training.by_name()] = np.arange(len(codes) - 1)
    return RaggedTable(codes[1:], np.concatenate([[0], np.arange(len(codes))]))


def collaborative_codes(training: TrainingItems, clusters: int, size: int, seed: int) -> RaggedTable:
    """Return a code for every item, row = item id: its way down a tree of clusters of items that users meet together.

    A cluster of more than `size` items is divided by spectral clustering of the number of users that items share, which
    is the affinity of the paper; a code has one number per level, and the last is the item's place in its cluster.
    Items without a training interaction are a cluster of their own.

    Args:
        training: the interactions.
        clusters: into how many a cluster is divided.
        size: the most items of a cluster that is not divided.
        seed: of the clustering.
    """
    order = training.by_name()
    together = _together(training, order)
    trained = np.isin(order, training.items)
    met, others = np.flatnonzero(trained), np.flatnonzero(~trained)
    waiting: list[tuple[np.ndarray, list[int]]] = [(met, [])]
    if len(others):
        divided = _divided(together, met, clusters, size, seed)
        waiting = [(part, [place]) for place, part in enumerate([*divided, others])]
    codes: list[list[int]] = [[] for _ in training.names]
    while waiting:
        part, code = waiting.pop()
        if len(part) <= size:
            for place, item in enumerate(order[part].tolist()):
                codes[item] = [*code, place]
            continue
        divided = _divided(together, part, clusters, size, seed)
        waiting += [(child, [*code, place]) for place, child in enumerate(divided)]
    return RaggedTable.from_rows(codes)


def _together(training: TrainingItems, order: np.ndarray) -> csr_matrix:
    """Return how many users met both of two items in training, in the order of `order`: [items - 1, items - 1]."""
    place = np.zeros(len(training.names), dtype=np.int64)
    place[order] = np.arange(len(order))
    users = np.repeat(np.arange(len(training.counts)), training.counts)
    shape = (len(training.counts), len(order))
    met = csr_matrix((np.ones(len(users), dtype=np.float32), (users, place[training.items])), shape=shape)
    met.data[:] = 1
    together = csr_matrix(met.T @ met)
    together.setdiag(0)
    together.eliminate_zeros()
    return together


def _divided(together: csr_matrix, part: np.ndarray, clusters: int, size: int, seed: int) -> list[np.ndarray]:
    """Return a cluster as smaller ones, each ascending.

    Args:
        together: [all, all].
        part: int64 [items of the cluster], places in `together`.
        clusters: how many there may be.
        size: a cluster of at most so many items is left as it is.
        seed: of the clustering.
    """
    if len(part) <= size:
        return [part]
    count = min(clusters, len(part))
    labels = np.zeros(len(part), dtype=np.int64)
    affinity = together[part][:, part]
    if len(part) > count + 1 and affinity.nnz:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a graph in several pieces, which clusters may be
            method = SpectralClustering(count, affinity="precomputed", random_state=seed, n_init=1)
            labels = method.fit_predict(affinity).astype(np.int64)
    _, first, sizes = np.unique(labels, return_index=True, return_counts=True)
    if sizes.max() <= _ONE_CLUSTER * len(part):
        return [np.sort(part[labels == labels[place]]) for place in np.sort(first)]
    # Nothing tells most of them apart: they are divided evenly, those of the small clusters together.
    evenly = np.array_split(part[np.argsort(labels, kind="stable")], count)
    return [np.sort(piece) for piece in evenly]
