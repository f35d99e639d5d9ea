"""A search among the items of a few inverted lists, by faiss: ids of items with large products, nearly all of the best.

Vectors are kept in the order of their lists, as 16-bit floats: half the memory and most of the time of a search. What
is found is scored again by whoever asks.
"""

import importlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_llm.inference.item_lists import ItemVectors, lists_of


class ItemIndex:
    """An inverted file over the vectors of a catalogue (IVF, inner product).

    Args:
        vectors: of the catalogue.

    Raises:
        StorageError: if the lists cannot be stored.
    """

    def __init__(self, vectors: ItemVectors) -> None:
        self._faiss = importlib.import_module("faiss")
        self._threads = torch.get_num_threads()
        self._faiss.omp_set_num_threads(self._threads)
        self._lists = lists_of(vectors)
        self._index = _filled(self._faiss, vectors, self._lists.list_of.numpy(), len(self._lists))

    @property
    def lists(self) -> int:
        """How many lists there are."""
        return len(self._lists)

    def search(self, users: Tensor, count: int, nprobe: int) -> np.ndarray:
        """Return item ids int64 [n, count], the best first, -1 where the lists hold fewer.

        Args:
            users: float32 [n, size].
            count: how many.
            nprobe: how many lists are read for each.
        """
        self._faiss.omp_set_num_threads(self._threads)  # it holds for the thread that calls
        self._index.nprobe = nprobe
        nearest = self._lists.nearest(users, nprobe).numpy()
        found: np.ndarray = self._index.search_preassigned(users.numpy(), count, nearest, None)[1]
        return found


def _filled(faiss: Any, vectors: ItemVectors, list_of: np.ndarray, lists: int) -> Any:
    """Return faiss' index with all vectors in their lists, of which another than faiss' own quantiser decides."""
    add_preassigned = importlib.import_module("faiss.contrib.ivf_tools").add_preassigned
    nothing = faiss.IndexFlatIP(vectors.size)  # the index keeps it
    index = faiss.IndexIVFScalarQuantizer(
        nothing, vectors.size, lists, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
    )
    index.is_trained = True  # there is nothing to train
    for number, size in enumerate(np.bincount(list_of, minlength=lists).tolist()):
        # Room for exactly what will be in it: lists that grow take up to twice as much.
        index.invlists.resize(number, size)
        index.invlists.resize(number, 0)
    for begin, block in vectors.blocks():
        # A 16-bit float ends at 65,504.
        points = (block / vectors.longest).numpy()
        ids = np.arange(begin, begin + len(points))
        own = list_of[begin - 1 : begin - 1 + len(points)].astype(np.int64)
        add_preassigned(index, points, own, ids)
    return index
