"""A weight whose rows are split over the processes of a run while it is trained, its optimiser's state with it."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recbole_llm.runs import resume_parts
from recbole_llm.utils.collectives import rows_of_all, rows_to_first
from recbole_llm.utils.processes import world


class SplitWeight:
    """A weight [rows, ...] of which every process trains ceil(rows / processes) rows, the last ones fewer or none.

    Args:
        weight: the rows of this process, which the optimiser updates.
        rows: how many there are in all.
        dtype: of the weight in the model and its checkpoints; None for that of `weight`.
        mesh: the processes that split it, as torch knows them; None for all. Of two dimensions, the processes of each
            of its rows split the weight, and the rows have copies.

    Attributes:
        weight: as given.
        dtype: as given.
        copies: how many there are.
        bounds: the first row of each process, and how many rows there are.
        counts: how many rows each process has.
        begin: the first row of this process.
        end: the row after its last.
    """

    def __init__(self, weight: Tensor, rows: int, dtype: torch.dtype | None = None, mesh: Any = None) -> None:
        rank, size, self._group = world().rank, world().size, None
        if mesh is not None:
            self.mesh = mesh
            within = mesh.ndim - 1
            rank, size = mesh.get_local_rank(within), mesh.size(within)
            self._group = mesh.get_group(within) if within else None
        each = -(-rows // size)
        self.weight = weight
        self.dtype = dtype or weight.dtype
        self.copies = world().size // size
        self.bounds = [min(part * each, rows) for part in range(size + 1)]
        self.counts = [end - begin for begin, end in zip(self.bounds, self.bounds[1:], strict=False)]
        self.begin, self.end = self.bounds[rank], self.bounds[rank + 1]

    @functools.cached_property
    def mesh(self) -> Any:
        """The processes that split it, as torch knows them. All of them ask for it together."""
        from torch.distributed.device_mesh import init_device_mesh

        return init_device_mesh(self.weight.device.type, (world().size,))

    def own(self, whole: Tensor) -> Tensor:
        """Return a copy of the rows of this process, of a tensor with all rows.

        Of one without numbers it is a DTensor, see `recbole_llm.runs.resume_parts`.
        """
        rows = whole[self.begin : self.end].clone()
        return self.placed(rows) if rows.is_meta else rows

    def placed(self, own: Tensor) -> Tensor:
        """Return the DTensor of which the rows of this process are given."""
        from torch.distributed.tensor import DTensor, Replicate, Shard

        shape = torch.Size([self.bounds[-1], *own.shape[1:]])
        stride = torch.empty(shape, device="meta").stride()
        placements = [*[Replicate()] * (self.mesh.ndim - 1), Shard(0)]
        return DTensor.from_local(own.contiguous(), self.mesh, placements, run_check=False, shape=shape, stride=stride)

    def stored(self, own: Tensor) -> Tensor:
        """Return the rows of this process as a state to resume from has them, see `recbole_llm.runs.resume_parts`.

        With a torch that cannot write parts it is what `in_first` returns. All processes call it together.
        """
        return self.placed(own) if resume_parts.can_be_written() else self.in_first(own)

    def whole(self, own: Tensor) -> Tensor:
        """Return all rows, of a tensor with those of this process. All processes call it together."""
        return rows_of_all(own.contiguous(), self.counts, self._group)

    def in_first(self, own: Tensor) -> Tensor:
        """Return all rows on the CPU in process 0, which writes them; what was given in the others.

        All processes call it together.
        """
        whole = rows_to_first(own.contiguous(), self.counts, self._group)
        return own if whole is None else whole

    def rounded(self) -> Tensor:
        """Return the rows of this process in `dtype`."""
        return self.weight.data.to(self.dtype)


class SplitRows(SplitWeight):
    """Splits a weight that is whole.

    The parameter stays the same object; its data become the rows of this process, in `joined` all of them again.

    Args:
        weight: the same in every process.

    Attributes:
        is_split: whether the parameter has the rows of this process now, and not all of them.
        queries: how many each process has in the pass that is computed; None where they have to ask each other.
        trains_states: whether states of any process need a gradient; None likewise.
    """

    weight: nn.Parameter

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__(weight, len(weight))
        self.is_split = True
        self.queries: list[int] | None = None
        self.trains_states: bool | None = None
        weight.data = self.own(weight.data)

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Give the parameter all of its rows until the block ends; what the block writes into them stays."""
        if not self.is_split:
            yield
            return
        own = self.weight.data
        self.weight.data = self.whole(own)
        self.is_split = False
        try:
            yield
        finally:
            own.copy_(self.weight.data[self.begin : self.end])
            self.weight.data = own
            self.is_split = True

    def join(self) -> None:
        """Give the parameter all of its rows, for good: it is not trained any more."""
        if self.is_split:
            self.weight.data = self.whole(self.weight.data)
            self.is_split = False

    def join_in_first(self) -> None:
        """Give the parameter all of its rows in process 0, on the CPU, for good: for what that one writes."""
        if self.is_split:
            self.weight.data = self.in_first(self.weight.data)
            self.is_split = not world().is_first


class SplitState:
    """Turns the state of an optimiser and of averages into what is stored, and back.

    What is stored does not depend on the number of processes.

    Args:
        splits: the weights that are split.
        weights: what the optimiser updates, in the order of its groups.
    """

    def __init__(self, splits: Sequence[SplitWeight], weights: Sequence[Tensor]) -> None:
        of_weight = {id(split.weight): split for split in splits}
        self._splits = {index: of_weight[id(w)] for index, w in enumerate(weights) if id(w) in of_weight}

    def stored_optimizer(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return an optimiser's `state_dict` as `SplitWeight.stored` has it. All processes call it together."""
        return self._optimizer(state, SplitWeight.stored, lambda split: split.end - split.begin)

    def own_optimizer(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return a whole `state_dict` with the rows of this process."""
        return self._optimizer(state, SplitWeight.own, lambda split: split.bounds[-1])

    def _optimizer(
        self,
        state: dict[str, Any],
        turned: Callable[[SplitWeight, Tensor], Tensor],
        rows: Callable[[SplitWeight], int],
    ) -> dict[str, Any]:
        found = dict(state["state"])
        for index, split in self._splits.items():
            if index in found:
                found[index] = {
                    name: turned(split, value) if _has_rows(value, rows(split)) else value
                    for name, value in found[index].items()
                }
        return {**state, "state": found}

    def stored_list(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return one tensor per weight as `SplitWeight.stored` has it. All processes call it together."""
        return [self._splits[i].stored(t) if i in self._splits else t for i, t in enumerate(tensors)]

    def own_list(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return one tensor per weight, those of split weights with the rows of this process."""
        return [self._splits[i].own(t) if i in self._splits else t for i, t in enumerate(tensors)]


def _has_rows(value: Any, rows: int) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0 and len(value) == rows
