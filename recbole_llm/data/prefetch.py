"""Preparing the next batches while the device computes."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")


def prefetch(prepare: Callable[[Item], Prepared], items: Iterable[Item], depth: int = 2) -> Iterator[Prepared]:
    """Yield ``prepare(item)`` for all items in order, computed in a thread up to `depth` items ahead.

    An error in `prepare` is raised where its item would have been yielded.
    """
    with ThreadPoolExecutor(max_workers=1) as worker:
        ahead: deque[Future[Prepared]] = deque()
        try:
            for item in items:
                ahead.append(worker.submit(prepare, item))
                if len(ahead) > depth:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
