"""Signs of life of the workers of a shared study: whose trials are lost, and must be run again.

* A journal file and SQLite are files of machines that share a disk: every worker holds a file lock. The system frees it
  when the process ends, in whatever way, so a lost trial is seen at once.
* A database server is shared by machines whose file locks need not be seen by the others: Optuna's heartbeat writes the
  time of the database, and a trial without one for GRACE_SECONDS is lost.
"""

import threading
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from recbole_llm.hyper_search.study import Study

HEARTBEAT_SECONDS = 60
GRACE_SECONDS = 300


def beats(storage: str) -> bool:
    """Tell whether a storage is a database server, whose heartbeat is the sign of life."""
    return "://" in storage and not storage.startswith("sqlite")


class WorkerLocks:
    """A lock per worker, in the study's folder.

    Args:
        study: the study.
    """

    def __init__(self, study: Study) -> None:
        self.study, self.worker = study, uuid.uuid4().hex[:12]

    def _lock(self, worker: str) -> FileLock:
        folder = self.study.folder / "workers"
        folder.mkdir(exist_ok=True)
        return FileLock(folder / f"{worker}.lock")

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Hold this worker's lock."""
        lock = self._lock(self.worker)
        try:
            with lock:
                yield
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)

    def begun(self, trial: Any) -> None:
        """Name the worker of a trial that has begun."""
        trial.set_user_attr("worker", self.worker)

    @contextmanager
    def running(self, trial: Any) -> Iterator[None]:
        """Do nothing more while a trial runs: the lock is held."""
        yield

    def close_lost(self, trials: Any) -> None:
        """Do nothing: who finds a lost trial closes it."""

    def is_lost(self, trial: Any) -> bool:
        """Tell whether a trial runs whose worker has ended."""
        if trial.state.name != "RUNNING":
            return False
        worker = trial.user_attrs.get("worker")
        if worker is None:  # it ended between asking for the trial and naming itself
            return True
        lock = self._lock(worker)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)
        return True


class Heartbeats:
    """Optuna's heartbeat in a database.

    Args:
        study: the study.
        storage: an `RDBStorage` with a heartbeat interval and a grace period, in seconds.
    """

    def __init__(self, study: Study, storage: Any) -> None:
        self.study, self.storage, self.worker = study, storage, uuid.uuid4().hex[:12]

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Do nothing: trials show life, not workers."""
        yield

    def _beat(self, number: int) -> None:
        study = self.storage.get_study_id_from_name(self.study.name)
        self.storage.record_heartbeat(self.storage.get_trial_id_from_study_id_trial_number(study, number))

    def begun(self, trial: Any) -> None:
        """Write the first heartbeat of a trial, then its worker's name: a trial without a name has no heartbeat."""
        self._beat(trial.number)
        trial.set_user_attr("worker", self.worker)

    @contextmanager
    def running(self, trial: Any) -> Iterator[None]:
        """Write heartbeats of a trial while it runs. One that cannot be written is left out: the next may be."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(self.storage.get_heartbeat_interval()):
                try:
                    self._beat(trial.number)
                except Exception as error:  # each kind of database reports in its own way
                    warnings.warn(f"no heartbeat of trial {trial.number} was written: {error}", stacklevel=1)

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def close_lost(self, trials: Any) -> None:
        """Let Optuna close the trials whose heartbeat is older than the grace period."""
        import optuna

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(trials)

    def is_lost(self, trial: Any) -> bool:
        """Tell whether a running trial has no worker's name, or Optuna closed it and nobody wrote what became of it."""
        if trial.state.name == "RUNNING":
            return trial.user_attrs.get("worker") is None
        return trial.state.name == "FAIL" and self.study.stored(trial.number) is None
