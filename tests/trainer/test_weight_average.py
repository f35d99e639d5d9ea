"""The moving average of the weights against its recurrence in float64, and where it takes the place of the weights."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_data import build_parts

from recbole_llm.errors import CheckpointError, SettingError
from recbole_llm.runs import checkpoint
from recbole_llm.trainer.weight_average import WeightAverage

RUN = {
    "train_batch_size": 4, "learning_rate": 0.02, "warmup_steps": 2, "lr_scheduler": "constant", "epochs": 3,
    "resume_seconds": 10**6,
}  # fmt: skip
KINDS = {
    "ilp": {"tuning": "ilp"},
    "full": {"tuning": "full"},
    "bf16": {"tuning": "full", "weights": "bf16", "precision": "bf16"},
}


@pytest.fixture
def trainer_of(small, tiny):
    def make(kind="ilp", folder=None, **settings):
        parts = build_parts(small, backbone=str(tiny["llama"]), **{**RUN, **KINDS[kind], **settings})
        if folder is not None:
            folder.mkdir()
        trainer = parts.trainer(folder)
        trainer.precompute(parts.valid, parts.test)
        return parts, trainer

    return make


def weights_of(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


def trained_by(trainer):
    """What the optimiser updates: in float32, whatever the model holds."""
    return [weight.detach().clone() for group in trainer.optimizer.param_groups for weight in group["params"]]


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    assert found
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name


def recorded(trainer):
    """Record what the optimiser updates, at the start and after every step."""
    step, record = trainer._step, [trained_by(trainer)]

    def recording(*arguments):
        loss = step(*arguments)
        record.append(trained_by(trainer))
        return loss

    trainer._step = recording
    return record


@pytest.mark.parametrize(("kind", "decay"), [("ilp", 0.3), ("ilp", 0.999), ("full", 0.5), ("bf16", 0.5)])
def test_average_follows_the_recurrence(trainer_of, kind, decay):
    parts, trainer = trainer_of(kind, weight_average=decay)
    assert bool(trainer.masters.low) == (kind == "bf16")
    record = recorded(trainer)
    for epoch in range(3):
        trainer._train_epoch(parts.train, epoch)
    assert len(record) == 3 * trainer.steps + 1 > 10
    expected = [weight.double().numpy() for weight in record[0]]
    for step, weights in enumerate(record[1:], start=1):
        d = min(decay, (1 + step) / (10 + step))
        expected = [d * a + (1 - d) * w.double().numpy() for a, w in zip(expected, weights, strict=True)]
    for found, wanted in zip(trainer.average.averages, expected, strict=True):
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), wanted, atol=1e-6)
    assert max(float((a - w).abs().max()) for a, w in zip(trainer.average.averages, record[-1], strict=True)) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_on_from_the_plain_weights_and_the_average_is_kept(trainer_of, tmp_path, kind):
    """Every epoch is evaluated and stored with the average, and training does not notice that there is one."""
    plain_parts, plain = trainer_of(kind, tmp_path / "plain", valid_metric="NDCG@3")
    plain.fit(plain_parts.train, plain_parts.valid)
    parts, trainer = trainer_of(kind, tmp_path / "average", weight_average=0.9, valid_metric="NDCG@3")
    averages, scored, best = [], [], []
    evaluate, snapshot = trainer.evaluate, checkpoint.snapshot

    def evaluated(*arguments, **named):
        scored.append(weights_of(parts.model))
        averages.append([average.clone() for average in trainer.average.averages])
        return evaluate(*arguments, **named)

    trainer.evaluate = evaluated
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "snapshot", lambda *parts: best.append(snapshot(*parts)) or best[-1])
        trainer.fit(parts.train, parts.valid)
    assert [entry["train_loss"] for entry in trainer.history] == [entry["train_loss"] for entry in plain.history]
    assert_equal(weights_of(parts.model), weights_of(plain_parts.model))
    names = {id(weight): name for name, weight in parts.model.named_parameters()}
    order = [names[id(w)] for group in parts.model.parameter_groups() for w in group["params"]]
    for weights, average in zip(scored, averages, strict=True):
        dtypes = {name: weights[name].dtype for name in order}
        wanted = {name: a.to(dtypes[name]) for name, a in zip(order, average, strict=True)}
        assert_equal(weights, wanted)
    assert len(scored) == 3
    assert any(not torch.equal(scored[-1][name], weight) for name, weight in weights_of(parts.model).items())
    stored = load_file(tmp_path / "average" / "model.safetensors")
    chosen = max(range(3), key=lambda e: (trainer.history[e]["valid"]["ndcg@3"], e))
    assert_equal({name: stored[name] for name in order}, scored[chosen])
    # ... and the validation metrics are those of the stored weights
    again = trainer.evaluate(parts.valid, load_best_model=True)
    assert {name: float(value) for name, value in again.items()} == trainer.history[chosen]["valid"]


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_training_has_the_weights_and_the_average_of_the_uninterrupted(trainer_of, tmp_path, kind):
    settings = {"weight_average": 0.9, "head_dropout": 0.1}
    parts, whole = trainer_of(kind, tmp_path / "whole", **settings)
    whole.fit(parts.train, parts.valid)

    def interrupt(epoch, score):
        if epoch == 1:
            raise KeyboardInterrupt

    half_parts, half = trainer_of(kind, tmp_path / "half", **settings, resume_seconds=0)
    with pytest.raises(KeyboardInterrupt):
        half.fit(half_parts.train, half_parts.valid, callback_fn=interrupt)
    # What has a float32 master is not stored a second time, nor is what is frozen.
    state = torch.load(tmp_path / "half" / "resume.pt", weights_only=True)
    trained = weights_of(half_parts.model)
    assert set(state["model"]) == {name for name, weight in trained.items() if weight.dtype == torch.float32}
    assert len(state["more"]["masters"]) == len(trained) - len(state["model"])
    rest_parts, rest = trainer_of(kind, tmp_path / "rest", **settings)
    rest.resume_checkpoint(tmp_path / "half" / "resume.pt")
    assert_equal(weights_of(rest_parts.model), weights_of(half_parts.model))
    rest.fit(rest_parts.train, rest_parts.valid)
    assert rest.history == whole.history
    assert_equal(weights_of(rest_parts.model), weights_of(parts.model))
    for found, wanted in zip(rest.average.averages, whole.average.averages, strict=True):
        assert torch.equal(found, wanted)


def test_run_without_an_average_cannot_go_on_with_one(trainer_of, tmp_path):
    parts, trainer = trainer_of(folder=tmp_path / "plain", resume_seconds=0, epochs=1)
    trainer.fit(parts.train, parts.valid)
    state = checkpoint.load_resume(tmp_path / "plain" / "resume.pt", parts.context.description)
    assert state["more"]["average"] is None
    _, other = trainer_of(weight_average=0.9)
    with pytest.raises(CheckpointError, match="kept no average of its weights"):
        other.load_more_resume_state(state["more"])


def test_weights_come_back_after_an_error():
    weight = torch.nn.Parameter(torch.ones(3))
    average = WeightAverage([weight], [weight], 0.5)
    with torch.no_grad():
        weight.fill_(5.0)
    where = weight.data_ptr()
    with pytest.raises(KeyError), average.in_model():
        assert weight.tolist() == [1.0] * 3
        raise KeyError
    assert weight.tolist() == [5.0] * 3
    assert weight.data_ptr() == where, "a CUDA graph would train what is no longer there"


@pytest.mark.parametrize("decay", [0.0, 1.0, 1, True, "0.9", float("nan")])
def test_decay_out_of_range_is_refused(decay):
    with pytest.raises(SettingError, match=r"weight_average=.* must be a number above 0 and below 1"):
        WeightAverage([], [], decay)
