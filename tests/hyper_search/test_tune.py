"""A study chooses by validation alone, and leaves the winner."""

import json
import sys
from pathlib import Path

import numpy as np
import optuna
import pytest
from recbole.data.dataset import Dataset
from small_data import write_dataset
from tune_parts import ITEMS, arguments, assert_only_the_winner_has_weights, histories, settings, tune

from recbole_llm.cli.main import main
from recbole_llm.config.config import Config
from recbole_llm.errors import DataError, SettingError, StorageError, TrainingError
from recbole_llm.hyper_search import hyperopt_search, optuna_search
from recbole_llm.hyper_search.study import Study
from recbole_llm.quick_start import run as quick_start
from recbole_llm.utils.files import read_yaml


def test_winner_is_that_of_plain_runs(place, capsys):
    assert main([*arguments(place), f"--params_file={place / 'grid.hyper'}", f"--out={place / 'study'}"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == str(place / "study" / "tune.json")
    outcome = {**json.loads(Path(last).read_text()), "path": last}
    assert outcome["finished"] and len(outcome["trials"]) == 6
    plain = {}
    for rate in (0.0001, 0.01, 0.05):
        for size in (4, 8):
            drawn = {"learning_rate": rate, "hidden_size": size}
            plain[rate, size] = quick_start.run(settings=settings(place, **drawn))
    for trial in outcome["trials"]:
        run = plain[trial["settings"]["learning_rate"], trial["settings"]["hidden_size"]]
        assert trial["state"] == "complete"
        assert trial["valid"] == run["valid"] and trial["best_epoch"] == run["best_epoch"]
        assert [e["score"] for e in trial["history"]] == [e["valid"]["ndcg@5"] for e in run["history"]]
    best = max(plain, key=lambda key: plain[key]["valid"]["ndcg@5"])
    winner = next(trial for trial in outcome["trials"] if trial["number"] == outcome["best"])
    assert winner["settings"] == {"learning_rate": best[0], "hidden_size": best[1]}
    assert outcome["test"] == plain[best]["test"]
    assert_only_the_winner_has_weights(outcome)
    # best.yaml alone repeats the winner, and its stored run can be loaded
    again = quick_start.run(config_files=[place / "study" / "best.yaml"])
    assert (again["valid"], again["test"]) == (plain[best]["valid"], plain[best]["test"])
    stored = json.loads((place / "study" / outcome["result"]).read_text())
    assert {key: stored[key] for key in ("valid", "test", "history", "parameters", "counts")} == {
        key: plain[best][key] for key in ("valid", "test", "history", "parameters", "counts")
    }
    assert quick_start.load(place / "study" / outcome["result"]).model is not None


BUILD = Dataset.build


class Untouchable:
    """Stands for a test part that is not there."""

    def __getattribute__(self, name):
        raise AssertionError(f"the test part was read: {name}")

    def __len__(self):
        raise AssertionError("the test part was read")


@pytest.fixture
def without_test_data(monkeypatch):
    monkeypatch.setattr(Dataset, "build", lambda self: [*BUILD(self)[:2], Untouchable()])


MODELS = {
    "BPR": {"embedding_size": 8, "learning_rate": 0.05},  # draws negative samples
    "SASRec": {"n_layers": 1, "n_heads": 2, "hidden_size": 8, "inner_size": 8},
    "ST2SI": {"tuning": "ilp", "learning_rate": 0.01, "max_sequence_tokens": 100},  # frozen states, computed before
    "IDLEAdapter": {  # starts from another model, which is trained first
        **{"id_model": "GRU4Rec", "id_model_settings": {"epochs": 1, "embedding_size": 8, "hidden_size": 8}},
        "max_prompt_tokens": 100,
    },
}


@pytest.mark.parametrize("name", MODELS)
def test_training_without_test_data_is_that_of_a_run(place, tiny, without_test_data, monkeypatch, name):
    titles = {item: f"Item {item} of Zelda" for item in ITEMS}
    write_dataset(place, histories(), titles)
    given = {k: v for k, v in settings(place).items() if k not in ("embedding_size", "num_layers")}
    given.update({"model": name, "precision": "fp32", **MODELS[name]})
    given.update({"backbone": str(tiny["opt"])} if name == "ST2SI" else {})
    given.update({"backbone": str(tiny["bert"])} if name == "IDLEAdapter" else {})
    fitted = quick_start.fit(Config(config_dict=given), place / "fitted")
    monkeypatch.setattr(Dataset, "build", BUILD)
    run = quick_start.run(settings=given)
    for key in ("valid", "history", "epochs", "best_epoch"):
        assert fitted[key] == run[key]
    finished = quick_start.run(resume=place / "fitted")
    assert (finished["test"], finished["history"]) == (run["test"], run["history"])


def test_test_file_may_be_missing(place):
    folder = place / "given"
    folder.mkdir()
    header = "user_id:token\titem_id_list:token_seq\titem_id:token\n"
    rows = [f"u{n}\t{ITEMS[n % 7]} {ITEMS[n % 5]}\t{ITEMS[n % 12]}\n" for n in range(24)]
    (folder / "given.train.inter").write_text(header + "".join(rows[:18]))
    (folder / "given.valid.inter").write_text(header + "".join(rows[18:]))
    given = settings(
        place, dataset="given", benchmark_filename=["train", "valid"], alias_of_item_id=["item_id_list"],
        load_col={"inter": ["user_id", "item_id_list", "item_id"]}, hidden_size=4,
    )  # fmt: skip
    assert len(quick_start.fit(Config(config_dict=given), place / "fitted")["history"]) == 2
    with pytest.raises(DataError, match="split into 2 parts"):
        quick_start.run(settings=given)


@pytest.mark.parametrize("storage", [None, "journal.log"])
def test_trials_run_without_test_data(place, without_test_data, monkeypatch, storage):
    given = {"params_file": "two.hyper", **({"storage": storage} if storage else {})}
    with pytest.raises(AssertionError, match="the test part was read"):
        tune(place, **given)  # the evaluation of the winner alone
    (file,) = (place / "saved").glob("tune-*/tune.json")
    before = json.loads(file.read_text())
    assert [trial["state"] for trial in before["trials"]] == ["complete"] * 2
    assert before["best"] is not None and not before["finished"] and before["test"] is None
    # With the test part back the same command trains nothing more.
    monkeypatch.setattr(Dataset, "build", BUILD)
    monkeypatch.setattr(quick_start, "fit", None)
    outcome = tune(place, **given)
    assert (outcome["trials"], outcome["best"]) == (before["trials"], before["best"])
    assert outcome["finished"] and outcome["test"]


def test_other_test_targets_choose_the_same(place):
    first = tune(place, out=place / "a", params_file="two.hyper")
    changed = histories()
    users = list(changed)[2:]
    for user in users:  # the last item alone: the test target
        changed[user] = [*changed[user][:-1], next(item for item in ITEMS if item not in changed[user])]
    write_dataset(place, changed, titles=None)
    second = tune(place, out=place / "b", params_file="two.hyper")
    for key in ("number", "state", "settings", "score", "valid", "history"):
        assert [trial[key] for trial in first["trials"]] == [trial[key] for trial in second["trials"]]
    assert first["best"] == second["best"]
    assert first["test"] != second["test"]


@pytest.mark.parametrize("engine", ["hyperopt", "optuna"])
@pytest.mark.parametrize("algo", ["exhaustive", "random", "bayes"])
def test_draws_follow_from_the_seed(place, engine, algo, monkeypatch):
    def known_scores(study, number, drawn, after_epoch=None):
        record = hyperopt_search.Record(number, "complete", drawn, score=-abs(np.log(drawn["learning_rate"]) + 4))
        study.store(record)
        return record

    monkeypatch.setattr(hyperopt_search, "run_trial", known_scores)
    monkeypatch.setattr(optuna_search, "run_trial", known_scores)
    monkeypatch.setattr(Study, "finish", lambda self, records: records)
    (place / "a.hyper").write_text(
        "learning_rate choice [0.001,0.002,0.005,0.01,0.02,0.05,0.1]\nhidden_size choice [4,8]"
    )
    if algo != "exhaustive":
        (place / "a.hyper").write_text("learning_rate loguniform -9,-1\nhidden_size choice [4,8]")

    def draw(name, seed):
        more = {"early_stop": 100} if engine == "hyperopt" else {"storage": f"{name}.log"}
        given = settings(place, seed=seed)
        found = tune(place, given, params_file=place / "a.hyper", algo=algo, trials=12, out=place / name, **more)
        return [record.settings for record in found]

    one, two, three = draw("one", 7), draw("two", 7), draw("three", 8)
    assert len(one) == 12 and one == two and one != three
    if algo == "exhaustive":
        assert len({tuple(row.values()) for row in one}) == 12


def test_early_stop_and_repeated_draws(place, capsys):
    (place / "a.hyper").write_text("learning_rate choice [0.01,0.05]")
    outcome = tune(place, params_file=place / "a.hyper", algo="random", trials=30, early_stop=4)
    assert len(outcome["trials"]) <= 2  # 30 draws of two settings
    assert "stopped after" in capsys.readouterr().out
    with StudyLock(outcome), pytest.raises(StorageError, match="another process is at the study"):
        tune(place, params_file=place / "a.hyper", algo="random", trials=30, early_stop=4)


class StudyLock:
    def __init__(self, outcome):
        from filelock import FileLock

        self.lock = FileLock(Path(outcome["path"]).parent / ".lock")

    def __enter__(self):
        self.lock.acquire()

    def __exit__(self, *_):
        self.lock.release()


def sasrec(place, **more):
    given = settings(place, model="SASRec", n_layers=1, hidden_size=8, inner_size=8, **more)
    return {k: v for k, v in given.items() if k not in ("embedding_size", "num_layers")}


@pytest.mark.parametrize("storage", [None, "journal.log"])
def test_failed_trials(place, storage):
    (place / "a.hyper").write_text("n_heads choice [3,2]")
    options = {"params_file": place / "a.hyper", "storage": storage}
    outcome = tune(place, sasrec(place), **options)
    (failed,) = [trial for trial in outcome["trials"] if trial["settings"]["n_heads"] == 3]
    assert failed["state"] == "failed" and "multiple of the number of attention heads" in failed["reason"]
    assert outcome["best"] != failed["number"]
    (place / "a.hyper").write_text("n_heads choice [3]")
    with pytest.raises(TrainingError, match=r"none of 1 trials is complete; trial 0: .*attention heads"):
        tune(place, sasrec(place), **options)


def test_bad_trials_are_pruned(place):
    rates = [0.05, 0.02, 0.01, 0.03, 0.04, 0.0, 0.000001, 0.06, 0.00001, 0.0000001]
    (place / "a.hyper").write_text(f"learning_rate choice {rates}".replace(", ", ","))
    outcome = tune(place, settings(place, epochs=3, hidden_size=8), params_file=place / "a.hyper", storage="j.log")
    trials = outcome["trials"]
    assert len(trials) == 10
    for trial in trials:
        # Optuna's median rule, once five trials are complete: the best so far is worse than the median at that epoch.
        before = [t for t in trials if t["number"] < trial["number"] and t["state"] == "complete"]
        scores = [entry["score"] for entry in trial["history"]]
        worse = [
            len(before) >= 5 and max(scores[: n + 1]) < np.median([t["history"][n]["score"] for t in before])
            for n in range(len(scores))
        ]
        assert (trial["state"] == "pruned") == worse[-1]
        assert not any(worse[:-1])
    assert any(trial["state"] == "pruned" for trial in trials)
    assert_only_the_winner_has_weights(outcome)


def test_winner_whose_weights_were_removed(place):
    first = tune(place, params_file="two.hyper")
    run = Path(first["path"]).parent / first["result"]
    for path in (run, run.parent / "model.safetensors"):
        path.unlink()
    again = tune(place, params_file="two.hyper")
    assert (again["trials"], again["best"], again["test"]) == (first["trials"], first["best"], first["test"])


def test_more_trials_go_on(place):
    first = tune(place, storage="j.log", trials=2, algo="random")
    second = tune(place, storage="j.log", trials=4, algo="random")
    assert second["path"] == first["path"]
    assert second["trials"][:2] == first["trials"] and len(second["trials"]) == 4
    (place / "elsewhere").mkdir()
    with pytest.raises(SettingError, match="belongs to another folder"):
        tune(place, storage="j.log", trials=4, algo="random", out=place / "other")
    assert optuna.study.get_all_study_names(optuna_search._open_storage("j.log")) != []


def test_defaults_are_tried_first_once(place):
    (place / "wide.hyper").write_text("learning_rate choice [0.0001,0.001,0.05]\nhidden_size choice [4,8,128]")
    plain = quick_start.run(settings=settings(place))
    options = {"params_file": place / "wide.hyper", "storage": "j.log", "algo": "random", "defaults_first": True}
    tune(place, trials=1, **options)
    outcome = tune(place, trials=4, **options)  # another worker, which finds the study begun
    first, *others = outcome["trials"]
    assert first["settings"] == {"learning_rate": 0.001, "hidden_size": 128}  # RecBole's of GRU4Rec
    assert first["valid"] == plain["valid"]
    assert len(others) == 3 and any(trial["settings"] != first["settings"] for trial in others)
    assert max(trial["score"] for trial in outcome["trials"]) >= first["score"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"algo": "exhaustiv"}, "did you mean 'exhaustive'"),
        ({"trials": 0}, "trials=0 must be a whole number from 1"),
        ({"pruner": "median"}, "needs --storage"),
        ({"storage": "a.log", "early_stop": 3}, "as many trials as planned"),
        ({"storage": "a.log", "pruner": "medain"}, "did you mean 'median'"),
        ({"params_file": "ranges.hyper"}, "exhaustive search tries every choice"),
        ({"defaults_first": True, "algo": "bayes"}, "with --storage"),
        ({"defaults_first": True, "storage": "a.log"}, "an exhaustive search tries them in any case"),
        ({"defaults_first": "yes", "storage": "a.log", "algo": "bayes"}, "defaults_first=yes must be True or False"),
        ({"defaults_first": True, "storage": "a.log", "algo": "bayes"}, r"its learning_rate=0.001 is not in what is"),
    ],
)
def test_bad_options(place, options, said):
    (place / "ranges.hyper").write_text("learning_rate uniform 0,1")
    with pytest.raises(SettingError, match=said):
        tune(place, **options)
    assert not (place / "saved").exists()


def test_storage_that_cannot_be_used(place):
    with pytest.raises(StorageError, match="cannot be used") as error:
        tune(place, storage="nosuch://user:secret@host/db")
    assert "secret" not in str(error.value)
    (place / "broken.log").write_text("not a journal\n\n")
    with pytest.raises(StorageError, match=r"broken\.log cannot be used"):
        tune(place, storage="broken.log")


@pytest.mark.parametrize(
    ("url", "module", "package"),
    [("postgresql://u:secret@h/a", "psycopg", r"'psycopg\[binary\]'"), ("mysql+pymysql://h/a", "pymysql", "pymysql")],
)
def test_a_missing_driver_of_a_database_is_named(place, monkeypatch, url, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        StorageError, match=rf"the database's driver is not installed \(pip install {package}\)$"
    ) as error:
        tune(place, storage=url)
    assert "secret" not in str(error.value)


def test_folder_of_another_study(place):
    tune(place, out=place / "out", trials=1)
    with pytest.raises(SettingError, match="its settings differs"):
        tune(place, settings(place, epochs=1), out=place / "out")
    with pytest.raises(SettingError, match=r"its study\.yaml differs"):
        tune(place, out=place / "small")
    assert read_yaml(place / "out" / "best.yaml")["model"] == "GRU4Rec"
