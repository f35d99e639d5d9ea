"""A study that many processes or machines work at, by Optuna.

The storage, a journal file or a database, holds which trials there are and what became of them. All workers share the
study's folder, too: the best weights are there.

* Trials are begun and ended under the lock of the folder: never more than planned, and none counted twice.
* Whoever sees first that a trial has lost its worker (`liveness`) puts the same settings into the queue again. A trial
  that has ended three workers has failed.
* A worker that finds nothing to begin waits for the others, so that the last one alive finishes the study.
"""

import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from recbole_llm.errors import SettingError, StorageError
from recbole_llm.hyper_search import liveness
from recbole_llm.hyper_search.study import Record, Study
from recbole_llm.hyper_search.trial import Pruned, progress, run_trial

POLL_SECONDS = 1.0
_ATTEMPTS = 3  # after which a trial whose worker ends is not tried again


def search(study: Study, storage: str, trials: int | None) -> dict[str, Any]:
    """Work at a shared study until it has all its trials, then evaluate the winner on the test part, once.

    Args:
        study: the study; its "algo" is exhaustive, random or bayes, its "pruner" one of PRUNERS.
        storage: a journal file, or the URL of a database.
        trials: how many the whole study has; None takes 100, and all combinations for an exhaustive search.

    Returns:
        What `Study.finish` does: the same for every worker.

    Raises:
        SettingError: if the workers do not share the study's folder.
        StorageError: if the storage cannot be used.
        TrainingError: if no trial is complete.
    """
    waits = False
    with study.lock():
        shared = _Shared(study, storage, trials)
    with shared.signs.alive():
        while True:
            with study.lock():
                shared.requeue_lost()
                trial = shared.begin()
                if trial is None and not shared.running():
                    return study.finish(shared.records())
            if trial is None:
                if not waits:
                    print("every trial is taken: waiting for the other workers, in case one ends", flush=True)
                waits = True
                time.sleep(POLL_SECONDS)
                continue
            drawn = study.space.settings(trial.params, study.base)
            try:
                with shared.signs.running(trial):
                    record = run_trial(study, trial.number, drawn, shared.judge(trial))
            except BaseException:  # an interruption, or what no other settings would mend
                with study.lock():
                    shared.give_back(trial.number)
                raise
            with study.lock():
                shared.end(trial, record)


def _driver(storage: str) -> str:
    """Return the package that SQLAlchemy wants for a database's URL."""
    from sqlalchemy import make_url

    driver = make_url(storage).get_dialect().driver
    return {"psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary"}.get(driver, driver)


class _Shared:
    """The trials of a study in Optuna's storage. All methods but `judge` need the lock of the study's folder."""

    def __init__(self, study: Study, storage: str, trials: int | None) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._states = optuna.trial.TrialState
        self.study = study
        algo = study.method["algo"]
        self._combinations = study.space.combinations() if algo == "exhaustive" else None
        self.planned = trials or 100
        if self._combinations is not None:
            self.planned = min(trials or len(self._combinations), len(self._combinations))
            order = np.random.default_rng(study.base["seed"]).permutation(len(self._combinations))
            self._combinations = [self._combinations[index] for index in order]
        try:
            opened = _open_storage(storage)
            self.trials = optuna.create_study(
                storage=opened,
                study_name=study.name,
                direction="maximize" if study.bigger else "minimize",
                pruner=_pruner(study.method["pruner"], study.base["epochs"]),
                load_if_exists=True,
            )
            known = self.trials.user_attrs.get("folder")
            if known is None:
                if study.method.get("first") == "defaults":
                    self.trials.enqueue_trial(study.space.values_of(study.base))
                self.trials.set_user_attr("folder", study.identity)
        except ModuleNotFoundError:
            raise
        except Exception as error:  # each kind of database reports in its own way
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            if isinstance(error, ImportError):
                reason = f"the database's driver is not installed (pip install {_driver(storage)})"
            raise StorageError(f"the storage {_shown(storage)} cannot be used: {reason}") from error
        self.signs = liveness.Heartbeats(study, opened) if liveness.beats(storage) else liveness.WorkerLocks(study)
        if known not in (None, study.identity):
            raise SettingError(
                f"the study {study.name} in {_shown(storage)} belongs to another folder than {study.folder}: all "
                f"workers share one folder, which --out names"
            )

    def _all(self) -> list[Any]:
        return self.trials.get_trials(deepcopy=False)

    def running(self) -> bool:
        """Tell whether a trial runs, whoever runs it."""
        return any(trial.state == self._states.RUNNING for trial in self._all())

    def begin(self) -> Any:
        """Begin a trial that waits, or a new one; return it with its parameters drawn, or None if all are taken."""
        every = self._all()
        waiting = any(trial.state == self._states.WAITING for trial in every)
        taken = sum("instead_of" not in trial.user_attrs for trial in every)
        if not waiting:
            if taken >= self.planned:
                return None
            if self._combinations is not None:
                self.trials.enqueue_trial(self._combinations[taken])
        with warnings.catch_warnings():  # `ask` does not know that the trial has heartbeats of `liveness`
            warnings.filterwarnings("ignore", "Heartbeat of storage")
            trial = self.trials.ask()
        self.signs.begun(trial)
        # What is drawn depends on the seed, the number and the trials before, not on which worker draws.
        self.trials.sampler = _sampler(self.study.method["algo"], [self.study.base["seed"], trial.number])
        for parameter in self.study.space.parameters:
            parameter.suggest(trial)
        return trial

    def judge(self, trial: Any) -> Any:
        """Return what reports every epoch of `trial`, and raises Pruned if others were better at it."""
        from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError

        def after_epoch(epoch: int, score: float) -> None:
            try:
                trial.report(score, epoch + 1)
                prune = trial.should_prune()
            except StorageInternalError as error:  # not the fault of the trial's settings
                raise StorageError(f"the storage of the study cannot be reached: {error}") from error
            except UpdateFinishedTrialError:
                raise Pruned("another worker was given it") from None
            if prune:
                raise Pruned(f"{self.study.method['pruner']} pruner after epoch {epoch}")

        return after_epoch

    def end(self, trial: Any, record: Record) -> None:
        """Store what became of a trial, unless this worker was taken for ended and the trial was given to another."""
        frozen = self._all()[trial.number]
        if frozen.state != self._states.RUNNING:
            self.study.discard(trial.number)
            return
        if "instead_of" in frozen.user_attrs:
            record.instead_of = frozen.user_attrs["instead_of"]
            self.study.store(record)
        if record.state == "complete":
            self.trials.tell(trial, record.score)
        else:
            self.trials.tell(trial, state=self._states[{"pruned": "PRUNED", "failed": "FAIL"}[record.state]])
        records = self.records()
        self.study.write(records)
        print(progress(self.study, record, records, self.planned), flush=True)

    def requeue_lost(self) -> None:
        """Put the trials whose workers ended into the queue again.

        The repetition is there before the lost trial is closed: whenever this worker ends, too, the next one finds
        either both or neither.
        """
        self.signs.close_lost(self.trials)
        every = self._all()
        repeated = {trial.user_attrs.get("instead_of") for trial in every}
        for trial in every:
            if (not self._runs(trial) and trial.number in repeated) or not self.signs.is_lost(trial):
                continue
            attempt = trial.user_attrs.get("attempt", 1)
            if attempt < _ATTEMPTS:
                print(f"the worker of trial {trial.number} has ended: the trial is run again", flush=True)
                self._repeat(trial, attempt + 1)
                continue
            drawn = self.study.space.settings(trial.params, self.study.base)
            record = Record(trial.number, "failed", drawn, reason=f"its worker ended {attempt} times")
            record.instead_of = trial.user_attrs.get("instead_of")
            self.study.store(record)
            self._close(trial)

    def _runs(self, trial: Any) -> bool:
        return bool(trial.state == self._states.RUNNING)

    def _close(self, trial: Any) -> None:
        if self._runs(trial):
            self.trials.tell(trial.number, state=self._states.FAIL)

    def give_back(self, number: int) -> None:
        """Put a trial of this worker into the queue again: it was stopped, and is not to blame."""
        trial = self._all()[number]
        if self._runs(trial):
            self._repeat(trial, trial.user_attrs.get("attempt", 1))

    def _repeat(self, trial: Any, attempt: int) -> None:
        if not any(other.user_attrs.get("instead_of") == trial.number for other in self._all()):
            chosen = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
            self.trials.enqueue_trial(chosen, user_attrs={"instead_of": trial.number, "attempt": attempt})
        self.study.discard(trial.number)
        self._close(trial)

    def records(self) -> list[Record]:
        """Return every trial once, by number: where a worker ended, its repetition alone."""
        every = self._all()
        repeated = {trial.user_attrs.get("instead_of") for trial in every}
        found = []
        for trial in every:
            if trial.state == self._states.WAITING or trial.number in repeated:
                continue
            if trial.state == self._states.RUNNING:
                drawn = self.study.space.settings(trial.params, self.study.base)
                found.append(Record(trial.number, "running", drawn, instead_of=trial.user_attrs.get("instead_of")))
            elif (record := self.study.stored(trial.number)) is not None:
                found.append(record)
        return found


def _open_storage(storage: str) -> Any:
    from optuna.exceptions import ExperimentalWarning
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if liveness.beats(storage):
        seconds = liveness.HEARTBEAT_SECONDS, liveness.GRACE_SECONDS
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return RDBStorage(storage, heartbeat_interval=seconds[0], grace_period=seconds[1])
    if "://" in storage:
        return RDBStorage(storage)
    Path(storage).parent.mkdir(parents=True, exist_ok=True)
    # Optuna's own lock is a link that outlives a killed process by half a minute; this one is freed at once.
    return JournalStorage(JournalFileBackend(storage, lock_obj=FileLock(f"{storage}.lock")))


def _shown(storage: str) -> str:
    """Return the name of a storage without the password that a URL may hold."""
    if "://" not in storage:
        return storage
    scheme, _, rest = storage.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def _sampler(algo: str, seed: list[int]) -> Any:
    import optuna

    number = int(np.random.SeedSequence(seed).generate_state(1)[0])
    if algo == "bayes":
        return optuna.samplers.TPESampler(seed=number)
    return optuna.samplers.RandomSampler(seed=number)


def _pruner(name: str, epochs: int) -> Any:
    from optuna import pruners

    if name == "median":
        # A tenth of the epochs is given to every trial: after the first ones it is the learning rate that tells.
        return pruners.MedianPruner(n_warmup_steps=epochs // 10)
    if name == "halving":
        return pruners.SuccessiveHalvingPruner()
    if name == "hyperband":
        return pruners.HyperbandPruner(max_resource=max(epochs, 1))
    return pruners.NopPruner()
