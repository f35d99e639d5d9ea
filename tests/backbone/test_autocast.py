"""Float32 weights under autocast: packed attention multiplies what transformers' own does, by the fast kernel."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from test_packed import LENGTHS, alone, packed_batch, packed_states, random_sequences
from tiny_models import rough
from torch.nn import functional as F
from transformers import AutoModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from recbole_llm.backbone import attention
from recbole_llm.backbone.attention import packed_hidden_states, use_packed_attention
from recbole_llm.packing.batch import sequence_bounds

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
HEADS, KEY_HEADS, SIZE, WINDOW = 6, 2, 8, 4


class Kernel:
    """What FlashAttention computes and takes, of sequences one after the other."""

    def __init__(self):
        self.calls = 0

    def __call__(
        self, query, key, value, first, second, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False
    ):
        assert query.dtype in (BF16, FP16) and query.dtype == key.dtype == value.dtype
        assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
        self.calls += 1
        parts = []
        with torch.autocast(query.device.type, enabled=False):
            for begin, end in zip(first[:-1].tolist(), first[1:].tolist(), strict=True):
                q, k, v = (tensor[None, begin:end].transpose(1, 2) for tensor in (query, key, value))
                place = torch.arange(end - begin)
                distance = place[:, None] - place
                mask = (distance >= 0) & (distance <= window_size[0]) if window_size[0] >= 0 else None
                parts.append(
                    F.scaled_dot_product_attention(
                        q, k, v, mask, is_causal=mask is None and window_size[1] == 0, scale=scale,
                        enable_gqa=enable_gqa,
                    )[0].transpose(0, 1)
                )  # fmt: skip
        return torch.cat(parts)


@pytest.fixture
def kernel(monkeypatch):
    """The fast kernel, on the CPU."""
    made = Kernel()
    monkeypatch.setattr(attention, "varlen_attn", made)
    monkeypatch.setattr(attention, "_VARLEN_PARAMETERS", {"scale", "window_size", "enable_gqa"})
    monkeypatch.setattr(attention, "_has_kernel", lambda device: device.type == "cpu")
    return made


def factors(dtypes, tokens, seed=0):
    generator = torch.Generator().manual_seed(seed)
    heads = (HEADS, KEY_HEADS, KEY_HEADS)
    return [
        torch.randn(1, count, tokens, SIZE, generator=generator, dtype=FP64).to(dtype).requires_grad_()
        for count, dtype in zip(heads, dtypes, strict=True)
    ]


def packed(module, lengths, tensors, window=None):
    bounds = dataclasses.replace(sequence_bounds(np.array(lengths), causal=True), alone=len(lengths) == 1)
    return attention._packed_attention(
        module, *tensors, None, scaling=0.3, sliding_window=window, sequence_bounds=bounds
    )[0]


def own(module, lengths, tensors):
    """transformers' own function, for each sequence alone."""
    pieces = [tensor.split(lengths, dim=2) for tensor in tensors]
    function = ALL_ATTENTION_FUNCTIONS["sdpa"]
    return torch.cat([function(module, *each, None, scaling=0.3)[0] for each in zip(*pieces, strict=True)], dim=1)


@pytest.fixture
def layer():
    module = torch.nn.Module()
    module.is_causal, module.num_key_value_groups = True, HEADS // KEY_HEADS
    return module


@pytest.mark.parametrize("dtypes", [(FP32, FP32, BF16), (FP32, FP32, FP32), (BF16, BF16, BF16), (BF16, FP16, FP32)])
@pytest.mark.parametrize("way", ["kernel", "pieces", "alone"])
def test_autocast_multiplies_what_it_does_in_transformers(layer, request, way, dtypes):
    """Bit by bit, values and gradients."""
    lengths = [13] if way == "alone" else [7, 1, 13]
    fast = request.getfixturevalue("kernel") if way == "kernel" else None
    results = []
    for function in (packed, own):
        tensors = factors(dtypes, sum(lengths))
        with torch.autocast("cpu", BF16):
            output = function(layer, lengths, tensors)
        output.backward(torch.sin(torch.arange(output.numel())).view_as(output).to(output.dtype))
        results.append([output, *(tensor.grad for tensor in tensors)])
    for found, right, dtype in zip(*results, (BF16, *dtypes), strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found, right, atol=0, rtol=0)
    assert fast is None or fast.calls == 1


@pytest.mark.parametrize(
    ("dtype", "outside", "inside"), [(FP32, False, False), (FP32, True, False), (FP64, True, True)]
)
def test_nothing_is_cast_where_autocast_is_off_or_numbers_are_float64(layer, kernel, dtype, outside, inside):
    """As in torch: what is checked in float64 under autocast is not rounded."""
    lengths = [7, 1, 13]
    tensors = factors([dtype] * 3, sum(lengths))
    with torch.autocast("cpu", BF16, enabled=outside), torch.autocast("cpu", BF16, enabled=inside):
        found, right = packed(layer, lengths, tensors), own(layer, lengths, tensors)
    assert found.dtype == dtype and not kernel.calls
    torch.testing.assert_close(found, right, atol=0, rtol=0)


def test_windows_are_those_of_float32(layer, kernel):
    lengths = [7, 1, 13]
    tensors = factors((FP32, FP32, FP32), sum(lengths))
    right = packed(layer, lengths, tensors, WINDOW)
    with torch.autocast("cpu", BF16):
        found = packed(layer, lengths, tensors, WINDOW)
    assert kernel.calls == 1
    torch.testing.assert_close(found.float(), right, atol=2**-6, rtol=2**-6)


@pytest.mark.parametrize(
    ("dtype", "size", "value_size", "dropout", "taken"),
    [
        (BF16, 64, 64, 0.0, True),
        (FP16, 64, 64, 0.0, True),
        (BF16, 256, 256, 0.0, True),
        (FP32, 64, 64, 0.0, False),
        (FP64, 64, 64, 0.0, False),
        (BF16, 64, 64, 0.1, False),  # it drops nothing
        (BF16, 512, 512, 0.0, False),  # "only supports head dimension at most 256"
        (BF16, 20, 20, 0.0, False),  # "head_size must be a multiple of 8"
        (BF16, 192, 128, 0.0, False),  # keys and values of one size
    ],
)
def test_the_kernel_gets_what_it_takes(kernel, dtype, size, value_size, dropout, taken):
    query, value = (torch.empty(1, 2, 3, width, dtype=dtype) for width in (size, value_size))
    assert attention._fits_kernel(query, value, dropout, None) == taken
    assert not attention._fits_kernel(query.to("meta"), value.to("meta"), dropout, None), "of another device"


@pytest.fixture
def llamas(tiny):
    """Float32 weights twice: packed, and with transformers' own attention."""
    own = rough(AutoModel.from_pretrained(tiny["llama"], attn_implementation="sdpa", dtype=FP32)).eval()
    packed = copy.deepcopy(own)
    use_packed_attention(packed)
    return packed, own


def distance(found, right):
    return (found.float() - right.float()).norm() / right.float().norm()


def test_float32_weights_take_the_kernel_under_autocast(llamas, kernel):
    """Rotary embeddings make float32 queries of bfloat16 ones: P5 and GPT4Rec as they are by default."""
    packed, own = llamas
    sequences = random_sequences(LENGTHS, packed)
    with torch.no_grad():
        exact = torch.cat([alone(own, sequence) for sequence in sequences])
        with torch.autocast("cpu", BF16):
            found = torch.cat(packed_states(packed, sequences, causal=True))
            right = torch.cat([alone(own, sequence) for sequence in sequences])
    assert kernel.calls == len(packed.layers)
    assert found.dtype == right.dtype
    rounding = distance(right, exact)
    assert 1e-4 < rounding < 0.05
    # The products of packed rows are added up in another order: less than what bfloat16 loses.
    assert distance(found, right) < rounding


def test_gradients_of_float32_weights_under_autocast(llamas, kernel):
    gradients = []
    for model in (*llamas, copy.deepcopy(llamas[1])):
        sequences = random_sequences([7, 1, 19], model)
        with torch.autocast("cpu", BF16, enabled=len(gradients) < 2):
            if model is llamas[0]:
                states = torch.cat(packed_states(model, sequences, causal=True))
            else:
                states = torch.cat([alone(model, sequence) for sequence in sequences])
        (states.float() * torch.sin(torch.arange(states.numel())).view_as(states)).sum().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    found, right, exact = gradients
    assert kernel.calls == len(llamas[0].layers) and found.dtype == FP32
    assert distance(found, right) < distance(right, exact) < 0.1


def test_compiled_layers_ask_for_autocast_in_one_graph(llamas):
    """The choice of the way breaks no graph of torch.compile, and is made again where autocast is off."""
    packed, compiled = llamas[0], copy.deepcopy(llamas[0])
    for layer in compiled.layers:
        layer.compile(backend="eager", fullgraph=True, dynamic=True)
    sequences = random_sequences([7, 1, 13], packed)
    states = []
    for on in (True, False):
        with torch.no_grad(), torch.autocast("cpu", BF16, enabled=on):
            found, right = (torch.cat(packed_states(model, sequences, causal=True)) for model in (compiled, packed))
        torch.testing.assert_close(found, right, atol=0, rtol=0)
        states.append(found)
    assert distance(*states) > 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_takes_its_kernel_under_autocast(llamas, monkeypatch):
    packed, own = (model.cuda() for model in llamas)
    true, calls = attention.varlen_attn, []

    def counted(*arguments, **keywords):
        calls.append(1)
        return true(*arguments, **keywords)

    monkeypatch.setattr(attention, "varlen_attn", counted)
    sequences = random_sequences(LENGTHS, packed)
    with torch.no_grad():
        exact = torch.cat([alone(own, sequence.cuda()) for sequence in sequences])
        with torch.autocast("cuda", BF16):
            found = packed_hidden_states(packed, packed_batch(sequences, causal=True).to("cuda"))
            right = torch.cat([alone(own, sequence.cuda()) for sequence in sequences])
    assert len(calls) == len(packed.layers)
    assert distance(found, right) < 2 * distance(right, exact)
