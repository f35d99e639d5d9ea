"""Requests that wait for each other for some milliseconds, so that the model works on many at once."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Generic, TypeVar

Asked = TypeVar("Asked")
Answered = TypeVar("Answered")


class FullError(Exception):
    """So many requests wait that another one is refused."""


class Batcher(Generic[Asked, Answered]):
    """Collects what is asked into batches, one of which at a time is worked on, in a thread of its own.

    A batch begins when it is full, or when the oldest in it has waited for the window. What comes while a batch is
    worked on waits for the next; so under load batches fill by themselves, and the window costs nothing.

    Args:
        work: from what is asked, at least one, to one answer each, or one error each.
        window_seconds: how long the first of a batch waits for others.
        max_batch: how many are worked on at once.
        max_waiting: how many may wait; more are refused.
    """

    def __init__(
        self,
        work: Callable[[list[Asked]], Sequence[Answered | Exception]],
        window_seconds: float,
        max_batch: int,
        max_waiting: int,
    ) -> None:
        self._work, self._window = work, window_seconds
        self._max_batch, self._max_waiting = max_batch, max_waiting
        self._waiting: deque[tuple[float, Asked, asyncio.Future[Answered]]] = deque()
        self._arrived, self._filled = asyncio.Event(), asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """How many requests wait for a batch."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Whether what is asked will be answered."""
        return self._task is not None and not self._task.done()

    async def __aenter__(self) -> "Batcher[Asked, Answered]":
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def ask(self, asked: Asked) -> Answered:
        """Return the answer, once its batch is done.

        Raises:
            FullError: if too many wait already.
            Exception: what `work` gave in the place of an answer, or raised.
        """
        if len(self._waiting) >= self._max_waiting:
            raise FullError
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answered] = loop.create_future()
        self._waiting.append((loop.time(), asked, answer))
        self._arrived.set()
        if len(self._waiting) >= self._max_batch:
            self._filled.set()
        return await answer

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, thread_name_prefix="recommend") as thread:
            while True:
                batch = [(asked, answer) for asked, answer in await self._next(loop) if not answer.done()]
                if not batch:  # whoever asked has gone
                    continue
                try:
                    found = await loop.run_in_executor(thread, self._work, [asked for asked, _ in batch])
                except Exception as error:  # a defect: those who asked are told, and the next are served
                    found = [error] * len(batch)
                for (_, answer), result in zip(batch, found, strict=True):
                    if answer.done():
                        continue
                    if isinstance(result, Exception):
                        answer.set_exception(result)
                    else:
                        answer.set_result(result)

    async def _next(self, loop: asyncio.AbstractEventLoop) -> list[tuple[Asked, "asyncio.Future[Answered]"]]:
        await self._arrived.wait()
        left = self._waiting[0][0] + self._window - loop.time()
        if len(self._waiting) < self._max_batch and left > 0:
            self._filled.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._filled.wait(), left)
        count = min(len(self._waiting), self._max_batch)
        taken = [self._waiting.popleft()[1:] for _ in range(count)]
        if not self._waiting:
            self._arrived.clear()
        return taken
