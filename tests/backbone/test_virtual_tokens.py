"""Layers with virtual tokens against eq. 8 to 11 written out in float64, and against transformers without them."""

import copy
import shutil

import numpy as np
import pytest
import torch
from plain_layers import PlainModel
from tiny_models import rough
from transformers import AutoModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding

from recbole_llm.backbone.attention import packed_hidden_states, use_packed_attention
from recbole_llm.backbone.loading import load_backbone
from recbole_llm.backbone.virtual_tokens import (
    PooledInputs,
    VirtualTokens,
    compile_layers,
    visit_layers,
    visited_hidden_states,
)
from recbole_llm.data.prompt_batches import PromptStyle, pack_prompts
from recbole_llm.packing.ragged import RaggedTable
from recbole_llm.packing.sequences import Sequences

TYPES = ["bert", "opt", "opt_projected", "llama"]
LENGTHS = [9, 1, 23, 4]


@pytest.fixture
def load(tiny, monkeypatch):
    """A backbone in float64, ready for virtual tokens; Llama's norm and angles are not rounded to float32."""

    def rms_norm(self, hidden):
        return self.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    def angles(self, x, position_ids):
        half = self.config.hidden_size // self.config.num_attention_heads // 2
        powers = -torch.arange(half, dtype=torch.float64) / half
        each = position_ids[..., None] * self.config.rope_parameters["rope_theta"] ** powers
        whole = torch.cat([each, each], dim=-1)
        return whole.cos().to(x.dtype), whole.sin().to(x.dtype)

    monkeypatch.setattr(LlamaRMSNorm, "forward", rms_norm)
    monkeypatch.setattr(LlamaRotaryEmbedding, "forward", angles)

    def make(kind, dtype=torch.float64):
        loaded = load_backbone(str(tiny[kind]), dtype=dtype)
        rough(loaded.model)
        use_packed_attention(loaded.model)
        visit_layers(loaded.layers)
        return loaded

    return make


def texts_of(loaded, lengths=LENGTHS, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(5, loaded.model.config.vocab_size, n).tolist() for n in lengths]


def packed(loaded, texts, virtual, placeholder=1):
    """The texts as prompts, each behind `virtual` placeholders."""
    table = RaggedTable.from_rows([[placeholder] * virtual, *texts])
    front = 1 if virtual else 0
    count = len(texts)
    rows = np.stack([np.zeros(count, dtype=np.int64), np.arange(1, count + 1)], axis=1)[:, 1 - front :].ravel()
    read = np.arange(len(rows)) % (front + 1) == front
    sequences = Sequences(rows, np.full(count, front + 1), read, np.zeros_like(rows))
    decoder = loaded.preset.kind == "decoder"
    absolute = loaded.model.config.model_type != "llama"
    return pack_prompts(sequences, table, PromptStyle(decoder, loaded.preset.pooling, absolute), virtual)


def virtual_states(loaded, prompts, virtual, seed=0, layers=None):
    """D [layers, prompts, virtual, width], as large as hidden states are."""
    layers = len(loaded.layers) if layers is None else layers
    return torch.from_numpy(
        np.random.default_rng(seed).normal(size=(layers, prompts, virtual, loaded.model.config.hidden_size))
    )


def real_rows(states, lengths, virtual):
    """Each prompt's own rows of a packed row."""
    return [part[virtual:] for part in states.split([n + virtual for n in lengths])]


def visited(loaded, batch, states):
    """Every layer's output and the last hidden state of a packed pass with virtual tokens."""
    outputs = []
    hooks = [
        layer.register_forward_hook(lambda _, __, out: outputs.append((out[0] if isinstance(out, tuple) else out)[0]))
        for layer in loaded.layers
    ]
    with torch.no_grad():
        last = visited_hidden_states(
            loaded.model, batch.packed, VirtualTokens(batch.virtual_index, states.flatten(1, 2))
        )
    for hook in hooks:
        hook.remove()
    return outputs, last


# -- with virtual tokens -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("virtual", [1, 3])
@pytest.mark.parametrize("kind", TYPES)
def test_every_layer_equals_the_equations(load, kind, virtual):
    loaded = load(kind)
    texts = texts_of(loaded)
    states = virtual_states(loaded, len(texts), virtual)
    outputs, last = visited(loaded, packed(loaded, texts, virtual), states)
    plain = PlainModel(loaded.model)
    assert len(outputs) == len(loaded.layers) == loaded.model.config.num_hidden_layers == 2
    for number, text in enumerate(texts):
        expected, expected_last = plain.states(text, states[:, number].numpy())
        for output, layer in zip(outputs, expected, strict=True):
            np.testing.assert_allclose(real_rows(output, LENGTHS, virtual)[number], layer, atol=1e-10, rtol=1e-10)
        np.testing.assert_allclose(real_rows(last, LENGTHS, virtual)[number], expected_last, atol=1e-10, rtol=1e-10)
        without = plain.states(text)[1]
        assert np.abs(without - expected_last).max() > 1e-2, "virtual tokens must matter"


@pytest.mark.parametrize("kind", TYPES)
def test_each_layer_has_its_own_tokens(load, kind):
    """The tokens of the last layer change no earlier output."""
    loaded = load(kind)
    texts = texts_of(loaded)
    batch = packed(loaded, texts, 2)
    states = virtual_states(loaded, len(texts), 2)
    other = torch.cat([states[:1], virtual_states(loaded, len(texts), 2, seed=1)[1:]])
    (first, second), _ = visited(loaded, batch, states)
    (first_of_other, second_of_other), _ = visited(loaded, batch, other)
    assert torch.equal(first, first_of_other)
    for own, others in zip(real_rows(second, LENGTHS, 2), real_rows(second_of_other, LENGTHS, 2), strict=True):
        assert (own - others).abs().max() > 1e-2


@pytest.mark.parametrize("kind", TYPES)
def test_one_layer_of_tokens_serves_all(load, kind):
    loaded = load(kind)
    texts = texts_of(loaded)
    batch = packed(loaded, texts, 2)
    one = virtual_states(loaded, len(texts), 2, layers=1)
    found = visited(loaded, batch, one)[1]
    assert torch.equal(found, visited(loaded, batch, one.expand(2, -1, -1, -1))[1])


@pytest.mark.parametrize("kind", TYPES)
def test_many_prompts_equal_one_at_a_time(load, kind):
    loaded = load(kind)
    texts = texts_of(loaded)
    states = virtual_states(loaded, len(texts), 2)
    together = real_rows(visited(loaded, packed(loaded, texts, 2), states)[1], LENGTHS, 2)
    for number, text in enumerate(texts):
        alone = visited(loaded, packed(loaded, [text], 2), states[:, number : number + 1])[1][2:]
        torch.testing.assert_close(together[number], alone, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kind", TYPES)
def test_placeholder_has_no_effect(load, kind):
    loaded = load(kind)
    texts = texts_of(loaded)
    states = virtual_states(loaded, len(texts), 2)
    found = [visited(loaded, packed(loaded, texts, 2, placeholder), states)[1] for placeholder in (1, 40)]
    for one, other in zip(*(real_rows(states, LENGTHS, 2) for states in found), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", TYPES)
def test_gradients_of_the_tokens_by_finite_differences(load, kind):
    loaded = load(kind)
    loaded.model.requires_grad_(False)
    texts = texts_of(loaded, [3, 2])
    batch = packed(loaded, texts, 2)
    states = virtual_states(loaded, 2, 2).requires_grad_()
    weights = torch.randn(9, loaded.width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    real = torch.ones(9, dtype=torch.bool).index_fill(0, batch.virtual_index, False)

    def value(states):
        visitor = VirtualTokens(batch.virtual_index, states.flatten(1, 2))
        return (visited_hidden_states(loaded.model, batch.packed, visitor) * weights)[real].sum()

    value(states).backward()
    rng = np.random.default_rng(0)
    for _ in range(4):
        direction = torch.from_numpy(rng.normal(size=states.shape))
        with torch.no_grad():
            slope = (value(states + 1e-6 * direction) - value(states - 1e-6 * direction)) / 2e-6
        assert float((states.grad * direction).sum()) == pytest.approx(float(slope), rel=1e-5, abs=1e-6)
    assert states.grad.flatten(1).any(dim=1).all(), "the tokens of every layer have a gradient"


@pytest.mark.parametrize("kind", TYPES)
def test_float32_is_near_the_equations(tiny, kind):
    """The model as it is used, with the roundings to float32 that transformers makes."""
    loaded = load_backbone(str(tiny[kind]))
    rough(loaded.model)
    use_packed_attention(loaded.model)
    visit_layers(loaded.layers)
    texts = texts_of(loaded)
    states = virtual_states(loaded, len(texts), 2)
    last = visited(loaded, packed(loaded, texts, 2), states)[1]
    plain = PlainModel(loaded.model)
    for number, (text, found) in enumerate(zip(texts, real_rows(last, LENGTHS, 2), strict=True)):
        expected = plain.states(text, states[:, number].numpy())[1]
        np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())


# -- without -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
def test_without_virtual_tokens_it_is_the_model_itself(load, tiny, kind):
    loaded = load(kind, torch.float32)
    texts = texts_of(loaded)
    batch = packed(loaded, texts, 0)
    states = torch.zeros(2, len(texts), 0, 32)
    found = visited(loaded, batch, states)[1]
    with torch.no_grad():
        assert torch.equal(found, packed_hidden_states(loaded.model, batch.packed)), "also without a visitor"
        own = rough(AutoModel.from_pretrained(tiny[kind], attn_implementation="sdpa", dtype=torch.float32).eval())
        for text, states in zip(texts, found.split(LENGTHS), strict=True):
            ids = torch.tensor([text])
            expected = own(input_ids=ids).last_hidden_state[0]
            torch.testing.assert_close(states, expected, atol=1e-4, rtol=1e-4)
            alone = packed(loaded, [text], 0)
            none = VirtualTokens(alone.virtual_index, torch.zeros(2, 0, 32))
            assert torch.equal(visited_hidden_states(loaded.model, alone.packed, none), expected)


@pytest.mark.parametrize("kind", TYPES)
def test_the_model_stays_usable_by_itself(load, kind):
    """Hooks that meet no visitor change nothing: transformers' own call, after a visited pass."""
    loaded = load(kind)
    ids = torch.tensor([texts_of(loaded)[0]])
    visited(loaded, packed(loaded, texts_of(loaded), 2), virtual_states(loaded, len(LENGTHS), 2))
    loaded.model.set_attn_implementation("sdpa")
    with torch.no_grad():
        found = loaded.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
    expected = PlainModel(loaded.model).states(ids[0].tolist())[1]
    np.testing.assert_allclose(found, expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("kind", TYPES)
def test_pooled_inputs_are_those_of_each_layer(load, kind):
    loaded = load(kind)
    texts = texts_of(loaded)
    batch = packed(loaded, texts, 0)
    visitor = PooledInputs(batch.segments)
    with torch.no_grad():
        last = visited_hidden_states(loaded.model, batch.packed, visitor)
        assert torch.equal(last, packed_hidden_states(loaded.model, batch.packed)), "looking changes nothing"
    assert len(visitor.states) == 2
    plain = PlainModel(loaded.model)
    for number, text in enumerate(texts):
        for found, layer in zip(visitor.states, plain.inputs(text), strict=True):
            expected = layer.mean(axis=0) if loaded.preset.pooling == "mean" else layer[-1]
            np.testing.assert_allclose(found[number], expected, atol=1e-6 * np.abs(layer).max())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert"])
def test_compiled_layers_give_the_same(load, kind):
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("needs a C++ compiler")
    loaded = load(kind, torch.float32)
    compiled = copy.deepcopy(loaded)
    compile_layers(compiled.layers)
    for lengths in (LENGTHS, [5, 12]):
        texts = texts_of(loaded, lengths)
        batch = packed(loaded, texts, 2)
        states = virtual_states(loaded, len(texts), 2).float()
        gradients = []
        for which in (loaded, compiled):
            tokens = states.clone().requires_grad_()
            visitor = VirtualTokens(batch.virtual_index, tokens.flatten(1, 2))
            last = visited_hidden_states(which.model, batch.packed, visitor)
            torch.cat(real_rows(last, lengths, 2)).square().sum().backward()
            gradients.append((last.detach(), tokens.grad))
        (own, own_gradient), (found, gradient) = gradients
        torch.testing.assert_close(
            torch.cat(real_rows(found, lengths, 2)), torch.cat(real_rows(own, lengths, 2)), atol=1e-4, rtol=1e-4
        )
        scale = own_gradient.abs().max()
        torch.testing.assert_close(gradient / scale, own_gradient / scale, atol=1e-4, rtol=1e-4)
