"""Tables of the hidden states of a frozen backbone, on the device or in a file; whole, or in parts over processes."""

import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from recbole_llm.backbone.stored_states import read_states, write_states
from recbole_llm.errors import StorageError
from recbole_llm.utils.collectives import numbers_of_all, rows_in_first, rows_of_all
from recbole_llm.utils.files import reserve
from recbole_llm.utils.processes import world

_IN_MEMORY = 2 * 1024**3  # bytes; a larger table is memory-mapped


class Store(Protocol):
    """States that are read by row: `FeatureStore`, or of several processes `SharedStore`."""

    device: torch.device

    def take(self, rows: Tensor) -> Tensor:
        """Return rows on the device: [len(rows), width]."""

    def take_common(self, rows: Tensor) -> Tensor:
        """Return rows that all processes ask for together, the same in each."""

    def take_own(self, rows: Tensor) -> Tensor:
        """Return rows that this process has."""

    def share(self, rows: Tensor) -> Tensor:
        """Tell which of the rows of a step this process computes: bool [n]; it has them."""


class FeatureStore:
    """A table [rows, width] that is filled once, in order, and then read by row.

    It lies on `device` when it takes at most `in_memory` bytes, and in a memory-mapped temporary file otherwise.

    Args:
        rows: number of rows.
        width: size of a row.
        dtype: float32 or bfloat16.
        device: where rows are wanted.
        folder: where a temporary file may be made.
        in_memory: bytes.

    Raises:
        StorageError: if the temporary file does not fit on the disk.
    """

    def __init__(
        self,
        rows: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        folder: Path,
        in_memory: int = _IN_MEMORY,
    ) -> None:
        self.device = device
        self._filled = 0
        size = rows * width * dtype.itemsize
        if size <= in_memory:
            self._table = torch.empty(rows, width, dtype=dtype, device=device)
            return
        try:
            # The file has no name any more once it is opened, so an ended process leaves nothing behind.
            with tempfile.TemporaryFile(dir=folder) as file:
                reserve(file, size)  # a full disk is found here, not by a signal while writing
                mapped = np.memmap(file, dtype=np.uint8, mode="r+", shape=(size,))
        except OSError as error:
            raise StorageError(
                f"the {size / 1e9:.1f} GB of hidden states do not fit in {folder}: {error.strerror}"
            ) from error
        self._table = torch.from_numpy(mapped).view(dtype).view(rows, width)

    @classmethod
    def of(cls, table: Tensor, device: torch.device, in_memory: int = _IN_MEMORY) -> "FeatureStore":
        """Return a filled store of a memory-mapped table [rows, width]; see the class."""
        store = cls(0, table.shape[1], table.dtype, device, Path())
        size = table.numel() * table.element_size()
        store._table = table.to(device, copy=True) if size <= in_memory else table
        store._filled = len(table)
        return store

    @property
    def table(self) -> Tensor:
        """The rows that are filled: [rows, width], on the device or memory-mapped."""
        return self._table[: self._filled]

    def append(self, states: Tensor) -> None:
        """Store the next rows [n, width]."""
        self._table[self._filled : self._filled + len(states)] = states
        self._filled += len(states)

    def take(self, rows: Tensor) -> Tensor:
        """Return rows on the device: [len(rows), width]."""
        return self._table.index_select(0, rows.to(self._table.device)).to(self.device)

    take_own = take_common = take  # of a table that every process has

    def share(self, rows: Tensor) -> Tensor:
        """Tell which of the rows of a step this process computes: bool [n]; every n-th, for each process has all."""
        return torch.arange(len(rows), device=rows.device) % world().size == world().rank


class SharedStore:
    """A table [rows, width] in parts of consecutive rows, of which process r has the parts r, r + n, r + 2n, ...

    Args:
        own: the rows of this process.
        bounds: the first row of each part, and how many rows there are.

    Attributes:
        device: where rows are wanted.
    """

    def __init__(self, own: FeatureStore, bounds: Sequence[int]) -> None:
        self.own, self.device = own, own.device
        counts = [end - begin for begin, end in itertools.pairwise(bounds)]
        before = [sum(counts[part % world().size : part : world().size]) for part in range(len(counts))]
        self._ends = torch.tensor(bounds[1:], dtype=torch.int64, device=own.device)
        # From the row of a part to its place in the table of the process that has the part.
        self._shifts = torch.tensor(before, dtype=torch.int64, device=own.device) - self._ends.new_tensor(bounds[:-1])

    def _owners(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return which process has each of some rows, and where in its table: int64 [n] both, on the device."""
        rows = rows.to(self.device)
        parts = torch.searchsorted(self._ends, rows, right=True)
        return parts % world().size, rows + self._shifts[parts]

    def share(self, rows: Tensor) -> Tensor:
        """Tell which of the rows of a step this process computes: bool [n]; those that it has."""
        return self._owners(rows)[0] == world().rank

    def take_own(self, rows: Tensor) -> Tensor:
        """Return rows that this process has, on the device: [len(rows), width]. Nothing is exchanged."""
        return self.own.take(self._owners(rows)[1])

    def take_common(self, rows: Tensor) -> Tensor:
        """Return rows on the device: [len(rows), width]. All processes call it together, with the same rows."""
        owners, places = self._owners(rows)
        counts = torch.bincount(owners, minlength=world().size).tolist()
        states = rows_of_all(self.own.take(places[owners == world().rank]), counts)
        return torch.empty_like(states).index_copy_(0, torch.argsort(owners, stable=True), states)

    def take(self, rows: Tensor) -> Tensor:
        """Return rows on the device: [len(rows), width]. All processes call it together, each with rows of its own."""
        counts = numbers_of_all([len(rows)])[:, 0].tolist()
        begin = sum(counts[: world().rank])
        return self.take_common(rows_of_all(rows, counts))[begin : begin + len(rows)]


def stored_or_computed(
    key: str | None,
    shape: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
    folder: Path,
    limit: float,
    parts: Callable[[], Iterator[Tensor]],
    in_memory: int = _IN_MEMORY,
    bounds: Sequence[int] | None = None,
) -> FeatureStore | SharedStore:
    """Return a filled store: from the disk where its states are, or computed and stored there for the next run.

    The file on the disk holds all rows, whatever the number of processes.

    Args:
        key: see `stored_states.states_key`; None: the disk is neither read nor written.
        shape: rows and their width.
        dtype: see `FeatureStore`.
        device: see there.
        folder: see there.
        limit: bytes that all stored states may take on the disk.
        parts: computes the rows in their order, some at a time; with several processes all of them call it together.
        in_memory: see there; the same in all processes.
        bounds: see `SharedStore`, where `parts` computes the rows of this process alone; None: each process has all.
    """
    size = shape[0] * shape[1] * dtype.itemsize
    known = None if key is None else read_states(key, *shape, dtype)
    if bool(numbers_of_all([known is not None]).all()):
        assert known is not None
        if bounds is None or size > in_memory * world().size:
            return FeatureStore.of(known, device, in_memory if bounds is None else 0)  # one file for all processes
        own = FeatureStore(_rows_of(bounds, world().rank), shape[1], dtype, device, folder, in_memory=size)
        for begin, end in itertools.islice(itertools.pairwise(bounds), world().rank, None, world().size):
            own.append(known[begin:end])
        return SharedStore(own, bounds)
    rows = [shape[0]] if bounds is None else [_rows_of(bounds, rank) for rank in range(world().size)]
    # All in memory or none: what processes exchange must lie on the same kind of device.
    limit_of_all = in_memory if max(rows) * shape[1] * dtype.itemsize <= in_memory else 0
    own = FeatureStore(rows[world().rank % len(rows)], shape[1], dtype, device, folder, limit_of_all)
    for states in parts():
        own.append(states)
    if bounds is None:
        if world().is_first and key is not None:
            write_states(key, shape, dtype, [own.table], limit)
        return own
    if key is not None and size <= limit:
        owners = ((part % world().size, end - begin) for part, (begin, end) in enumerate(itertools.pairwise(bounds)))
        pieces = rows_in_first(own.table, owners)
        if world().is_first:
            write_states(key, shape, dtype, pieces, limit)
        for _ in pieces:  # what the others send, also where the disk is full
            pass
    return SharedStore(own, bounds)


def _rows_of(bounds: Sequence[int], rank: int) -> int:
    counts = [end - begin for begin, end in itertools.pairwise(bounds)]
    return sum(counts[rank :: world().size])
