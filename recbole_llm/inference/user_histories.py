"""What every user of a dataset did, for recommending to them what comes next."""

from typing import Any

import numpy as np
from recbole.data.dataset import SequentialDataset

from recbole_llm.data.dataset import HISTORY_END, HistoryDataset
from recbole_llm.packing.ragged import RaggedTable, ranges


def user_histories(dataset: Any) -> RaggedTable:
    """Return all interactions of each user: item ids, row = RecBole's internal user id.

    All means those of the training, validation and test parts. The most recent come last, as many as a model reads in
    the order in which it reads them; where there is no more than a row's own padded history (RecBole's dataset, and
    files that give histories), the earlier ones come in the order of their ids, each once. RecBole's sequential data
    sets have no row of a user with one interaction only: that user's history is empty.

    Args:
        dataset: of a run, built: `Parts.dataset`.
    """
    users = dataset.inter_feat[dataset.uid_field].numpy()
    if isinstance(dataset, HistoryDataset) and dataset.config["benchmark_filename"] is None:
        return _from_flat(dataset, users)
    if isinstance(dataset, SequentialDataset):
        return _from_rows(dataset, users)
    rows = np.arange(len(users))
    if dataset.config["eval_args"]["order"] != "TO" and dataset.time_field in dataset.inter_feat:
        rows = np.argsort(dataset.inter_feat[dataset.time_field].numpy(), kind="stable")
    return _by_user(users[rows], dataset.inter_feat[dataset.iid_field].numpy()[rows], dataset.user_num)


def _from_flat(dataset: HistoryDataset, users: np.ndarray) -> RaggedTable:
    ends = np.full(dataset.user_num, -1, dtype=np.int64)
    np.maximum.at(ends, users, dataset.inter_feat[HISTORY_END].numpy())
    known = ends >= 0
    starts = np.where(known, dataset.history_start.numpy()[ends], 0)
    lengths = np.where(known, ends + 1 - starts, 0)
    values = dataset.history_items.numpy()[ranges(starts, lengths)]
    return RaggedTable(values, np.concatenate([[0], np.cumsum(lengths)]))


def _from_rows(dataset: Any, users: np.ndarray) -> RaggedTable:
    rows, items = dataset[np.arange(len(users))], dataset.item_num
    targets = rows[dataset.iid_field].numpy()
    lists = rows[dataset.item_id_list_field].numpy()
    lengths = rows[dataset.item_list_length_field].numpy()
    last = np.full(dataset.user_num, -1, dtype=np.int64)
    np.maximum.at(last, users, np.arange(len(users)))
    met = np.unique(np.concatenate([users * items + targets, (users[:, None] * items + lists)[lists > 0]]))
    earlier = RaggedTable(met % items, np.searchsorted(met, np.arange(dataset.user_num + 1) * items))
    found = []
    for user, row in enumerate(last):
        recent = lists[row, : lengths[row]] if row >= 0 else np.empty(0, dtype=np.int64)
        recent = np.append(recent, targets[row]) if row >= 0 else recent
        found.append(np.concatenate([np.setdiff1d(earlier.row(user), recent), recent]))
    return RaggedTable(np.concatenate(found), np.cumsum([0, *map(len, found)]))


def _by_user(users: np.ndarray, items: np.ndarray, count: int) -> RaggedTable:
    order = np.argsort(users, kind="stable")
    return RaggedTable(items[order], np.searchsorted(users[order], np.arange(count + 1)))
