"""The runs that a comparison starts, each a process of its own.

Each is the command line's ``run``: one that fails, or that the system ends for want of memory, takes nothing with it,
and the next begins with all memory free.
"""

import contextlib
import fcntl
import glob
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import recbole_llm
from recbole_llm.comparison.cells import Cell
from recbole_llm.config.roles import decides_result
from recbole_llm.errors import CheckpointError, DataError, SettingError
from recbole_llm.runs import checkpoint
from recbole_llm.runs import folder as run_folder
from recbole_llm.runs.finished import read_result
from recbole_llm.runs.result import has_result
from recbole_llm.utils.files import read_json_object, storage_errors, write_json
from recbole_llm.utils.plain_text import one_line

STATE = "state.json"
_LOCK = ".lock"
_LONGEST_REASON = 300
_POLL_SECONDS = 0.2
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class CellRunner:
    """Runs cells, one after another, and remembers where the run of each lies.

    Args:
        folder: of the comparison; holds `state.json` and the runs' output in `logs/`.
        definition: what is compared, see `plan.definition`; a folder that holds another comparison is refused.
        environment: environment variables of the runs.
        say: shows the user what happens.

    Raises:
        SettingError: if the folder holds another comparison.
    """

    def __init__(
        self, folder: Path, definition: dict[str, Any], environment: Mapping[str, str], say: Callable[[str], None]
    ) -> None:
        self.folder, self.environment, self.say = folder, environment, say
        self._state: dict[str, Any] = {"asked": definition, "cells": {}}
        path = folder / STATE
        if path.exists():
            self._state = _read_state(path)
            if _shaping(self._state.get("asked")) != _shaping(definition):
                raise SettingError(f"{folder} holds another comparison: choose another folder with --out")
        with storage_errors(folder):
            (folder / "logs").mkdir(parents=True, exist_ok=True)

    @contextmanager
    def alone(self) -> Iterator[int]:
        """Hold the comparison for this process, waiting for another that works on it; yields the lock's descriptor.

        The runs inherit the lock: if the comparison is killed while its last run continues, the next comparison waits
        for that run, too, and takes its result.
        """
        with storage_errors(self.folder):
            file = (self.folder / _LOCK).open("w")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.say(f"waiting: another process, or a run that it started, still works on {self.folder}")
                fcntl.flock(file, fcntl.LOCK_EX)
            if (self.folder / STATE).exists():
                self._state = _read_state(self.folder / STATE)
            yield file.fileno()

    def finish(self, cell: Cell, lock: int, name: str) -> Cell:
        """Return `cell`, called `name` in messages, with its finished run, which is found, resumed or started.

        A finished run of another comparison, or of the verb ``run``, is taken if its result depends on the same things.
        """
        note = self._state["cells"].setdefault(cell.key, {"before": [folder.name for folder in _runs(cell)]})
        while (folder := _own_run(cell, note["before"])) is not None and _is_outdated(cell, folder):
            note["before"].append(folder.name)
        finished = with_result(cell, folder) if folder is not None and has_result(folder) else None
        if finished is None and (other := _same_run(cell, note.get("run"))) is not None:
            self.say(f"{name}: taken from {other}, which has the same settings and data")
            finished = with_result(cell, other)
        if finished is None:
            self._write()
            finished = self._run(cell, folder, lock, name)
        note.pop("failed", None)
        note |= {"run": str(finished.run)} if finished.run is not None else {"failed": finished.reason}
        self._write()
        return finished

    def _run(self, cell: Cell, folder: Path | None, lock: int, name: str) -> Cell:
        """Resume the run in `folder`, or start one, and wait for its end."""
        resumed = folder is not None and (folder / run_folder.CONFIG).exists()
        arguments = [f"--resume={folder}"] if resumed else cell.arguments()
        log = self.folder / "logs" / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', cell.key)}.log"
        self.say(f"{name}: {'resumed' if resumed else 'started'}, output in {log}")
        code = start_run(arguments, log, lock, self.environment)
        if code != 0:
            return replace(cell, status="failed", reason=reason(log, code))
        # The last line of a run is the path of its result; a library may complain after it.
        path = next((line for line in reversed(_lines(log)) if line.endswith(run_folder.RESULT)), None)
        if path is None:
            return replace(cell, status="failed", reason=f"the run ended without a result, see {log}")
        return with_result(cell, Path(path).parent)

    def has_stored(self, cells: Sequence[Cell]) -> bool:
        """Tell whether a run of this comparison has ended, or has stored a state to resume from."""
        for cell in cells:
            note = self._state["cells"].get(cell.key)
            folder = _own_run(cell, note["before"]) if note and cell.merged else None
            if folder is not None and (has_result(folder) or (folder / checkpoint.RESUME).is_file()):
                return True
        return False

    def _write(self) -> None:
        write_json(self.folder / STATE, self._state)


def _read_state(path: Path) -> dict[str, Any]:
    """Return what `state.json` holds. Raises DataError if it was changed to what no comparison writes."""
    state = read_json_object(path, "state of a comparison")
    cells = state.get("cells")
    notes = list(cells.values()) if isinstance(cells, dict) else [None]
    if not all(isinstance(note, dict) and isinstance(note.get("before"), list) for note in notes):
        raise DataError(f"{path} is not the state of a comparison: remove it, and finished runs are found again")
    return state


def _runs(cell: Cell) -> list[Path]:
    return run_folder.created_with(Path(cell.merged["checkpoint_dir"]), cell.merged)


def _own_run(cell: Cell, before: Sequence[str]) -> Path | None:
    """Return the run of these very settings that was not there when the cell was first started."""
    return next((folder for folder in _runs(cell) if folder.name not in before), None)


def _is_outdated(cell: Cell, folder: Path) -> bool:
    """Tell whether the data or the package have changed since a finished run of the cell's settings."""
    with contextlib.suppress(CheckpointError):
        known = read_result(folder).fingerprint if has_result(folder) else None
        return known is not None and known != cell.fingerprint
    return False


def _same_run(cell: Cell, known: str | None) -> Path | None:
    """Return a finished run whose result depends on what the cell's does: the `known` one, or the newest there is."""
    root = Path(cell.merged["checkpoint_dir"])
    name = f"{glob.escape(cell.model)}-{glob.escape(cell.dataset)}-*"
    found = sorted(root.glob(f"{name}/{run_folder.RESULT}"), key=lambda path: path.parent.name, reverse=True)
    for folder in [*([Path(known)] if known else []), *(path.parent for path in found)]:
        with contextlib.suppress(CheckpointError):  # a result that cannot be read is no candidate
            result = read_result(folder)
            if result.test and cell.fingerprint is not None and result.fingerprint == cell.fingerprint:
                return folder
    return None


def _shaping(definition: Any) -> Any:
    """Return the definition of a comparison without the settings that shape no result, such as `show_progress`."""
    cells = definition if isinstance(definition, dict) else {}
    return {
        key: [argument for argument in run if decides_result(argument.removeprefix("--").partition("=")[0])]
        if isinstance(run, list)
        else run
        for key, run in cells.items()
    }


def with_result(cell: Cell, folder: Path) -> Cell:
    """Return `cell` with the result of the finished run in `folder`, or failed if that cannot be read."""
    try:
        return replace(cell, run=folder, result=read_result(folder), status="done", reason=None)
    except CheckpointError as error:
        return replace(cell, run=folder, status="failed", reason=str(error))


def start_run(arguments: Sequence[str], log: Path, lock: int, environment: Mapping[str, str]) -> int:
    """Run the command line's ``run`` in a process of its own and return its exit code, negative for a signal.

    Args:
        arguments: of ``run``.
        log: gets the output, after its present content.
        lock: a descriptor that the process keeps open.
        environment: variables of the process, to which the place of this package is added.
    """
    package = str(Path(recbole_llm.__file__).resolve().parent.parent)
    paths = os.pathsep.join(filter(None, [package, environment.get("PYTHONPATH")]))
    command = [sys.executable, "-P", "-m", "recbole_llm.cli.main", "run", *arguments]
    with storage_errors(log):
        output = log.open("ab")
    with output:
        child = subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**environment, "PYTHONPATH": paths},
            pass_fds=[lock],
        )
        try:
            _watch(child, log, sys.stderr)
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()
    return child.returncode


def _watch(child: "subprocess.Popen[bytes]", log: Path, terminal: IO[str]) -> None:
    """Wait for `child`; on a terminal show the last line of its output meanwhile."""
    shown = terminal.isatty()
    while True:
        try:
            child.wait(_POLL_SECONDS)
            break
        except subprocess.TimeoutExpired:
            if shown:
                width = shutil.get_terminal_size().columns - 1
                terminal.write("\r\x1b[K" + one_line((_lines(log) or [""])[-1])[:width])
                terminal.flush()
    if shown:
        terminal.write("\r\x1b[K")


def _lines(log: Path) -> list[str]:
    """Return the last lines of a log, without colours, empty lines and overwritten parts of progress bars."""
    with log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 8192))
        text = file.read().decode("utf-8", errors="replace")
    return [line.strip() for line in re.split(r"[\r\n]", _COLOUR.sub("", text)) if line.strip()]


def reason(log: Path, code: int) -> str:
    """Return in one line why a run failed: its last error or line, or the signal that ended it."""
    if code < 0:
        name = signal.Signals(-code).name
        hint = ": the system ends a process so when memory is short" if name == "SIGKILL" else ""
        return f"ended by {name}{hint}"
    lines = _lines(log)
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [f"exit code {code}"])[-1][:_LONGEST_REASON]


def finish_all(cells: Sequence[Cell], runner: CellRunner) -> list[Cell]:
    """Return the cells after running those that are planned, reporting the progress."""
    finished: list[Cell] = []
    with runner.alone() as lock:
        for number, cell in enumerate(cells, 1):
            if not cell.is_planned:
                finished.append(cell)
                continue
            started = time.monotonic()
            name = f"[{number}/{len(cells)}] {cell.label} on {cell.dataset}, seed {cell.seed}"
            done = runner.finish(cell, lock, name)
            seconds = time.monotonic() - started
            state = "done" if done.status == "done" else f"failed ({done.reason})"
            runner.say(f"{name}: {state} after {seconds:.0f} s")
            finished.append(done)
    return finished
