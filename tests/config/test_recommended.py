"""properties/tuned and properties/recommended say what the kept studies and runs were made with."""

import json
from pathlib import Path

import pytest
from kept_runs import KEPT_RUNS
from small_data import write_dataset

from recbole_llm.config import renamed
from recbole_llm.config.config import Config
from recbole_llm.runs.archive import read_archive
from recbole_llm.utils.files import read_yaml
from recbole_llm.utils.paths import shipped

ROOT = Path(__file__).resolve().parents[2]
RECOMMENDED = shipped("properties") / "recommended"
TUNED = {
    (path.stem, model): settings
    for path in sorted((shipped("properties") / "tuned").glob("*.yaml"))
    for model, settings in read_yaml(path).items()
}
# The label of the kept runs that a file made.
MADE = {
    "scientific-st2si": "Scientific/ST2SI-LoRA-SASRec-one-pass",
    "scientific-st2si-ilp": "Scientific/ST2SI-ILP-last-item-SASRec-one-pass",
    "scientific-st2si-idleadapter": "Scientific/ST2SI-LoRA-IDLEAdapter-ComiRec-texts",
    "scientific-st2si-idleadapter-fdsa": "Scientific/ST2SI-IDLEAdapter-FDSA",
    "scientific-st2si-ilp-idleadapter-fdsa": "Scientific/ST2SI-ILP-last-item-IDLEAdapter-FDSA",
    "scientific-idleadapter": "Scientific/IDLEAdapter-last-item-ComiRec-texts",
    "scientific-idleadapter-two-items": "Scientific/IDLEAdapter-ComiRec-24-trials",
    "scientific-textslit": "Scientific/TextSLIT-rerank-TextInitSASRec",
    "games-textslit": "Games/TextSLIT-rerank-TextInitSASRec",
    "games-st2si-ilp": "Games/ST2SI-ILP-last-item-ComiRec-texts",
    "games-st2si-idleadapter": "Games/ST2SI-LoRA-IDLEAdapter-texts",
    "games-st2si-ilp-idleadapter": "Games/ST2SI-ILP-last-item-IDLEAdapter",
    "games-idleadapter": "Games/IDLEAdapter-last-item-ComiRec-texts",
    "ml-1m-idleadapter": "ml-1m/IDLEAdapter-two-items-SASRec-left-out",
    "ml-1m-idleadapter-fdsa": "ml-1m/IDLEAdapter-two-items-FDSA",
}
# Whose scores a file mixes in.
ID_RUNS = {
    "scientific-st2si": "Scientific/SASRec-one-pass-20-trials",
    "scientific-st2si-ilp": "Scientific/SASRec-one-pass-20-trials",
    "scientific-st2si-idleadapter": "Scientific/IDLEAdapter-last-item-ComiRec-texts",
    "scientific-st2si-idleadapter-fdsa": "Scientific/IDLEAdapter-last-item-FDSA",
    "scientific-st2si-ilp-idleadapter-fdsa": "Scientific/IDLEAdapter-last-item-FDSA",
    "scientific-idleadapter": "Scientific/ComiRec-two-interests",
    "scientific-idleadapter-two-items": "Scientific/ComiRec-two-interests",
    "scientific-textslit": "Scientific/TextInitSASRec-10-epochs",
    "games-textslit": "Games/TextInitSASRec-20-epochs",
    "games-st2si-ilp": "Games/ComiRec-20-trials",
    "games-st2si-idleadapter": "Games/IDLEAdapter-last-item-ComiRec-texts",
    "games-st2si-ilp-idleadapter": "Games/IDLEAdapter-last-item-ComiRec",
    "games-idleadapter": "Games/ComiRec-20-trials",
    "ml-1m-idleadapter": "ml-1m/SASRec-left-out",
    "ml-1m-idleadapter-fdsa": "ml-1m/FDSA",
}
# The ID model of that ID model, where it is not the run with the model's name.
INNER_RUNS = {
    "scientific-st2si-idleadapter": "Scientific/ComiRec-two-interests",
    "games-st2si-idleadapter": "Games/ComiRec-20-trials",
}
# The labels of the kept runs with the settings of files `-unseen`; those of the others are the models' names.
UNSEEN = {
    "SASRec": "SASRec-one-pass-20-trials",
    "GRU4Rec": "GRU4Rec-one-pass-20-trials",
    "ComiRec": "ComiRec-20-trials",
    "FPMC": "FPMC-left-out",
}
# Not a study's best, but better on validation over three seeds than the winners of the studies, whose labels are given.
BETTER_OVER_SEEDS = {
    ("Scientific", "ComiRec"): {"comirec-scientific-1": "ComiRec-search-1", "comirec-scientific-2": "ComiRec-default"},
    ("ml-1m", "SASRec"): {"sasrec-ml-1m": "SASRec-quarter"},
}
# What ships of such a study is this trial.
SHIPPED_TRIALS = {("ml-1m", "SASRec"): 4}
# A search whose trials were ended sooner than the runs on all rows.
SHORTER_SEARCHES = {("ml-1m", "Caser"): {"stopping_step": 4}}
# Neither a limit nor validation ended these, but the time there was; results/baselines.md says so.
OUT_OF_TIME = {("ml-1m", "BERT4Rec")}


def kept_results(label):
    dataset, _, label = label.partition("/")
    return [run.result for run in read_archive(KEPT_RUNS / f"{dataset}.parquet") if run.label == label]


def kept_settings(label):
    return [renamed.translate(result["settings"]) for result in kept_results(label)]


def differing(settings, kept):
    return {name: (value, kept.get(name)) for name, value in settings.items() if kept.get(name) != value}


def assert_made_by(dataset, model, study, trial):
    settings = {**study["settings"], **trial["settings"]}
    settings.pop("show_progress", None)
    tuned = dict(TUNED[dataset, model])
    if settings.pop("train_share", None):  # of the search alone, whose epochs were shorter
        assert tuned.pop("epochs") >= settings.pop("epochs")
    for name, value in SHORTER_SEARCHES.get((dataset, model), {}).items():
        assert settings.pop(name) == value < tuned.pop(name)
    assert tuned == settings


@pytest.mark.parametrize(("dataset", "model"), sorted(TUNED.keys() - BETTER_OVER_SEEDS.keys()))
def test_tuned_settings_are_those_of_the_best_trial(dataset, model):
    study = json.loads((ROOT / "results" / "tune" / f"{model}-{dataset}.json".lower()).read_text())
    trials = {trial["number"]: trial for trial in study["trials"]}
    best = max((t for t in trials.values() if t["score"] is not None), key=lambda t: t["score"])
    assert trials[study["best"]]["score"] == best["score"]
    assert_made_by(dataset, model, study, trials[study["best"]])


@pytest.mark.parametrize(("dataset", "model"), SHIPPED_TRIALS)
def test_what_ships_in_the_place_of_the_best_trial_is_the_second_best(dataset, model):
    study = json.loads((ROOT / "results" / "tune" / f"{model}-{dataset}.json".lower()).read_text())
    ranked = sorted((t for t in study["trials"] if t["score"] is not None), key=lambda t: -t["score"])
    assert ranked[1]["number"] == SHIPPED_TRIALS[dataset, model]
    assert_made_by(dataset, model, study, ranked[1])


@pytest.mark.parametrize(("dataset", "model"), BETTER_OVER_SEEDS)
def test_what_no_study_found_is_better_on_validation_than_what_they_found(dataset, model):
    def mean(label):
        scores = [result["valid"]["ndcg@10"] for result in kept_results(f"{dataset}/{label}")]
        assert len(scores) == 3
        return sum(scores) / 3

    for name, label in BETTER_OVER_SEEDS[dataset, model].items():
        study = json.loads((ROOT / "results" / "tune" / f"{name}.json").read_text())
        winner = {trial["number"]: trial for trial in study["trials"]}[study["best"]]
        assert all(not differing(winner["settings"], settings) for settings in kept_settings(f"{dataset}/{label}"))
        assert mean(model) > mean(label)


@pytest.mark.parametrize(("dataset", "model"), TUNED)
def test_kept_runs_have_the_tuned_settings(dataset, model):
    name = dataset.removesuffix("-unseen")
    unseen = dataset.endswith("-unseen")
    kept = kept_results(f"{name}/{UNSEEN[model] if unseen else model}")
    assert kept
    for result in kept:
        assert (result.get("protocol", {}).get("repeatable") is False) == unseen
        tuned = dict(TUNED[dataset, model])
        if result["epochs"] < tuned["epochs"]:  # validation ended it before either limit
            waited = result["epochs"] - 1 - result["best_epoch"]
            assert waited > result["settings"]["stopping_step"] or (dataset, model) in OUT_OF_TIME
            del tuned["epochs"]
        assert not differing(tuned, result["settings"])


@pytest.mark.parametrize("name", MADE)
def test_kept_runs_have_the_recommended_settings(name):
    settings = read_yaml(RECOMMENDED / f"{name}.yaml")
    id_settings = {**settings.pop("id_model_settings"), "model": settings["id_model"]}
    kept = kept_settings(MADE[name])
    assert kept
    for run in kept:
        assert not differing(settings, run)
    of_its_id_model = id_settings.pop("id_model_settings", None)
    for run in kept_settings(ID_RUNS[name]):
        assert not differing(id_settings, run)
    if of_its_id_model:  # an ID model with an ID model
        inner = kept_settings(INNER_RUNS.get(name, f"{settings['dataset']}/{id_settings['id_model']}"))
        assert inner
        for run in inner:
            assert not differing(of_its_id_model, run)


@pytest.mark.parametrize("name", MADE)
def test_recommended_files_are_runs(name, tmp_path):
    """Every setting is known, so that a misspelt one cannot be left unread."""
    dataset = read_yaml(RECOMMENDED / f"{name}.yaml")["dataset"]
    here = {"data_path": str(write_dataset(tmp_path, name=dataset))}
    config = Config(config_file_list=[RECOMMENDED / f"{name}.yaml"], config_dict=here)
    assert config["model"] == read_yaml(RECOMMENDED / f"{name}.yaml")["model"]
    own = Config(config_dict={"model": config["id_model"], "dataset": dataset, **config["id_model_settings"], **here})
    assert not differing(config["id_model_settings"], own.final_config_dict)


def test_files_that_are_no_runs_are_known():
    others = {"ml-100k-cpu", "packaged"}
    assert {path.stem for path in RECOMMENDED.glob("*.yaml")} == others | set(MADE)
