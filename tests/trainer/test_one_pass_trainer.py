"""Whole runs with `train_positions`: what an epoch does, when training ends, and runs nested in others."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from atomic_files import quick_settings, write_atomic_files
from safetensors.torch import load_file
from small_data import build_parts, small_settings

from recbole_llm.config.config import Config
from recbole_llm.config.fingerprint import of_id_model
from recbole_llm.errors import TrainingError
from recbole_llm.quick_start.run import build, load, run
from recbole_llm.trainer.one_pass_trainer import OnePassTrainer

SMALL = {"hidden_size": 8, "inner_size": 8, "n_layers": 1, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_atomic_files(tmp_path_factory.mktemp("data") / "tiny")


def config_of(folder, **settings):
    return Config("SASRec", config_dict=quick_settings(folder, **{"train_positions": "all", **SMALL, **settings}))


def test_an_epoch_is_one_step_for_every_batch(folder, workdir):
    """Plain steps against the gradient, on the batches of the epoch, and the loss is the mean over all predictions."""
    settings = {"hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0, "train_batch_size": 16, "learner": "sgd"}
    first, second = (build(config_of(folder, **settings)) for _ in range(2))
    second.model.load_state_dict(first.model.state_dict())
    trainer = first.trainer(workdir)
    assert isinstance(trainer, OnePassTrainer)
    found = [trainer._train_epoch(first.train, epoch) for epoch in range(2)]
    weights = list(second.model.parameters())
    table = trainer.windows(first.train)
    expected = []
    for epoch in range(2):
        total, seen = 0.0, 0
        for width, windows in table.epoch(first.config["seed"], epoch):
            histories, labels = table.rows(windows, width)
            loss = second.model.positions_loss(histories, labels)
            gradients = torch.autograd.grad(loss, weights)
            with torch.no_grad():
                for weight, gradient in zip(weights, gradients, strict=True):
                    weight -= 0.01 * gradient
            total += loss.item() * int((labels > 0).sum())
            seen += int((labels > 0).sum())
        assert seen == table.predictions == len(first.train._dataset)
        expected.append(total / seen)
    assert table.batches > 2
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    for name, weight in second.model.named_parameters():
        torch.testing.assert_close(dict(first.model.named_parameters())[name], weight, rtol=1e-5, atol=1e-7)


def test_batches_are_histories_unless_it_is_said_otherwise(folder):
    settings = {name: value for name, value in quick_settings(folder).items() if name != "train_batch_size"}
    assert Config("SASRec", config_dict={**settings, "train_positions": "all"})["train_batch_size"] == 16
    assert Config("SASRec", config_dict=settings)["train_batch_size"] == 2048
    assert config_of(folder)["train_batch_size"] == 256


def test_training_ends_when_validation_does_not_improve(folder, workdir):
    """`stopping_step` epochs in a row and one more are worse than the best, as in RecBole, and the best is kept."""
    result = run("SASRec", settings=quick_settings(
        folder, **{**SMALL, "learning_rate": 0.1}, train_positions="all", epochs=50, stopping_step=1
    ))  # fmt: skip
    found = json.loads(Path(result["path"]).read_text())
    scores = [entry["valid"]["ndcg@10"] for entry in found["history"]]
    assert len(scores) < 50
    assert scores[-1] < scores[-3] and scores[-2] < scores[-3]
    assert found["best_epoch"] == len(scores) - 3
    assert found["valid"]["ndcg@10"] == scores[-3] == max(scores)


def test_weights_serve_a_run_of_rows(folder, workdir):
    """A run of all positions is loaded as one of the last alone, and scores the same."""
    result = run("SASRec", settings=quick_settings(folder, **SMALL, train_positions="all", epochs=2))
    place = Path(result["path"]).parent
    rows = build(config_of(folder, train_positions="last"))
    rows.model.load_state_dict(load_file(place / "model.safetensors"))
    every = load(place)
    batch = next(iter(every.test))[0]
    with torch.no_grad():
        scores = every.model.eval().full_sort_predict(batch), rows.model.eval().full_sort_predict(batch)
    assert torch.equal(*scores)


def test_a_loss_that_is_no_number_ends_training(folder, workdir):
    parts = build(config_of(folder, epochs=2))
    parts.model.item_embedding.weight.data[3] = float("nan")
    with pytest.raises(TrainingError, match="the training loss of SASRec is not a number in epoch 0"):
        parts.trainer(workdir).fit(parts.train, parts.valid)


def test_gradients_are_clipped(folder, workdir):
    parts = build(config_of(folder, clip_grad_norm={"max_norm": 1e-3}))
    parts.trainer(workdir)._train_epoch(parts.train, 0)
    norms = torch.stack([weight.grad.norm() for weight in parts.model.parameters() if weight.grad is not None])
    assert norms.norm().item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("model", ["IDLEAdapter", "ST2SI"])
def test_id_model_of_all_positions(small, tiny, model):
    """It is another model than that of rows, and found again."""
    own = {"IDLEAdapter": {"backbone": str(tiny["bert"]), "max_prompt_tokens": 128},
           "ST2SI": {"backbone": str(tiny["llama"]), "tuning": "ilp"}}[model]  # fmt: skip

    def id_folder(**id_settings):
        settings = small_settings(
            small, model=model, id_model="SASRec", MAX_ITEM_LIST_LENGTH=6, epochs=1,
            id_model_settings={**SMALL, "epochs": 1, **id_settings}, **own,
        )  # fmt: skip
        before = set((small / "saved").glob("id-*"))
        run(settings=settings)
        return set((small / "saved").glob("id-*")) - before

    (rows,) = id_folder()
    (every,) = id_folder(train_positions="all")
    assert not id_folder(train_positions="all")
    weights = [load_file(place / "model.safetensors")["item_embedding.weight"] for place in (rows, every)]
    assert not torch.equal(*weights)


def test_settings_hash_of_an_id_model_names_it(small):
    merged = [build_parts(small, model="SASRec", **more).config.merged for more in ({}, {"train_positions": "all"})]
    rows, every = (of_id_model(settings, "SASRec") for settings in merged)
    assert "train_positions" not in rows  # what was stored before is still found
    assert every["train_positions"] == "all"


@pytest.mark.gpu
@pytest.mark.parametrize("loss_type", ["CE", "BPR", "gBCE", "SampledCE"])
@pytest.mark.parametrize("model", ["SASRec", "GRU4Rec"])
def test_steps_from_a_graph_are_the_plain_ones(folder, workdir, model, loss_type):
    """Epochs of batches of several widths, with dropout: the same random numbers, losses and weights."""
    own = SMALL if model == "SASRec" else {"hidden_size": 8, "embedding_size": 8, "learning_rate": 0.01}
    found = []
    for replays in (True, False):
        settings = {"use_gpu": True, "train_positions": "all", "train_batch_size": 8, "loss_type": loss_type,
                    "num_negatives": 5, "MAX_ITEM_LIST_LENGTH": 20, **own}  # fmt: skip
        parts = build(Config(model, config_dict=quick_settings(folder, **settings)))
        trainer = parts.trainer(workdir)
        assert trainer._replays
        trainer._replays = replays
        torch.manual_seed(0)
        losses = [trainer._train_epoch(parts.train, epoch) for epoch in range(3)]
        assert len(trainer.windows(parts.train).widths) > 2
        assert all(graph._graph is not None for graph in trainer._graphs.values())
        assert len(trainer._graphs) == (len(trainer.windows(parts.train).widths) if replays else 0)
        found.append((losses, dict(parts.model.named_parameters())))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-4)
    for name, weight in found[0][1].items():
        torch.testing.assert_close(weight, found[1][1][name], rtol=1e-2, atol=1e-3)
