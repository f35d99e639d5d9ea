"""The gradients of weights that every process has, added up over all processes."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_llm.utils.collectives import sum_

_BUCKET_BYTES = 128 * 2**20


@dataclass(frozen=True)
class _Bucket:
    """Weights of one type, and the places of their gradients in the buffer; without one if a weight is alone."""

    weights: list[Tensor]
    buffer: Tensor | None
    places: list[Tensor]


class GradientSums:
    """Adds up gradients a bucket at a time, as torch's DistributedDataParallel does.

    A bucket is copied into a buffer, added up and copied back, each by one call whatever the number of its weights: a
    host that starts many small kernels would be slower than the device. All buckets have the same buffer, so beside the
    gradients there is never more than one bucket; a gradient of that size is added up where it is.

    Args:
        weights: in the same order in every process.
        bucket_bytes: how much is exchanged at once.
    """

    def __init__(self, weights: Iterable[Tensor], bucket_bytes: int = _BUCKET_BYTES) -> None:
        self._buckets: list[_Bucket] = []
        buckets = _of_like_type(weights, bucket_bytes)
        shared = [bucket for bucket in buckets if len(bucket) > 1]
        buffers = {
            dtype: shared[0][0].new_empty(
                max(_numbers(bucket) for bucket in shared if bucket[0].dtype == dtype), dtype=dtype
            )
            for dtype in {bucket[0].dtype for bucket in shared}
        }
        for bucket in buckets:
            buffer = buffers[bucket[0].dtype][: _numbers(bucket)] if len(bucket) > 1 else None
            places = [] if buffer is None else _places(buffer, bucket)
            self._buckets.append(_Bucket(bucket, buffer, places))

    @torch.no_grad()
    def add_up(self) -> None:
        """Add up the gradients over all processes, which call it together; a process without one has zeros."""
        for bucket in self._buckets:
            for weight in bucket.weights:
                if weight.grad is None:
                    weight.grad = torch.zeros_like(weight)
            gradients = [weight.grad for weight in bucket.weights if weight.grad is not None]
            if bucket.buffer is None:
                (weight,) = bucket.weights
                weight.grad = sum_(gradients[0].contiguous())
                continue
            torch._foreach_copy_(bucket.places, gradients)
            sum_(bucket.buffer)
            torch._foreach_copy_(gradients, bucket.places)


def _of_like_type(weights: Iterable[Tensor], most: int) -> list[list[Tensor]]:
    """Return weights of one type together, in their order, at most so many bytes or a single one."""
    filled: list[list[Tensor]] = []
    open_ones: dict[torch.dtype, tuple[list[Tensor], int]] = {}
    for weight in weights:
        bucket, size = open_ones.get(weight.dtype, ([], 0))
        if not bucket or size + weight.nbytes > most:
            bucket, size = [], 0
            filled.append(bucket)
        bucket.append(weight)
        open_ones[weight.dtype] = (bucket, size + weight.nbytes)
    return filled


def _places(buffer: Tensor, weights: list[Tensor]) -> list[Tensor]:
    """Return the part of a buffer that each weight's gradient has, in the weight's shape."""
    parts = buffer.split([weight.numel() for weight in weights])
    return [part.view(weight.shape) for part, weight in zip(parts, weights, strict=True)]


def _numbers(weights: Iterable[Tensor]) -> int:
    return sum(weight.numel() for weight in weights)
