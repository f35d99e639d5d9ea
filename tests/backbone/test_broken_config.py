"""A language model whose config.json or tokenizer cannot be: one sentence that names the folder."""

import json
import shutil

import pytest

from recbole_llm.backbone.loading import load_backbone
from recbole_llm.errors import RecBoleLLMError

ROPE = {"rope_theta": 1e4}
BROKEN = {
    "hidden_act": ["nosuch", None, 3],
    "rope_scaling": [{"rope_type": "nosuch"}, {"rope_type": "yarn"}, "x"],
    "rope_parameters": [
        *({"rope_type": kind, **ROPE} for kind in ("nosuch", "yarn", "linear", 3)),
        {"rope_type": "yarn", "factor": "x", **ROPE},
        {"rope_type": "default", "rope_theta": 0},
        {"rope_type": "default", "rope_theta": -1},
        {"rope_type": "default", "rope_theta": "x"},
        7,
    ],
    "vocab_size": [-5, 0, "x", 10],
    "hidden_size": [0, -32, 33],
    "num_attention_heads": [0, 3, -4],
    "num_key_value_heads": [0, 3],
    "num_hidden_layers": [-1, 0],
    "max_position_embeddings": [-1, 0, None, "x"],
    "pad_token_id": [99999],
    "head_dim": [0, 7],
    "rms_norm_eps": ["x"],
    "attention_dropout": [5, -0.1],
    "model_type": ["nosuch", 3, None],
}


@pytest.fixture
def folder(tiny, tmp_path, workdir):
    return shutil.copytree(tiny["llama"], tmp_path / "model")


@pytest.mark.parametrize("name", BROKEN)
def test_config_that_no_model_has(folder, name):
    whole = json.loads((folder / "config.json").read_text())
    for value in BROKEN[name]:
        (folder / "config.json").write_text(json.dumps({**whole, name: value}))
        with pytest.raises(RecBoleLLMError) as error:
            load_backbone(str(folder))
        assert str(folder) in str(error.value)
        assert "\n" not in str(error.value)


def test_token_ids_beyond_the_embedding(folder):
    file = json.loads((folder / "tokenizer.json").read_text())
    token = next(iter(file["model"]["vocab"]))
    for beyond in (max(file["model"]["vocab"].values()) + 5, 10**6):
        file["model"]["vocab"][token] = beyond
        (folder / "tokenizer.json").write_text(json.dumps(file))
        with pytest.raises(RecBoleLLMError, match=rf"{folder} has token ids up to {beyond} but the model embeds"):
            load_backbone(str(folder))


def test_a_whole_one_loads(folder):
    assert load_backbone(str(folder)).width == 32
