"""The inverted lists of an index: items whose vectors are near one another, found by k-means and kept in the cache.

A product is searched as a distance: with M the length of the longest item vector, every ``(v / M, sqrt(1 - |v|^2 /
M^2))`` has length 1, and of these the nearest to ``(u, 0)`` is the item with the largest product ``u . v`` (Bachrach et
al., "Speeding Up the Xbox Recommender System Using a Euclidean Transformation for Inner-Product Spaces", RecSys 2014).
Long vectors, which win many products, then lie together in lists near to many users.
"""

import functools
import hashlib
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from recbole_llm.utils.files import replacing
from recbole_llm.utils.paths import cache_folder

_FORMAT = 1  # part of every name: raise it when the same vectors would give other lists
_SEED = 2020
_ITERATIONS = 8
_SAMPLE_PER_LIST = 64  # vectors of a list that k-means sees
_AT_ONCE = 64  # vectors that are compared with all centroids together: their distances stay in a CPU's cache
_BLOCK_BYTES = 64 * 2**20


class ItemVectors:
    """The vectors of a catalogue, some at a time, on the CPU.

    Args:
        read: takes item ids, a slice or int64 [n], and returns their vectors, [n, size].
        items: item ids, the padding id included, which has no vector here.

    Attributes:
        size: numbers of a vector.
        longest: M, the length of the longest vector; 1 if all are zero, no finite number if a vector is none.
        digest: sha256 of all vectors, in hexadecimal.
    """

    def __init__(self, read: Callable[[slice | Tensor], Tensor], items: int) -> None:
        self._read = read
        self.items = items
        self.size = int(read(slice(0, 1)).shape[1])
        digest, longest = hashlib.sha256(f"{items} {self.size}".encode()), torch.zeros(())
        for _, block in self.blocks():
            digest.update(block.numpy().data)
            longest = torch.maximum(longest, torch.linalg.vector_norm(block, dim=1).max())  # NaN stays NaN
        self.digest, self.longest = digest.hexdigest(), float(longest) or 1.0

    def of(self, items: slice | Tensor) -> Tensor:
        """Return the vectors of item ids, a slice or int64 [n]: float32 [n, size]."""
        return self._read(items).detach().float().cpu().contiguous()

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Give the first item id of each block and its vectors, the padding id left out."""
        some = max(_BLOCK_BYTES // (4 * self.size), 1)
        for begin in range(1, self.items, some):
            yield begin, self.of(slice(begin, min(begin + some, self.items)))

    def scaled(self, vectors: Tensor) -> Tensor:
        """Return vectors [n, size] as points of length 1: float32 [n, size + 1]."""
        short = vectors / self.longest
        return torch.cat([short, (1 - short.square().sum(dim=1, keepdim=True)).clamp(min=0).sqrt()], dim=1)


@dataclass(frozen=True)
class ItemLists:
    """Which list every item is in.

    Attributes:
        centroids: float32 [lists, size + 1].
        list_of: int32 [items - 1], of the item ids from 1.
    """

    centroids: Tensor
    list_of: Tensor

    def __len__(self) -> int:
        """Return the number of lists."""
        return len(self.centroids)

    @functools.cached_property
    def _half_squares(self) -> Tensor:
        return _half_squares(self.centroids)

    def nearest(self, users: Tensor, nprobe: int) -> Tensor:
        """Return the lists to be read for users float32 [n, size]: int64 [n, nprobe], the nearest first."""
        directions = torch.nn.functional.normalize(users, dim=1)
        # |c|^2 - 2 u . c, turned round.
        nearness = torch.addmm(self._half_squares, directions, self.centroids[:, :-1].T)
        return nearness.topk(nprobe, dim=1).indices


def lists_of(vectors: ItemVectors, count: int | None = None) -> ItemLists:
    """Return the lists of a catalogue: from the cache, by the content of its vectors, or made and put there.

    Args:
        vectors: of the catalogue.
        count: of lists; None for twice the root of the number of items.

    Raises:
        StorageError: if they cannot be stored.
    """
    items = vectors.items - 1
    count = min(count or math.ceil(2 * math.sqrt(items)), items)
    key = hashlib.sha256(f"{_FORMAT} {_SEED} {count} {vectors.digest}".encode()).hexdigest()[:32]
    path = cache_folder("item_lists") / f"{key}.safetensors"
    found = _read(path, (count, vectors.size + 1), items)
    if found is None:
        found = _made(vectors, count)
        with replacing(path) as temporary:
            save_file({"centroids": found.centroids, "list_of": found.list_of}, temporary)
    return found


def _read(path: Path, shape: tuple[int, int], items: int) -> ItemLists | None:
    if not path.is_file():
        return None
    try:
        stored = load_file(path)
        centroids, list_of = stored["centroids"], stored["list_of"]
    except (SafetensorError, OSError, KeyError):
        centroids = list_of = torch.zeros(0)
    whole = (
        centroids.shape == shape
        and list_of.shape == (items,)
        and (centroids.dtype, list_of.dtype) == (torch.float32, torch.int32)
        and 0 <= int(list_of.min()) <= int(list_of.max()) < shape[0]
    )
    if not whole:
        logging.getLogger().warning("the stored lists of items %s are broken and are made again", path)
        return None
    return ItemLists(centroids, list_of)


def _made(vectors: ItemVectors, count: int) -> ItemLists:
    centroids = _centroids(vectors, count)
    parts = [_nearest(vectors.scaled(block), centroids) for _, block in vectors.blocks()]
    return ItemLists(centroids, torch.cat(parts).int())


def _centroids(vectors: ItemVectors, count: int) -> Tensor:
    """Return the centroids [count, size + 1] of a sample of the vectors, by Lloyd's algorithm."""
    rng = np.random.default_rng(_SEED)
    sample_size = min(vectors.items - 1, _SAMPLE_PER_LIST * count)
    sample = np.sort(rng.choice(vectors.items - 1, sample_size, replace=False)) + 1
    points = vectors.scaled(vectors.of(torch.from_numpy(sample)))
    centroids = points[torch.from_numpy(rng.choice(len(points), count, replace=False))]
    for _ in range(_ITERATIONS):
        near = _nearest(points, centroids)
        counts = torch.bincount(near, minlength=count)
        sums = torch.zeros_like(centroids).index_add_(0, near, points)
        filled = counts > 0  # an empty list keeps its centroid
        centroids[filled] = sums[filled] / counts[filled, None]
    return centroids


def _nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """Return the nearest centroid of each point [n, size + 1]: int64 [n]."""
    halves, turned = _half_squares(centroids), centroids.T
    return torch.cat([torch.addmm(halves, part, turned).max(dim=1).indices for part in points.split(_AT_ONCE)])


def _half_squares(centroids: Tensor) -> Tensor:
    return -centroids.square().sum(dim=1) / 2
