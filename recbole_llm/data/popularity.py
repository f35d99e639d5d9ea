"""How often each item occurs in a part of a dataset."""

from typing import Any

import numpy as np
import torch
from recbole.data.dataset import SequentialDataset

from recbole_llm.data.dataset import HISTORY_END, HistoryDataset
from recbole_llm.data.given_histories import flat_histories


def item_occurrences(part: Any) -> np.ndarray:
    """Return how many interactions of a part are with each item, int64 [items].

    A row of a sequential dataset is a target with the history before it: each interaction that stands in some row
    counts once, also the first of a user, which is no row's target (`recbole/data/dataset/dataset.py:1424` misses it).

    Args:
        part: of a built dataset, such as its training part.
    """
    return np.bincount(_items(part), minlength=part.item_num)


def target_counts(part: Any) -> torch.Tensor:
    """Return how many rows of a part have each item as their target, int64 [items].

    Args:
        part: of a built dataset, such as its training part.
    """
    return torch.bincount(part.inter_feat[part.iid_field], minlength=part.item_num)


def _items(part: Any) -> np.ndarray:
    rows = part.inter_feat
    if isinstance(part, HistoryDataset):
        ends = rows[HISTORY_END].numpy()
        size = len(part.history_items) + 1
        # A row covers its history and its target, which is at `ends`.
        opened = np.bincount(ends - rows[part.item_list_length_field].numpy(), minlength=size)
        covered = np.cumsum(opened - np.bincount(ends + 1, minlength=size))[:-1] > 0
        items: np.ndarray = part.history_items.numpy()[covered]
        return items
    if isinstance(part, SequentialDataset):
        fields = (part.uid_field, part.item_id_list_field, part.item_list_length_field, part.iid_field)
        users, lists, lengths, targets = (rows[field].numpy() for field in fields)
        order = np.lexsort((lengths, users))  # prefix after prefix
        return flat_histories(users[order], lists[order], lengths[order], targets[order], np.zeros(0, np.int64))[0]
    own: np.ndarray = rows[part.iid_field].numpy()
    return own
