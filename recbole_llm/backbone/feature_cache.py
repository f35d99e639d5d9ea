"""Hidden states of a frozen backbone, each computed once.

A frozen backbone without dropout gives a query the same state in every epoch. Training on stored states is then the
training of a linear model, with the same loss and the same gradients.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from recbole_llm.backbone.feature_store import Store
from recbole_llm.packing.ragged import RaggedTable, ranges
from recbole_llm.packing.sequences import Sequences, distinct
from recbole_llm.utils.collectives import numbers_of_all, rows_of_all
from recbole_llm.utils.processes import world

T = TypeVar("T")

_REMEMBERED = 256 * 1024**2  # bytes of single states
_CPU_TOKENS = 4096  # of a pass on the CPU, where a larger one is no faster, and takes minutes of which nothing is seen


def storing_budget(device: torch.device, budget: int) -> int:
    """Return the tokens of a pass whose states are stored: at most `budget`, and so few that progress is seen."""
    return min(budget, _CPU_TOKENS) if device.type == "cpu" else budget


def by_turns(parts: Iterable[T], compute: Callable[[T], Tensor], none: Tensor) -> Iterator[Tensor]:
    """Yield what `compute` makes of each of some parts, in their order, several at a time.

    Where processes share a run, each computes every n-th part, and all of them get all. They call it together.

    Args:
        parts: the same in every process.
        compute: from a part to its rows [rows, ...].
        none: no row of the result, [0, ...], in its precision.
    """
    own = world()
    waiting = iter(parts)
    while turn := list(itertools.islice(waiting, own.size)):
        states = compute(turn[own.rank]).to(none.dtype) if own.rank < len(turn) else none
        counts = numbers_of_all([len(states)])[:, 0].tolist()
        yield rows_of_all(states, counts)


@dataclass(frozen=True)
class SharedRows:
    """A store of which several rows have one state each: rows with the same content.

    Attributes:
        store: one row per content.
        index: int64 [rows] on the device, the row of the store that each row has.
    """

    store: Store
    index: Tensor

    def take(self, rows: Tensor) -> Tensor:
        """Return rows on the device: [len(rows), width]."""
        return self.store.take(self.index[rows.to(self.index.device)])


class StateMemory:
    """States of a frozen backbone by the content that was read, as long as there is room.

    Args:
        room: bytes that it may take.
    """

    def __init__(self, room: int = _REMEMBERED) -> None:
        self._known: dict[bytes, Tensor] = {}
        self._room = room

    def take(self, keys: Sequence[bytes], compute: Callable[[np.ndarray], Tensor]) -> Tensor:
        """Return one state per key: [keys, width].

        Args:
            keys: of the content.
            compute: from the indices of keys, each another one, to their states.
        """
        first, _ = distinct(keys)
        missing = first[[keys[index] not in self._known for index in first]]
        found: dict[bytes, Tensor] = {}
        if len(missing):
            states = compute(missing)
            found = {keys[index]: state for index, state in zip(missing.tolist(), states, strict=True)}
            if (size := states.numel() * states.element_size()) <= self._room:
                self._known.update(found)
                self._room -= size
        return torch.stack([found[key] if key in found else self._known[key] for key in keys])


@dataclass(frozen=True)
class CachedQueries:
    """Queries whose states are stored.

    Attributes:
        rows: int64 [queries], rows of the store.
        labels: int64 [queries], the items to predict.
    """

    rows: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


class QueryStateCache:
    """The states of every query that training and evaluation read.

    Args:
        store: the states.
        samples: row s holds the state indices of training sample s.
        labels: int64, the item to predict at each of ``samples.values``.
        state_before: int64 [interactions + 1], for an index into the flat histories the state index of the query that
            stands before it, at the end of that row's window; -1 where none is stored.
        aligned: int64, the state index of each item's alignment input in the order of the ids; empty without alignment.
    """

    def __init__(
        self,
        store: Store,
        samples: RaggedTable,
        labels: np.ndarray,
        state_before: np.ndarray,
        aligned: np.ndarray,
    ) -> None:
        self.store = store
        self.samples = samples
        self.labels = labels
        self.state_before = state_before
        self.aligned = aligned

    def queries(self, samples: np.ndarray) -> CachedQueries:
        """Return all queries of the training samples `samples`, on the device."""
        picked = ranges(self.samples.offsets[samples], self.samples.lengths[samples])
        rows, labels = (torch.from_numpy(a[picked]).to(self.store.device) for a in (self.samples.values, self.labels))
        return CachedQueries(rows, labels)

    def steps(self, order: np.ndarray, size: int) -> Iterator[CachedQueries]:
        """Yield the queries of every `size` samples of `order`; they are brought to the device all at once."""
        epoch = self.queries(order)
        before = np.concatenate([[0], np.cumsum(self.samples.lengths[order])])
        for begin in range(0, len(order), size):
            part = slice(before[begin], before[min(begin + size, len(order))])
            yield CachedQueries(epoch.rows[part], epoch.labels[part])

    def share(self, queries: CachedQueries) -> CachedQueries:
        """Return the queries of a step that this process computes, where several share it.

        They are those whose states it has; where each has all states, every n-th.
        """
        own = self.store.share(queries.rows)
        return CachedQueries(queries.rows[own], queries.labels[own])

    def lookup(self, ends: np.ndarray, compute: Callable[[np.ndarray], Tensor]) -> Tensor:
        """Return the state of the last query of each window [windows, width], computing those never stored.

        Where processes share the states, all of them call it together, with windows of their own, perhaps none.

        Args:
            ends: int64 [windows], the flat index where each window ends, its last item not included.
            compute: from the indices of windows to their states.
        """
        found = self.state_before[ends]
        missing = np.flatnonzero(found < 0)
        states = self.store.take(torch.from_numpy(np.maximum(found, 0)))
        if len(missing):
            states[torch.from_numpy(missing).to(states.device)] = compute(missing).to(states.device)
        return states


def shared_passes(items: np.ndarray, starts: np.ndarray, positions: np.ndarray) -> tuple[Sequences, np.ndarray]:
    """Merge queries into the fewest causal passes.

    A causal pass from `start` gives the state at every position after it exactly, whatever follows. So all queries
    whose windows start at the same place share one pass: training positions, validation and test of a user whose
    history fits the window. So do passes over the same items, whoever's they are: where a window holds one item, there
    is one pass an item.

    Args:
        items: int64 [interactions], the flat histories.
        starts: int64 [queries], where the window of each query starts.
        positions: int64 [queries], the item after which each query stands.

    Returns:
        The passes, read at every distinct query, and for each given query the index of its state in reading order.
    """
    moved = _first_with_the_same_items(items, starts, positions) - starts
    starts, positions = starts + moved, positions + moved
    keys, inverse = np.unique(starts * (len(items) + 1) + positions, return_inverse=True)
    begins, wanted = keys // (len(items) + 1), keys % (len(items) + 1)
    pass_starts, first = np.unique(begins, return_index=True)
    last = np.append(first[1:], len(keys)) - 1
    counts = wanted[last] - pass_starts + 1
    rows = items[ranges(pass_starts, counts)]
    query_mask = np.zeros(len(rows), dtype=bool)
    pass_of = np.searchsorted(pass_starts, begins)
    query_mask[(np.cumsum(counts) - counts)[pass_of] + wanted - begins] = True
    return Sequences(rows, counts, query_mask, np.zeros_like(rows)), inverse


def _first_with_the_same_items(items: np.ndarray, starts: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Return for each query where the first pass over the same items starts: int64 [queries].

    A pass goes from its start to the last position that any query of that start asks for.
    """
    begins, pass_of = np.unique(starts, return_inverse=True)
    last = np.zeros_like(begins)
    np.maximum.at(last, pass_of, positions)
    known: dict[bytes, int] = {}
    first = np.empty_like(begins)
    for index, (begin, end) in enumerate(zip(begins.tolist(), (last + 1).tolist(), strict=True)):
        digest = hashlib.blake2b(items[begin:end].tobytes(), digest_size=16).digest()  # less to keep than the items
        first[index] = known.setdefault(digest, begin)
    return first[pass_of]
