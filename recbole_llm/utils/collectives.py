"""What the processes of a run exchange: tensors and small objects, see `utils.processes`.

With one process each function returns what it was given, in the form that it says. All processes call the same
functions in the same order. On a GPU tensors go by NCCL, on the CPU by gloo.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from recbole_llm.utils.processes import ended, world

T = TypeVar("T")
# By its name since torch 2.13, which warns of the older one.
_all_gather = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor
_PIECE_BYTES = 64 * 2**20  # of what a process sends to the first one at a time
# Of this process, though they are RuntimeErrors; torch names the second since 2.8.
_OWN_FAULTS = (torch.OutOfMemoryError, getattr(torch, "AcceleratorError", torch.OutOfMemoryError))


@contextlib.contextmanager
def _others_there() -> Iterator[None]:
    try:
        yield
    except _OWN_FAULTS:
        raise
    except RuntimeError as error:  # of gloo, `DistBackendError` of NCCL
        raise ended() from error


@contextlib.contextmanager
def exchanged_by_torch() -> Iterator[None]:
    """Return a context in which torch exchanges tensors by itself, as FSDP2 does in a pass, among other computations.

    Raises:
        ProcessEndedError: if another process ended meanwhile.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and "/gloo/" not in str(error):
            raise  # of a computation
        raise ended() from error


def sum_(tensor: Tensor) -> Tensor:
    """Add up a tensor over all processes, in place, and return it."""
    if world().is_shared and tensor.numel():
        with _others_there():
            distributed.all_reduce(tensor)
    return tensor


def max_(tensor: Tensor) -> Tensor:
    """Take the largest of each number over all processes, in place, and return the tensor."""
    if world().is_shared and tensor.numel():
        with _others_there():
            distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
    return tensor


def from_first_(tensors: Sequence[Tensor]) -> None:
    """Give tensors the values that they have in process 0, in place."""
    if world().is_shared:
        with _others_there():
            for tensor in tensors:
                distributed.broadcast(tensor, 0)


def object_from_first(value: T) -> T:
    """Return what process 0 gives: plain values."""
    if not world().is_shared:
        return value
    found = [value]
    with _others_there():
        distributed.broadcast_object_list(found, 0)
    return found[0]


def objects_of_all(value: T) -> list[T]:
    """Return what each process gives, by rank: plain values and arrays."""
    found: list[T] = [value] * world().size
    if world().is_shared:
        with _others_there():
            distributed.all_gather_object(found, value)
    return found


def numbers_of_all(values: Sequence[int]) -> Tensor:
    """Return a few whole numbers of each process, int64 [processes, numbers], on the CPU."""
    return numbers_under_way(values)()


def numbers_under_way(values: Sequence[int]) -> Callable[[], Tensor]:
    """Begin what `numbers_of_all` does and return what waits for its end, with the numbers of all."""
    own = torch.tensor(values, dtype=torch.int64)
    if not world().is_shared:
        return lambda: own[None]
    found = own.new_empty(len(own) * world().size)
    with _others_there():
        work = _all_gather(found, own, async_op=True)

    def wait() -> Tensor:
        with _others_there():
            work.wait()
        return found.view(-1, len(own))

    return wait


def rows_of_all(own: Tensor, counts: Sequence[int], group: Any = None) -> Tensor:
    """Return the rows of all processes, [sum of counts, ...], those of process 0 first.

    Args:
        own: the rows of this process, [counts[rank], ...].
        counts: how many rows each process has.
        group: torch's group of the processes that exchange theirs, if it is not all of them.
    """
    if not world().is_shared:
        return own
    # Collectives want one size: shorter parts are padded, with whatever is there.
    most = max(counts)
    if most == 0:
        return own
    padded = own.contiguous()
    if len(own) < most:
        padded = torch.cat([own, own.new_empty(most - len(own), *own.shape[1:])])
    found = own.new_empty(most * len(counts), *own.shape[1:])
    with _others_there():
        _all_gather(found, padded, group=group)
    if min(counts) == most:
        return found
    return torch.cat([part[:count] for part, count in zip(found.split(most), counts, strict=True)])


def stacked_of_all(own: Tensor) -> Tensor:
    """Return what each process gives, [processes, ...], by rank: tensors of one shape."""
    return rows_of_all(own[None], [1] * world().size)


def rows_in_first(own: Tensor, parts: Iterable[tuple[int, int]]) -> Iterator[Tensor]:
    """Yield the rows of all processes in process 0, a part at a time; nothing in the others.

    All processes take all that there is.

    Args:
        own: the rows of this process, those of its parts one after the other.
        parts: the process that has each part, and how many rows it has.
    """
    begin = 0
    for rank, count in parts:
        mine = own[begin : begin + count].contiguous() if rank == world().rank else None
        begin += 0 if mine is None else count
        with _others_there():
            if mine is not None and rank > 0:
                distributed.send(mine, 0)
            elif mine is None and world().is_first:
                mine = own.new_empty(count, *own.shape[1:])
                distributed.recv(mine, rank)
        if world().is_first and mine is not None:
            yield mine


def rows_to_first(own: Tensor, counts: Sequence[int], group: Any = None) -> Tensor | None:
    """Return the rows of all processes in process 0, [sum of counts, ...] on the CPU; None in the others.

    They are sent in pieces, so that no device holds all of them.

    Args:
        own: the rows of this process, [counts[rank], ...].
        counts: how many rows each process has.
        group: torch's group of the processes that have them, if it is not all; one without process 0 sends nothing.
    """
    if not world().is_shared:
        return own.cpu()
    if group is not None and 0 not in distributed.get_process_group_ranks(group):
        return None
    size = min(max(_PIECE_BYTES // (own.shape[1:].numel() * own.element_size()), 1), max(counts))
    whole = own.new_empty(sum(counts), *own.shape[1:], device="cpu") if world().is_first else None
    begins = [sum(counts[:rank]) for rank in range(len(counts))]
    for begin in range(0, max(counts), max(size, 1)):
        piece = own.new_zeros(size, *own.shape[1:])
        piece[: len(own[begin : begin + size])] = own[begin : begin + size]
        parts = None if whole is None else [torch.empty_like(piece) for _ in counts]
        with _others_there():
            distributed.gather(piece, parts, dst=0, group=group)
        for part, first, count in zip(parts or (), begins, counts, strict=False):
            end = min(begin + size, count)
            if whole is not None and end > begin:
                whole[first + begin : first + end] = part[: end - begin].cpu()
    return whole
