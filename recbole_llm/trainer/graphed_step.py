"""An optimiser step on stored hidden states as one CUDA graph.

Such a step is some forty small kernels: starting them one by one takes several times as long as running them. A graph
starts them at once. It needs inputs of one size, so a step's queries are padded with label 0, which the projection's
loss leaves out.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from recbole_llm.backbone.feature_cache import CachedQueries

_WARM_UP = 3  # steps taken one kernel at a time before the capture, as CUDA graphs require


class GraphedStep:
    """Takes optimiser steps, from the fourth on by replaying a graph.

    Args:
        update: computes loss, gradients and weights from (queries, number of queries) and returns the mean loss; it may
            not wait for the device.
        optimizer: a fused, capturable optimiser whose rates are plain numbers.
        capacity: the most queries of a replayed step; larger steps are taken one kernel at a time.
        device: a CUDA device.
    """

    def __init__(
        self,
        update: Callable[[CachedQueries, Tensor], Tensor],
        optimizer: torch.optim.Optimizer,
        capacity: int,
        device: torch.device,
    ) -> None:
        self._update = update
        self._optimizer = optimizer
        self._inputs = CachedQueries(*(torch.zeros(capacity, dtype=torch.long, device=device) for _ in range(2)))
        self._count = torch.ones((), device=device)
        self._rates = [torch.tensor(0.0, device=device) for _ in optimizer.param_groups]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._loss = torch.zeros((), device=device)
        self._taken = 0

    def __call__(self, queries: CachedQueries) -> Tensor:
        """Take one step and return its mean loss, a scalar on the device."""
        count = len(queries.labels)
        if self._taken < _WARM_UP or count > len(self._inputs.labels):
            self._taken += 1
            return self._warm(queries, count)
        if self._graph is None:
            self._capture()
            assert self._graph is not None
        for whole, part in ((self._inputs.rows, queries.rows), (self._inputs.labels, queries.labels)):
            whole.zero_()
            whole[:count] = part
        self._count.fill_(max(count, 1))
        for rate, group in zip(self._rates, self._optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        self._graph.replay()
        return self._loss.clone()

    def _warm(self, queries: CachedQueries, count: int) -> Tensor:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            loss = self._update(queries, torch.full_like(self._count, max(count, 1)))
        torch.cuda.current_stream().wait_stream(stream)
        return loss

    def _capture(self) -> None:
        """Record one step. The graph reads the rates from tensors; the schedule keeps setting plain numbers."""
        graph = torch.cuda.CUDAGraph()
        plain = [group["lr"] for group in self._optimizer.param_groups]
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate
        try:
            torch.cuda.synchronize()
            with torch.cuda.graph(graph):
                self._loss = self._update(self._inputs, self._count)
        finally:
            for group, rate in zip(self._optimizer.param_groups, plain, strict=True):
                group["lr"] = rate
        self._graph = graph
