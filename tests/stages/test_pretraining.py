"""Pre-training on other datasets: what is trained, that it is used, found again, and refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_data import HISTORIES, TITLES, small_settings, write_dataset
from transformers import AutoModel, AutoTokenizer

from recbole_llm.backbone.loading import load_backbone
from recbole_llm.cli import main as cli
from recbole_llm.config.config import Config
from recbole_llm.data.build import create_dataset
from recbole_llm.data.sources import TEXT, read_source, write_union
from recbole_llm.errors import DataError, RecBoleLLMError, SettingError
from recbole_llm.quick_start import run as quick_start
from recbole_llm.stages import pretraining
from recbole_llm.stages.pretraining_trainer import PretrainingTrainer

FOOD = {"a": "Green Tea", "b": "Dark Chocolate 70%", "c": "Olive Oil, 1 litre", "d": 'Salt "fine"'}
CELL = {"a": "Phone Case, black", "x": "USB Cable", "y": "Charger", "b": "Dark Chocolate 70%"}  # one item as in FOOD


@pytest.fixture
def data(small):
    """The target `small` and two sources that number their items alike."""
    write_dataset(small, {"u1": "abcd", "u2": "dcba", "u3": "bcd", "u9": "ac"}, FOOD, name="food")
    write_dataset(small, {"u1": "axyb", "u2": "yxa", "u3": "bxyax"}, CELL, name="cell")
    return small


@pytest.fixture
def settings(data, tiny):
    def make(**more):
        defaults = {
            "backbone": str(tiny["llama"]), "pretrain_datasets": "food,cell", "pretrain_epochs": 2, "epochs": 1,
            "pretrain_learning_rate": 0.01, "warmup_steps": 0, "train_batch_size": 4, "tuning": "ilp",
        }  # fmt: skip
        return small_settings(data, **{**defaults, **more})

    return make


@pytest.fixture
def trainings(monkeypatch):
    """The number of epochs that each pre-training trained."""
    found = []
    real = pretraining._fit

    def fit(trainer, *arguments):
        real(trainer, *arguments)
        found.append(trainer.epochs_done - trainer.start_epoch)

    monkeypatch.setattr(pretraining, "_fit", fit)
    return found


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def run(settings):
    return quick_start.run(settings=settings)


# -- the union of the sources ------------------------------------------------------------------------------------------


def union_of(data, tiny, *names, **more):
    base = {"data_path": str(data), "backbone": str(tiny["llama"]), "use_gpu": False, "topk": [1], "state": "ERROR"}
    base |= {"valid_metric": "NDCG@1", **more}
    sources = [read_source(Config("ST2SI", name, config_dict=base)) for name in names]
    fields = write_union(sources, data / "union", "all")
    config = Config("ST2SI", "all", config_dict={**base, "data_path": str(data / "union"), "item_text_fields": fields})
    return sources, create_dataset(config)


def test_items_and_users_of_the_union_are_disjoint(data, tiny):
    sources, union = union_of(data, tiny, "food", "cell")
    assert union.item_num - 1 == len(FOOD) + len(CELL) == 8
    assert union.user_num - 1 == 4 + 3
    assert len(union.inter_feat) == sum(len(source.items) for source in sources)
    texts = union.item_texts_by_id([TEXT])[TEXT]
    expected = {f"food/{item}": text for item, text in FOOD.items()}
    expected |= {f"cell/{item}": text for item, text in CELL.items()}
    assert {**texts.iloc[1:]} == expected
    users = union.id2token("user_id", union.inter_feat["user_id"].to_numpy())
    items = union.id2token("item_id", union.inter_feat["item_id"].to_numpy())
    assert [user.split("/")[0] for user in users] == [item.split("/")[0] for item in items]
    history = "".join(item.removeprefix("cell/") for user, item in zip(users, items, strict=True) if user == "cell/u3")
    assert history == "bxyax"


def test_further_fields_are_joined_by_name(data, tiny):
    food, cell = ({i: (t, f"{t[0]}-brand", "x") for i, t in texts.items()} for texts in (FOOD, CELL))
    write_dataset(data, {"u": "abc"}, food, ("title", "brand", "kind"), "food")
    write_dataset(data, {"u": "axy"}, cell, ("title", "brand", "size"), "cell")
    _, union = union_of(data, tiny, "food", "cell", item_text_fields=["title", "brand"])
    texts = union.item_texts_by_id([TEXT, "brand"])
    assert texts.loc["food/a"].tolist() == ["Green Tea", "G-brand"]
    assert texts.loc["cell/x"].tolist() == ["USB Cable", "U-brand"]


def test_all_of_the_sources_is_trained_on(settings, monkeypatch):
    seen = {}
    real = pretraining._fit

    def fit(trainer, *arguments):
        inputs = trainer.model.inputs
        seen.update(targets=int(inputs._is_target.sum()), tuning=trainer.model.settings.tuning.tuning,
                    window=inputs.train_window, rate=trainer.optimizer.param_groups[1]["lr"])  # fmt: skip
        real(trainer, *arguments)

    monkeypatch.setattr(pretraining, "_fit", fit)
    run(settings(train_window="full", learning_rate=0.5))
    histories = [4, 4, 3, 2, 4, 3, 5]
    assert seen == {"targets": sum(n - 1 for n in histories), "tuning": "full", "window": "random", "rate": 0.01}


# -- its use -----------------------------------------------------------------------------------------------------------


def test_backbone_of_the_last_wanted_epoch_is_tuned(settings, tiny, trainings):
    result = run(settings(pretrain_epochs=3, pretrain_save_epochs="1,2"))
    record = result["pretraining"]
    folder = Path(record["folder"])
    assert folder.name == "backbone-epoch-2"
    assert sorted(path.name for path in folder.parent.iterdir() if path.name[0] != ".") == [
        "backbone-epoch-1", "backbone-epoch-2", "settings.yaml",
    ]  # fmt: skip
    assert (record["datasets"], record["epoch"], record["epochs"]) == (["food", "cell"], 2, 3)
    assert record["items"] == 8
    assert record["seconds"] > 0
    assert result["backbone"] == str(tiny["llama"])
    first, second = weights(folder.parent / "backbone-epoch-1"), weights(folder)
    preset = load_backbone(str(tiny["llama"])).model.state_dict()
    assert first.keys() == second.keys() == preset.keys()
    assert not any(torch.equal(second[name], preset[name]) for name in preset)
    assert not torch.equal(first["layers.0.mlp.up_proj.weight"], second["layers.0.mlp.up_proj.weight"])
    # ILP tuning took this backbone, and left it as it was
    tuned = quick_start.load(result["path"]).model
    assert tuned.backbone.state_dict().keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in tuned.backbone.state_dict().items())
    assert set(load_file(Path(result["path"]).parent / "model.safetensors")) == {"projection.weight"}
    assert trainings == [3]


def test_found_again_and_not_trained_twice(settings, trainings, data):
    first = run(settings())
    assert trainings == [2]
    before = {path: path.stat().st_mtime_ns for path in Path(first["pretraining"]["folder"]).iterdir()}
    for more in ({}, {"seed": 7, "tuning": "full", "epochs": 2, "learning_rate": 0.3}, {"train_batch_tokens": 300}):
        again = run(settings(**more))
        assert again["pretraining"] == first["pretraining"]
    assert quick_start.pretrain(settings={**settings(), "dataset": None}) == Path(first["pretraining"]["folder"])
    assert trainings == [2]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    # whatever shapes it makes another one
    for more in ({"pretrain_seed": 1}, {"alignment": False}, {"pretrain_datasets": ["cell"]}):
        assert run(settings(**more))["pretraining"]["folder"] != first["pretraining"]["folder"]
    write_dataset(data, {"u1": "abcd", "u2": "dcba"}, FOOD, name="food")
    assert run(settings())["pretraining"]["folder"] != first["pretraining"]["folder"]
    assert trainings == [2] * 5


def test_other_epochs_of_one_pretraining(settings, trainings):
    def backbone(*epochs):
        return quick_start.pretrain(settings=settings(pretrain_epochs=3, pretrain_save_epochs=list(epochs)))

    second = backbone(2, 1)
    assert backbone(1) == second.with_name("backbone-epoch-1")
    assert trainings == [3]
    kept = weights(second)
    third = backbone(3)  # it was not kept, so the training is done again
    assert (trainings, third) == ([3, 3], second.with_name("backbone-epoch-3"))
    assert all(torch.equal(tensor, kept[name]) for name, tensor in weights(backbone(2)).items())


def test_run_is_loaded_without_its_sources(settings, data):
    result = run(settings())
    shutil.rmtree(data / "food")
    model = quick_start.load(result["path"]).model
    assert model.settings.backbone == result["pretraining"]["folder"]


def test_rate_of_ilp_tuning_is_lower_after_pretraining(settings, tiny):
    def rate(**more):
        parts = quick_start.build(Config(config_dict=settings(**more)))
        return [group["lr"] for group in parts.model.parameter_groups()]

    assert rate(pretrain_datasets=None) == [3e-4]
    assert rate() == [1e-4]
    assert rate(tuning="full") == [5e-5, 5e-5]
    assert rate(learning_rate=0.2) == [0.2]
    backbone = str(quick_start.pretrain(settings=settings()))
    assert rate(pretrain_datasets=None, backbone=backbone) == [1e-4]


def test_folder_is_an_ordinary_one_with_an_added_query_token(settings, tiny):
    folder = quick_start.pretrain(settings=settings(query_token="[Q]"))
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    token = tokenizer.get_vocab()["[Q]"]
    known = load_backbone(str(tiny["llama"]))
    assert token == len(known.tokenizer) == model.get_input_embeddings().num_embeddings - 1
    # used by any run, it has its token and adds none
    parts = quick_start.build(
        Config(config_dict=settings(backbone=str(folder), query_token="[Q]", pretrain_datasets=None))
    )
    assert parts.model.inputs.query == token
    own = parts.model.backbone.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items())


def test_projected_opt_and_full_tuning(settings, tiny):
    result = run(settings(backbone=str(tiny["opt_projected"]), tuning="full", learning_rate=0.01))
    found = weights(result["pretraining"]["folder"])
    assert any(name.endswith("project_out.weight") for name in found)
    tuned = weights(Path(result["path"]).parent)
    assert not torch.equal(tuned["backbone.decoder.project_out.weight"], found["decoder.project_out.weight"])


def test_interrupted_pretraining_goes_on_to_the_same_end(settings, trainings, monkeypatch, tiny):
    whole = weights(quick_start.pretrain(settings=settings(pretrain_epochs=4, checkpoint_dir="whole")))
    real, epochs = PretrainingTrainer._train_epoch, []

    def interrupted(self, data, epoch, *arguments, **more):
        epochs.append(epoch)
        if len(epochs) == 3:
            raise KeyboardInterrupt
        return real(self, data, epoch, *arguments, **more)

    monkeypatch.setattr(PretrainingTrainer, "_train_epoch", interrupted)
    own = settings(pretrain_epochs=4)
    if "resume_seconds" in Config(config_dict=own).merged:
        own["resume_seconds"] = 0
    with pytest.raises(KeyboardInterrupt):
        quick_start.pretrain(settings=own)
    folder = quick_start.pretrain(settings=own)
    assert epochs == [0, 1, 2, 2, 3]
    assert all(torch.equal(tensor, whole[name]) for name, tensor in weights(folder).items())
    assert not (folder.parent / "resume.pt").exists()
    assert not list(folder.parent.glob("data-*"))


def test_verb(settings, capsys):
    argv = [f"--{name}={value}" for name, value in settings().items() if name not in ("dataset", "model")]
    assert cli.main(["pretrain", *argv]) == 0
    folder = Path(capsys.readouterr().out.splitlines()[-1])
    assert json.loads((folder / "pretraining.json").read_text())["datasets"] == ["food", "cell"]


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_equal_tokens_of_other_items_are_no_item_in_common(settings):
    assert set(FOOD) <= set(TITLES)
    run(settings(pretrain_datasets="food"))


@pytest.mark.parametrize("found", [False, True])
def test_source_with_an_item_of_the_target(settings, data, trainings, found):
    write_dataset(data, HISTORIES, {**TITLES, "c": "Olive  Oil, 1 litre"})
    if found:  # also where the backbone is there already
        quick_start.pretrain(settings=settings())
    with pytest.raises(DataError, match=r"1 items of the target small .* food too, such as 'c' \('Olive Oil, 1 litre'"):
        run(settings())
    assert trainings == [2] * found
    assert not list((data / "saved").glob("ST2SI-*"))
    if found:  # and where it is given by its folder
        backbone = quick_start.pretrain(settings=settings())
        with pytest.raises(DataError, match="'c'"):
            run(settings(backbone=str(backbone), pretrain_datasets=None))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"pretrain_datasets": "food,small"}, "names the target small itself"),
        ({"pretrain_datasets": "food,food"}, "names 'food' twice"),
        ({"pretrain_datasets": ["fod"]}, "no dataset 'fod'.*'food'"),
        ({"pretrain_epochs": 0}, "pretrain_epochs=0"),
        ({"pretrain_epochs": "many"}, "pretrain_epochs=many"),
        ({"pretrain_save_epochs": 3}, r"pretrain_save_epochs=\[3\]"),
        ({"pretrain_save_epochs": [0, 1]}, "pretrain_save_epochs"),
        ({"pretrain_save_epochs": "last"}, "pretrain_save_epochs"),
        ({"pretrain_learning_rate": "fast"}, "pretrain_learning_rate=fast"),
        ({"pretrain_seed": -1}, "pretrain_seed=-1"),
        ({"pretrain_dataset": "food"}, "no setting 'pretrain_dataset'.*'pretrain_datasets'"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(settings, data, more, words):
    with pytest.raises(SettingError, match=words):
        run(settings(**more))
    assert not list((data / "saved").glob("*/*"))


def test_verb_without_sources(settings):
    with pytest.raises(SettingError, match="pretrain_datasets names no dataset"):
        quick_start.pretrain(settings=settings(pretrain_datasets=None))


@pytest.mark.parametrize(
    ("file", "words"), [("pretraining.json", "pretraining.json is broken"), ("pretraining-items.safetensors", "broken")]
)
def test_broken_notes_of_a_backbone(settings, file, words):
    folder = quick_start.pretrain(settings=settings())
    (folder / file).write_bytes((folder / file).read_bytes()[:30])
    with pytest.raises(RecBoleLLMError, match=words):
        run(settings(backbone=str(folder), pretrain_datasets=None))


def test_source_without_text(settings, data):
    (data / "food/food.item").unlink()
    with pytest.raises(DataError, match=r"food\.item does not exist"):
        run(settings())


def test_keys_tell_items_apart():
    import pandas as pd

    from recbole_llm.data.sources import item_keys

    texts = pd.DataFrame({"title": ["x", "x", "y"]}, index=["1", "2", "1"])
    keys = item_keys(texts)
    assert len(np.unique(keys)) == 3
    assert (keys == item_keys(texts)).all()
