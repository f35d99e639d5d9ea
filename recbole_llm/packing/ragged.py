"""A table of rows of unequal length, kept as one flat array."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenate ``arange(start, start + length)`` for every pair, without a loop. int64 [sum of lengths]."""
    ends = np.cumsum(lengths)
    shift = np.repeat(starts - (ends - lengths), lengths)
    return np.arange(int(ends[-1]) if len(ends) else 0) + shift


@dataclass(frozen=True)
class RaggedTable:
    """Rows of integers.

    Attributes:
        values: [all values], the rows laid end to end.
        offsets: int64 [rows + 1]; row r is ``values[offsets[r]:offsets[r + 1]]``.
    """

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[int]]) -> "RaggedTable":
        """Build a table from a list of rows; empty rows are allowed."""
        lengths = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        values = np.fromiter((v for row in rows for v in row), dtype=np.int64, count=int(offsets[-1]))
        return cls(values, offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """int64 [rows]."""
        return np.diff(self.offsets)

    def row(self, index: int) -> np.ndarray:
        """Return one row."""
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def gather(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the values of `rows` laid end to end, and the length of each: ([sum of lengths], [rows])."""
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        return self.values[ranges(self.offsets[rows], lengths)], lengths

    def with_row_ends(self, value: int) -> "RaggedTable":
        """Return a table whose every non-empty row ends with one more `value` (eq. 2 of ST2SI: T_i -> {T_i, [Q]})."""
        filled = self.lengths > 0
        values = np.insert(self.values, self.offsets[1:][filled], value)
        offsets = self.offsets + np.concatenate([[0], np.cumsum(filled)])
        return RaggedTable(values, offsets)

    def with_row(self, row: Sequence[int]) -> "RaggedTable":
        """Return a table with one row more, the last."""
        values = np.concatenate([self.values, np.asarray(row, dtype=self.values.dtype)])
        return RaggedTable(values, np.append(self.offsets, len(values)))

    def followed_by(self, other: "RaggedTable") -> "RaggedTable":
        """Return a table with the rows of `other` after its own."""
        values = np.concatenate([self.values, other.values])
        return RaggedTable(values, np.concatenate([self.offsets, other.offsets[1:] + len(self.values)]))
