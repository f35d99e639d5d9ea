"""The processes of one run: which one this is, how they wait for each other, and how an error of one ends all.

torchrun starts them and says in the environment who each is (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE); nothing
else makes a run one of several processes. They meet in a store of keys and values (`torch.distributed.TCPStore`), in
which they wait for work that one of them does alone, and in a process group, by which they exchange tensors
(`utils.collectives`). Waiting in the store takes no part in a collective, whose time is limited.
"""

import contextlib
import datetime
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from recbole_llm import errors
from recbole_llm.errors import ProcessEndedError, RecBoleLLMError, SettingError

T = TypeVar("T")

_TIMEOUT = datetime.timedelta(minutes=30)  # of a collective: how far apart two processes may be
_SECONDS_BETWEEN_LOOKS = 0.1  # into the store, while waiting
_SECONDS_TO_CLOSE = 5.0  # that NCCL has after an error
_SECONDS_FOR_WORDS = 0.5  # that an ending process has to say why
_ERROR = "error"


@dataclass(frozen=True)
class World:
    """Which process this is.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
        local_rank: its number among those on its machine, which is the number of its device.
        local_size: how many are on its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    @property
    def is_shared(self) -> bool:
        """Whether there are other processes."""
        return self.size > 1


ONE = World()


class _Meeting:
    """What the processes of a run meet in: the store, how often they have met there, and who watches them."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.met = 0
        self.watch: Any = None
        self.how_to_go_on: Callable[[], str] = lambda: "start it again"


_worlds = [ONE]  # the innermost is last
_meetings: list[_Meeting] = []
_rendezvous: dict[str, Any] = {}  # the store of torchrun, and how many runs this process has joined


def started() -> World:
    """Return what torchrun says of this process; `ONE` if it did not start it, or started no other."""
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ONE
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return World(rank, size, int(os.environ.get("LOCAL_RANK", rank)), int(os.environ.get("LOCAL_WORLD_SIZE", size)))


def world() -> World:
    """Return the processes that share what is being done now; `ONE` outside of `joined` and within `alone`."""
    return _worlds[-1]


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Do what the block does in this process alone, as if there were no others."""
    _worlds.append(ONE)
    try:
        yield
    finally:
        _worlds.pop()


@contextlib.contextmanager
def joined() -> Iterator[World]:
    """Join the other processes that torchrun started, for one run; with one process nothing happens.

    An error in the block is told to the others, which end with the same one. Who told it first is the one to print it,
    see `is_told_elsewhere`.

    Raises:
        ProcessEndedError: if another process ended without a word.
        RecBoleLLMError: what ended another process.
    """
    found = started()
    if not found.is_shared or _meetings:
        yield world()
        return
    meeting = _meet(found)
    _worlds.append(found)
    _meetings.append(meeting)
    on_main = threading.current_thread() is threading.main_thread()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    done, lost = False, False
    try:
        yield found
        meet()  # so that nobody is gone while others still watch it
        done = True
    except ProcessEndedError as error:
        lost = True
        raise (_words_of_another(meeting) or _first_to_tell(meeting, found, error)) from error
    except BaseException as error:
        _first_to_tell(meeting, found, error)
        raise
    finally:
        try:
            meeting.watch.end(done)
        finally:
            _meetings.pop()
            _worlds.pop()
            _part(done, lost or meeting.watch.lost.is_set())
            if on_main and signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
                signal.signal(signal.SIGTERM, on_sigterm)


def _meet(found: World) -> _Meeting:
    import torch
    from torch import distributed

    from recbole_llm.utils.watch import Watch

    if distributed.is_initialized():
        raise ProcessEndedError("an earlier run of these processes lost one of them: start all of them again")
    if not _rendezvous:
        store, _, _ = next(distributed.rendezvous("env://", found.rank, found.size, timeout=_TIMEOUT))
        _rendezvous.update(store=store, runs=0)
    if found.local_rank < torch.cuda.device_count():
        torch.cuda.set_device(found.local_rank)  # what NCCL, and whoever asks for no device, takes
    _rendezvous["runs"] += 1
    run = f"run{_rendezvous['runs']}"
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        store=distributed.PrefixStore(f"{run}/group", _rendezvous["store"]),
        rank=found.rank,
        world_size=found.size,
        timeout=_TIMEOUT,
    )
    meeting = _Meeting(distributed.PrefixStore(run, _rendezvous["store"]))
    meeting.watch = Watch(found.rank, found.size, lambda: _leave_the_lost(meeting, found))
    return meeting


def _part(done: bool, lost: bool) -> None:
    import torch
    from torch import distributed

    def destroy() -> None:
        with contextlib.suppress(RuntimeError):  # what is broken already
            distributed.destroy_process_group()

    if done or not torch.cuda.is_available():
        destroy()
    elif not lost:  # NCCL may wait for what others have not sent; `leave` ends a command
        closing = threading.Thread(target=destroy, daemon=True)
        closing.start()
        closing.join(_SECONDS_TO_CLOSE)


def own_part(count: int) -> slice:
    """Return which of `count` things, in consecutive parts, are those of this process."""
    bounds, own = part_bounds(count), world()
    return slice(bounds[own.rank], bounds[own.rank + 1])


def part_bounds(count: int) -> list[int]:
    """Return where the part of each process begins, see `own_part`, and `count`."""
    return [rank * count // world().size for rank in range(world().size + 1)]


def part_counts(count: int) -> list[int]:
    """Return how many of `count` things are in the part of each process, see `own_part`."""
    return [end - begin for begin, end in itertools.pairwise(part_bounds(count))]


# -- one before the others -------------------------------------------------------------------------------------------


def first(work: Callable[[], T]) -> T:
    """Do `work` in process 0 while the others wait, then in these, so that they find what it made.

    Nothing in it may be shared between processes: within it, `world` is `ONE`.

    Returns:
        What `work` returned in this process.

    Raises:
        RecBoleLLMError: what ended another process.
    """
    if not world().is_shared:
        return work()
    own = world()
    if not own.is_first:
        wait("first")
    with alone():
        found = work()
    if own.is_first:
        reach("first")
    meet()
    return found


def only_first(work: Callable[[], T]) -> T | None:
    """Do `work` in process 0 while the others wait; these return None."""
    if not world().is_shared:
        return work()
    found = None
    if world().is_first:
        with alone():
            found = work()
    meet()
    return found


def meet() -> None:
    """Wait until all processes are here."""
    if not world().is_shared:
        return
    meeting, own = _meetings[-1], world()
    meeting.met += 1
    _set(meeting, f"met{meeting.met}/{own.rank}")
    for rank in range(own.size):
        _wait(meeting, f"met{meeting.met}/{rank}")


def reach(place: str) -> None:
    """Let those go on that `wait` at `place`."""
    _set(_meetings[-1], f"{place}{_meetings[-1].met}")


def wait(place: str) -> None:
    """Wait until another process calls `reach`, however long it takes."""
    _wait(_meetings[-1], f"{place}{_meetings[-1].met}")


def _set(meeting: _Meeting, key: str) -> None:
    with _store_errors():
        meeting.store.set(key, "1")


def _wait(meeting: _Meeting, key: str) -> None:
    # Short looks, not one long wait: an interruption is heard in between, and so is an error of another process.
    while True:
        with _store_errors():
            if meeting.store.check([key]):
                return
            failed = meeting.store.check([_ERROR])
        if failed or meeting.watch.lost.is_set():
            raise ended()
        time.sleep(_SECONDS_BETWEEN_LOOKS)


@contextlib.contextmanager
def _store_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # the process that holds the store is gone
        raise ended() from error


def ended() -> ProcessEndedError:
    """Return the error for another process that ended.

    torchrun sends SIGTERM to the processes that are left. It is ignored from here on: they end by themselves, and what
    they say has to be heard.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return ProcessEndedError(_ended_of(world()))


def _ended_of(own: World) -> str:
    return f"another of the {own.size} processes of this run ended"


@contextlib.contextmanager
def going_on(how: Callable[[], str]) -> Iterator[None]:
    """Let an error that another process ended in the block say how to go on.

    Args:
        how: returns the end of the sentence.

    Raises:
        ProcessEndedError: that of the block, with these words.
    """
    if _meetings:
        _meetings[-1].how_to_go_on = how
    try:
        yield
    except ProcessEndedError as error:
        raise ProcessEndedError(f"{error}; {how()}") from error


def _leave_the_lost(meeting: _Meeting, own: World) -> None:
    """End this process, which waits for one that was lost, and say so if nobody has."""
    error = ProcessEndedError(f"{_ended_of(own)}; {meeting.how_to_go_on()}")
    vars(error)["told_elsewhere"] = False
    # What this process is stuck in may hold the store's only connection.
    telling = threading.Thread(target=_first_to_tell, args=(meeting, own, error), daemon=True)
    telling.start()
    telling.join(1.0)
    if not is_told_elsewhere(error):
        print(f"error: {error}", file=sys.stderr)
    leave(1)


# -- errors ------------------------------------------------------------------------------------------------------------


def is_told_elsewhere(error: BaseException) -> bool:
    """Tell whether another process prints what ended this one.

    What ends all of them before they have joined, such as a misspelt name, is printed by process 0.
    """
    return bool(getattr(error, "told_elsewhere", not started().is_first))


def _first_to_tell(meeting: _Meeting, own: World, error: BaseException) -> BaseException:
    """Tell the others of an error, and note on it whether one of them was faster."""
    words = json.dumps({"rank": own.rank, "kind": type(error).__name__, "text": str(error)})
    told = words
    with contextlib.suppress(RuntimeError):  # no store, nobody to tell
        told = meeting.store.compare_set(_ERROR, "", words).decode()
    vars(error)["told_elsewhere"] = told != words
    return error


def _words_of_another(meeting: _Meeting) -> BaseException | None:
    """Return the error that another process told of, None if there is none."""
    until = time.monotonic() + _SECONDS_FOR_WORDS
    while True:
        with contextlib.suppress(RuntimeError):
            if meeting.store.check([_ERROR]):
                break
        if time.monotonic() > until:
            return None
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    told = json.loads(meeting.store.get(_ERROR).decode())
    kind = getattr(errors, told["kind"], None)
    found: BaseException
    if isinstance(kind, type) and issubclass(kind, RecBoleLLMError):
        found = kind(told["text"])
    elif told["kind"] in ("KeyboardInterrupt", "Terminated"):
        found = KeyboardInterrupt(told["text"])
    else:
        found = ProcessEndedError(f"process {told['rank']} failed: {told['kind']}: {told['text']}")
    vars(found)["told_elsewhere"] = True
    return found


def leave(code: int) -> None:
    """End this process at once with an exit code, if it is a command's that torchrun started with others.

    What Python does when it ends takes seconds with torch, and what is left of a broken process group may wait for the
    others.
    """
    if started().is_shared:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def refuse_several(what: str) -> None:
    """Refuse to do in several processes what one does. Raises SettingError.

    Args:
        what: the command, such as ``tune``.
    """
    if started().is_shared:
        raise SettingError(
            f"{what} has one process: start it with recbole-llm {what}, without torchrun, which trains one run "
            f"in several processes (run, pretrain)"
        )
