"""Who is still there: every process of a run watches another one, so that a killed one ends all of them.

gloo breaks off when a process is gone. NCCL does not: what waits for a killed process on a GPU waits in the driver and
hears no error and no signal. So a thread of each process waits for a word of the next one, the last one for the
first, over a connection of their own, which breaks when that one ends without it.
"""

import contextlib
import datetime
import threading
from collections.abc import Callable

import torch
from torch import distributed

_DONE, _FAILED, _LOST = 1.0, 2.0, 0.0
_TO_SET_UP = datetime.timedelta(minutes=30)
_NO_LIMIT = datetime.timedelta(days=365)
# In which gloo, or a look into the store, ends this process in order: when another was killed, or has failed itself,
# which may find this one in the middle of other work.
_SECONDS_TO_END = {_LOST: 2.0, _FAILED: 10.0}
_SECONDS_FOR_OTHERS = 5.0  # that a process which is done waits for the next one's word


class Watch:
    """What watches the next process and is watched by the one before."""

    def __init__(self, rank: int, size: int, leave: Callable[[], None]) -> None:
        """Begin to watch; all processes call it together.

        Args:
            rank: of this process.
            size: how many there are.
            leave: ends this process at once, with a word. It is called from a thread of its own, some seconds after
                another process was lost, if this one did not notice it otherwise.
        """
        self.lost = threading.Event()
        self._next, self._before = (rank + 1) % size, (rank - 1) % size
        self._leave = leave
        self._over = threading.Event()
        self._saying = threading.Lock()
        self._has_said = False
        self._group = distributed.new_group(backend="gloo", timeout=_TO_SET_UP)
        self._thread = threading.Thread(target=self._listen, name="watch", daemon=True)
        self._thread.start()

    def end(self, done: bool) -> None:
        """Stop watching, and tell the process before.

        Args:
            done: whether this process has done its part; otherwise the others end, too.
        """
        self._over.set()
        self._say(_DONE if done else _FAILED)
        self._thread.join(_SECONDS_FOR_OTHERS)

    def _listen(self) -> None:
        word = torch.full((1,), _LOST)
        with contextlib.suppress(RuntimeError):  # the connection broke: no word came
            receiving = distributed.irecv(word, self._next, group=self._group)
            if receiving is not None:
                receiving.wait(_NO_LIMIT)
        heard = word.item()
        if heard == _DONE or self._over.is_set():
            return
        self.lost.set()
        threading.Thread(target=self._say, args=(heard,), daemon=True).start()  # who is before may be gone, too
        if not self._over.wait(_SECONDS_TO_END[heard]):
            self._leave()

    def _say(self, word: float) -> None:
        with self._saying:
            if self._has_said:
                return
            self._has_said = True
        with contextlib.suppress(RuntimeError):  # it is gone, too
            distributed.send(torch.full((1,), word), self._before, group=self._group)
