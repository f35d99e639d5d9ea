"""From item sequences to packed batches within a budget of tokens."""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from recbole_llm.packing.batch import PackedBatch, sequence_bounds
from recbole_llm.packing.ragged import RaggedTable, ranges


@dataclass(frozen=True)
class Sequences:
    """Sequences of table rows, with the rows after which an item is predicted.

    Attributes:
        rows: int64 [all rows], indices into the text table; the sequences laid end to end.
        counts: int64 [sequences], rows of each sequence, at least 1.
        query_mask: bool [all rows], whether the query token that ends the row is read.
        labels: int64 [all rows], the item to predict there (0 where no query is read).
    """

    rows: np.ndarray
    counts: np.ndarray
    query_mask: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.counts)

    @functools.cached_property
    def begins(self) -> np.ndarray:
        """int64 [sequences], where the rows of each sequence begin."""
        return np.cumsum(self.counts) - self.counts

    def select(self, indices: np.ndarray) -> "Sequences":
        """Return the sequences at `indices`, in that order."""
        counts = self.counts[indices]
        picked = ranges(self.begins[indices], counts)
        return Sequences(self.rows[picked], counts, self.query_mask[picked], self.labels[picked])

    def tokens(self, table: RaggedTable) -> np.ndarray:
        """Return the number of tokens of each sequence: int64 [sequences]."""
        return np.add.reduceat(table.lengths[self.rows], self.begins)

    def queries(self) -> np.ndarray:
        """Return the number of queries that are read in each sequence: int64 [sequences]."""
        return np.add.reduceat(self.query_mask.astype(np.int64), self.begins)


def digests(sequences: Sequences, table: RaggedTable) -> list[bytes]:
    """Return 16 bytes per sequence that identify its tokens and the places at which it is read, but not its labels."""
    token_ids, row_tokens = table.gather(sequences.rows)
    marked = 2 * token_ids.astype(np.int64)
    marked[np.cumsum(row_tokens)[sequences.query_mask] - 1] += 1
    ends = np.cumsum(np.add.reduceat(row_tokens, sequences.begins))
    starts = np.concatenate([[0], ends[:-1]])
    return [
        hashlib.blake2b(marked[start:end].tobytes(), digest_size=16).digest()
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    ]


def distinct(keys: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices at which each key is met first, and for each key which of these has it: int64."""
    number: dict[bytes, int] = {}
    inverse = np.fromiter((number.setdefault(key, len(number)) for key in keys), dtype=np.int64, count=len(keys))
    first = np.unique(inverse, return_index=True)[1]
    return first, inverse


def concatenate(parts: list[Sequences]) -> Sequences:
    """Lay lists of sequences end to end."""
    return Sequences(
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.counts for part in parts]),
        np.concatenate([part.query_mask for part in parts]),
        np.concatenate([part.labels for part in parts]),
    )


def pack(sequences: Sequences, table: RaggedTable, causal: bool = True) -> PackedBatch:
    """Lay the tokens of `sequences` in one row.

    Every table row that is read ends with its query token, so the queries are the row ends.
    """
    token_ids, row_tokens = table.gather(sequences.rows)
    row_ends = np.cumsum(row_tokens)
    lengths = np.add.reduceat(row_tokens, sequences.begins)
    return PackedBatch(
        token_ids=torch.from_numpy(token_ids),
        positions=torch.from_numpy(ranges(np.zeros_like(lengths), lengths)),
        bounds=sequence_bounds(lengths, causal),
        query_index=torch.from_numpy(row_ends[sequences.query_mask] - 1),
        labels=torch.from_numpy(sequences.labels[sequences.query_mask]),
    )


def within_budget(tokens: np.ndarray, budget: int) -> list[np.ndarray]:
    """Split consecutive sequences into the fewest groups, evenly filled, that each hold at most `budget` tokens.

    A sequence longer than the budget makes a group of its own.

    Args:
        tokens: int64 [sequences], the tokens of each.
        budget: maximum number of tokens of a group.

    Returns:
        The indices of each group.
    """
    groups = _greedy(tokens, budget)
    # An even filling wastes no small last batch: lower the limit while the number of groups stays the same.
    even = -(-int(tokens.sum()) // max(len(groups), 1))
    even_groups = _greedy(tokens, max(min(budget, even + int(tokens.max(initial=0))), 1))
    return even_groups if len(even_groups) == len(groups) else groups


def alike_within_budget(tokens: np.ndarray, budget: int) -> list[np.ndarray]:
    """Return groups as `within_budget`, of sequences of like length: shorter ones first, equal ones in their order."""
    order = np.argsort(tokens, kind="stable")
    return [order[group] for group in within_budget(tokens[order], budget)]


def _greedy(tokens: np.ndarray, limit: int) -> list[np.ndarray]:
    before = np.concatenate([[0], np.cumsum(tokens)])
    groups, start = [], 0
    while start < len(tokens):
        end = int(np.searchsorted(before, before[start] + limit, side="right")) - 1
        groups.append(np.arange(start, max(end, start + 1)))
        start = int(groups[-1][-1]) + 1
    return groups
