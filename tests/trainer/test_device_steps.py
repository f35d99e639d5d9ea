"""An epoch that does not wait for the device is RecBole's epoch, number by number."""

import json
from pathlib import Path

import pytest
import torch
from atomic_files import quick_settings, write_atomic_files
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.model.sequential_recommender.sasrec import SASRec
from recbole.trainer import KGTrainer, RecVAETrainer, Trainer, XGBoostTrainer
from recbole.utils import init_seed
from safetensors.torch import load_file

from recbole_llm.config.config import Config
from recbole_llm.errors import TrainingError
from recbole_llm.quick_start.run import build, run
from recbole_llm.trainer import device_steps
from recbole_llm.trainer.device_steps import DeviceSteps, EpochLoss
from recbole_llm.trainer.run_folder_trainer import RunFolderMixin, with_run_folder

SMALL = {"hidden_size": 16, "inner_size": 16, "n_layers": 1, "learning_rate": 0.01}
MODELS = {
    "SASRec": SMALL,
    "GRU4Rec": {"embedding_size": 16, "hidden_size": 16, "learning_rate": 0.01},
    "BERT4Rec": SMALL,
    "FDSA": {**SMALL, "selected_features": ["class"]},
    "FPMC": {"embedding_size": 16},
}


@pytest.fixture(autouse=True)
def no_anomaly_detection():
    """The import of RecBole's SASRec above has switched it on."""
    torch.autograd.set_detect_anomaly(False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_atomic_files(tmp_path_factory.mktemp("data") / "tiny", ties=True)


class TwoLosses(SASRec):
    """SASRec with a second loss: RecBole then adds up each."""

    def calculate_loss(self, interaction):
        loss = super().calculate_loss(interaction)
        return loss, 0.01 * self.item_embedding.weight.double().square().mean()


class Diverging(SASRec):
    """SASRec whose loss is not a number from its fifth step on."""

    steps = 0

    def calculate_loss(self, interaction):
        self.steps += 1
        return super().calculate_loss(interaction) * (float("nan") if self.steps > 5 else 1.0)


TwoLosses.__name__ = Diverging.__name__ = "SASRec"  # their settings are SASRec's


def parts_of(model, folder, tmp_path, **settings):
    of_model = MODELS[model if isinstance(model, str) else model.__name__]
    config = Config(
        model, config_dict=quick_settings(folder, train_batch_size=50, loss_type="CE", **{**of_model, **settings})
    )
    init_seed(config["seed"], True)
    return build(config, folder=tmp_path)


@pytest.mark.parametrize("model", MODELS)
def test_results_and_ranks_are_those_of_recboles_loader(model, folder, workdir):
    found = []
    for on_device in (True, False):
        settings = quick_settings(folder, epochs=2, train_batch_size=64, device_table=on_device, **MODELS[model])
        path = Path(run(model, settings=settings)["path"])
        result = json.loads(path.read_text())
        ranks = [(path.parent / f"ranks-{part}.tsv.gz").read_bytes() for part in ("valid", "test")]
        kept = {name: result[name] for name in ("valid", "test", "history", "counts", "best_epoch")}
        found.append((kept, ranks, load_file(path.parent / "model.safetensors")))
    assert found[0][:2] == found[1][:2]
    assert found[0][2].keys() == found[1][2].keys()
    for name, weights in found[0][2].items():
        assert torch.equal(weights, found[1][2][name]), name


@pytest.mark.parametrize("between", [256, 4])
@pytest.mark.parametrize("settings", [{}, {"clip_grad_norm": {"max_norm": 0.5}}], ids=["plain", "clipped"])
@pytest.mark.parametrize("model", [SASRec, TwoLosses])
def test_losses_and_weights_are_those_of_recboles_trainer(model, settings, between, folder, workdir, monkeypatch):
    monkeypatch.setattr(device_steps, "_STEPS_BETWEEN_LOSSES", between)
    outcomes = []
    for make in (Trainer, None):
        parts = parts_of(model, folder, workdir, **settings)
        trainer = parts.trainer() if make is None else make(parts.config, parts.model)
        losses = [trainer._train_epoch(parts.train, epoch) for epoch in range(2)]
        assert isinstance(losses[0], tuple) == (model is TwoLosses)
        outcomes.append((losses, parts.model.state_dict()))
    assert outcomes[0][0] == outcomes[1][0]
    for name, weights in outcomes[0][1].items():
        assert torch.equal(weights, outcomes[1][1][name]), name


def test_loss_that_is_not_a_number_names_the_epoch(folder, workdir):
    parts = parts_of(Diverging, folder, workdir, epochs=3)
    trainer = parts.trainer()
    with pytest.raises(TrainingError, match="the training loss of SASRec is not a number in epoch 0"):
        trainer.fit(parts.train, parts.valid)


def test_diverged_epoch_is_given_up(folder, workdir, monkeypatch):
    monkeypatch.setattr(device_steps, "_STEPS_BETWEEN_LOSSES", 4)
    parts = parts_of(Diverging, folder, workdir)
    assert len(parts.train) > 8
    with pytest.raises(TrainingError):
        parts.trainer().fit(parts.train, parts.valid)
    assert parts.model.steps == 8


def test_parts_that_are_infinite_in_opposite_ways_are_noticed():
    """RecBole looks at their sum."""
    total = EpochLoss()
    total.add((torch.tensor(float("inf")), torch.tensor(float("-inf"))))
    with pytest.raises(ValueError, match="loss is nan"):
        total.total()


def test_empty_epoch_has_no_loss():
    assert EpochLoss().total() is None


@pytest.mark.parametrize("base", [Trainer, KGTrainer, RecVAETrainer])
def test_trainers_with_an_epoch_of_their_own_keep_it(base):
    made = with_run_folder(base)
    order = [cls for cls in made.__mro__ if "_train_epoch" in vars(cls)]
    assert order == [*([] if base is Trainer else [base]), DeviceSteps, Trainer]
    assert made.__mro__[1] is RunFolderMixin


def test_trainers_that_are_not_recboles_trainer_are_left_alone():
    assert not issubclass(with_run_folder(XGBoostTrainer), DeviceSteps)


@pytest.mark.parametrize("both", [False, True])
def test_mask_is_recboles(both):
    items = torch.randint(0, 3, (7, 5))
    expected = SequentialRecommender.get_attention_mask(None, items, both)
    found = device_steps.attention_mask(items, both)
    assert found.dtype == expected.dtype and torch.equal(found, expected)
    assert set(found.unique().tolist()) == {-10000.0, 0.0}


def test_mask_of_a_model_with_its_own_stays(folder, workdir):
    class Own(SASRec):
        def get_attention_mask(self, item_seq, bidirectional=False):
            return super().get_attention_mask(item_seq, bidirectional)

    Own.__name__ = "SASRec"
    for model in (SASRec, Own):
        parts = parts_of(model, folder, workdir)
        parts.trainer()
        assert (parts.model.get_attention_mask is device_steps.attention_mask) == (model is SASRec)


@pytest.mark.gpu
@pytest.mark.parametrize("model", ["SASRec", "GRU4Rec"])
def test_no_step_waits_for_a_gpu(model, folder, workdir):
    parts = parts_of(model, folder, workdir, use_gpu=True)
    trainer = parts.trainer()
    trainer._train_epoch(parts.train, 0)
    batches = iter(parts.train)
    first = next(batches)  # the order of the epoch was copied to the device for it
    parts.model.train()
    losses = EpochLoss()
    torch.cuda.set_sync_debug_mode("error")
    try:
        scaler = torch.amp.GradScaler("cuda", enabled=False)
        for batch in (first, *batches):
            losses.add(trainer._step(batch.to(trainer.device), parts.model.calculate_loss, scaler))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert losses.total() > 0


@pytest.mark.gpu
@pytest.mark.parametrize("model", ["SASRec", "GRU4Rec"])
def test_results_on_a_gpu_are_those_of_recboles_loader(model, folder, workdir):
    found = []
    for on_device in (True, False):
        settings = quick_settings(folder, epochs=2, use_gpu=True, device_table=on_device, **MODELS[model])
        result = run(model, settings=settings)
        found.append({name: result[name] for name in ("valid", "test", "history")})
    assert found[0] == found[1]


@pytest.mark.gpu
@pytest.mark.parametrize("model", ["SASRec", "GRU4Rec"])
def test_graph_trains_as_single_kernels_do(model, folder, workdir):
    outcomes = []
    for graph in (True, False):
        parts = parts_of(model, folder, workdir, use_gpu=True)
        trainer = parts.trainer()
        assert trainer.graphed_loss is not None
        if not graph:
            trainer.graphed_loss = None
        losses = [trainer._train_epoch(parts.train, epoch) for epoch in range(3)]
        assert not graph or trainer.graphed_loss._graph is not None
        outcomes.append((losses, parts.model.state_dict(), torch.cuda.get_rng_state()))
    assert outcomes[0][0] == outcomes[1][0]
    assert torch.equal(outcomes[0][2], outcomes[1][2])
    for name, weights in outcomes[1][1].items():
        assert torch.equal(weights, outcomes[0][1][name]), name
