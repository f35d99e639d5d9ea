"""Runs that version 0.1.0 left: with old names of settings and of weights, they are loaded and resumed as before."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_data import small_settings
from testing.interruption import interrupted_after_first_epoch

from recbole_llm.errors import CheckpointError
from recbole_llm.quick_start.run import load, run

OLD_NAMES = {
    "ST2SI": {"max_items": "max_window_items", "head_dropout": "ilp_dropout"},
    "IDLEAdapter": {"max_items": "max_prompt_items", "tuning": "backbone_tuning"},
}
LEFT = {
    "ST2SI": {"ilp_learning_rate": None, "label_smoothing": 0.0, "id_states": False, "initial_projection": None},
    "IDLEAdapter": {"mmd_rho": "median", "prefixes_per_user": None},
}


@pytest.fixture
def settings_of(small, rough_models, id_runs):
    def make(model, **more):
        own = {
            "ST2SI": {"backbone": str(rough_models["llama"]), "tuning": "ilp", "head_dropout": 0.1},
            "IDLEAdapter": {"backbone": str(rough_models["bert"]), "tuning": "lora", "lora_rank": 2,
                            "id_model_path": id_runs(), "max_prompt_tokens": 128},
        }[model]  # fmt: skip
        shared = {"model": model, "max_items": 2, "epochs": 3, "MAX_ITEM_LIST_LENGTH": 6, "learning_rate": 0.01}
        settings = small_settings(small, **{**shared, "train_batch_size": 8, "resume_seconds": 0, **own, **more})
        return settings

    return make


def age(folder, **more):
    """Write a run's settings and weights as version 0.1.0 did."""
    stored = yaml.safe_load((folder / "config.yaml").read_text())
    old = OLD_NAMES[stored["model"]]
    aged = {old.get(name, name): value for name, value in stored.items()} | LEFT[stored["model"]] | more
    assert len(aged) > len(stored)
    (folder / "config.yaml").write_text(yaml.safe_dump(aged))
    if stored["model"] != "IDLEAdapter":
        return
    with safe_open(folder / "model.safetensors", "pt") as file:
        header = file.metadata()
    weights = load_file(folder / "model.safetensors")
    weights["head.weight"] = weights.pop("projection.weight")
    save_file(weights, folder / "model.safetensors", header)
    if (folder / "resume.pt").exists():
        state = torch.load(folder / "resume.pt", weights_only=True)
        state["model"]["head.weight"] = state["model"].pop("projection.weight")
        torch.save(state, folder / "resume.pt")


def scores(folder):
    parts = load(folder)
    with torch.no_grad():
        return torch.cat([parts.model.full_sort_predict(interaction) for interaction, *_ in parts.test])


@pytest.mark.parametrize("model", OLD_NAMES)
def test_a_finished_run_scores_as_before(settings_of, model):
    folder = Path(run(settings=settings_of(model))["path"]).parent
    expected = scores(folder)
    age(folder)
    assert torch.equal(scores(folder), expected)
    assert load(folder).config["max_items"] == 2


@pytest.mark.parametrize("model", OLD_NAMES)
def test_an_interrupted_run_ends_as_the_uninterrupted(settings_of, small, model):
    whole = run(settings=settings_of(model))
    with interrupted_after_first_epoch():
        run(settings=settings_of(model), folder=small / "half")
    age(small / "half")
    resumed = run(resume=small / "half")
    assert resumed["history"] == whole["history"] and resumed["test"] == whole["test"]
    assert not set(OLD_NAMES[model].values()) & resumed["settings"].keys(), "stored under today's names"


def test_a_run_with_what_left_is_loaded_or_refused(settings_of):
    folder = Path(run(settings=settings_of("ST2SI", epochs=1))["path"]).parent
    expected = scores(folder)
    age(folder, label_smoothing=0.1, train_window="mixed")
    assert torch.equal(scores(folder), expected), "the training alone was different"
    age_again = yaml.safe_load((folder / "config.yaml").read_text()) | {"id_states": True}
    (folder / "config.yaml").write_text(yaml.safe_dump(age_again))
    with pytest.raises(CheckpointError, match=r"has id_states=True, which left after version 0.1.0"):
        load(folder)
    (folder / "result.json").unlink()
    (folder / "config.yaml").write_text(yaml.safe_dump(age_again | {"id_states": False}))
    with pytest.raises(CheckpointError, match=r"has (label_smoothing=0.1|train_window=mixed), which left"):
        run(resume=folder)


def test_frozen_and_ilp_are_one_tuning_of_st2si(settings_of):
    ilp, frozen = (run(settings=settings_of("ST2SI", tuning=tuning)) for tuning in ("ilp", "frozen"))
    assert ilp["history"] == frozen["history"] and ilp["test"] == frozen["test"]
    assert ilp["parameters"] == frozen["parameters"]
    assert (Path(frozen["path"]).parent / "scenario.safetensors").is_file()
