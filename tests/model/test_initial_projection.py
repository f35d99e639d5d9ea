"""The projection first, then the whole model: training starts from what ILP tuning left."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_data import HISTORIES, small_settings, write_dataset
from tiny_models import tiny_llama

from recbole_llm.config.config import Config
from recbole_llm.errors import CheckpointError
from recbole_llm.quick_start import run as quick_start


@pytest.fixture
def settings_of(small, tiny):
    def make(**more):
        defaults = {"backbone": str(tiny["llama"]), "epochs": 3, "learning_rate": 0.05, "topk": [1, 2], "tuning": "ilp"}
        defaults |= {"valid_metric": "NDCG@2", "warmup_steps": 0, "train_batch_size": 4}
        return small_settings(small, **{**defaults, **more})

    return make


@pytest.fixture
def first(settings_of):
    """The scenario file of a finished run with ILP tuning."""
    return Path(quick_start.run(settings=settings_of())["path"]).parent / "scenario.safetensors"


def projection_of(result):
    return load_file(Path(result["path"]).parent / "model.safetensors")["projection.weight"]


@pytest.mark.parametrize("tuning", ["full", "lora", "ilp"])
@pytest.mark.parametrize("more", [{}, {"weight_average": 0.5}, {"MAX_ITEM_LIST_LENGTH": 2}], ids=str)
def test_training_starts_from_the_projection(settings_of, first, tuning, more):
    """With a rate of nearly nothing the run ends with the projection that it was given, not with a drawn one."""
    given = settings_of(tuning=tuning, epochs=1, learning_rate=1e-12, initial_projection=str(first), **more)
    found = projection_of(quick_start.run(settings=given))
    assert torch.allclose(found, load_file(first)["projection"], atol=1e-6)
    drawn = projection_of(quick_start.run(settings={**given, "initial_projection": None}))
    assert (drawn - found).abs().max() > 0.05


def test_whole_model_starts_where_the_projection_ended(settings_of, first):
    """Before any step the whole model, LoRA and the projection alone have the same loss, which is not a drawn one's."""
    shared = {"epochs": 1, "learning_rate": 1e-12, "train_window": "full", "backbone_dropout": 0.0}

    def loss(tuning, file):
        settings = settings_of(**shared, tuning=tuning, initial_projection=file)
        return quick_start.run(settings=settings)["history"][0]["train_loss"]

    started = loss("ilp", str(first))
    assert loss("full", str(first)) == pytest.approx(started, rel=1e-5)
    assert loss("lora", str(first)) == pytest.approx(started, rel=1e-5)
    assert loss("ilp", None) != pytest.approx(started, rel=1e-3)


def test_finished_run_needs_the_file_no_more(settings_of, first):
    result = quick_start.run(settings=settings_of(tuning="lora", epochs=1, initial_projection=str(first)))
    first.unlink()
    loaded = quick_start.load(Path(result["path"]).parent)
    assert torch.equal(loaded.model.projection.weight, projection_of(result))


def test_what_does_not_fit_is_refused(settings_of, first, small, tmp_path):
    given = {"tuning": "lora", "epochs": 1, "initial_projection": str(first)}
    other = tiny_llama(tmp_path / "other", seed=5)
    wrong = [
        ({"backbone": str(other)}, "the scenario of small belongs to the backbone"),
        ({"query_token": ","}, "reads the states of the query token '.', but query_token=,: give both the same"),
        (
            {"initial_projection": str(tmp_path / "none")},
            "there is no scenario .*none: ILP tuning without an id model leaves one",
        ),
    ]
    for more, message in wrong:
        with pytest.raises(CheckpointError, match=message):
            quick_start.run(settings=settings_of(**{**given, **more}))
    write_dataset(small, dict(reversed(HISTORIES.items())))
    with pytest.raises(CheckpointError, match="in another order"):
        quick_start.run(settings=settings_of(**given))


def test_interrupted_training_goes_on_without_the_file(settings_of, first, tmp_path):
    """What was trained since is not replaced by the projection that it began with, nor is that asked for again."""
    settings = settings_of(tuning="lora", epochs=3, initial_projection=str(first), resume_seconds=0)
    expected = quick_start.fit(Config(config_dict=settings), tmp_path / "whole")["history"]

    def interrupt(epoch, _):
        if epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quick_start.fit(Config(config_dict=settings), tmp_path / "run", callback=interrupt)
    first.unlink()
    assert quick_start.fit(Config(config_dict=settings), tmp_path / "run")["history"] == expected
