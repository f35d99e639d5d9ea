"""Workers that share a database know lost trials by its heartbeat, without a lock. SQLite stands for the server."""

import sqlite3
import time
from contextlib import closing

import pytest
from tune_parts import GRID, settings

from recbole_llm.config.config import Config
from recbole_llm.hyper_search import liveness, optuna_search
from recbole_llm.hyper_search.space import read_space
from recbole_llm.hyper_search.study import Record, Study


@pytest.fixture
def server(place, monkeypatch):
    """The study and what makes a worker of it; heartbeats every second, and 300 s of grace."""
    monkeypatch.setattr(liveness, "beats", lambda storage: "://" in storage)
    monkeypatch.setattr(liveness, "HEARTBEAT_SECONDS", 1)
    (place / "a.hyper").write_text(GRID)
    method = {"engine": "optuna", "algo": "random", "pruner": "none"}
    study = Study(Config(config_dict=settings(place)), read_space(place / "a.hyper"), method, place / "out")
    return study, lambda: optuna_search._Shared(study, f"sqlite:///{place}/trials.db", 1)


def silent_for_an_hour(place):
    """Write into the database that no heartbeat came for an hour."""
    with closing(sqlite3.connect(place / "trials.db")) as database, database:
        database.execute("update trial_heartbeats set heartbeat = datetime('now', '-1 hour')")


def is_silent(place):
    """Tell whether the last heartbeat is older than half an hour."""
    with closing(sqlite3.connect(place / "trials.db")) as database:
        query = "select heartbeat < datetime('now', '-30 minutes') from trial_heartbeats"
        return bool(database.execute(query).fetchone()[0])


def test_which_storages_have_a_heartbeat():
    assert liveness.beats("postgresql://user:password@host/studies") and liveness.beats("mysql+pymysql://host/studies")
    assert not liveness.beats("sqlite:///trials.db") and not liveness.beats("trials.log")


def test_trial_without_heartbeat_is_run_again_and_one_with_heartbeats_is_not(place, server):
    study, worker = server
    slow, other = worker(), worker()
    trial = slow.begin()
    with slow.signs.running(trial):
        silent_for_an_hour(place)
        deadline = time.monotonic() + 60
        while is_silent(place) and time.monotonic() < deadline:
            time.sleep(0.1)  # the next heartbeat comes within a second or so
        assert not is_silent(place)
        other.requeue_lost()
        assert other.running() and other.begin() is None
    silent_for_an_hour(place)
    other.requeue_lost()
    again = other.begin()
    assert again.params == trial.params and again.number == 1
    assert not (study.folder / "workers").exists()  # no lock says who lives
    late = Record(trial.number, "complete", dict(trial.params), score=1.0)
    study.store(late)
    slow.end(trial, late)  # it was only slow: what it found comes too late
    other.requeue_lost()
    assert [(r.number, r.state, r.instead_of) for r in other.records()] == [(1, "running", 0)]


def test_worker_that_ended_before_its_first_heartbeat(server, monkeypatch):
    _, worker = server
    first = worker()
    monkeypatch.setattr(liveness.Heartbeats, "begun", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        first.begin()
    monkeypatch.undo()
    monkeypatch.setattr(liveness, "beats", lambda storage: "://" in storage)
    second = worker()
    second.requeue_lost()
    assert [trial.state.name for trial in second.trials.get_trials()] == ["FAIL", "WAITING"]


def test_closed_by_the_database_and_nobody_left_to_queue_it(server):
    _, worker = server
    first, second = worker(), worker()
    trial = first.begin()
    first.trials.tell(trial.number, state=first._states.FAIL)  # as Optuna does for a stale trial
    for _ in range(2):  # queued once
        second.requeue_lost()
        assert [trial.state.name for trial in second.trials.get_trials()] == ["FAIL", "WAITING"]
    assert second.begin().params == trial.params
