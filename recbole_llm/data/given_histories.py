"""Datasets whose split is given by files (`benchmark_filename`), each row with its own history.

RecBole reads them as they are: it neither filters nor augments them. A history is a `token_seq` column such as
``item_id_list``; the rows of a user need not be prefixes of one sequence.
"""

from typing import Any

import numpy as np
import torch
from recbole.data.dataset import Dataset, SequentialDataset
from recbole.data.interaction import Interaction

from recbole_llm.errors import DataError
from recbole_llm.packing.ragged import ranges

KNOWN_END = "known_end"
_PADDING = "0"  # what lists are filled up with in other projects' files


class GivenHistories(Dataset):
    """Brings given histories to the form that RecBole gives to those it makes: `MAX_ITEM_LIST_LENGTH` wide.

    RecBole takes them as long as they come: some models (Caser) are built for one width, others (SASRec) fail at a
    history longer than that.
    """

    inter_feat: Any
    known_items: torch.Tensor
    known_start: torch.Tensor

    def _load_data(self, token: str, dataset_path: str) -> None:
        super()._load_data(token, dataset_path)
        if self.config["benchmark_filename"] is None or not isinstance(self, SequentialDataset):
            return
        field = self.iid_field + self.config["LIST_SUFFIX"]
        if field not in self.inter_feat:
            names = ", ".join(self.config["benchmark_filename"])
            raise DataError(
                f"the files {names} of {self.dataset_name} have no column '{field}' with the history of each row: add "
                f"it, and name it in load_col and alias_of_item_id"
            )
        self._warn_of_padding(field)

    def _warn_of_padding(self, field: str) -> None:
        """Warn of histories that seem to be filled up with 0: here every value of a list is an item."""
        if (self.inter_feat[self.iid_field] == _PADDING).any():
            return  # an item of that name
        filled = np.array([_PADDING in values for values in self.inter_feat[field]], dtype=bool)
        if not filled.any():
            return
        first, before = int(np.argmax(filled)), np.cumsum([0, *self.file_size_list])
        part = int(np.searchsorted(before, first, side="right")) - 1
        self.logger.warning(
            "%d rows of %s have '0' in '%s', the first in line %d of %s.%s.inter, and none has it as its target: it is "
            "read as an item; if it only fills the lists up, remove it from the files",
            int(filled.sum()), self.dataset_name, field, first - before[part] + 2, self.dataset_name,
            self.config["benchmark_filename"][part],
        )  # fmt: skip

    def _benchmark_presets(self) -> None:  # called for sequential datasets alone
        field = self.iid_field + self.config["LIST_SUFFIX"]
        if (empty := int((self.inter_feat[field].map(len) == 0).sum())) > 0:
            raise DataError(f"{empty} rows of {self.dataset_name} have an empty history: there is nothing to read")
        self._keep_whole_histories(field)
        width = self.config["MAX_ITEM_LIST_LENGTH"]
        for column in self._list_columns():
            self.inter_feat[column] = self.inter_feat[column].map(lambda values: values[-width:])
            self.field2seqlen[column] = width
        super()._benchmark_presets()

    def _keep_whole_histories(self, field: str) -> None:
        """Lay every row's history and target into one flat array, before the history is cut."""
        lists = self.inter_feat[field]
        lengths = lists.map(len).to_numpy() + 1
        ends = np.cumsum(lengths) - 1
        items = np.empty(int(lengths.sum()), dtype=np.int64)
        items[ends] = self.inter_feat[self.iid_field].to_numpy()
        history = np.ones(len(items), dtype=bool)
        history[ends] = False
        items[history] = np.concatenate(lists.tolist())
        self.known_items = torch.from_numpy(items)
        self.known_start = torch.from_numpy(np.repeat(ends - lengths + 1, lengths))

    def _list_columns(self) -> list[str]:
        suffix = self.config["LIST_SUFFIX"]
        return [
            name for name in self.inter_feat if name.endswith(suffix) and name.removesuffix(suffix) in self.inter_feat
        ]

    def _dataframe_to_interaction(self, data: Any) -> Interaction:
        rows = super()._dataframe_to_interaction(data)
        if self.config["benchmark_filename"] is not None and data is self.inter_feat:
            for column in self._list_columns():
                values = rows[column]
                missing = self.config["MAX_ITEM_LIST_LENGTH"] - values.shape[1]
                if missing > 0:
                    padding = values.new_zeros((values.shape[0], missing, *values.shape[2:]))
                    rows.update(Interaction({column: torch.cat([values, padding], dim=1)}))
            if hasattr(self, "known_start"):
                rows.update(Interaction({KNOWN_END: _last_of_pieces(self.known_start)}))
        return rows


def _last_of_pieces(starts: torch.Tensor) -> torch.Tensor:
    """Return the last place of every piece of a flat array; `starts` says where each place's piece begins."""
    return torch.cat([starts[1:] != starts[:-1], torch.tensor([True])]).nonzero()[:, 0]


def flat_histories(
    users: np.ndarray, lists: np.ndarray, lengths: np.ndarray, targets: np.ndarray, part_starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lay given histories into one flat array, neighbouring rows that continue one sequence into one piece of it.

    A row continues the one before if it has the same user and its history is that row's history and target (the most
    recent of them, where the list is full). Any other row's history and target are appended as they are.

    Args:
        users: int64 [rows].
        lists: int64 [rows, width], the histories from the left.
        lengths: int64 [rows], how many items of each count; at least 1.
        targets: int64 [rows].
        part_starts: the rows where a file begins; no sequence goes on from one file to the next.

    Returns:
        items [flat]; for each of them where its piece begins [flat]; the flat index of each row's target [rows].
    """
    width = lists.shape[1]
    columns = np.arange(width)
    source = columns - (width - lengths[:, None])
    right = np.where(source >= 0, np.take_along_axis(lists, np.maximum(source, 0), axis=1), 0)
    then = np.column_stack([right[:, 1:], targets])  # every row's history with its target, the most recent
    follows = np.zeros(len(users), dtype=bool)
    same = (right[1:] == then[:-1]) | (source[1:] < 0)
    grows = (lengths[1:] == lengths[:-1] + 1) | (lengths[1:] == width)
    follows[1:] = (users[1:] == users[:-1]) & grows & same.all(axis=1)
    follows[part_starts[part_starts < len(users)]] = False
    sizes = np.where(follows, 1, lengths + 1)
    ends = np.cumsum(sizes) - 1
    begins = np.maximum.accumulate(np.where(follows, 0, ends - lengths))
    items = np.zeros(int(sizes.sum()), dtype=np.int64)
    items[ends] = targets
    new = ~follows
    items[ranges(ends[new] - lengths[new], lengths[new])] = lists[new][columns < lengths[new, None]]
    return items, np.repeat(begins, sizes), ends
