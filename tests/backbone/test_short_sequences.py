"""Rows of short sequences in blocks: against numpy, torch's attention of one sequence, and FlashAttention."""

import copy

import numpy as np
import pytest
import torch
from test_packed import packed_batch, random_sequences
from tiny_models import rough
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F
from transformers import AutoModel, BertConfig, LlamaConfig, MistralConfig, OPTConfig

from recbole_llm.backbone import attention, short_sequences
from recbole_llm.backbone.attention import compile_packed_layers, packed_hidden_states, use_packed_attention
from recbole_llm.backbone.loading import load_backbone
from recbole_llm.backbone.short_sequences import attend_in_blocks, row_blocks
from recbole_llm.backbone.tuning import TuningSettings, prepare_for_tuning
from recbole_llm.packing.batch import sequence_bounds

ROWS = {
    "across the borders": [100, 60, 90, 3, 1, 50, 40, 77],
    "up to the borders": [128, 64, 64, 1, 127],
    "one longer than a block, an incomplete last block": [30, 300, 5, 2],
    "two long ones": [257, 255],
    "single tokens": [1] * 259,
}
BATCHES = [[20] * 15 + [1], [9, 31] * 9, [40] * 25 + [150], [7] * 128, [33, 1, 12] * 40, [16] * 16]


def seen(lengths, causal):
    """Which token sees which, written out: bool [tokens, tokens]."""
    number = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(len(number))
    same = number[:, None] == number[None]
    return same & (place[:, None] >= place[None]) if causal else same


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("row", ROWS)
def test_blocks_are_those_that_hold_a_pair_of_one_sequence(row, causal):
    pairs = seen(ROWS[row], causal)
    tokens = len(pairs)
    count = -(-tokens // 128)
    rest = count * 128 - tokens
    right = np.pad(pairs, ((0, rest), (0, rest))).reshape(count, 128, count, 128).any(axis=(1, 3))
    blocks = row_blocks(sequence_bounds(np.array(ROWS[row]), causal), tokens)
    for numbers, index, expected in (
        (blocks.keys, blocks.key_index, right),
        (blocks.queries, blocks.query_index, right.T),
    ):
        assert numbers.shape == (1, 1, count) and index.shape == (1, 1, count, count)
        assert numbers.dtype == index.dtype == torch.int32
        for number, listed, row_of_blocks in zip(numbers[0, 0].tolist(), index[0, 0].tolist(), expected, strict=True):
            assert listed[:number] == np.flatnonzero(row_of_blocks).tolist()
            assert all(0 <= block < count for block in listed)


@pytest.fixture
def gradients_on_a_cpu(monkeypatch):
    """Lift torch's refusal of gradients on a CPU, whose compiled kernel has none; the plain arithmetic has."""
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)
    torch._dynamo.reset()


@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("row", ROWS)
@pytest.mark.usefixtures("gradients_on_a_cpu")
def test_attention_and_gradients_are_those_of_each_sequence_alone(row, causal, key_heads, scaling):
    lengths = ROWS[row]
    tokens = sum(lengths)
    generator = torch.Generator().manual_seed(0)
    query, key, value, weight = (
        torch.randn(1, heads, tokens, 16, generator=generator) for heads in (4, key_heads, key_heads, 4)
    )
    inputs = [tensor.requires_grad_() for tensor in (query, key, value)]
    blocks = row_blocks(sequence_bounds(np.array(lengths), causal), tokens)
    found = attend_in_blocks(*inputs, blocks, scaling)
    right = torch.cat(
        [
            F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scaling, enable_gqa=True)
            for q, k, v in zip(*(tensor.split(lengths, dim=2) for tensor in inputs), strict=True)
        ],
        dim=2,
    )
    torch.testing.assert_close(found, right, atol=1e-5, rtol=0)
    gradients, expected = (torch.autograd.grad((out * weight).sum(), inputs) for out in (found, right))
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-5, rtol=0)


def model_of(kind, size=16, **more):
    """A random model of 2 layers whose 4 heads are `size` wide, in float32, packed."""
    shape = {"hidden_size": 4 * size, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300, **more}
    config = {
        "llama": lambda: LlamaConfig(**shape, intermediate_size=64, num_key_value_heads=2),
        "mistral": lambda: MistralConfig(**shape, intermediate_size=64, num_key_value_heads=2),
        "opt": lambda: OPTConfig(**shape, ffn_dim=64, word_embed_proj_dim=4 * size),
        "bert": lambda: BertConfig(**shape, intermediate_size=64),
    }[kind]()
    torch.manual_seed(0)
    model = rough(AutoModel.from_config(config, dtype=torch.float32).eval())
    use_packed_attention(model)
    return model


def layers_of(model):
    return next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))


def batch_of(lengths, model, kind):
    return packed_batch(random_sequences(lengths, model), causal=kind != "bert")


def kernel(query, key, value, *_, **__):
    """Take what FlashAttention takes; a row that goes through it is no row of blocks."""
    return query + key.sum() + value.sum()


@pytest.fixture
def as_on_a_gpu(monkeypatch, gradients_on_a_cpu):
    monkeypatch.setattr(attention, "varlen_attn", kernel)
    monkeypatch.setattr(attention, "_VARLEN_PARAMETERS", frozenset({"scale", "window_size", "enable_gqa"}))
    monkeypatch.setattr(attention, "_has_kernel", lambda device: True)


class FlexCounter(CompileCounter):
    """Count the graphs that torch.compile makes, and the calls of flex_attention in them."""

    def __init__(self):
        super().__init__()
        self.flex = 0

    def __call__(self, graph, inputs):
        self.flex += sum(str(node.target) == "flex_attention" for node in graph.graph.nodes)
        return super().__call__(graph, inputs)


def compiled(model, only=None):
    """Compile the layers, or so many of them, with a backend that counts; a second graph in a pass is an error."""
    counter = FlexCounter()
    for layer in layers_of(model)[:only]:
        layer.forward = torch.compile(layer.forward, dynamic=True, fullgraph=True, backend=counter)
    setattr(model, attention._COMPILED, True)
    return counter


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", ["llama", "opt", "bert"])
@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_layer_is_one_graph(kind, autocast):
    model = model_of(kind, max_position_embeddings=256).to(torch.float32 if autocast else torch.bfloat16)
    counter = compiled(model, only=1)
    for lengths in BATCHES:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            packed_hidden_states(model, batch_of(lengths, model, kind))
    assert (counter.frame_count, counter.flex) == (1, 1)


@pytest.mark.parametrize("kind", ["llama", "mistral", "opt", "bert"])
@pytest.mark.usefixtures("as_on_a_gpu")
def test_states_and_gradients_equal_those_of_each_sequence_alone(monkeypatch, kind):
    model = model_of(kind, max_position_embeddings=256)
    alone = copy.deepcopy(model)
    alone.set_attn_implementation("sdpa")
    counter = compiled(model)
    monkeypatch.setattr(attention, "_fits_kernel", lambda *_: True)  # in float32, too
    for lengths in BATCHES[:3]:
        batch = batch_of(lengths, model, kind)
        found = packed_hidden_states(model, batch)
        right = torch.cat([alone(input_ids=ids[None]).last_hidden_state[0] for ids in batch.token_ids.split(lengths)])
        torch.testing.assert_close(found, right, atol=1e-4, rtol=1e-4)
        weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(0)) / len(found) ** 0.5
        for each, states in ((model, found), (alone, right)):
            each.zero_grad()
            (states * weight).sum().backward()
        for (name, one), other in zip(model.named_parameters(), alone.parameters(), strict=True):
            if one.grad is not None or other.grad is not None:
                torch.testing.assert_close(one.grad, other.grad, atol=1e-3, rtol=1e-3, msg=name)
    assert counter.flex >= 1


@pytest.mark.parametrize(("window", "flex"), [(256, 1), (16, 0)])
@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_window_that_cuts_a_sequence_goes_through_the_kernel(window, flex):
    model = model_of("mistral", sliding_window=window).to(torch.bfloat16)
    counter = compiled(model, only=1)
    packed_hidden_states(model, batch_of([20] * 20, model, "mistral"))
    assert counter.flex == flex


@pytest.mark.parametrize(
    "lengths",
    [[20] * 12, [65] * 8, [400]],
    ids=["a short row", "long sequences", "one sequence"],
)
@pytest.mark.usefixtures("as_on_a_gpu")
def test_other_rows_go_through_the_kernel(lengths):
    model = model_of("bert", max_position_embeddings=512).to(torch.bfloat16)
    counter = compiled(model, only=1)
    packed_hidden_states(model, batch_of(lengths, model, "bert"))
    assert (counter.frame_count, counter.flex) == (1, 0)


@pytest.mark.parametrize("way", ["not compiled", "switched off", "no kernel"])
@pytest.mark.usefixtures("as_on_a_gpu")
def test_blocks_are_made_for_those_that_read_them(monkeypatch, way):
    model = model_of("bert")
    if way != "not compiled":
        compiled(model, only=1)
    if way == "switched off":
        monkeypatch.setattr(short_sequences, "LONGEST_MEAN", 0)
    if way == "no kernel":
        monkeypatch.setattr(attention, "_has_kernel", lambda device: False)
    calls = []
    monkeypatch.setattr(attention, "row_blocks", lambda *given: calls.append(given))
    packed_hidden_states(model, batch_of([20] * 20, model, "bert"))
    assert not calls


def test_the_setting_compile_leads_to_blocks(tiny, monkeypatch):
    class Made(Exception):
        pass

    def made(*_):
        raise Made

    monkeypatch.setattr(attention, "_has_kernel", lambda device: True)
    monkeypatch.setattr(attention, "row_blocks", made)
    backbone = load_backbone(str(tiny["bert"]))
    batch = batch_of([20] * 20, backbone.model, "bert")
    packed_hidden_states(backbone.model, batch)
    settings = TuningSettings("full", 4, 8, 0.0, "all-linear", "fp32", gradient_checkpointing=False, compile=True)
    prepare_for_tuning(backbone, settings)
    with pytest.raises(Made):
        packed_hidden_states(backbone.model, batch)


def step(model, batch):
    """Hidden states and the gradient of all parameters as one vector, float64, on the CPU."""
    model.zero_grad()
    states = packed_hidden_states(model, batch)
    weight = torch.randn(states.shape, generator=torch.Generator().manual_seed(0)).to(states)
    (states * weight).sum().backward()
    gradients = [parameter.grad.flatten().double() for parameter in model.parameters() if parameter.grad is not None]
    return states.detach().double().cpu(), torch.cat(gradients).cpu()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["llama", "opt", "bert"])
def test_a_gpu_is_as_exact_as_with_its_kernel(monkeypatch, kind):
    torch._dynamo.reset()
    exact = model_of(kind, size=64, max_position_embeddings=256).cuda()
    with_kernel = copy.deepcopy(exact).to(torch.bfloat16)
    in_blocks = copy.deepcopy(with_kernel)
    compile_packed_layers(in_blocks, layers_of(in_blocks))
    true, graphs = attention.varlen_attn, []
    for lengths in BATCHES:
        batch = batch_of(lengths, exact, kind).to("cuda")
        right, other = step(exact, batch), step(with_kernel, batch)

        def not_here(*_, **__):
            raise AssertionError("a row of short sequences went through the kernel")

        monkeypatch.setattr(attention, "varlen_attn", not_here)
        found = step(in_blocks, batch)
        monkeypatch.setattr(attention, "varlen_attn", true)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        for mine, reference, near in zip(found, right, other, strict=True):
            assert torch.isfinite(mine).all()
            assert (mine - reference).norm() <= 2 * (near - reference).norm()
    assert len(set(graphs)) == 1, "compiled again for another shape"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_makes_blocks_without_being_waited_for():
    bounds = batch_of([20] * 30, model_of("bert"), "bert").to("cuda").bounds
    right = row_blocks(batch_of([20] * 30, model_of("bert"), "bert").bounds, 600)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = row_blocks(bounds, 600)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for name in ("sequence", "keys", "key_index", "queries", "query_index"):
        assert torch.equal(getattr(found, name).cpu(), getattr(right, name))
