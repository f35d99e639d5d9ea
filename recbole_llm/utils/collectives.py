"""What the processes of a run exchange: tensors and small objects, see `utils.processes`.

With one process each function returns what it was given. All processes call the same functions in the same order. On a
GPU tensors go by NCCL, on the CPU by gloo.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, distributed

from recbole_llm.utils.processes import ended, world

T = TypeVar("T")
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
    own = torch.tensor(values, dtype=torch.int64)
    if not world().is_shared:
        return own[None]
    found = own.new_empty(world().size, len(own))
    with _others_there():
        distributed.all_gather(list(found.unbind()), own)
    return found


def rows_of_all(own: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the rows of all processes, [sum of counts, ...], those of process 0 first.

    Args:
        own: the rows of this process, [counts[rank], ...].
        counts: how many rows each process has.
    """
    if not world().is_shared:
        return own
    # Collectives want one size: shorter parts are padded.
    most = max(counts)
    if most == 0:
        return own
    padded = own.new_zeros(most, *own.shape[1:])
    padded[: len(own)] = own
    parts = [torch.empty_like(padded) for _ in counts]
    with _others_there():
        distributed.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
