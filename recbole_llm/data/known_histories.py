"""What each user met before a moment, whole: what an evaluation with ``repeatable: False`` leaves out of a ranking.

A model reads the most recent `MAX_ITEM_LIST_LENGTH` items of a history; what is left out is all of it. It lies in one
flat array of items, of which every row names a piece, so that memory is that of the interactions and not of rows times
items. Rows of RecBole's sequential datasets have it in `KNOWN_END`, those of `HistoryDataset` in `HISTORY_END`; a model
that knows users by id is evaluated with what its users met in the earlier parts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from logging import getLogger
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_llm.data.dataset import HISTORY_END, KNOWN_END

_CHUNK = 16_384


@dataclass(frozen=True)
class Pieces:
    """One flat array of items, and where each of its pieces begins and ends.

    Attributes:
        items: int64 [items].
        starts, ends: int64 [pieces].
    """

    items: Tensor
    starts: Tensor
    ends: Tensor

    def to(self, device: torch.device) -> "Pieces":
        """Return the same on a device."""
        return Pieces(self.items.to(device), self.starts.to(device), self.ends.to(device))

    def gather(self, pieces: Tensor) -> tuple[Tensor, Tensor]:
        """Return the items of some pieces, and the place in `pieces` of each item: int64 [sum of lengths] both."""
        starts = self.starts[pieces]
        lengths = self.ends[pieces] - starts
        owner = torch.repeat_interleave(torch.arange(len(pieces), device=pieces.device), lengths)
        first = torch.cumsum(lengths, 0) - lengths
        return self.items[torch.arange(len(owner), device=pieces.device) + (starts - first)[owner]], owner


class KnownHistories:
    """The whole known history of every row of an evaluated part.

    Args:
        part: the evaluated part of a dataset that is built.
        earlier: the parts before it: training, and validation for the test.

    Attributes:
        items: item ids, the padding id included.
    """

    def __init__(self, part: Any, earlier: Sequence[Any]) -> None:
        self.items = int(part.item_num)
        self.user_field = part.uid_field
        self.end_field = _end_field(part)
        self._by_end = None if self.end_field is None else _by_end(part, self.end_field)
        # Files that give histories may tell of a user in one file what a row of another does not hold.
        given = part.config["benchmark_filename"] is not None
        self._by_user = _by_user(part, earlier) if self.end_field is None or given else None
        self._moved: dict[torch.device, tuple[Pieces | None, Pieces | None]] = {}

    def _on_device(self, device: torch.device) -> tuple[Pieces | None, Pieces | None]:
        if device not in self._moved:
            by_end, by_user = (None if each is None else each.to(device) for each in (self._by_end, self._by_user))
            self._moved[device] = by_end, by_user
        return self._moved[device]

    def keys(self, interaction: Any, lists: Tensor | None = None, device: Any = "cpu") -> Tensor:
        """Return everything in the histories of some rows, each item once a ranked list.

        Args:
            interaction: the rows, or lines that repeat them (sampled candidates).
            lists: int64 [rows], the ranked list of each; None: each row is a list of its own.
            device: where the answer is wanted; the table is moved there once.

        Returns:
            int64 [n], ``list * items + item`` in rising order.
        """
        device = torch.device(device)
        by_end, by_user = self._on_device(device)
        found = []
        for pieces, field in ((by_end, self.end_field), (by_user, self.user_field)):
            if pieces is not None:
                places = interaction[field].to(device)
                owners = torch.arange(len(places), device=device) if lists is None else lists.to(device)
                if lists is not None:  # the lines of one list repeat the same few rows
                    size = len(pieces.starts)
                    pairs = torch.unique(owners * size + places)
                    owners, places = pairs // size, pairs % size
                items, owner = pieces.gather(places)
                found.append(owners[owner] * self.items + items)
        return torch.unique(torch.cat(found))

    def repeated_targets(self, part: Any) -> int:
        """Return how many targets of the part their users met before."""
        count = 0
        for start in range(0, len(part), _CHUNK):
            rows = part.inter_feat[start : start + _CHUNK]
            own = torch.arange(len(rows)) * self.items + rows[part.iid_field]
            count += int(torch.isin(own, self.keys(rows)).sum())
        return count


def _end_field(part: Any) -> str | None:
    return next((field for field in (KNOWN_END, HISTORY_END) if field in part.inter_feat), None)


def _by_end(part: Any, field: str) -> Pieces:
    items, starts = (part.known_items, part.known_start) if field == KNOWN_END else (part.history_items, None)
    starts = part.history_start if starts is None else starts
    return Pieces(items, starts, torch.arange(len(items)))


def _by_user(part: Any, earlier: Sequence[Any]) -> Pieces:
    """Return for every user id what that user met in the earlier parts, each item once."""
    items, wanted = int(part.item_num), np.unique(part.inter_feat[part.uid_field].numpy())
    keys = [np.empty(0, dtype=np.int64)]
    for each in earlier:
        users = each.inter_feat[each.uid_field].numpy()
        rows = np.isin(users, wanted)
        keys.append(users[rows] * items + each.inter_feat[each.iid_field].numpy()[rows])
        if (field := _end_field(each)) is not None:
            pieces = _by_end(each, field)
            ends = np.flatnonzero(rows)
            for start in range(0, len(ends), _CHUNK):
                chunk = torch.from_numpy(ends[start : start + _CHUNK])
                met, owner = pieces.gather(each.inter_feat[field][chunk])
                keys.append(np.unique(users[chunk.numpy()[owner.numpy()]] * items + met.numpy()))
    known = np.unique(np.concatenate(keys))
    offsets = torch.from_numpy(np.searchsorted(known, np.arange(int(part.user_num) + 1) * items))
    return Pieces(torch.from_numpy(known % items), offsets[:-1], offsets[1:])


@dataclass(frozen=True)
class ItemProtocol:
    """Which items the evaluated targets of a run are ranked among.

    Attributes:
        repeatable: whether items that a user met before are ranked with the others.
        repeats: how many interactions of the whole dataset are with an item that the user met before.
        repeated_targets: how many targets are such an item, by part.
    """

    repeatable: bool
    repeats: int
    repeated_targets: dict[str, int]

    def entry(self) -> dict[str, Any]:
        """Return what `result.json` holds."""
        return {"repeatable": self.repeatable, "repeats": self.repeats, "repeated_targets": self.repeated_targets}


def count_repeats(dataset: Any) -> int:
    """Return how many interactions of a dataset are with an item that their user met before.

    All of them are counted, whichever part they are in and whether or not that part is read: a search that leaves the
    test alone measures as the run does that tests its winner.

    Args:
        dataset: of a run, filtered and built.
    """
    items, field = int(dataset.item_num), _end_field(dataset)
    users = np.asarray(dataset.inter_feat[dataset.uid_field])
    if field is None:
        targets = np.asarray(dataset.inter_feat[dataset.iid_field])
        return len(targets) - len(np.unique(users * items + targets))
    pieces = _by_end(dataset, field)
    starts = pieces.starts.numpy()
    keys = np.unique(starts * items + pieces.items.numpy())
    if dataset.config["benchmark_filename"] is None:
        return len(starts) - len(keys)
    # Each row of files that give histories has its own: of a user's rows the one with most repeats counts.
    repeats = np.bincount(starts) - np.bincount(keys // items, minlength=starts[-1] + 1)
    ends = np.asarray(dataset.inter_feat[field])
    most = np.zeros(int(dataset.user_num), dtype=np.int64)
    np.maximum.at(most, users, repeats[starts[ends]])
    return int(most.sum())


def choose_protocol(config: Any, dataset: Any, parts: Sequence[Any]) -> tuple[ItemProtocol, list[KnownHistories]]:
    """Decide what `repeatable` means for a run, and gather what its users know.

    Args:
        config: the settings.
        dataset: of the run, filtered and built.
        parts: training, validation and test part, before `train_share` takes a share of the first.

    Returns:
        The protocol, and the histories that are known at validation and at the test.
    """
    repeats = count_repeats(dataset)
    given = config["repeatable"]
    repeatable = repeats > 0 if given == "auto" else bool(given)
    known = [KnownHistories(part, parts[:place]) for place, part in enumerate(parts) if place > 0]
    targets = {
        name: histories.repeated_targets(part)
        for name, histories, part in zip(("valid", "test"), known, parts[1:], strict=True)
    }
    if repeats and not repeatable:
        getLogger().warning(
            "repeatable=False leaves what users met before out of their rankings, but %d of the %d validation targets "
            "and %d of the %d test targets of %s are such items: these stay in, as every target does",
            *(targets["valid"], len(parts[1]), targets["test"], len(parts[2]), config["dataset"]),
        )
    return ItemProtocol(repeatable, repeats, targets), known
