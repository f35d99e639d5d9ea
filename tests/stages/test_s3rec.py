"""S3Rec's two stages in one run, and its pre-training data."""

import copy
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from atomic_files import quick_settings, write_atomic_files
from recbole.model.sequential_recommender import S3Rec as RecBolesS3Rec
from recbole.utils import init_seed
from safetensors.torch import load_file

from recbole_llm.config import registry
from recbole_llm.config.config import Config
from recbole_llm.data.build import file_hashes
from recbole_llm.data.fingerprint import FINGERPRINT, run_fingerprint
from recbole_llm.errors import SettingError
from recbole_llm.quick_start.run import build, fit, load, run
from recbole_llm.stages import s3rec
from recbole_llm.utils.files import read_yaml

QUICK = {"pretrain_epochs": 2, "hidden_size": 16, "inner_size": 16, "n_layers": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_atomic_files(tmp_path_factory.mktemp("data") / "tiny", users=30, items=30)


@pytest.fixture
def trainings(monkeypatch):
    """The pre-trainings that were made, not found."""
    found = []
    real = s3rec._pretrain

    def pretrain(config, context, runner):
        found.append(context.folder)
        real(config, context, runner)

    monkeypatch.setattr(s3rec, "_pretrain", pretrain)
    return found


def settings_of(data, **more):
    return quick_settings(data, **{**QUICK, **more})


def test_one_run_is_recboles_two(data, workdir, trainings):
    once = run("S3Rec", settings=settings_of(data))
    first = run("S3Rec", settings=settings_of(data, train_stage="pretrain"))
    start = Path(first["path"]).parent
    second = run("S3Rec", settings=settings_of(data, train_stage="finetune", pre_model_path=str(start)))
    assert len(trainings) == 1
    assert {k: once[k] for k in ("valid", "test", "history")} == {k: second[k] for k in ("valid", "test", "history")}
    pretrained, alone = (load_file(folder / "model.safetensors") for folder in (trainings[0], start))
    assert all(torch.equal(pretrained[name], alone[name]) for name in alone)
    assert once["seconds"]["pretrain"] > 0
    stored = read_yaml(Path(once["path"]).parent / "config.yaml")
    assert (stored["train_stage"], stored["pre_model_path"]) == ("finetune", str(trainings[0]))


def test_a_resumed_run_depends_on_what_the_started_one_did(data, workdir):
    """Though it begins with the settings that its stage has found; with another setting it is another run."""
    settings = settings_of(data, epochs=1)
    config = Config("S3Rec", config_dict=settings)
    for name, more in (("same", {}), ("other", {"attn_dropout_prob": 0.1})):
        fit(Config("S3Rec", config_dict=settings), workdir / name)
        result = run(resume=workdir / name, settings=more)
        assert (result["fingerprint"] == run_fingerprint(config.merged, file_hashes(config))) == (name == "same")
        assert not (workdir / name / FINGERPRINT).exists()


def test_pretraining_is_found_by_what_shapes_it(data, workdir):
    def shape(folder=data, **settings):
        return s3rec.shape(Config("S3Rec", config_dict=settings_of(folder, **settings)))

    same = {
        "topk": [3],
        "valid_metric": "NDCG@3",
        "save_step": 1,
        "loss_type": "BPR",
        "epochs": 2,
        "train_stage": "both",
    }
    assert shape(**same) == shape()
    for other in ({"seed": 1}, {"mask_ratio": 0.5}, {"item_attribute": "category"}, {"MAX_ITEM_LIST_LENGTH": 7}):
        assert shape(**other) != shape(), other
    again = write_atomic_files(workdir / "tiny", users=30, items=30)
    assert shape(again) == shape()  # the same files elsewhere
    before = shape(again, benchmark_filename=["train", "valid", "test"])
    (again / "tiny.train.inter").write_text("user_id:token\titem_id:token\nu\ti\n")
    assert shape(again, benchmark_filename=["train", "valid", "test"]) != before
    assert shape(write_atomic_files(workdir / "2" / "tiny", users=30, items=30, seed=1)) != shape()


def test_a_killed_pretraining_is_made_again(data, workdir, monkeypatch):
    def end(self, *arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RecBolesS3Rec, "pretrain", end)
        registry.model_class("S3Rec")
        with pytest.raises(KeyboardInterrupt):
            run("S3Rec", settings=settings_of(data))
    (folder,) = Path("saved").glob("pretrain-S3Rec-tiny-*")
    assert not (folder / "model.safetensors").exists()
    assert list(Path("saved").glob("[!.]*")) == [folder]  # the run itself left nothing
    run("S3Rec", settings=settings_of(data))
    assert (folder / "model.safetensors").exists()


def test_finished_run_is_loaded_without_its_pretraining(data, workdir):
    result = run("S3Rec", settings=settings_of(data))
    for folder in Path("saved").glob("pretrain-*"):
        shutil.rmtree(folder)
    parts = load(result["path"])
    trainer = parts.trainer()
    assert trainer.evaluate(parts.test, load_best_model=False) == result["test"]


def test_unknown_stage_is_refused(data, workdir):
    with pytest.raises(SettingError, match=r"train_stage=finetun must be .*; did you mean 'finetune'"):
        run("S3Rec", settings=settings_of(data, train_stage="finetun"))


@pytest.mark.parametrize("column", ["category", "class"])
def test_pretraining_data_is_recboles(column, data, workdir):
    """The same rows and the same random draws, for items with one value and with several."""
    config = Config("S3Rec", config_dict=settings_of(data, train_stage="pretrain", item_attribute=column))
    parts = build(config)
    rows = parts.train.dataset[np.arange(40)]
    arguments = (rows["item_id_list"], rows["item_length"])
    ours = parts.model.reconstruct_pretrain_data
    theirs = RecBolesS3Rec.reconstruct_pretrain_data
    init_seed(7, True)
    expected = theirs(parts.model, *arguments)
    drawn = random.random()
    init_seed(7, True)
    before = copy.copy(parts.model.__dict__)
    found = ours(*arguments)
    assert random.random() == drawn
    assert before.keys() == parts.model.__dict__.keys() and parts.model.n_features == before["n_features"]
    assert expected[0].sum() > 40
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.long(), other)
