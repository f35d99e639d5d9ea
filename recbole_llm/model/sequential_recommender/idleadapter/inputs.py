"""The inputs of IDLE-Adapter: prefixes to train on, and histories to predict from, as packed prompts."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recbole_llm.backbone.feature_cache import SharedRows
from recbole_llm.data.dataset import HISTORY_END, HistoryDataset
from recbole_llm.data.prompt_batches import PackedPrompts, PromptStyle, pack_prompts
from recbole_llm.data.prompts import Prompts
from recbole_llm.packing.sequences import Sequences, digests, distinct, within_budget

_ROWS = 4096  # whose prompts are laid out at once


@dataclass(frozen=True)
class Prefixes:
    """Rows of the training part, in an order.

    Attributes:
        rows: int64 [prefixes].
    """

    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, indices: np.ndarray) -> "Prefixes":
        """Return the prefixes at `indices`, in that order."""
        return Prefixes(self.rows[indices])


@dataclass(frozen=True)
class AdapterBatch:
    """The prompts of one pass.

    Attributes:
        prompts: with placeholders before each.
        rows: int64 [prompts], rows of the training part.
        plain: the same prompts without placeholders, for H~; None where that is stored.
    """

    prompts: PackedPrompts
    rows: Tensor
    plain: PackedPrompts | None

    def pin_memory(self) -> "AdapterBatch":
        """Return the batch in page-locked memory, from where it can be copied while the device computes."""
        plain = None if self.plain is None else self.plain.pin_memory()
        return AdapterBatch(self.prompts.pin_memory(), self.rows.pin_memory(), plain)


class AdapterInputs:
    """Cuts prefixes from the training part and packs them.

    Args:
        dataset: the training part.
        prompts: how a history is written.
        style: how the backbone wants it.

    Attributes:
        vectors: the user vectors of all rows of the training part [rows, interests, d], once `AdapterTrainer` has
            computed them.
        language_states: H~ of all rows, likewise, where it fits; else None.
    """

    vectors: Tensor

    def __init__(self, dataset: HistoryDataset, prompts: Prompts, style: PromptStyle) -> None:
        self.dataset = dataset
        self.prompts = prompts
        self.style = style
        self.items = dataset.history_items.numpy()
        self.offsets = prompts.token_offsets(self.items)
        self.ends = dataset.inter_feat[HISTORY_END].numpy()
        self.lengths = dataset.inter_feat[dataset.item_list_length_field].numpy()
        self.language_states: SharedRows | None = None

    def training_prefixes(self) -> Prefixes:
        """Return the rows of one epoch: all of the training part (eq. 13)."""
        return Prefixes(np.arange(len(self.ends)))

    def batches(self, samples: Prefixes, budget: int, plain: bool) -> list[AdapterBatch]:
        """Return passes of at most `budget` tokens each; `plain`: also without placeholders."""
        whole = self._sequences(samples.rows)
        parts = []
        for group in within_budget(whole.tokens(self.prompts.table), budget):
            without = self._packed(self._sequences(samples.rows[group], virtual=False), 0) if plain else None
            packed = self._packed(whole.select(group), self.prompts.virtual)
            parts.append(AdapterBatch(packed, torch.from_numpy(samples.rows[group]), without))
        return parts

    def distinct_prompts(self) -> tuple[np.ndarray, np.ndarray, str]:
        """Return which prompts without placeholders the training part has.

        A prompt of the last items is that of many rows.

        Returns:
            The rows that have each prompt first, int64 [prompts]; which prompt each row has, int64 [rows]; and a hash
            of all prompts in their order.
        """
        keys: list[bytes] = []
        for begin in range(0, len(self.ends), _ROWS):
            rows = np.arange(begin, min(begin + _ROWS, len(self.ends)))
            keys += digests(self._sequences(rows, virtual=False), self.prompts.table)
        first, index = distinct(keys)
        return first, index, hashlib.sha256(b"".join(keys[row] for row in first)).hexdigest()

    def plain_passes(self, rows: np.ndarray, budget: int) -> list[np.ndarray]:
        """Return passes over rows of the training part in their order, without placeholders: the rows of each."""
        passes = []
        for begin in range(0, len(rows), _ROWS):
            part = rows[begin : begin + _ROWS]
            tokens = self._sequences(part, virtual=False).tokens(self.prompts.table)
            passes += [part[group] for group in within_budget(tokens, budget)]
        return passes

    def plain_prompts(self, rows: np.ndarray) -> PackedPrompts:
        """Return the prompts of rows of the training part, without placeholders, as one pass."""
        return self._packed(self._sequences(rows, virtual=False), 0)

    def prompts_of(
        self, histories: np.ndarray, lengths: np.ndarray, budget: int, plain: bool = False
    ) -> Iterator[tuple[np.ndarray, PackedPrompts]]:
        """Yield passes over given histories: which of them, and their prompts.

        Args:
            histories: int64 [batch, items], item ids from the left.
            lengths: int64 [batch], how many of them count.
            budget: the maximum number of tokens of a pass.
            plain: without placeholders, for H~.

        Raises:
            DataError: if a history is empty, or holds an item without text.
        """
        items = histories[np.arange(histories.shape[1]) < lengths[:, None]]
        sequences = self.prompts.sequences(items, np.cumsum(lengths), lengths, np.zeros_like(lengths), not plain)
        yield from self._passes(sequences, budget, plain)

    def prompts_before(
        self, ends: np.ndarray, lengths: np.ndarray, budget: int
    ) -> Iterator[tuple[np.ndarray, PackedPrompts]]:
        """Yield passes over rows of the dataset, whose histories are cut from the flat array, as `prompts_of` does.

        Args:
            ends: int64 [rows], the flat index of each row's target, where its history ends.
            lengths: int64 [rows], how many items of its history the row has.
            budget: the maximum number of tokens of a pass.

        Raises:
            DataError: if a history holds an item without text.
        """
        labels = np.zeros_like(ends)
        yield from self._passes(
            self.prompts.sequences(self.items, ends, lengths, labels, offsets=self.offsets), budget, plain=False
        )

    def _passes(self, sequences: Sequences, budget: int, plain: bool) -> Iterator[tuple[np.ndarray, PackedPrompts]]:
        for group in within_budget(sequences.tokens(self.prompts.table), budget):
            yield group, self._packed(sequences.select(group), 0 if plain else self.prompts.virtual)

    def prompt_counts(self, most: int = 100_000) -> dict[str, float]:
        """Return the mean number of tokens and of items that a training prompt shows, over at most `most` rows."""
        rows = np.unique(np.linspace(0, len(self.ends) - 1, min(most, len(self.ends))).astype(np.int64))
        sequences = self._sequences(rows, virtual=False)
        tokens = sequences.tokens(self.prompts.table)
        return {
            "mean_tokens": round(float(tokens.mean()), 1),
            "mean_items": round(float(sequences.counts.mean()) - 2, 1),
        }

    def _sequences(self, rows: np.ndarray, virtual: bool = True) -> Sequences:
        ends = self.ends[rows]
        return self.prompts.sequences(
            self.items, ends, self.lengths[rows], self.items[ends], virtual, offsets=self.offsets
        )

    def _packed(self, sequences: Sequences, virtual: int) -> PackedPrompts:
        return pack_prompts(sequences, self.prompts.table, self.style, virtual)
