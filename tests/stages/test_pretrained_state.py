"""Pre-training of a whole model on other datasets, with its own loss: what is kept, used and refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_data import HISTORIES, TITLES, small_settings, write_dataset

from recbole_llm.backbone.pretrained import RECORD
from recbole_llm.cli import main as cli
from recbole_llm.config.config import Config
from recbole_llm.errors import CheckpointError, DataError, SettingError
from recbole_llm.model.pretrained_state import PretrainedWeights
from recbole_llm.model.sequential_recommender.unisrec import UniSRec
from recbole_llm.quick_start import run as quick_start
from recbole_llm.stages.kept import kept_by
from recbole_llm.stages.pretraining_trainer import OwnLossMixin

FOOD = {"a": "Green Tea", "b": "Dark Chocolate 70%", "c": "Olive Oil, 1 litre", "d": 'Salt "fine"'}
CELL = {"a": "Phone Case, black", "x": "USB Cable", "y": "Charger", "b": "White Chocolate"}
SMALL = {"hidden_size": 8, "inner_size": 8, "n_layers": 1, "n_heads": 2, "MAX_ITEM_LIST_LENGTH": 6}


@pytest.fixture
def data(small):
    """The target `small` and two sources that number their items alike."""
    write_dataset(small, {"u1": "abcd", "u2": "dcba", "u3": "bcd", "u9": "ac"}, FOOD, name="food")
    write_dataset(small, {"u1": "axyb", "u2": "yxa", "u3": "bxyax"}, CELL, name="cell")
    return small


@pytest.fixture
def settings(data, tiny):
    def make(model="UniSRec", **more):
        defaults = {
            "backbone": str(tiny["bert"]), "pretrain_datasets": "food,cell", "pretrain_epochs": 2, "epochs": 1,
            "pretrain_learning_rate": 0.01, "pretrain_batch_size": 5, **SMALL,
        }  # fmt: skip
        return small_settings(data, model=model, **{**defaults, **more})

    return make


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


@pytest.mark.parametrize("model", ["UniSRec", "ZESRec"])
def test_the_verb_prints_a_state_that_a_run_starts_from(model, settings, capsys):
    """Without a target first, then as a start: zero-shot the stored weights are those of the pre-training."""
    own = settings(model)
    argv = [f"--{name}={value}" for name, value in own.items() if name not in ("dataset", "model", "epochs")]
    assert cli.main(["pretrain", f"--model={model}", *argv]) == 0
    folder = Path(capsys.readouterr().out.splitlines()[-1])
    assert folder.name == "state-epoch-2"
    record = json.loads((folder / "pretraining.json").read_text())
    assert (record["model"], record["datasets"], record["epoch"]) == (model, ["food", "cell"], 2)
    assert (record["items"], record["users"], record["interactions"]) == (8, 7, 13 + 12)
    given = settings(model, epochs=0, pretrain_datasets=None, pretrained_state=str(folder))
    result = quick_start.run(settings=given)
    run = Path(result["path"]).parent
    state, stored = weights(folder), weights(run)
    assert all(torch.equal(stored[name], weight) for name, weight in state.items())
    assert set(stored) - set(state) == ({"offsets.weight"} if model == "ZESRec" else set())
    assert result["pretraining"]["folder"] == str(folder)
    assert result["test"]["ndcg@3"] > 0
    assert result["history"] == []
    # The same is found again by a run that names the sources.
    again = quick_start.run(settings=settings(model))
    assert again["pretraining"]["folder"] == str(folder)


def test_a_finished_run_needs_no_pretraining(settings):
    """Its own weights are whole: it is loaded after the sources' state is gone."""
    result = quick_start.run(settings=settings())
    parts = quick_start.load(result["path"])
    expected = parts.recommend(["a", "b"], k=4).scores
    folder = Path(result["pretraining"]["folder"])
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    assert quick_start.load(result["path"]).recommend(["a", "b"], k=4).scores == expected


def test_pretraining_has_its_own_loss_batches_and_rate(settings, monkeypatch):
    """The contrast within batches of both sources, of the size and at the rate of the pre-training."""
    seen = []
    real = OwnLossMixin._train_epoch

    def watched(self, data, *arguments, **more):
        rows = [int((batch["item_id"] > 0).sum()) for batch in data]
        seen.append((rows, self.optimizer.param_groups[0]["lr"], self.model._shortened is not None))
        return real(self, data, *arguments, **more)

    monkeypatch.setattr(OwnLossMixin, "_train_epoch", watched)
    losses = []
    plain = UniSRec.pretraining_loss
    monkeypatch.setattr(UniSRec, "pretraining_loss", lambda *a: losses.append(1) or plain(*a))
    quick_start.pretrain("UniSRec", settings=settings())
    assert seen == [([5, 5, 5, 3], 0.01, True)] * 2  # 3 + 3 + 2 + 1 and 3 + 2 + 4 targets
    assert len(losses) == 8


def test_only_the_adaptor_is_tuned_after_a_pretraining(settings):
    """The transformer is bit for bit that of the pre-training; the experts are not."""
    result = quick_start.run(settings=settings(epochs=2))
    before, after = weights(result["pretraining"]["folder"]), weights(Path(result["path"]).parent)
    frozen = [name for name in before if ".transformer." in name or ".position_embedding." in name]
    assert len(frozen) > 5
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert not torch.equal(before["adaptor.weight"], after["adaptor.weight"])
    everything = quick_start.run(settings=settings(epochs=2, tuned_parts="all"))
    assert not torch.equal(before[frozen[0]], weights(Path(everything["path"]).parent)[frozen[0]])


def test_interrupted_pretraining_goes_on_to_the_same_end(settings, monkeypatch):
    """Random augmentations included."""
    whole = weights(quick_start.pretrain("UniSRec", settings=settings(pretrain_epochs=4, checkpoint_dir="whole")))
    real, epochs = OwnLossMixin._train_epoch, []

    def interrupted(self, data, epoch, *arguments, **more):
        epochs.append(epoch)
        if len(epochs) == 3:
            raise KeyboardInterrupt
        return real(self, data, epoch, *arguments, **more)

    monkeypatch.setattr(OwnLossMixin, "_train_epoch", interrupted)
    own = settings(pretrain_epochs=4, resume_seconds=0)
    with pytest.raises(KeyboardInterrupt):
        quick_start.pretrain("UniSRec", settings=own)
    folder = quick_start.pretrain("UniSRec", settings=own)
    assert epochs == [0, 1, 2, 2, 3]
    assert all(torch.equal(tensor, whole[name]) for name, tensor in weights(folder).items())


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.fixture
def state(settings):
    return str(quick_start.pretrain("UniSRec", settings=settings(pretrain_epochs=1)))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"model": "ZESRec"}, "is of UniSRec, not of ZESRec: pre-train ZESRec"),
        ({"backbone": "llama"}, "read items with another backbone"),
        ({"item_pooling": "cls"}, r"another pooling of texts \(item_pooling\) \(mean, here cls\)"),
        ({"hidden_size": 4}, r"has 'adaptor.weight' of size \(8, 32, 8\), this model of \(8, 32, 4\)"),
        ({"MAX_ITEM_LIST_LENGTH": 5}, "'encoder.position_embedding.weight' of size"),
    ],
)
def test_a_state_of_something_else_is_refused(state, settings, tiny, more, words):
    """One sentence each."""
    if "backbone" in more:
        more = {"backbone": str(tiny[more["backbone"]])}
    with pytest.raises(CheckpointError, match=words):
        quick_start.run(settings=settings(**{"pretrain_datasets": None, "pretrained_state": state, **more}))


def test_a_state_with_other_fields_is_refused(state, settings, data):
    """A further text field that the sources did not have."""
    write_dataset(data, HISTORIES, {item: [text, "Acme"] for item, text in TITLES.items()}, ("title", "brand"))
    given = settings(pretrain_datasets=None, pretrained_state=state, item_text_fields=["title", "brand"])
    with pytest.raises(CheckpointError, match=r"other text fields behind the first \(item_text_fields\)"):
        quick_start.run(settings=given)


def test_a_broken_state_and_shared_items_are_refused(state, settings, data):
    """No folder of a pre-training, and a target that was pre-trained on."""
    with pytest.raises(CheckpointError, match="holds no whole pre-trained state"):
        quick_start.run(settings=settings(pretrain_datasets=None, pretrained_state=str(data)))
    broken = shutil.copytree(state, data / "broken")
    for text in ("[1]", '{"model": "UniSRec", "origin": [1]}', "{", "\xff"):
        (broken / RECORD).write_bytes(text.encode("latin-1"))
        with pytest.raises(CheckpointError, match="holds no whole pre-trained state"):
            PretrainedWeights.read(broken)
    write_dataset(data, {"u1": "abcd", "u2": "dcba", "u3": "bcd"}, FOOD, name="shop")
    given = settings(pretrain_datasets=None, pretrained_state=state, dataset="shop", topk=[1], valid_metric="NDCG@1")
    with pytest.raises(DataError, match="4 items of the target shop are in the pre-training data food too"):
        quick_start.run(settings=given)


def test_sources_with_one_target_are_refused(settings, data):
    """Every negative of every batch would be the target."""
    write_dataset(data, {"u1": "ab", "u2": "ab", "u3": "cb"}, FOOD, name="food")
    with pytest.raises(DataError, match="has the same next item, so a batch has no negatives"):
        quick_start.pretrain("UniSRec", settings=settings(pretrain_datasets="food"))


def test_a_model_that_is_not_pretrained_says_so(data):
    """One sentence."""
    config = Config("SASRec", "small", config_dict={"data_path": str(data), "use_gpu": False, "topk": [1, 3],
                                                    "valid_metric": "NDCG@3"})  # fmt: skip
    with pytest.raises(SettingError, match="SASRec is not pre-trained on other datasets: take ST2SI, UniSRec, ZES"):
        kept_by(config)
