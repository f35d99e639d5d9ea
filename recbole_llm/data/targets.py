"""What is predicted in training by models that read one history per row: targets, and items that are none."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from recbole_llm.data.dataset import HISTORY_END, HistoryDataset, row_ends
from recbole_llm.errors import DataError
from recbole_llm.packing.ragged import ranges

_ROUNDS = 50  # of drawing again what must not be drawn


@dataclass(frozen=True)
class Targets:
    """Rows to train on.

    Attributes:
        ends: int64 [rows], where in the flat histories the target of each row is, and its history ends.
        lengths: int64 [rows], how many items of history it has.
        labels: int64 [rows], the targets' item ids.
        negatives: int64 [rows, negatives], item ids that are drawn for each row.
    """

    ends: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    negatives: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    def select(self, indices: np.ndarray) -> "Targets":
        """Return the rows at `indices`, in that order."""
        return Targets(self.ends[indices], self.lengths[indices], self.labels[indices], self.negatives[indices])


class TrainingHistories:
    """The histories of the training part, without what is held out.

    Args:
        dataset: the training part.
        items: number of item ids, the padding id included.

    Attributes:
        flat: int64, all users' items in time order; also those held out.
        start: int64 [interactions], where the history of the interaction's user begins.
        last: int64 [users], the flat index of every user's last training target.
        users: int64 [users], where every user's history begins.
        counts: int64 [items], how often an item is a training target.
    """

    def __init__(self, dataset: HistoryDataset, items: int) -> None:
        self.items = items
        self.flat = dataset.history_items.numpy()
        self.start = dataset.history_start.numpy()
        self.ends = dataset.inter_feat[HISTORY_END].numpy()
        self.lengths = dataset.inter_feat[dataset.item_list_length_field].numpy()
        last = np.zeros(len(self.flat), dtype=np.int64)
        np.maximum.at(last, self.start[self.ends], self.ends)
        self.users = np.unique(self.start[self.ends])
        self.last = last[self.users]
        self.counts = np.bincount(self.flat[self.ends], minlength=items)
        lengths = self.last - self.users + 1
        trained = ranges(self.users, lengths)
        # user and item as one number: what a user has met in training
        self._met = np.unique(np.repeat(self.users, lengths) * items + self.flat[trained])

    def rows(self, interaction: Any, items: str, lengths: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
        """Return where the histories of RecBole's rows are.

        Args:
            interaction: the rows.
            items: the field of padded histories.
            lengths: the field of their lengths.

        Returns:
            Item ids laid end to end; int64 [rows] where each history ends in them, and how many items it has; and
            whether the first is `flat`.
        """
        counts, ends = interaction[lengths].cpu().numpy(), row_ends(interaction)
        if ends is not None:
            return self.flat, ends, counts, True
        histories = interaction[items].cpu().numpy()
        return histories[np.arange(histories.shape[1]) < counts[:, None]], np.cumsum(counts), counts, False

    def every_target(self) -> Targets:
        """Return all rows of the training part."""
        return self._targets(self.ends, self.lengths)

    def one_target(self, rng: np.random.Generator) -> Targets:
        """Return one row per user: a target drawn from all of its training items, the first (no history) included."""
        ends = rng.integers(self.users, self.last + 1)
        return self._targets(ends, ends - self.users)

    def _targets(self, ends: np.ndarray, lengths: np.ndarray) -> Targets:
        return Targets(ends, lengths, self.flat[ends], np.zeros((len(ends), 0), dtype=np.int64))

    def with_negatives(self, targets: Targets, count: int, rng: np.random.Generator, unmet: bool) -> Targets:
        """Return targets with `count` other items each, drawn uniformly.

        Args:
            targets: the rows.
            count: how many items a row gets; 0 changes nothing.
            rng: draws them.
            unmet: whether none may be of the user's own training items, as far as others are left.

        Raises:
            DataError: if the target is all there is.
        """
        if not count:
            return targets
        if self.items < 3:
            raise DataError("the catalogue has one item alone, so every negative would be the target: add items")
        users = self.start[targets.ends]
        drawn = rng.integers(1, self.items, (len(targets), count))
        for _ in range(_ROUNDS if unmet else 0):
            wrong = np.isin(users[:, None] * self.items + drawn, self._met)
            if not wrong.any():
                break
            drawn[wrong] = rng.integers(1, self.items, int(wrong.sum()))
        while (wrong := drawn == targets.labels[:, None]).any():
            drawn[wrong] = rng.integers(1, self.items, int(wrong.sum()))
        return Targets(targets.ends, targets.lengths, targets.labels, drawn)
