"""Types of language models whose attention is more than causal, against transformers' own eager attention."""

import numpy as np
import pytest
import torch
import transformers as tf
from test_packed import packed_states

from recbole_llm.backbone.attention import use_packed_attention
from recbole_llm.errors import BackboneError

SHAPE = {
    "vocab_size": 90,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "head_dim": 8,
}
WINDOW = 5
LENGTHS = [3, 1, 5, 6, 23, 40]  # shorter than the window, as long, one longer, much longer
WINDOWED = {
    "mistral": (tf.MistralConfig, tf.MistralModel, {"sliding_window": WINDOW}),
    "qwen2": (
        tf.Qwen2Config,
        tf.Qwen2Model,
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "gemma3": (
        tf.Gemma3TextConfig,
        tf.Gemma3TextModel,
        {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    ),
}


def pair(kind, attention="eager"):
    """The same random weights twice: packed, and with transformers' own attention."""
    config_class, model_class, more = WINDOWED[kind]
    torch.manual_seed(1)
    own = model_class(config_class(**SHAPE, **more, attn_implementation=attention)).eval()
    with torch.no_grad():  # larger weights than a fresh model's, so that attention is far from an average
        for parameter in own.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    packed = model_class(config_class(**SHAPE, **more)).eval()
    packed.load_state_dict(own.state_dict())
    use_packed_attention(packed)
    return packed, own


def sequences():
    rng = np.random.default_rng(0)
    return [torch.from_numpy(rng.integers(3, 90, length)) for length in LENGTHS]


@pytest.mark.parametrize("kind", WINDOWED)
@torch.no_grad()
def test_windows_are_transformers_own(kind):
    packed, own = pair(kind)
    for sequence, states in zip(sequences(), packed_states(packed, sequences(), causal=True), strict=True):
        right = own(input_ids=sequence[None], use_cache=False).last_hidden_state[0]
        torch.testing.assert_close(states, right, rtol=2e-4, atol=2e-4)


@torch.no_grad()
def test_the_window_is_worth_testing():
    """Without a window the states of long sequences are others by more than the tolerance above."""
    packed, own = pair("mistral")
    own.config.sliding_window = None
    long = sequences()[-1]
    right = own(input_ids=long[None], use_cache=False).last_hidden_state[0]
    found = packed_states(packed, [long], causal=True)[0]
    assert (found[:WINDOW] - right[:WINDOW]).abs().max() < 1e-3
    assert (found - right).abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize(
    ("config_class", "model_class", "more", "named"),
    [
        (tf.Gemma2Config, tf.Gemma2Model, {"attn_logit_softcapping": 50.0}, "softcap"),
        (tf.GptOssConfig, tf.GptOssModel, {"num_local_experts": 2, "num_experts_per_tok": 1}, "s_aux"),
    ],
)
def test_other_changes_of_attention_are_refused(config_class, model_class, more, named):
    model = model_class(config_class(**SHAPE, **more)).eval()
    use_packed_attention(model)
    with pytest.raises(BackboneError, match=f"changes attention by {named}, which packed batches do not have"):
        packed_states(model, sequences(), causal=True)


@torch.no_grad()
def test_the_position_bias_of_t5_is_refused():
    shape = {"vocab_size": 90, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    model = tf.T5EncoderModel(tf.T5Config(**shape)).eval()
    use_packed_attention(model)
    with pytest.raises(BackboneError, match="T5Attention changes attention by position_bias"):
        packed_states(model, sequences(), causal=False)
