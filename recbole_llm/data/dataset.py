"""RecBole datasets with one protocol for all models, and prefix rows that cost no memory.

`Protocol` is mixed into whichever RecBole dataset class a model needs. `HistoryDataset` is RecBole's
`SequentialDataset` without the copies: RecBole stores a padded history with every prefix; here a row stores where its
history ends, and the history is cut when a batch is asked for. The rows, their order and the split are RecBole's own.
`PrefixDataset` does so for RecBole's own models, which may read the times or ratings of a history, too.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.data.dataset import Dataset, SequentialDataset
from recbole.data.interaction import Interaction

from recbole_llm.data.atomic_files import AtomicFiles
from recbole_llm.data.given_histories import KNOWN_END, GivenHistories, flat_histories
from recbole_llm.data.item_text import read_item_fields
from recbole_llm.data.time_order import TimeOrder
from recbole_llm.errors import DataError
from recbole_llm.utils.headers import column_names, header_line

HISTORY_END = "history_end"
__all__ = ["HISTORY_END", "KNOWN_END", "HistoryDataset", "PrefixDataset", "Protocol", "cut_histories", "row_ends"]


class Protocol(GivenHistories, TimeOrder, AtomicFiles):
    """What every dataset does here, whichever model reads it.

    * Files are checked before RecBole reads them, see `AtomicFiles`.
    * Rows are in the order of their times as the file has them, see `TimeOrder`.
    * Items without text are dropped for every model (setting `items_without_text`), so that all models of a table rank
      the same candidates.
    * Nor does an item without an interaction become a candidate of the models that read item columns (FDSA): RecBole
      keeps all items of the `.item` file for these, and no other model ranks them.
    * A general model (Pop, BPR) is evaluated on the same users as a sequential one: the first interaction of a user is
      history, never a target.
    * Histories that files give (`benchmark_filename`) have one width, see `GivenHistories`.
    * RecBole's sequential datasets keep the most recent items of a history alone; here their rows also say where the
      whole of it ends, see `known_histories`.
    """

    item_feat: Any

    def _get_field_from_config(self) -> None:
        super()._get_field_from_config()
        self._name_histories()

    def data_augmentation(self) -> None:
        """Make the rows of the dataset's own class, see there."""
        interactions = self.inter_feat
        super().data_augmentation()
        if HISTORY_END in self.inter_feat:
            return
        # RecBole has sorted them in place, and takes all of a user but the first as targets.
        users = interactions[self.uid_field].numpy()
        starts, begins = piece_starts(users)
        self.known_items, self.known_start = interactions[self.iid_field].clone(), torch.from_numpy(starts)
        self.inter_feat.update(Interaction({KNOWN_END: torch.from_numpy(np.flatnonzero(~begins))}))

    def _change_feat_format(self) -> None:
        super()._change_feat_format()
        self._name_histories()

    def _name_histories(self) -> None:
        # RecBole names them for the column 'item_id', whatever ITEM_ID_FIELD is, where its own and our code reads this
        # (`recbole/data/dataset/sequential_dataset.py:55` and `:164`).
        self.item_id_list_field = self.iid_field + self.config["LIST_SUFFIX"]

    def _data_filtering(self) -> None:
        self._filter_items_without_text()
        super()._data_filtering()
        if self.item_feat is not None:
            self.item_feat = self._items_of_interactions()

    def _items_of_interactions(self) -> pd.DataFrame:
        seen = self.item_feat[self.iid_field].isin(self.inter_feat[self.iid_field])
        return self.item_feat[seen].reset_index(drop=True)

    def _filter_items_without_text(self) -> None:
        fields = self.config["item_text_fields"]
        path = Path(self.dataset_path) / f"{self.dataset_name}.item"
        rule = self.config["items_without_text"]
        if rule == "keep" or not fields or not path.exists():
            return
        if not self._has_item_column(path, fields[0]):
            # A model that reads no text does without; one that does tells which column is nearest.
            self.logger.warning("%s has no column '%s': no item is dropped for want of text", path, fields[0])
            return
        texts = self.item_texts(fields[:1])
        with_text = set(texts.index[texts.iloc[:, 0] != ""])
        if not with_text:
            raise DataError(f"no item of {path} has a text in its column '{fields[0]}'")
        missing = ~self.inter_feat[self.iid_field].isin(with_text)
        if not missing.any():
            return
        items = self.inter_feat.loc[missing, self.iid_field].nunique()
        count = f"{items} items of {self.dataset_name} have no text in '{fields[0]}'"
        if rule == "error":
            raise DataError(f"{count}: add their text to {path}, or set items_without_text=drop")
        self.logger.warning("%s: they and their %d interactions are dropped", count, int(missing.sum()))
        self.inter_feat = self.inter_feat[~missing].copy()
        if self.item_feat is not None:
            self.item_feat = self.item_feat[self.item_feat[self.iid_field].isin(with_text)].copy()

    def _has_item_column(self, path: Path, field: str) -> bool:
        return field in column_names(path, header_line(path, self.config["encoding"]), self.config["field_separator"])

    def item_texts(self, fields: list[str], setting: str = "item_text_fields") -> pd.DataFrame:
        """Return the cleaned texts of the whole `.item` file, indexed by item token. See `read_item_fields`."""
        path = Path(self.dataset_path) / f"{self.dataset_name}.item"
        return read_item_fields(
            path, self.iid_field, fields, self.config["field_separator"], self.config["encoding"], setting
        )

    def item_texts_by_id(self, fields: list[str], setting: str = "item_text_fields") -> pd.DataFrame:
        """Return the cleaned texts in the order of RecBole's item ids, row 0 (padding) empty: [items] rows."""
        tokens = self.field2id_token[self.iid_field]
        texts = self.item_texts(fields, setting).reindex([str(token) for token in tokens], fill_value="")
        texts.iloc[0] = ""
        return texts

    def _split_index_by_leave_one_out(self, grouped_index: Any, leave_one_num: int) -> list[list[int]]:
        if isinstance(self, SequentialDataset):
            return super()._split_index_by_leave_one_out(grouped_index, leave_one_num)
        groups = [list(index) for index in grouped_index]
        later = super()._split_index_by_leave_one_out([g[1:] for g in groups if len(g) > 1], leave_one_num)
        return [[g[0] for g in groups] + later[0], *later[1:]]


class HistoryDataset(SequentialDataset):
    """RecBole's sequential dataset for models that cut their own histories from one flat array.

    Attributes:
        flat: by list field such as ``item_id_list``, the field's values of all users' interactions in time order,
            [interactions] or [interactions, width].
        history_start: int64 [interactions], where the history of the interaction's user begins.

    A row of ``inter_feat`` is one prediction, as in RecBole: its target is ``history_items[row["history_end"]]``, its
    history the `item_length` items before that. Where files give the split and every row's history
    (`benchmark_filename`), these are laid into the flat array by `flat_histories`.
    """

    inter_feat: Any
    flat: dict[str, torch.Tensor]
    history_start: torch.Tensor

    @property
    def history_items(self) -> torch.Tensor:
        """All users' items in time order, int64 [interactions]."""
        return self.flat[self.item_id_list_field]

    def _history_fields(self) -> list[str]:
        return [self.iid_field]

    def data_augmentation(self) -> None:
        """Make RecBole's prefix rows (see `SequentialDataset.data_augmentation`) without the padded histories."""
        self._aug_presets()
        self._check_field("uid_field", "time_field")
        self.sort(by=[self.uid_field, self.time_field], ascending=True)
        users = self.inter_feat[self.uid_field].numpy()
        if len(users) == 0:
            raise DataError(f"no interaction of {self.dataset_name} is left after filtering: loosen the filters")
        start, begins = piece_starts(users)
        targets = torch.from_numpy(np.flatnonzero(~begins))
        if len(targets) == 0:
            raise DataError(
                f"every user of {self.dataset_name} has one interaction only: there is nothing to predict from"
            )
        self.flat = {
            getattr(self, f"{field}_list_field"): self.inter_feat[field].clone() for field in self._history_fields()
        }
        self.history_start = torch.from_numpy(start)
        rows = self.inter_feat[targets]
        lengths = torch.clamp(targets - self.history_start[targets], max=self.max_item_list_len)
        rows.update(Interaction({self.item_list_length_field: lengths, HISTORY_END: targets}))
        self.inter_feat = rows

    def _change_feat_format(self) -> None:
        super()._change_feat_format()
        if self.config["benchmark_filename"] is not None:
            self._flatten_given_histories()

    def _flatten_given_histories(self) -> None:
        rows = self.inter_feat
        users, lists, lengths, targets = (
            rows[field].numpy()
            for field in (self.uid_field, self.item_id_list_field, self.item_list_length_field, self.iid_field)
        )
        part_starts = np.cumsum([0, *self.file_size_list])
        items, starts, ends = flat_histories(users, lists, lengths, targets, part_starts)
        self.flat = {self.item_id_list_field: torch.from_numpy(items)}
        self.history_start = torch.from_numpy(starts)
        del rows.interaction[self.item_id_list_field]
        rows.update(Interaction({HISTORY_END: torch.from_numpy(ends)}))

    def __getitem__(self, index: Any, join: bool = True) -> Interaction:
        rows = super().__getitem__(index, join)
        lists = cut_histories(self.flat, rows[HISTORY_END], rows[self.item_list_length_field], self.max_item_list_len)
        rows.update(Interaction(lists))
        return rows

    def items_of_histories(self) -> np.ndarray:
        """Return the ids of the items that stand in some row's history, int64, sorted."""
        ends = self.inter_feat[HISTORY_END].numpy()
        size = len(self.history_items) + 1
        opened = np.bincount(ends - self.inter_feat[self.item_list_length_field].numpy(), minlength=size)
        inside = np.cumsum(opened - np.bincount(ends, minlength=size))[:-1] > 0
        return np.unique(self.history_items.numpy()[inside])


class PrefixDataset(HistoryDataset):
    """RecBole's sequential dataset for RecBole's own models: its batches are `SequentialDataset`'s, list by list."""

    def _history_fields(self) -> list[str]:
        return [field for field in self.inter_feat if field != self.uid_field]


def piece_starts(users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where the interactions of each one's user begin, and which are a user's first: [interactions] both.

    Args:
        users: int64 [interactions], those of one user together; at least one.
    """
    begins = np.concatenate([[True], users[1:] != users[:-1]])
    return np.maximum.accumulate(np.where(begins, np.arange(len(users)), 0)), begins


def row_ends(rows: Interaction) -> np.ndarray | None:
    """Return where the histories of rows of a `HistoryDataset` end in its flat array: int64 [rows], on the host.

    None for rows that are given by hand. Rows that name a place have the history that ends there: who changes the
    histories of such rows drops `history_end` from them.
    """
    return rows[HISTORY_END].cpu().numpy() if HISTORY_END in rows else None


def cut_histories(
    flat: dict[str, torch.Tensor], ends: torch.Tensor, lengths: torch.Tensor, width: int
) -> dict[str, torch.Tensor]:
    """Return the padded histories of a batch, as RecBole stores them: the oldest first, zeros on the right.

    Args:
        flat: by list field, [interactions] or [interactions, ...], on the device of the others.
        ends: int64 [rows], where in the flat arrays each history ends (exclusive).
        lengths: int64 [rows], how many values before the end belong to it.
        width: of the padded histories.

    Returns:
        By list field, [rows, width] or [rows, width, ...].
    """
    column = torch.arange(width, device=ends.device)
    outside = column >= lengths[:, None]
    source = (ends - lengths)[:, None] + column
    lists = {}
    for field, values in flat.items():
        # What is outside may lie beyond the end of the array.
        taken = values.index_select(0, source.clamp(max=len(values) - 1).view(-1)).view(
            *source.shape, *values.shape[1:]
        )
        lists[field] = taken.masked_fill_(outside.view(*outside.shape, *[1] * (values.dim() - 1)), 0)
    return lists


@functools.cache
def with_protocol(dataset_class: type[Dataset]) -> type[Dataset]:
    """Return `dataset_class` with `Protocol` in front of it."""
    return type(dataset_class.__name__, (Protocol, dataset_class), {})
