"""Clusters of equal size: balanced 2-means, again and again.

A part of the items that shall become k clusters is cut into two, of floor(k / 2) and the rest, each with as many items
as its clusters hold. The cut is that of 2-means with given sizes: the items are sorted by |x - c1|^2 - |x - c2|^2,
which is their place along c1 - c2, cut, and the centres computed again. The cost is n width log k.
"""

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import svds

_ITERATIONS = 6


def balanced_clusters(vectors: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """Return the cluster of each vector, int64 [n], from 0; sizes differ by 1 at most.

    Args:
        vectors: [n, width].
        clusters: how many, at most n.
        seed: of the first directions.
    """
    rng = np.random.default_rng(seed)
    found = np.zeros(len(vectors), dtype=np.int64)
    ends = np.arange(clusters + 1) * len(vectors) // clusters  # how many items the first clusters hold
    waiting = [(np.arange(len(vectors)), 0, clusters)]
    while waiting:
        part, begin, end = waiting.pop()
        if end - begin == 1:
            found[part] = begin
            continue
        middle = (begin + end) // 2
        order = _order(vectors[part], ends[middle] - ends[begin], rng)
        left = ends[middle] - ends[begin]
        waiting += [(part[order[:left]], begin, middle), (part[order[left:]], middle, end)]
    return found


def _order(vectors: np.ndarray, left: int, rng: np.random.Generator) -> np.ndarray:
    """Return an order of vectors [n, width] of which the first `left` are one half of a balanced 2-means."""
    first, second = rng.integers(len(vectors), size=2)
    direction: np.ndarray = vectors[first] - vectors[second]
    if not direction.any():
        direction = rng.standard_normal((vectors.shape[1],)).astype(vectors.dtype)
    order = np.argsort(vectors @ direction, kind="stable")
    for _ in range(_ITERATIONS):
        direction = vectors[order[:left]].mean(axis=0) - vectors[order[left:]].mean(axis=0)
        again = np.argsort(-(vectors @ direction), kind="stable")
        if np.array_equal(again[:left], order[:left]):
            break
        order = again
    return order


def interaction_vectors(users: np.ndarray, items: np.ndarray, number: int, size: int, seed: int) -> np.ndarray:
    """Return the leading right singular vectors of who met what, times singular values: float32 [number, size].

    Two items are near if the same users met them. An item without interactions has zeros.

    Args:
        users: int64 [interactions].
        items: int64 [interactions], ids from 0.
        number: how many items there are.
        size: of the vectors; fewer where the matrix has no more.
        seed: of the first vector of the iteration.
    """
    _, rows = np.unique(users, return_inverse=True)
    met = csr_matrix((np.ones(len(items), dtype=np.float32), (rows, items)), shape=(rows.max() + 1, number))
    met.data[:] = 1
    rank = min(size, min(met.shape) - 1)
    start = np.random.default_rng(seed).random(min(met.shape)).astype(np.float32)
    _, values, vectors = svds(met, k=rank, v0=start)
    order = np.argsort(-values)
    scaled: np.ndarray = (values[order, None] * vectors[order]).T
    return np.ascontiguousarray(scaled, dtype=np.float32)
