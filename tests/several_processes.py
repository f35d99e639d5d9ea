"""Runs of several processes, without the seconds that torchrun takes: forked children that are told what it tells."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from child_runs import process
from torch.distributed import TCPStore

LIMIT = 120.0  # seconds, within which the slowest machine ends a run


class Ended(NamedTuple):
    """How one process ended: its exit code (-9 if it was killed), stdout, stderr, and seconds after the first end."""

    code: int
    out: str
    error: str
    after: float


@contextlib.contextmanager
def environments(count: int, on_each: int | None = None) -> Iterator[list[dict[str, str]]]:
    """Give what torchrun says to each of `count` processes; they meet in a store of this process.

    There are as many `on_each` machine; all on one if it is None.
    """
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    common = {
        "WORLD_SIZE": str(count), "MASTER_ADDR": "localhost", "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
    }  # fmt: skip
    local = on_each or count
    common["LOCAL_WORLD_SIZE"] = str(local)
    yield [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank % local)} for rank in range(count)]
    del store


def command_lines(
    folder: Path,
    arguments: Sequence[str],
    count: int = 2,
    kill: Mapping[int, tuple[str, int]] | None = None,
    by: int = signal.SIGKILL,
    limit: float = LIMIT,
    on_each: int | None = None,
) -> list[Ended]:
    """Run one command line in `count` processes, and return how each ended.

    Args:
        folder: the working folder.
        arguments: of the command line.
        count: how many processes.
        kill: by rank, when the process ends itself, see `child_runs`.
        by: the signal that ends it.
        limit: seconds after which processes that have not ended are said to hang.
        on_each: how many processes each machine has; None for one machine.
    """
    with environments(count, on_each) as found:
        children = [
            process(folder, arguments, (kill or {}).get(rank), by=by, name=f"child{rank}", environment=found[rank])
            for rank in range(count)
        ]
        return _joined(folder, children, limit)


def _joined(folder: Path, children: list[Any], limit: float) -> list[Ended]:
    started, ends = time.monotonic(), {}
    while len(ends) < len(children) and time.monotonic() - started < limit:
        for rank, child in enumerate(children):
            child.join(timeout=0.02)
            if child.exitcode is not None:
                ends.setdefault(rank, time.monotonic())
    hanging = [rank for rank, child in enumerate(children) if child.exitcode is None]
    for rank in hanging:
        with contextlib.suppress(ProcessLookupError):  # it ended just now
            os.kill(children[rank].pid, signal.SIGABRT)
        children[rank].join(timeout=5)
        children[rank].kill()
    assert not hanging, "hangs: " + "\n".join((folder / f"child{rank}.err").read_text() for rank in hanging)
    return [
        Ended(
            child.exitcode,
            (folder / f"child{rank}.out").read_text(),
            (folder / f"child{rank}.err").read_text(),
            ends.get(rank, time.monotonic()) - min(ends.values(), default=started),
        )
        for rank, child in enumerate(children)
    ]


def together(function: Any, count: int, *arguments: Any, on_each: int | None = None) -> list[Any]:
    """Return what `function`, of a module, returns in each of `count` processes that have joined; plain values.

    It is called with the arguments within `processes.joined`; `on_each` is that of `command_lines`.
    """
    from child_runs import SERVER

    with environments(count, on_each) as found:
        answers = SERVER.Queue()
        children = [
            SERVER.Process(target=_joined_call, args=(function, arguments, rank, found[rank], answers))
            for rank in range(count)
        ]
        for child in children:
            child.start()
        try:
            given = dict(answers.get(timeout=LIMIT) for _ in children)
        finally:  # of a child that died, the others wait for minutes
            for child in children:
                child.join(timeout=5)
                child.kill()
    failures = [text for ok, text in given.values() if not ok]
    assert not failures, failures[0]
    return [given[rank][1] for rank in range(count)]


def _joined_call(function: Any, arguments: Any, rank: int, environment: Mapping[str, str], answers: Any) -> None:
    import os
    import traceback

    from recbole_llm.utils.processes import joined

    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        with joined():
            answers.put((rank, (True, function(*arguments))))
    except BaseException:
        answers.put((rank, (False, traceback.format_exc())))
