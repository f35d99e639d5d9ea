"""The ID model of IDLE-Adapter's runs: trained once, found again, kept with the run, refused where it does not fit."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from child_runs import command_line
from safetensors.torch import load_file
from small_data import HISTORIES, small_settings, write_dataset

from recbole_llm.cli import main as cli
from recbole_llm.config import config, names
from recbole_llm.config.config import Config
from recbole_llm.errors import BackboneError, CheckpointError, SettingError
from recbole_llm.model.sequential_recommender.idleadapter.trainer import AdapterTrainer
from recbole_llm.quick_start import build
from recbole_llm.quick_start import run as quick_start
from recbole_llm.quick_start.run import load, run
from recbole_llm.runs.ranks import read_ranks
from recbole_llm.stages import id_model
from recbole_llm.stages.fulfil import fulfil
from recbole_llm.stages.store import digest as digest_of

COMIREC = {"embedding_size": 8, "epochs": 2}


def settings_of(data_path, tiny, **settings):
    given = {
        "model": "IDLEAdapter", "backbone": str(tiny["bert"]), "id_model_settings": COMIREC, "max_prompt_tokens": 128,
        "MAX_ITEM_LIST_LENGTH": 6, "epochs": 2, "train_batch_size": 8, "learning_rate": 0.01, **settings,
    }  # fmt: skip
    kept = small_settings(data_path, **given)
    return kept


def id_settings(data_path, **settings):
    """An ordinary run of a sequential model."""
    given = {"model": "ComiRec", "MAX_ITEM_LIST_LENGTH": 6, **COMIREC, **settings}
    kept = small_settings(data_path, **given)
    return {name: value for name, value in kept.items() if name not in ("max_sequence_tokens", "train_batch_tokens")}


def id_folders(data_path):
    return sorted(folder for folder in (data_path / "saved").glob("id-*"))


def written_at(folder):
    return {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}


@pytest.fixture
def finished(small, tiny):
    """A finished run, its data_path and its result."""
    result = run(settings=settings_of(small, tiny))
    return small, Path(result["path"]).parent, result


def scores_of(parts):
    with torch.no_grad():
        return torch.cat([parts.model.full_sort_predict(interaction) for interaction, *_ in parts.test])


# -- found again -------------------------------------------------------------------------------------------------------


def test_seconds_of_what_was_made_first_are_told_only_if_it_was_made(finished, tiny, monkeypatch):
    """However long it took to find what was there already."""
    data, _, first = finished

    def slow(*arguments):
        time.sleep(0.2)
        return fulfil(*arguments)

    monkeypatch.setattr(build, "fulfil", slow)
    second = run(settings=settings_of(data, tiny, num_virtual_tokens=1))
    assert set(first["seconds"]) == {"pretrain", "prepare", "fit", "evaluate"}
    assert set(second["seconds"]) == {"prepare", "fit", "evaluate"}
    assert second["seconds"]["prepare"] >= 0.2


def test_second_run_finds_the_id_model(finished, tiny):
    data, _, first = finished
    (trained,) = id_folders(data)
    assert trained.name.startswith("id-ComiRec-small-")
    before = written_at(trained)
    # other settings of the adapter alone, and a default of the ID model's that is said
    second = run(settings=settings_of(data, tiny, num_virtual_tokens=1, learning_rate=0.02, seed=2020))
    assert second["settings"]["seed"] == first["settings"]["seed"]
    assert id_folders(data) == [trained]
    assert written_at(trained) == before
    assert first["id_model"] == second["id_model"]
    assert first["id_model"] == {"model": "ComiRec", "test": json.loads((trained / "result.json").read_text())["test"]}


@pytest.mark.parametrize(
    "other",
    [{"id_model_settings": {**COMIREC, "embedding_size": 4}}, {"id_model": "GRU4Rec"}, {"seed": 7},
     {"MAX_ITEM_LIST_LENGTH": 5}],
)  # fmt: skip
def test_other_settings_have_an_id_model_of_their_own(finished, tiny, other):
    data, _, _ = finished
    run(settings=settings_of(data, tiny, **other))
    assert len(id_folders(data)) == 2


def test_other_data_has_an_id_model_of_its_own(finished, tiny):
    data, _, _ = finished
    write_dataset(data, histories={**HISTORIES, "u8": "gfedc"})
    run(settings=settings_of(data, tiny))
    assert len(id_folders(data)) == 2


def test_other_defaults_have_an_id_model_of_their_own(small, tiny, tmp_path, monkeypatch):
    """An ID model is not found again after a file of the package or of the dataset says something else."""

    def digest():
        own = Config(config_dict=settings_of(small, tiny))
        return digest_of(id_model.shape(own, id_model.settings_of(own)))

    before = digest()
    real, copies = config.shipped, tmp_path / "shipped"
    for folder in ("properties", "dataset_configs"):
        shutil.copytree(real(folder), copies / folder)
    for module in (config, names):
        monkeypatch.setattr(module, "shipped", lambda folder: copies / folder)
    assert digest() == before
    (copies / "dataset_configs" / "small.yaml").write_text("prompt_noun: games\n")
    assert digest() != before, "a dataset with a file loads other columns"
    before = digest()
    (copies / "dataset_configs" / "small.yaml").write_text("prompt_noun: movies\n")
    assert digest() == before, "no ID model reads a prompt"
    model = copies / "properties" / "model" / "ComiRec.yaml"
    model.write_text(model.read_text().replace("dropout_prob: 0.2", "dropout_prob: 0.3"))
    assert digest() != before


def test_it_is_the_run_that_its_settings_make(finished):
    """What the adapter trained first is what the ID model's own command trains."""
    data, _, result = finished
    own = run(settings=id_settings(data))
    assert own["test"] == result["id_model"]["test"]
    (trained,) = id_folders(data)
    weights = load_file(Path(own["path"]).parent / "model.safetensors")
    for name, tensor in load_file(trained / "model.safetensors").items():
        assert torch.equal(weights[name], tensor), name


def test_run_of_its_own_is_taken_as_it_is(small, tiny):
    own = run(settings=id_settings(small, model="GRU4Rec", hidden_size=8, train_neg_sample_args=None))
    settings = settings_of(small, tiny, id_model_path=own["path"], id_model_settings={})
    result = run(settings=settings)
    assert not id_folders(small)
    assert result["id_model"] == {"model": "GRU4Rec", "test": own["test"]}
    assert result["settings"]["id_model"] == "GRU4Rec"
    with pytest.raises(SettingError, match=r"id_model=Caser, but id_model_path=.* holds a GRU4Rec"):
        run(settings={**settings, "id_model": "Caser"})


def test_settings_beside_a_run_of_its_own_are_refused(small, tiny):
    """They would have no effect: that model is trained already."""
    own = run(settings=id_settings(small))
    settings = settings_of(small, tiny, id_model_path=own["path"])
    with pytest.raises(SettingError, match=r"id_model_settings={.*} has no effect beside id_model_path=.*result.json"):
        run(settings=settings)
    assert_nothing_half_written(small)


def test_a_model_that_is_not_stored_takes_no_id_model_of_the_working_directory(small, tiny):
    """Without a folder of the run, `id_model/` of whoever calls is none of its business."""
    own = run(settings=id_settings(small, seed=5))
    shutil.copytree(Path(own["path"]).parent, Path("id_model"))
    parts = quick_start.build(Config(config_dict=settings_of(small, tiny)))
    (trained,) = id_folders(small)
    assert parts.model.id_run.folder == trained


def test_trial_with_a_run_of_its_own_is_evaluated_later(small, tiny, monkeypatch):
    """A run that is gone on with is given all its settings, the ID model's name among them."""
    own = run(settings=id_settings(small, model="GRU4Rec", hidden_size=8, train_neg_sample_args=None))
    settings = settings_of(small, tiny, id_model_path=own["path"], id_model_settings={})
    whole = run(settings=settings)
    folder = small / "saved" / "trial"
    trial = quick_start.fit(Config(config_dict=settings), folder)
    monkeypatch.setattr(AdapterTrainer, "_language_states", lambda *_: pytest.fail("nothing is left to train"))
    result = run(resume=folder)
    assert result["valid"] == whole["valid"] == trial["valid"]
    assert result["test"] == whole["test"]


def test_several_interests_have_tokens_each(small, tiny):
    own = {"id_model_settings": {**COMIREC, "num_interests": 2}, "num_virtual_tokens": 3}
    result = run(settings=settings_of(small, tiny, **own))
    model = load(result["path"]).model
    assert model.virtual == 6
    vectors = torch.zeros(4, 2, 8)
    assert model.virtual_tokens(vectors).shape == (2, 4, 6, 32)


# -- kept with the run -------------------------------------------------------------------------------------------------


def test_run_needs_no_other_folder(finished):
    data, folder, _ = finished
    scores = scores_of(load(folder))
    for trained in id_folders(data):
        shutil.rmtree(trained)
    assert sorted(file.name for file in (folder / "id_model").iterdir()) == [
        "config.yaml", "model.safetensors", "result.json",
    ]  # fmt: skip
    parts = load(folder)
    assert torch.equal(scores_of(parts), scores)
    assert not id_folders(data), "nothing is trained again"
    frame = read_ranks(folder / "ranks-test.tsv.gz").set_index("user")
    for interaction, _, _, targets in parts.test:
        own = scores[torch.arange(len(targets)), targets]
        users = parts.dataset.id2token("user_id", interaction["user_id"].numpy())
        assert frame.loc[users, "rank"].tolist() == (scores > own[:, None]).sum(dim=1).add(1).tolist()


def test_run_holds_adapter_and_head_alone(finished):
    _, folder, result = finished
    names = set(load_file(folder / "model.safetensors"))
    assert names == {
        *(f"adapter.{name}" for name in ("projection_weight", "projection_bias", "prefix", "gate_weight")),
        "projection.weight",
    }
    assert result["parameters"]["trained"] == 2 * (32 * 8 + 32 + 2 * 32) + 2 * 32 + 9 * 32
    assert {"mean_tokens", "mean_items"} == result["prompt"].keys()


# -- an interrupted run ------------------------------------------------------------------------------------------------

EPOCHS = 3


def arguments_of(tiny, folder):
    return [
        "--model=IDLEAdapter", "--dataset=small", "--data_path=.", "--use_gpu=False", f"--epochs={EPOCHS}",
        "--topk=[1,3]", "--valid_metric=NDCG@3", "--train_batch_size=8", "--show_progress=False", "--state=ERROR",
        "--precision=fp32", "--resume_seconds=0", f"--checkpoint_dir={folder}", f"--backbone={tiny['bert']}",
        "--id_model_settings={'embedding_size': 8, 'epochs': 2, 'train_batch_size': 8}", "--max_prompt_tokens=128",
        "--MAX_ITEM_LIST_LENGTH=6", "--learning_rate=0.01",
    ]  # fmt: skip


def outcome(folder):
    """All of a run's results that time has no part in, and its weights."""
    (made,) = folder.glob("IDLEAdapter-*")
    result = json.loads((made / "result.json").read_text())
    kept = {name: result[name] for name in ("valid", "test", "epochs", "best_epoch", "history", "id_model")}
    return kept, load_file(made / "model.safetensors"), load_file(made / "id_model" / "model.safetensors")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, tiny):
    root = write_dataset(tmp_path_factory.mktemp("whole"))
    code, _, error = command_line(root, arguments_of(tiny, root / "saved"))
    assert code == 0, error
    return outcome(root / "saved")


# 32 training rows: 4 steps an epoch of the ID model, 2 of the adapter's with 3 prefixes of each of the 7 users
@pytest.mark.parametrize("kill", [("step", 6), ("step", 12), ("state", 3), ("result", 1)])
def test_resumed_run_ends_as_the_uninterrupted_one(small, tiny, uninterrupted, kill):
    code, _, error = command_line(small, arguments_of(tiny, small / "saved"), kill=kill)
    assert code == -9, error
    (trained,) = id_folders(small)
    whole = (trained / "result.json").exists()
    assert whole == (kill in (("step", 12), ("state", 3)))
    before = written_at(trained)
    (made,) = (small / "saved").glob("IDLEAdapter-*")
    code, out, error = command_line(small, ["run", f"--resume={made}"])
    assert code == 0, error
    assert out.splitlines()[-1] == str(made / "result.json")
    assert id_folders(small) == [trained], "the ID model is not trained a second time"
    assert not whole or written_at(trained) == before
    found = outcome(small / "saved")
    assert found[0] == uninterrupted[0]
    for mine, expected in zip(found[1:], uninterrupted[1:], strict=True):
        assert mine.keys() == expected.keys()
        assert all(torch.equal(mine[name], weights) for name, weights in expected.items())


# -- refused -----------------------------------------------------------------------------------------------------------


def assert_nothing_half_written(data):
    assert not list((data / "saved").glob("IDLEAdapter-*"))


def test_id_model_of_other_data(small, tiny):
    write_dataset(small, histories={user: items[:4] for user, items in HISTORIES.items()}, name="other")
    other = run(settings=id_settings(small, dataset="other"))
    folder = Path(other["path"]).parent
    message = rf"the ID model {folder} knows the \d items of other, but this run has the 8 items of small"
    with pytest.raises(CheckpointError, match=message):
        run(settings=settings_of(small, tiny, id_model_path=str(folder), id_model_settings={}))
    assert_nothing_half_written(small)


def test_id_model_of_other_users(small, tiny):
    write_dataset(small, histories={**HISTORIES, "u9": "abc"}, name="other")
    other = run(settings=id_settings(small, dataset="other"))
    with pytest.raises(CheckpointError, match=r"knows the 8 users of other, but this run has the 7 users of small"):
        run(settings=settings_of(small, tiny, id_model_path=other["path"], id_model_settings={}))


def test_id_model_of_other_items_under_the_same_name(small, tiny):
    other = run(settings=id_settings(small))
    write_dataset(small, histories={user: items.replace("h", "a") for user, items in HISTORIES.items()})
    message = "belong to the item catalogue of small with 9 ids, but this run has of small with 8 ids"
    with pytest.raises(CheckpointError, match=message):
        run(settings=settings_of(small, tiny, id_model_path=other["path"], id_model_settings={}))
    assert_nothing_half_written(small)


def test_broken_and_unfinished_id_models(small, tiny):
    folder = Path(run(settings=id_settings(small))["path"]).parent
    settings = settings_of(small, tiny, id_model_path=str(folder), id_model_settings={})
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(CheckpointError, match=r"the weights .*model\.safetensors"):
        run(settings=settings)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "result.json").unlink()
    with pytest.raises(CheckpointError, match=rf"the run {folder} is not finished: resume it by --resume={folder}"):
        run(settings=settings)
    with pytest.raises(CheckpointError, match="is not a run: a run is a folder with"):
        run(settings={**settings, "id_model_path": str(small / "nowhere")})
    assert_nothing_half_written(small)


def test_backbone_that_is_not_there_is_told_before_the_id_model_is_trained(small, tiny):
    with pytest.raises(BackboneError, match="nowhere"):
        run(settings=settings_of(small, tiny, backbone=str(small / "nowhere")))
    assert not id_folders(small)
    assert_nothing_half_written(small)


@pytest.mark.parametrize("name", ["FPMC", "Pop"])
def test_model_without_a_user_vector_is_refused_before_it_is_trained(small, tiny, monkeypatch, capsys, name):
    arguments = [
        f"--{key}={value}" for key, value in settings_of(small, tiny, id_model=name, id_model_settings={}).items()
    ]
    trained = []
    real = quick_start.run
    monkeypatch.setattr(quick_start, "run", lambda *a, **k: trained.append(k) or real(*a, **k))
    assert cli.main(arguments) != 0
    assert f"error: the model {name} has no user vector: take one of ComiRec, MLP4Rec, " in capsys.readouterr().err
    assert len(trained) <= 1, "no run beside the one that was asked for"
    assert not id_folders(small)
    assert_nothing_half_written(small)
