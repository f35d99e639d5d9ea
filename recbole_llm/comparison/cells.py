"""The cells of a comparison: which runs it needs, and how they are started, found again and resumed.

Every run is a process of its own, the command line's ``run``: one that fails, or that the system ends for want of
memory, takes nothing with it, and the next begins with all memory free.
"""

import fcntl
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import recbole_llm
from recbole_llm.config.config import Config
from recbole_llm.config.names import has_setting
from recbole_llm.errors import DataError, SettingError
from recbole_llm.runs import checkpoint
from recbole_llm.runs import folder as run_folder
from recbole_llm.utils.files import read_yaml, storage_errors, write_json
from recbole_llm.utils.values import write_value

STATE = "state.json"
_LOCK = ".lock"
_LONGEST_REASON = 300
_POLL_SECONDS = 0.2
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class Cell:
    """One model on one data set with one seed.

    Attributes:
        dataset, label, model, seed: which; `label` names the model in the table.
        given: the settings that are not defaults, without model, data set and seed.
        merged: all settings of the run; empty for a run that was handed in.
        run: the folder of the finished run.
        status: done, failed or missing.
        reason: why it failed.
    """

    dataset: str
    label: str
    model: str
    seed: int
    given: dict[str, Any] = field(default_factory=dict)
    merged: dict[str, Any] = field(default_factory=dict, repr=False)
    run: Path | None = None
    status: str = "missing"
    reason: str | None = None

    @property
    def key(self) -> str:
        """The name of the cell in the state file."""
        return f"{self.dataset}/{self.label}/{self.seed}"

    def arguments(self) -> list[str]:
        """Return the arguments of ``run`` that repeat the cell."""
        settings = {"model": self.model, "dataset": self.dataset, "seed": self.seed, **self.given}
        return [f"--{name}={write_value(value)}" for name, value in settings.items()]

    def command(self) -> str:
        """Return the command that repeats the cell."""
        return shlex.join(["recbole-llm", "run", *self.arguments()])


def plan_cells(
    models: Sequence[tuple[str, str]],
    datasets: Sequence[str],
    seeds: Sequence[int],
    settings: dict[str, Any],
    line: dict[str, Any],
    own: dict[str, dict[str, Any]],
) -> list[Cell]:
    """Return the cells, data set by data set, after reading the settings of each as its run will.

    A setting of all models goes to those that have it: ``hidden_size`` to SASRec and not to Pop.

    Args:
        models: label and model name.
        datasets: names.
        seeds: whole numbers.
        settings: of all models, from files.
        line: of all models, from the command line.
        own: of each label.

    Raises:
        SettingError: for an unknown model, data set or setting, and for two labels that ask for the same run.
        DataError: for a data set that is not here.
    """
    _check_common({**settings, **line}, models)
    cells: list[Cell] = []
    for dataset in datasets:
        asked: dict[str, str] = {}
        for label, model in models:
            given = {name: value for name, value in settings.items() if has_setting(model, name)}
            given |= own.get(label, {})
            given |= {name: value for name, value in line.items() if has_setting(model, name)}
            arguments = Cell(dataset, label, model, seeds[0], given).arguments()
            merged = Config(command_line=arguments).merged
            twin = asked.setdefault(run_folder.digest(merged), label)
            if twin != label:
                raise SettingError(
                    f"{twin} and {label} ask for the same run of {model}: give one of them other settings"
                )
            cells += [Cell(dataset, label, model, seed, given, {**merged, "seed": seed}) for seed in seeds]
    return cells


def _check_common(settings: dict[str, Any], models: Sequence[tuple[str, str]]) -> None:
    for name in settings:
        if not any(has_setting(model, name) for _, model in models):
            raise SettingError(f"no model of the comparison has the setting '{name}'")


class CellRunner:
    """Finishes cells, one after another, and remembers where the run of each lies.

    Args:
        folder: of the comparison; holds `state.json` and the runs' output in `logs/`.
        asked: what the comparison is of; a folder that holds another one is refused.
        say: tells the user what happens.

    Raises:
        SettingError: if the folder holds another comparison.
    """

    def __init__(self, folder: Path, asked: dict[str, Any], say: Callable[[str], None]) -> None:
        self.folder, self.say = folder, say
        self._state: dict[str, Any] = {"asked": asked, "cells": {}}
        path = folder / STATE
        if path.exists():
            self._state = read_yaml(path)  # JSON is YAML, and its errors are told in one sentence
            if self._state.get("asked") != asked:
                raise SettingError(f"{folder} holds another comparison: choose another folder with --out")
        with storage_errors(folder):
            (folder / "logs").mkdir(parents=True, exist_ok=True)

    @contextmanager
    def alone(self) -> Iterator[int]:
        """Hold the comparison for this process, waiting for another that works on it; yields the lock's descriptor.

        The runs inherit the lock: if the comparison is killed and its last run goes on, that one is waited for, too,
        and its result is taken.
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
                self._state = read_yaml(self.folder / STATE)
            yield file.fileno()

    def finish(self, cell: Cell, lock: int, name: str) -> None:
        """Bring `cell`, called `name`, to its end: take its finished run, or resume it, or start it."""
        note = self._state["cells"].setdefault(cell.key, {"before": [folder.name for folder in _runs(cell)]})
        folder = _own_run(cell, note["before"])
        if folder is None or not (folder / run_folder.RESULT).exists():
            self._write()
            resumed = folder is not None and (folder / run_folder.CONFIG).exists()
            arguments = [f"--resume={folder}"] if resumed else cell.arguments()
            log = self.folder / "logs" / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', cell.key)}.log"
            self.say(f"{name}: {'going on' if resumed else 'started'}, output in {log}")
            code = start_run(arguments, log, lock)
            if code != 0:
                cell.status, cell.reason = "failed", reason(log, code)
                note["failed"] = cell.reason
                self._write()
                return
            # The last line of a run is the path of its result; a library may complain behind it.
            folder = Path(next(line for line in reversed(_lines(log)) if line.endswith(run_folder.RESULT))).parent
        cell.run, cell.status = folder, "done"
        note.pop("failed", None)
        note["run"] = str(folder)
        self._write()

    def has_stored(self, cells: Sequence[Cell]) -> bool:
        """Tell whether a run of this comparison has ended, or has stored a state to resume from."""
        for cell in cells:
            note = self._state["cells"].get(cell.key)
            folder = _own_run(cell, note["before"]) if note and cell.merged else None
            if folder is not None and any((folder / name).is_file() for name in (run_folder.RESULT, checkpoint.RESUME)):
                return True
        return False

    def _write(self) -> None:
        write_json(self.folder / STATE, self._state)


def _runs(cell: Cell) -> list[Path]:
    return run_folder.created_with(Path(cell.merged["checkpoint_dir"]), cell.merged)


def _own_run(cell: Cell, before: Sequence[str]) -> Path | None:
    """Return the run of these very settings that was not there when the cell was first started."""
    return next((folder for folder in _runs(cell) if folder.name not in before), None)


def start_run(arguments: Sequence[str], log: Path, lock: int) -> int:
    """Run the command line's ``run`` in a process of its own and return its exit code, negative for a signal.

    Args:
        arguments: of ``run``.
        log: gets the output, after what it holds.
        lock: a descriptor that the process keeps open.
    """
    package = str(Path(recbole_llm.__file__).resolve().parent.parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-P", "-m", "recbole_llm", "run", *arguments]
    with storage_errors(log):
        output = log.open("ab")
    with output:
        child = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, pass_fds=[lock]
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
                terminal.write("\r\x1b[K" + (_lines(log) or [""])[-1][:width])
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
    """Return in one line why a run failed: its own last word, or the signal that ended it."""
    if code < 0:
        name = signal.Signals(-code).name
        hint = ": the system ends a process so when memory is short" if name == "SIGKILL" else ""
        return f"ended by {name}{hint}"
    lines = _lines(log)
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [f"exit code {code}"])[-1][:_LONGEST_REASON]


def finish_all(cells: Sequence[Cell], runner: CellRunner) -> None:
    """Finish every cell that has no run yet, telling how far it is."""
    with runner.alone() as lock:
        for number, cell in enumerate(cells, 1):
            if cell.run is not None or not cell.merged:
                continue  # handed in, or known only by its absence
            started = time.monotonic()
            name = f"[{number}/{len(cells)}] {cell.label} on {cell.dataset}, seed {cell.seed}"
            runner.finish(cell, lock, name)
            took = time.monotonic() - started
            runner.say(f"{name}: {'done' if cell.run else f'failed ({cell.reason})'} after {took:.0f} s")


def read_model_settings(path: str | Path) -> dict[str, dict[str, Any]]:
    """Return the settings of each label in a YAML file that maps labels to settings.

    Raises:
        DataError: if the file is missing or of another form.
    """
    found = read_yaml(path)
    for label, settings in found.items():
        if not isinstance(settings, dict):
            raise DataError(f"{path} must hold 'name: value' settings under '{label}', but holds {settings!r} there")
    return {str(label): dict(settings) for label, settings in found.items()}
