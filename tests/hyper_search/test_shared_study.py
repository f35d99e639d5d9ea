"""A study that several processes share loses no trial and counts none twice."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from child_runs import command_line
from tune_parts import GRID, arguments, assert_only_the_winner_has_weights, settings, tune

from recbole_llm.config.config import Config
from recbole_llm.hyper_search import optuna_search
from recbole_llm.hyper_search.space import read_space
from recbole_llm.hyper_search.study import Study


def check_shared(place, outcome, expected_lost):
    """Every combination is there once, and the best of them is the winner."""
    trials = outcome["trials"]
    found = [(trial["settings"]["learning_rate"], trial["settings"]["hidden_size"]) for trial in trials]
    assert sorted(found) == [(rate, size) for rate in (0.0001, 0.01, 0.05) for size in (4, 8)]
    assert [trial["state"] for trial in trials] == ["complete"] * 6
    assert sum(trial["instead_of"] is not None for trial in trials) == expected_lost
    winner = next(trial for trial in trials if trial["number"] == outcome["best"])
    assert winner["score"] == max(trial["score"] for trial in trials)
    if expected_lost:
        alone = tune(place, out=place / "alone")
        scores = {tuple(trial["settings"].values()): trial["score"] for trial in alone["trials"]}
        assert {tuple(trial["settings"].values()): trial["score"] for trial in trials} == scores
        assert outcome["test"] == alone["test"]
    assert_only_the_winner_has_weights(outcome)
    assert len(list(Path(outcome["path"]).parent.glob("trials/*"))) == 6
    assert len(list(Path(outcome["path"]).parent.glob("trials/*/result.json"))) == 1


@pytest.mark.parametrize(("storage", "kill"), [("journal.log", ("step", 15)), ("sqlite:///trials.db", None)])
def test_two_processes_share_a_study(place, storage, kill):
    """One of two workers is killed in the middle of a trial (or none is), and the study has every trial once."""
    file = storage if ":" not in storage else f"sqlite:///{place}/trials.db"
    file = str(place / file) if ":" not in file else file
    command = [
        *arguments(place),
        f"--params_file={place / 'grid.hyper'}",
        f"--storage={file}",
        f"--out={place / 'out'}",
    ]
    for worker in "ab":
        (place / worker).mkdir()
    with ThreadPoolExecutor() as threads:
        one = threads.submit(command_line, place / "a", command, kill)
        while not (place / "out" / "trials" / "0000").exists() and not one.done():
            time.sleep(0.02)
        two = threads.submit(command_line, place / "b", command)
        (code_a, out_a, error_a), (code_b, out_b, error_b) = one.result(), two.result()
    assert code_b == 0, error_b
    assert code_a == (-9 if kill else 0), error_a
    path = place / "out" / "tune.json"
    assert out_b.splitlines()[-1] == str(path)
    check_shared(place, {**json.loads(path.read_text()), "path": path}, expected_lost=1 if kill else 0)
    if kill:
        assert out_b.count("is run again") == 1
    else:
        assert out_a.splitlines()[-1] == str(path)
        assert out_a.splitlines()[-8:] == out_b.splitlines()[-8:]
        assert out_a.count("] trial") + out_b.count("] trial") == 6


def shared(place, trials=2, text=GRID, algo="random", storage="trials.log"):
    (place / "a.hyper").write_text(text)
    base = Config(config_dict=settings(place))
    method = {"engine": "optuna", "algo": algo, "pruner": "none"}
    study = Study(base, read_space(place / "a.hyper"), method, place / "out")
    return study, optuna_search._Shared(study, storage, trials)


def test_lost_trials_are_repeated_with_their_settings_up_to_three_times(place):
    drawn, numbers = [], []
    for _ in range(3):
        _, ended = shared(place)  # holds no lock
        ended.requeue_lost()
        trial = ended.begin()
        drawn.append(trial.params)
        numbers.append(trial.number)
        assert [record.state for record in ended.records()] == ["running"]
    assert drawn[0] == drawn[1] == drawn[2] and numbers == [0, 1, 2]
    _, alive = shared(place)
    with alive.signs.alive():
        alive.requeue_lost()
        (record,) = alive.records()
        assert (record.number, record.state, record.reason) == (2, "failed", "its worker ended 3 times")
        second = alive.begin()
        assert second.number == 3 and second.params != drawn[0]
        alive.requeue_lost()
        assert alive.running() and alive.begin() is None  # two trials were planned
        assert [record.number for record in alive.records()] == [2, 3]


def test_trial_that_was_given_to_another_is_not_counted(place):
    study, slow = shared(place, trials=1)
    trial = slow.begin()
    _, other = shared(place, trials=1)
    other.requeue_lost()
    record = optuna_search.Record(trial.number, "complete", dict(trial.params), score=1.0)
    study.store(record)
    slow.end(trial, record)
    assert other.records() == [] and not study.trial_folder(trial.number).exists()
    again = other.begin()
    assert again.params == trial.params
    other.end(again, optuna_search.Record(again.number, "failed", dict(again.params), reason="x"))
    assert [(r.number, r.state, r.instead_of) for r in slow.records()] == [(1, "failed", 0)]
    assert other.begin() is None and slow.begin() is None


def test_ended_between_queueing_and_closing(place, monkeypatch):
    _, first = shared(place, trials=1)
    first.begin()
    monkeypatch.setattr(first.trials, "tell", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        first.requeue_lost()
    _, second = shared(place, trials=1)
    second.requeue_lost()
    states = [trial.state.name for trial in second.trials.get_trials()]
    assert states == ["FAIL", "WAITING"]


def test_interrupted_trial_is_given_back_however_often(place, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    options = {"params_file": place / "two.hyper", "storage": "j.log"}
    with monkeypatch.context() as patch:
        patch.setattr(optuna_search, "run_trial", interrupt)
        for _ in range(4):
            with pytest.raises(KeyboardInterrupt):
                tune(place, **options)
    outcome = tune(place, **options)
    assert [trial["state"] for trial in outcome["trials"]] == ["complete"] * 2
    assert sorted(trial["settings"]["learning_rate"] for trial in outcome["trials"]) == [0.0001, 0.05]


def test_samplers_of_two_workers_do_not_draw_the_same(place):
    _, one = shared(place, trials=10, text="learning_rate loguniform -9,-1")
    first = one.begin().params
    with one.signs.alive():
        _, two = shared(place, trials=10, text="learning_rate loguniform -9,-1")
        assert two.begin().params != first
