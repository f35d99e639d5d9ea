"""The two-level softmax: first the cluster of an item, then the item within it (Goodman, ICASSP 2001).

    p(i | h) = softmax_K(A h)_c(i)  softmax over the items j of c(i) of (w_j . h)_i

These probabilities sum to one over all items, and no approximation is in them. With K = ceil(sqrt N) clusters of equal
size a query costs K + N / K products instead of N. The clusters are fixed before training.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_llm.model.layers.balanced_clusters import balanced_clusters

# The most numbers that logits and item vectors of clusters that are looked at together may be: a CPU's caches, a GPU's
# free memory.
_NUMBERS = {"cpu": 2 * 1024**2}
_OTHER_NUMBERS = 128 * 1024**2


class TwoLevelSoftmax(nn.Module):
    """The loss and the log-probabilities of a table of item vectors.

    Until `choose_clusters` is called, clusters are of items with neighbouring ids.

    Args:
        width: of states and item vectors.
        items: number of item ids, the padding id included; it is in no cluster.
        sparse: whether the gradient of the table is a sparse tensor, of the clusters that a step reads.

    Attributes:
        cluster_weight: A, [K, width].
        cluster_of: int64 [items], c; 0 for the padding id.
        chosen: whether `choose_clusters` was called, bool [].
    """

    cluster_of: Tensor
    chosen: Tensor
    members: Tensor
    place: Tensor

    def __init__(self, width: int, items: int, sparse: bool = False) -> None:
        super().__init__()
        self.sparse = sparse
        self.clusters = math.ceil(math.sqrt(items - 1))
        self.size = -(-(items - 1) // self.clusters)
        self.cluster_weight = nn.Parameter(torch.empty(self.clusters, width))
        nn.init.kaiming_uniform_(self.cluster_weight, a=5**0.5)
        self.register_buffer("cluster_of", torch.zeros(items, dtype=torch.long))
        self.register_buffer("chosen", torch.tensor(False))
        self.register_buffer("members", torch.zeros(self.clusters, self.size, dtype=torch.long), persistent=False)
        self.register_buffer("place", torch.zeros(items, dtype=torch.long), persistent=False)
        self._set(np.arange(items - 1) * self.clusters // (items - 1))
        self.register_load_state_dict_post_hook(lambda module, _: module._set(module.cluster_of[1:].cpu().numpy()))

    def choose_clusters(self, vectors: np.ndarray, seed: int) -> None:
        """Put items of similar vectors into the same cluster.

        Args:
            vectors: float32 [items - 1, width of any size], of the ids from 1.
            seed: of the clustering.
        """
        self._set(balanced_clusters(vectors, self.clusters, seed))
        self.chosen.fill_(True)

    def _set(self, cluster_of: np.ndarray) -> None:
        """Take the clusters int64 [items - 1] of the ids from 1."""
        order = np.argsort(cluster_of, kind="stable")
        counts = np.bincount(cluster_of, minlength=self.clusters)
        within = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        members = np.zeros((self.clusters, self.size), dtype=np.int64)
        members[cluster_of[order], within] = order + 1
        place = np.zeros(len(order) + 1, dtype=np.int64)
        place[order + 1] = within
        self.cluster_of[1:] = torch.from_numpy(cluster_of)
        self.members.copy_(torch.from_numpy(members))
        self.place.copy_(torch.from_numpy(place))

    # -- training ------------------------------------------------------------------------------------------------------

    def forward(self, states: Tensor, table: Tensor, labels: Tensor) -> Tensor:
        """Return the mean of -log p(label) over the labelled queries, 0 without any. See `PositionLoss`."""
        return self.summed(states, table, labels) / (labels > 0).sum().clamp(min=1)

    def summed(self, states: Tensor, table: Tensor, labels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the sum of -log p(label), float32. A GPU is waited for: how many queries a cluster has, decides.

        Args:
            states: [queries, width].
            table: [items, width], row 0 the padding id's.
            labels: int64 [queries]; a query with label 0 is left out.
            dtype: of the matrix products with the table.
        """
        labelled = labels.nonzero()[:, 0]
        states, labels = states[labelled], labels[labelled]
        with torch.autocast(states.device.type, enabled=False):
            logits = F.linear(states.to(self.cluster_weight.dtype), self.cluster_weight)
            outer = F.cross_entropy(logits, self.cluster_of[labels], reduction="sum")
            inner: Tensor = _WithinClusters.apply(states, table, labels, self, dtype)
        return outer + inner

    # -- ranking -------------------------------------------------------------------------------------------------------

    def scores(self, states: Tensor, table: Tensor) -> Tensor:
        """Return log p of all items, float32 [queries, items], -inf for the padding id."""
        scores = F.linear(states.to(table.dtype), table).float()
        inside = scores.index_select(1, self.members.flatten()).view(len(scores), *self.members.shape)
        normaliser = inside.masked_fill_(self.members == 0, -torch.inf).logsumexp(dim=2)
        scores += self._outer(states).sub_(normaliser).index_select(1, self.cluster_of)
        scores[:, 0] = -torch.inf
        return scores

    def in_blocks(self, states: Tensor, table: Tensor) -> Callable[[slice | Tensor], Tensor]:
        """Return what gives log p of some item ids, a slice or int64 [n]; the whole table is read once before.

        Args:
            states: [queries, width].
            table: [items, width].
        """
        states = states.to(table.dtype)
        offsets = self._offsets(states, table)

        def of_items(items: slice | Tensor) -> Tensor:
            return F.linear(states, table[items]).float() + offsets.index_select(1, self.cluster_of[items])

        return of_items

    def of_pairs(self, states: Tensor, table: Tensor, items: Tensor) -> Tensor:
        """Return log p [queries], float32, of one item [queries] for each state; no [queries, items] is made."""
        states = states.to(table.dtype)
        logits = (states * table[items]).sum(dim=1).float()
        return logits + self._offsets(states, table).gather(1, self.cluster_of[items][:, None])[:, 0]

    def _offsets(self, states: Tensor, table: Tensor) -> Tensor:
        """Return what is added to the logits of a cluster's items to get log p: float32 [queries, clusters]."""
        offsets = self._outer(states)
        some = max(_room(states) // (self.size * (len(states) + table.shape[1])), 1)
        for begin in range(0, self.clusters, some):
            members = self.members[begin : begin + some]
            inside = (states @ table[members.flatten()].T).view(len(states), *members.shape).float()
            offsets[:, begin : begin + some] -= inside.masked_fill_(members == 0, -torch.inf).logsumexp(dim=2)
        return offsets

    def _outer(self, states: Tensor) -> Tensor:
        return F.linear(states.to(self.cluster_weight.dtype), self.cluster_weight).float().log_softmax(dim=1)


class _WithinClusters(torch.autograd.Function):
    """Sum over queries of -log softmax over the items of the label's cluster.

    Queries are sorted by cluster. Some clusters at a time, with about as many queries each, make one batch of matrix
    products [queries of a cluster, width] x [width, items of a cluster]. As in `_CutByQueries`, gradients are made
    while the logits are there. Clusters have no item in common: each row of the gradient is written once.
    """

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, table: Tensor, labels: Tensor, softmax: TwoLevelSoftmax, dtype: torch.dtype
    ) -> Tensor:
        needed = any(ctx.needs_input_grad)
        low_states, loss = states.to(dtype), torch.zeros((), device=states.device)
        state_gradient = torch.zeros_like(low_states)
        rows, values = [labels.new_zeros(0)], [table.new_zeros(0, table.shape[1])]
        for clusters, owner, slot, queries in _grouped(softmax, labels, table.shape[1]):
            members = softmax.members[clusters]
            vectors = table[members].to(dtype)
            grouped = low_states.new_zeros(len(clusters), int(slot.max()) + 1, states.shape[1])
            grouped[owner, slot] = low_states[queries]
            logits = (grouped @ vectors.mT).float().masked_fill_((members == 0)[:, None], -torch.inf)
            logits = logits.log_softmax(dim=2)
            place = softmax.place[labels[queries]]
            loss -= logits[owner, slot, place].sum()
            if not needed:
                continue
            difference = torch.zeros_like(logits)  # empty slots stay 0
            difference[owner, slot] = logits[owner, slot].exp_()
            difference[owner, slot, place] -= 1
            low_difference = difference.to(dtype)
            state_gradient[queries] = (low_difference @ vectors)[owner, slot]
            if ctx.needs_input_grad[1]:
                real = members > 0
                rows.append(members[real])
                values.append((low_difference.mT @ grouped)[real].to(table.dtype))
        ctx.save_for_backward(state_gradient, *rows, *values)
        ctx.parts, ctx.shape, ctx.sparse, ctx.state_dtype = len(rows), table.shape, softmax.sparse, states.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, output_gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        state_gradient, *parts = ctx.saved_tensors
        table_gradient = None
        if ctx.needs_input_grad[1]:
            rows, values = torch.cat(parts[: ctx.parts]), torch.cat(parts[ctx.parts :]) * output_gradient
            if ctx.sparse:
                table_gradient = torch.sparse_coo_tensor(rows[None], values, ctx.shape, check_invariants=False)
            else:
                table_gradient = values.new_zeros(ctx.shape).index_copy_(0, rows, values)
        return (state_gradient * output_gradient).to(ctx.state_dtype), table_gradient, None, None, None


def _grouped(softmax: TwoLevelSoftmax, labels: Tensor, width: int) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Return the clusters of labels, some at a time, those with the most queries first.

    Each part is int64: its clusters [n]; and of its queries [q] the place of their cluster among these, their own place
    among the queries of that cluster, and which they are.
    """
    if not len(labels):
        return []
    clusters, which, counts = softmax.cluster_of[labels].unique(return_inverse=True, return_counts=True)
    by_count = counts.argsort(descending=True, stable=True)
    clusters, counts = clusters[by_count], counts[by_count]
    rank = torch.empty_like(by_count)
    rank[by_count] = torch.arange(len(by_count), device=labels.device)
    queries = rank[which].argsort(stable=True)
    owner = torch.repeat_interleave(torch.arange(len(counts), device=labels.device), counts)
    starts = counts.cumsum(0) - counts
    slot = torch.arange(len(labels), device=labels.device) - starts[owner]
    parts, begin, before, listed = [], 0, 0, counts.tolist()
    while begin < len(listed):
        some = max(_room(labels) // (softmax.size * (listed[begin] + width)), 1)
        end = min(begin + some, len(listed))
        after = before + sum(listed[begin:end])
        parts.append((clusters[begin:end], owner[before:after] - begin, slot[before:after], queries[before:after]))
        begin, before = end, after
    return parts


def _room(tensor: Tensor) -> int:
    return _NUMBERS.get(tensor.device.type, _OTHER_NUMBERS)
