"""The inputs of ST2SI as sequences of table rows: X_q with its labels (eq. 2, 3), and alignment inputs X_I (eq. 6)."""

import numpy as np
import torch
from torch import Tensor

from recbole_llm.data.dataset import HISTORY_END, HistoryDataset
from recbole_llm.data.windows import (
    Histories,
    WindowLimits,
    Windows,
    full_windows,
    random_windows,
    recent_windows,
)
from recbole_llm.errors import DataError
from recbole_llm.packing.ragged import RaggedTable
from recbole_llm.packing.sequences import Sequences, concatenate


class CatalogueInputs:
    """What ST2SI reads of a catalogue, whatever its users did: given histories, and alignment inputs.

    Args:
        text: token ids of every item, row = item id, row 0 empty.
        query: id of the query token.
        instruction: token ids of the alignment instruction.
        limits: the most that a window holds.
        multi_query: whether a query follows every item, or the last one alone.
        alignment_query: id of the token after an alignment input; None for the query token.

    Attributes:
        items: number of item ids, the padding id included.
        table: row v is T_v^q = {T_v, [Q]}; row `items` is the instruction; without multi-query, row ``items + 1 + v``
            is T_v without a query; at the end, where alignment has a token of its own, a row of each item with it.
    """

    def __init__(
        self,
        text: RaggedTable,
        query: int,
        instruction: list[int],
        limits: WindowLimits,
        multi_query: bool,
        alignment_query: int | None = None,
    ) -> None:
        self.items = len(text)
        self.text = text
        self.query = query
        self.instruction = instruction
        self.limits = limits
        self.multi_query = multi_query
        self.alignment_query = alignment_query
        self.table = text.with_row_ends(query).with_row(instruction)
        self._item_tokens = self.table.lengths[: self.items]
        if not multi_query:
            self.table = self.table.followed_by(text)
            self._item_tokens = text.lengths
            limits = WindowLimits(limits.items, limits.tokens - 1)  # the one query takes a token
        self._window_limits = limits
        self._aligned = 0  # the row of the padding item's alignment input
        if alignment_query is not None and alignment_query != query:
            self._aligned = len(self.table)
            self.table = self.table.followed_by(text.with_row_ends(alignment_query))

    def alignment_sequences(self) -> Sequences:
        """Return X_I = {T_I, T_v, [Q]} with label v for every item v that has a text."""
        items = np.flatnonzero(self.table.lengths[: self.items] > 1)
        rows = np.stack([np.full_like(items, self.items), self._aligned + items], axis=1).ravel()
        query_mask = np.tile([False, True], len(items))
        return Sequences(rows, np.full(len(items), 2), query_mask, np.where(query_mask, rows - self._aligned, 0))

    def least_sequence(self) -> Sequences:
        """Return a sequence of the shortest item text alone, with a query and no label."""
        lengths = self.text.lengths[1:]
        item = 1 + np.argmin(np.where(lengths > 0, lengths, lengths.max() + 1))
        one = np.ones(1, dtype=np.int64)
        return Sequences(item * one, one, one.astype(bool), 0 * one)

    def prefix_sequences(self, histories: np.ndarray, lengths: np.ndarray) -> Sequences:
        """Return the windows of given histories, read at their last query.

        Args:
            histories: int64 [batch, items], item ids from the left.
            lengths: int64 [batch], how many of them count.

        Raises:
            DataError: if a history is empty, or holds an item without text.
        """
        if (lengths < 1).any():
            raise DataError("a history is empty: there is nothing to predict from")
        columns = np.arange(histories.shape[1])
        inside = columns < lengths[:, None]
        tokens = np.where(inside, self._item_tokens[histories], 0)
        if (inside & (self.table.lengths[histories] == 0)).any():
            raise DataError("a history holds an item without text: set items_without_text=drop")
        after = tokens[:, ::-1].cumsum(axis=1)[:, ::-1]  # tokens from an item to the end of its history
        kept = inside & (after <= self._window_limits.tokens) & (columns >= lengths[:, None] - self.limits.items)
        counts = kept.sum(axis=1)
        query_mask = _last_of_each(counts)
        return Sequences(
            self._rows(histories[kept], counts), counts, query_mask, np.zeros(len(query_mask), dtype=np.int64)
        )

    def _rows(self, items: np.ndarray, counts: np.ndarray) -> np.ndarray:
        if self.multi_query:
            return items
        return np.where(_last_of_each(counts), items, items + self.items + 1)


class ST2SIInputs(CatalogueInputs):
    """Everything that ST2SI reads, cut from a dataset.

    Args:
        dataset: the training part.
        text: as the following, see `CatalogueInputs`.
        query: see there.
        instruction: see there.
        limits: see there.
        train_window: random, full or recent.
        multi_query: see there.
        alignment: whether `training_sequences` holds alignment inputs.
        alignment_query: see `CatalogueInputs`.

    Attributes:
        histories: all users' items, from which windows are cut.
        last_targets: int64 [users], the flat index of each user's last training target.
    """

    def __init__(
        self,
        dataset: HistoryDataset,
        text: RaggedTable,
        query: int,
        instruction: list[int],
        limits: WindowLimits,
        train_window: str,
        multi_query: bool,
        alignment: bool,
        alignment_query: int | None = None,
    ) -> None:
        super().__init__(text, query, instruction, limits, multi_query, alignment_query)
        self.train_window = train_window
        self.alignment = alignment
        flat, user_start = dataset.history_items.numpy(), dataset.history_start.numpy()
        self.histories = Histories(flat, user_start, self._item_tokens, self._window_limits)
        targets = dataset.inter_feat[HISTORY_END].numpy()
        self._is_target = np.zeros(len(flat) + 1, dtype=bool)
        self._is_target[targets] = True
        last = np.zeros(len(flat), dtype=np.int64)
        np.maximum.at(last, user_start[targets], targets)
        self.last_targets = last[np.unique(user_start[targets])]

    def training_windows(self, rng: np.random.Generator) -> Windows:
        """Return the windows of one epoch, as `train_window` says."""
        if self.train_window == "random":
            return random_windows(self.histories, self.last_targets, rng)
        windows = full_windows if self.train_window == "full" else recent_windows
        return windows(self.histories, self.last_targets)

    def training_sequences(self, rng: np.random.Generator) -> Sequences:
        """Return the samples of one epoch: the users' inputs, then the alignment inputs."""
        users = self.window_sequences(self.training_windows(rng))
        return concatenate([users, self.alignment_sequences()]) if self.alignment else users

    def label_counts(self) -> Tensor:
        """Return how often each item is a training target, its alignment input included, int64 [items]."""
        counts = np.bincount(self.histories.items[self._is_target[:-1]], minlength=self.items)
        if self.alignment:
            counts += self.text.lengths > 0
        return torch.from_numpy(counts)

    def sequences_before(self, ends: np.ndarray, lengths: np.ndarray) -> Sequences:
        """Return the windows of rows of the dataset, cut from the flat histories and read at their last query.

        Args:
            ends: int64 [rows], the flat index of each row's target, where its history ends.
            lengths: int64 [rows], how many items of its history the row has.
        """
        starts = self.histories.window_starts(ends - lengths, ends)
        positions, counts = Windows(starts, ends).positions()
        query_mask = _last_of_each(counts)
        rows = self._rows(self.histories.items[positions], counts)
        return Sequences(rows, counts, query_mask, np.zeros(len(query_mask), dtype=np.int64))

    def window_sequences(self, windows: Windows) -> Sequences:
        """Return X_q of every window, with the next item as label wherever that is a training target."""
        positions, counts = windows.positions()
        items = self.histories.items
        query_mask = self._is_target[positions + 1]
        if not self.multi_query:
            query_mask &= _last_of_each(counts)
        labels = np.where(query_mask, np.append(items, 0)[positions + 1], 0)
        return Sequences(self._rows(items[positions], counts), counts, query_mask, labels)


def _last_of_each(counts: np.ndarray) -> np.ndarray:
    last = np.zeros(int(counts.sum()), dtype=bool)
    last[np.cumsum(counts) - 1] = True
    return last
