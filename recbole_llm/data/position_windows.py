"""Windows of whole histories for models that predict at every position of one pass (`train_positions`).

RecBole makes a row of every prefix, and so reads a history of n items n - 1 times. Here the history of a user is cut
into consecutive windows of at most MAX_ITEM_LIST_LENGTH items, counted back from the last one that is trained, and the
label of a position is the item after it: every training row of RecBole is one labelled position, once an epoch. Where
a history fits one window, a position reads just what its row holds. In the windows of a longer one the first positions
read less than their rows would: what came before is in the window before.

All that an epoch needs lies on the device: the flat histories, where the windows begin and how long they are. Windows
of similar length are put together, so that a batch is as wide as its histories and not as the longest there is.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_llm.data.dataset import HISTORY_END
from recbole_llm.data.windows import Windows
from recbole_llm.errors import DataError
from recbole_llm.packing.ragged import ranges

_NARROWEST = 8  # items; narrower batches would save nothing


@dataclass(frozen=True)
class LabelledWindows:
    """Windows of flat histories, and what is trained at each position.

    Attributes:
        items: int64 [interactions], all users' items in time order.
        labels: int64 [interactions], the item that follows each; 0 where that one is not trained.
        windows: which slices are read.
    """

    items: np.ndarray
    labels: np.ndarray
    windows: Windows


def labelled_windows(dataset: Any, longest: int, recent: bool = False) -> LabelledWindows:
    """Return the windows of the training part of a dataset.

    Args:
        dataset: a part of a `HistoryDataset`, whose rows are what is trained.
        longest: items of a window.
        recent: whether every user has the most recent window alone.

    Raises:
        DataError: if the part has no rows.
    """
    items = dataset.history_items.numpy()
    targets = np.sort(dataset.inter_feat[HISTORY_END].numpy())
    if len(targets) == 0:
        raise DataError(f"no training interaction of {dataset.dataset_name} is left after the split")
    labels = np.zeros(len(items), dtype=np.int64)
    labels[targets - 1] = items[targets]
    first, begins = np.unique(dataset.history_start.numpy()[targets], return_index=True)
    last = targets[np.append(begins[1:], len(targets)) - 1]
    counts = np.ones_like(first) if recent else -(-(last - first) // longest)
    # Of the windows of a user, the one with number 0 is the most recent.
    number = ranges(np.zeros_like(counts), counts)
    ends = np.repeat(last, counts) - number * longest
    starts = np.maximum(np.repeat(first, counts), ends - longest)
    trained = np.concatenate([[0], np.cumsum(labels > 0)])
    kept = trained[ends] > trained[starts]  # `train_share` may leave a window without a label
    return LabelledWindows(items, labels, Windows(starts[kept], ends[kept]))


def batch_widths(lengths: np.ndarray, longest: int, batch_size: int) -> list[int]:
    """Return the widths that batches have: 8, 12, 16, 24, 32, ... up to the longest window.

    A width is left out where fewer windows than a batch would have it: those take the next one.

    Args:
        lengths: int64 [windows].
        longest: items of the longest window there may be.
        batch_size: windows of a batch.
    """
    last = min(longest, int(lengths.max()))
    wanted = [width for power in range(3, 40) for width in (1 << power, 3 << (power - 1)) if width < last]
    chosen, below = [], 0
    for width in wanted:
        within = int((lengths <= width).sum())
        if width >= _NARROWEST and within - below >= batch_size:
            chosen.append(width)
            below = within
    return [*chosen, last]


class WindowTable:
    """Labelled windows on a device, and the batches of an epoch.

    Args:
        labelled: the windows.
        longest: items of the longest window there may be.
        batch_size: windows of a batch.
        device: where all of it will be.
        by_positions: whether `batch_size` is that of windows of mean length, and a batch of longer ones holds fewer, of
            shorter ones more: so many that all have about as many positions.
    """

    def __init__(
        self,
        labelled: LabelledWindows,
        longest: int,
        batch_size: int,
        device: torch.device,
        by_positions: bool = False,
    ) -> None:
        windows = labelled.windows
        lengths = windows.ends - windows.starts
        self.device = device
        self.batch_size = batch_size
        self.widths = batch_widths(lengths, longest, batch_size)
        width_of = np.searchsorted(self.widths, lengths)
        self._sizes = [batch_size] * len(self.widths)
        if by_positions:
            means = [lengths[width_of == n].mean() for n in range(len(self.widths))]
            self._sizes = [max(round(batch_size * lengths.mean() / mean), 1) for mean in means]

        def on_device(values: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64)).to(device)

        self._members = [on_device(np.flatnonzero(width_of == n)) for n in range(len(self.widths))]
        self._items, self._labels = on_device(labelled.items), on_device(labelled.labels)
        # One window more, without a position, fills the last batch of an epoch up.
        self._starts = on_device(np.append(windows.starts, 0))
        self._lengths = on_device(np.append(lengths, 0))
        trained = np.concatenate([[0], np.cumsum(labelled.labels > 0)])
        counts = trained[windows.ends] - trained[windows.starts]
        self._counts = on_device(np.append(counts, 0))
        self.predictions = int(counts.sum())

    def __len__(self) -> int:
        """Return how many windows there are."""
        return len(self._starts) - 1

    @property
    def batches(self) -> int:
        """How many batches an epoch has."""
        found = waiting = 0
        for members, size in zip(self._members, self._sizes, strict=True):
            full, waiting = divmod(waiting + len(members), size)
            found += full
        return found + (waiting > 0)

    def epoch(self, seed: int, epoch: int) -> Iterator[tuple[int, Tensor]]:
        """Yield the batches of an epoch: how wide each is, and its windows, int64 [windows], on the device.

        Windows of a width are shuffled there; those that fill no batch move on to the next width. The order of the
        batches is drawn, too. Everything follows from `seed` and `epoch`: a resumed run has the batches of an
        uninterrupted one. The last batch holds fewer windows on the CPU, and empty ones on a GPU, where one graph
        serves all batches of a width.
        """
        numbers = np.random.default_rng([seed, epoch])
        generator = torch.Generator(self.device).manual_seed(int(numbers.integers(2**62)))
        batches: list[tuple[int, Tensor]] = []
        rest = torch.empty(0, dtype=torch.long, device=self.device)
        for width, members, size in zip(self.widths, self._members, self._sizes, strict=True):
            drawn = torch.randperm(len(members), generator=generator, device=self.device)
            waiting = torch.cat([rest, members[drawn]])
            full = len(waiting) // size * size
            batches += [(width, windows) for windows in waiting[:full].view(-1, size)]
            rest = waiting[full:]
        if len(rest):
            if self.device.type != "cpu":
                empty = torch.full((self._sizes[-1] - len(rest),), len(self), device=self.device)
                rest = torch.cat([rest, empty])
            batches.append((self.widths[-1], rest))
        for number in numbers.permutation(len(batches)):
            yield batches[number]

    def rows(self, windows: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Return histories and labels, int64 [windows, width], the oldest item first and zeros after the last.

        Args:
            windows: int64 [windows], on the device.
            width: at least the length of the longest of them.
        """
        column = torch.arange(width, device=self.device)
        outside = column >= self._lengths[windows][:, None]
        place = (self._starts[windows][:, None] + column).clamp(max=len(self._items) - 1)
        return self._items[place].masked_fill(outside, 0), self._labels[place].masked_fill(outside, 0)

    def labelled(self, windows: Tensor) -> Tensor:
        """Return how many positions of some windows are trained, a scalar on the device."""
        return self._counts[windows].sum()
