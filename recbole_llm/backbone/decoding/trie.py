"""Token paths of items as a tree in flat arrays: masks and scores of a whole batch are gathered, nothing is walked."""

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_llm.packing.ragged import RaggedTable


@dataclass(frozen=True)
class Trie:
    """A tree whose leaves are items. Node 0 is the root; nodes are numbered by depth, the children of one together.

    Attributes:
        tokens: int64 [nodes], the token that leads to a node; 0 at the root.
        parents: int64 [nodes]; 0 at the root.
        depths: int64 [nodes], tokens from the root.
        first: int64 [nodes], the first child of a node.
        counts: int64 [nodes], its children; 0 at a leaf.
        items: int64 [nodes], the item of a leaf, else 0.
        levels: the first node of every depth from 0, and the number of nodes.
        inner: int64 [inner nodes], the nodes that have children, the root first.
        sees: bool [inner nodes - 1, inner nodes - 1], without the root: whether the second is the first or before it.
        item_count: number of item ids, the padding id included.
    """

    tokens: Tensor
    parents: Tensor
    depths: Tensor
    first: Tensor
    counts: Tensor
    items: Tensor
    levels: tuple[int, ...]
    inner: Tensor
    sees: Tensor
    item_count: int

    @property
    def depth(self) -> int:
        """The most tokens of a path."""
        return len(self.levels) - 2

    def to(self, device: torch.device | str) -> "Trie":
        """Return the trie on `device`."""
        moved: dict[str, Any] = {name: each.to(device) for name, each in vars(self).items() if isinstance(each, Tensor)}
        return replace(self, **moved)


def build_trie(paths: RaggedTable) -> Trie:
    """Return the trie of the paths of all items.

    Args:
        paths: token ids, row = item id; row 0, the padding id, is empty.

    Raises:
        ValueError: if a path is empty, equals another or begins it: see `clashing_paths`.
    """
    lengths = paths.lengths.copy()
    if (lengths[1:] == 0).any() or clashing_paths(paths) is not None:
        raise ValueError("a path is empty, or begins another")
    at = np.zeros(len(lengths), dtype=np.int64)  # the node that each item's path has reached
    tokens, parents, depths = (
        [np.zeros(1, dtype=np.int64)],
        [np.zeros(1, dtype=np.int64)],
        [np.zeros(1, dtype=np.int64)],
    )
    levels, nodes = [0], 1
    for depth in range(int(lengths.max(initial=0))):
        going = np.flatnonzero(lengths > depth)
        edges = np.stack([at[going], paths.values[paths.offsets[going] + depth]])
        distinct, inverse = np.unique(edges, axis=1, return_inverse=True)
        at[going] = nodes + inverse.reshape(-1)
        levels.append(nodes)
        parents.append(distinct[0])
        tokens.append(distinct[1])
        depths.append(np.full(distinct.shape[1], depth + 1))
        nodes += distinct.shape[1]
    levels.append(nodes)
    of_node = np.concatenate(parents)
    counts = np.bincount(of_node[1:], minlength=nodes)
    first = np.searchsorted(of_node[1:], np.arange(nodes)) + 1
    items = np.zeros(nodes, dtype=np.int64)
    items[at[1:]] = np.arange(1, len(lengths))
    inner = np.flatnonzero(counts)
    return Trie(
        tokens=torch.from_numpy(np.concatenate(tokens)),
        parents=torch.from_numpy(of_node),
        depths=torch.from_numpy(np.concatenate(depths)),
        first=torch.from_numpy(first),
        counts=torch.from_numpy(counts),
        items=torch.from_numpy(items),
        levels=tuple(levels),
        inner=torch.from_numpy(inner),
        sees=torch.from_numpy(_ancestors(of_node, inner[1:])),
        item_count=len(lengths),
    )


def _ancestors(parents: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """Return whether node j of `nodes` is node i or one of its ancestors: bool [nodes, nodes]."""
    place = np.full(len(parents), -1)
    place[nodes] = np.arange(len(nodes))
    sees = np.eye(len(nodes), dtype=bool)
    for row, parent in enumerate(parents[nodes]):  # parents come first
        if parent:
            sees[row] |= sees[place[parent]]
    return sees


def clashing_paths(paths: RaggedTable) -> tuple[int, int] | None:
    """Return two items the first of whose paths equals the second's or begins it; None if there are none.

    Args:
        paths: as of `build_trie`.
    """
    rows = [paths.row(item).tolist() for item in range(1, len(paths))]
    order = sorted(range(len(rows)), key=rows.__getitem__)  # what begins another comes directly before some such
    for before, after in itertools.pairwise(order):
        if rows[after][: len(rows[before])] == rows[before]:
            return before + 1, after + 1
    return None
