"""Weights belong to the users of their run where the model has learned each of them."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_data import HISTORIES, of_model, small_settings, write_dataset

from recbole_llm.errors import CheckpointError
from recbole_llm.quick_start.run import load, run
from recbole_llm.runs import checkpoint

# Without the user who knows all items: there must be one to sample.
KNOWN = {user: items for user, items in HISTORIES.items() if user != "u4"}
ADVICE = r"belong to other users than those of small, and .* has learned each of its users: train it again"


def settings_of(data_path, model, **settings):
    return {**small_settings(data_path, model=model), "epochs": 1, **of_model(model, {"embedding_size": 8}), **settings}


@pytest.fixture
def data(tmp_path):
    return write_dataset(tmp_path, KNOWN)


@pytest.fixture
def other_users(data):
    """The same histories, and so the same items under the same ids, of users of other names."""
    return {"data_path": str(write_dataset(data / "other", {f"v{user}": items for user, items in KNOWN.items()}))}


def forget_users(weights):
    """Make a file what an older version would have written."""
    with safe_open(weights, framework="pt") as file:
        header = file.metadata()
    save_file(load_file(weights), weights, {name: value for name, value in header.items() if name != "users"})
    return header


@pytest.mark.parametrize("model", ["BPR", "HGN", "ItemKNN"])
def test_rows_of_other_users_are_refused(data, other_users, model):
    folder = Path(run(settings=settings_of(data, model))["path"]).parent
    weights = load(folder).model.state_dict()
    with pytest.raises(CheckpointError, match=ADVICE):
        load(folder, other_users)
    header = forget_users(folder / "model.safetensors")
    assert "users" in header
    for settings in ({}, other_users):
        found = load(folder, settings).model.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())


def test_model_that_knows_no_users_takes_others(data, other_users):
    result = run(settings=settings_of(data, "GRU4Rec", hidden_size=8, train_neg_sample_args=None))
    parts, others = load(result["path"]), load(result["path"], other_users)
    for (mine, *_), (theirs, *_) in zip(parts.test, others.test, strict=True):
        assert torch.equal(parts.model.full_sort_predict(mine), others.model.full_sort_predict(theirs))


def test_state_of_other_users_is_refused(tmp_path):
    mine = {"model": "HGN", "dataset": "small", "items": "9", "catalogue": "c", "users": "u"}
    path = tmp_path / "resume.pt"
    checkpoint.save_resume(path, {"description": mine, "epoch": 3})
    assert checkpoint.load_resume(path, mine)["epoch"] == 3
    with pytest.raises(CheckpointError, match=r"belongs to another run: its users is u, this run's is v"):
        checkpoint.load_resume(path, {**mine, "users": "v"})
    older = {name: value for name, value in mine.items() if name != "users"}
    checkpoint.save_resume(path, {"description": older, "epoch": 4})
    assert checkpoint.load_resume(path, mine)["epoch"] == 4
    with pytest.raises(CheckpointError, match="its catalogue is c, this run's is d"):
        checkpoint.load_resume(path, {**mine, "catalogue": "d"})


def test_a_large_state_is_mapped(tmp_path, monkeypatch):
    path, weights = tmp_path / "resume.pt", torch.arange(5.0)
    checkpoint.save_resume(path, {"description": {}, "more": weights})
    load, mapped = torch.load, []

    def noting(*arguments, mmap, **options):
        mapped.append(mmap)
        return load(*arguments, mmap=mmap, **options)

    monkeypatch.setattr(torch, "load", noting)
    for most in (checkpoint._MAPPED_BYTES, path.stat().st_size - 1):
        monkeypatch.setattr(checkpoint, "_MAPPED_BYTES", most)
        found = checkpoint.load_resume(path, {})["more"]
        assert torch.equal(found, weights)
    assert mapped == [False, True]
    found += 1  # in memory: the file stays as it is
    assert torch.equal(checkpoint.load_resume(path, {})["more"], weights)
