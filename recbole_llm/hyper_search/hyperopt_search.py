"""A study in one process, by RecBole's own HyperTuning and hyperopt."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from filelock import Timeout

from recbole_llm.compat import repairs as compat
from recbole_llm.errors import StorageError
from recbole_llm.hyper_search.study import Record, Study
from recbole_llm.hyper_search.trial import progress, run_trial


def search(study: Study, trials: int | None, early_stop: int) -> dict[str, Any]:
    """Run the trials that HyperTuning chooses, then evaluate the winner on the test part.

    The choices follow from the seed and the validation metrics. An interrupted study therefore draws the same trials
    again, and those that are stored are not run again; neither is one that hyperopt draws twice.

    Args:
        study: the study; its "algo" is exhaustive, random or bayes.
        trials: how many are drawn at most; None takes 100, and all combinations for an exhaustive search.
        early_stop: stop after this many trials without a better one.

    Returns:
        What `Study.finish` does.

    Raises:
        StorageError: if another process is at this study.
        TrainingError: if no trial is complete.
    """
    with _alone(study):
        objective = _Objective(study)
        tuning = _tuning(study, objective, trials, early_stop)
        objective.planned = tuning.max_evals
        with _hyperopt_seed(study.base["seed"]), contextlib.redirect_stdout(sys.stderr):
            tuning.run()
        drawn = len(tuning.score_list)
        if drawn < tuning.max_evals:
            print(
                f"stopped after {drawn} of {tuning.max_evals} draws: {early_stop} in a row were no better (early_stop)"
            )
        return study.finish(objective.records)


@contextlib.contextmanager
def _alone(study: Study) -> Iterator[None]:
    lock = study.lock()
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise StorageError(
            f"another process is at the study in {study.folder}: wait for it, or share a study with --storage"
        ) from None
    try:
        yield
    finally:
        lock.release()


class _Objective:
    """HyperTuning's objective: validation alone; there is no test result that it could hand over."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.records: list[Record] = []
        self.planned = 0
        self._out = sys.stdout  # HyperTuning prints, too, and hyperopt shows a bar: they get the other stream
        self._stored = study.all_stored()

    def __call__(self, drawn: dict[str, Any], files: Any = None) -> dict[str, Any]:
        settings = self.study.space.settings(drawn, self.study.base)
        record = self._known(self.records, settings)
        if record is None:
            record = self._known(self._stored, settings, len(self.records))
            record = record or run_trial(self.study, len(self.records), settings)
            self.records.append(record)
            self.study.write(self.records)
            print(progress(self.study, record, self.records, self.planned), file=self._out, flush=True)
        # A finite number that no trial can be worse than: hyperopt's early stopping computes with it.
        worst = -sys.float_info.max if self.study.bigger else sys.float_info.max
        return {
            "model": self.study.base["model"],
            "best_valid_score": worst if record.score is None else record.score,
            "valid_score_bigger": self.study.bigger,
            "best_valid_result": record.valid,
            "test_result": None,
        }

    @staticmethod
    def _known(records: list[Record], settings: dict[str, Any], number: int | None = None) -> Record | None:
        found = [r for r in records if r.settings == settings and number in (None, r.number)]
        return found[0] if found else None


def _tuning(study: Study, objective: _Objective, trials: int | None, early_stop: int) -> Any:
    class Tuning(compat.hyper_tuning().HyperTuning):  # type: ignore[misc]
        @staticmethod
        def _print_result(result_dict: dict[str, Any]) -> None:
            """Print nothing: RecBole's way shows a test result with every better trial."""

    algo = study.method["algo"]
    form = study.space.for_hyperopt()
    tuning = Tuning(objective, params_dict=form, algo=algo, max_evals=trials or 100, early_stop=early_stop)
    tuning.max_evals = int(tuning.max_evals)
    if algo == "exhaustive" and trials is not None:
        tuning.max_evals = min(tuning.max_evals, trials)  # HyperTuning takes all combinations
    return tuning


@contextlib.contextmanager
def _hyperopt_seed(seed: int) -> Iterator[None]:
    """Seed hyperopt, which HyperTuning hands no seed, in the way that hyperopt has for that."""
    name = "HYPEROPT_FMIN_SEED"
    before = os.environ.get(name)
    os.environ[name] = str(seed)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
