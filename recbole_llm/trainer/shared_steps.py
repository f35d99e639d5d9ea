"""Optimiser steps that the processes of a run share: the same step as one process takes, in parts.

All processes know the samples of a step; each packs and computes its own. The loss of each is a sum over its queries
divided by the queries of the whole step, so gradients are added up, not averaged.
"""

import contextlib
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_llm.config.hooks import hooks_of
from recbole_llm.trainer.gradient_sums import GradientSums
from recbole_llm.trainer.master_weights import MasterWeights
from recbole_llm.trainer.sharded_backbone import ShardedBackbone
from recbole_llm.trainer.split_rows import SplitRows, SplitWeight
from recbole_llm.utils.collectives import from_first_, max_, numbers_under_way, sum_
from recbole_llm.utils.processes import world


def shares(sizes: np.ndarray, processes: int) -> list[np.ndarray]:
    """Share out the samples of a step so that every process has about as many tokens.

    The largest sample comes first, each goes to the process that has the least so far.

    Args:
        sizes: int64 [samples], the tokens of each.
        processes: how many there are; with fewer samples, some get none.

    Returns:
        For each process the indices of its samples, in their order.
    """
    given: list[list[int]] = [[] for _ in range(processes)]
    loads = [(0, rank) for rank in range(processes)]  # a heap: the least comes first
    for index, size in zip(np.argsort(-sizes, kind="stable").tolist(), -np.sort(-sizes), strict=True):
        load, least = loads[0]
        given[least].append(index)
        heapq.heapreplace(loads, (load + max(int(size), 1), least))
    return [np.array(sorted(indices), dtype=np.int64) for indices in given]


def seed_epoch(seed: int, epoch: int) -> None:
    """Seed torch's generators, from which dropout is drawn, by run, process and epoch.

    So a resumed run draws what the uninterrupted one draws, if it has as many processes.
    """
    torch.manual_seed(int(np.random.SeedSequence([seed, world().rank, epoch]).generate_state(1)[0]))


class SharedSteps:
    """What the trainer of one process does with the others.

    Args:
        model: its weights are those of process 0 afterwards, and what its `share_over_processes` says is split.
        ranks_split: see below.
        sharded: whether its backbone is split, too, see `ShardedBackbone`.
        within_machine: whether it is split by the processes of a machine, and not by all.

    Attributes:
        splits: weights whose rows are split.
        ranks_split: whether the rows of items stay split while items are ranked: a process then scores its own.
        backbone: the split backbone; None if every process has all of it.
    """

    def __init__(
        self, model: Any, ranks_split: bool = False, sharded: bool = False, within_machine: bool = False
    ) -> None:
        from_first_([parameter.data for parameter in model.parameters() if parameter.requires_grad])
        self._rows: list[SplitRows] = hooks_of(model).share_over_processes()
        split = {id(rows.weight) for rows in self._rows}
        for rows in self._rows:
            rows.trains_states = any(each.requires_grad and id(each) not in split for each in model.parameters())
        self.ranks_split = ranks_split and bool(self._rows)
        self.backbone = ShardedBackbone(model, within_machine) if sharded else None
        self.splits: list[SplitWeight] = [*self._rows]
        if self.backbone is not None:
            self.splits += self.backbone.splits.values()
        self._sums: GradientSums | None = None

    def masters(self, groups: list[dict[str, Any]]) -> MasterWeights:
        """Return the float32 masters of low-precision weights in optimiser groups, which are changed in place."""
        return MasterWeights(groups) if self.backbone is None else self.backbone.masters(groups)

    def own(self, sizes: np.ndarray) -> np.ndarray:
        """Return the indices of the samples of a step that are this process's; see `shares`."""
        return shares(sizes, world().size)[world().rank]

    def agreed(self, steps: Iterable[tuple[int, Sequence[Any]]]) -> Iterator[tuple[int, list[Any]]]:
        """Yield the queries of the whole of each step, and the passes of this process, filled up with None.

        Every process takes as many passes as the one with the most: an empty pass takes part in what they exchange.
        What they tell each other is under way while the step before is computed, so that none of them waits for it.

        Args:
            steps: the queries and passes of this process.
        """
        ahead: deque[tuple[Sequence[Any], Callable[[], Tensor]]] = deque()
        try:
            for queries, passes in steps:
                ahead.append((passes, numbers_under_way([queries, len(passes)])))
                if len(ahead) > 1:
                    yield self._begun(*ahead.popleft())
            while ahead:
                yield self._begun(*ahead.popleft())
        finally:
            for rows in self._rows:
                rows.queries = None

    def _begun(self, passes: Sequence[Any], numbers: Callable[[], Tensor]) -> tuple[int, list[Any]]:
        queries, counts = numbers().T.tolist()
        for rows in self._rows:  # of one pass it is known how many queries each process has
            rows.queries = queries if max(counts) == 1 else None
        return sum(queries), [*passes, *[None] * (max(counts) - len(passes))]

    def add_gradients(self, weights: Sequence[Tensor]) -> None:
        """Add up the gradients of the weights that every process has, over all processes.

        Which weights have a gradient is asked in the first step, of all processes: it does not change.

        Args:
            weights: all that the optimiser updates, the same in every step.
        """
        if self._sums is None:
            split = {id(each.weight) for each in self.splits}
            common = [weight for weight in weights if id(weight) not in split]
            has = torch.tensor([weight.grad is not None for weight in common], dtype=torch.int64)
            self._sums = GradientSums(itertools.compress(common, max_(has).tolist()))
        self._sums.add_up()

    def clip(
        self, weights: Sequence[Tensor], max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
    ) -> None:
        """Scale gradients to a norm of at most `max_norm`, that of all weights as one process has them.

        Args:
            weights: all that the optimiser updates, their gradients added up.
            max_norm: see `torch.nn.utils.clip_grad_norm_`.
            norm_type: p; the norm is that of p-th powers, infinity the largest.
            error_if_nonfinite: whether a norm that is no finite number is an error.

        Raises:
            RuntimeError: if it is, in torch's words.
        """
        copies = {id(each.weight): each.copies for each in self.splits}
        norms = {
            count: _norm([w for w in weights if copies.get(id(w), 0) == count], norm_type, weights[0].device)
            for count in (0, *sorted(set(copies.values())))
        }
        common = norms.pop(0)
        if norm_type == float("inf"):
            total = torch.maximum(common, max_(torch.stack([common, *norms.values()]).amax()))
        else:
            own = sum((norm**norm_type / count for count, norm in norms.items()), torch.zeros_like(common))
            total = (common**norm_type + sum_(own)) ** (1 / norm_type)
        if error_if_nonfinite and not bool(total.isfinite()):
            raise RuntimeError(f"The total norm of order {norm_type} for gradients is non-finite: it cannot be clipped")
        torch.nn.utils.clip_grads_with_norm_(list(weights), max_norm, total)

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Give the model what ranking takes until the block ends: whole weights, but for items that are ranked split.

        All processes call it together.
        """
        with contextlib.ExitStack() as stack:
            for rows in self._joined_to_rank():
                stack.enter_context(rows.joined())
            stack.enter_context(self.joined_backbone())
            yield

    def joined_backbone(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the backbone has all of its rows."""
        return contextlib.nullcontext() if self.backbone is None else self.backbone.joined()

    def join(self) -> None:
        """As `joined`, for good."""
        for rows in self._joined_to_rank():
            rows.join()
        if self.backbone is not None:
            self.backbone.join()

    def _joined_to_rank(self) -> Sequence[SplitRows]:
        return () if self.ranks_split else self._rows

    def join_in_first(self) -> None:
        """Give split weights all of their rows in process 0, for good. All processes call it together."""
        for rows in self._rows:
            rows.join_in_first()

    def in_first(self, model: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return weights with all of their rows in process 0, which stores them; nothing in the others.

        They are joined one by one, on its CPU. All processes call it together.

        Args:
            model: whose they are.
            state: by name.
        """
        splits = self.split_weights(model)
        found = {
            name: splits[name].in_first(splits[name].rounded()) if name in splits else value
            for name, value in state.items()
        }
        return found if world().is_first else {}

    def split_items(self, model: Any) -> dict[str, SplitRows]:
        """Return how weights of the model are split by items now, by name; without those that are joined."""
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        return {names[id(rows.weight)]: rows for rows in self._rows if rows.is_split}

    def split_weights(self, model: Any) -> dict[str, SplitWeight]:
        """Return how weights of the model are split now, by name, those of its backbone, too."""
        found: dict[str, SplitWeight] = {**self.split_items(model)}
        return found if self.backbone is None else {**found, **self.backbone.splits}


def _norm(weights: Sequence[Tensor], norm_type: float, device: torch.device) -> Tensor:
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    return torch.nn.utils.get_total_norm(gradients, norm_type).to(device)
