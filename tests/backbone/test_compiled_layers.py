"""What torch.compile makes of a layer: one graph, compiled once for batches of all shapes."""

import pytest
import torch
from test_packed import packed_batch, random_sequences
from torch._dynamo.testing import CompileCounter
from transformers import AutoModel

from recbole_llm.backbone import attention
from recbole_llm.backbone.attention import packed_hidden_states, use_packed_attention

SHAPES = [(7, 5, 3), (4, 6), (9, 3, 3, 5), (8, 8, 8), (2, 3, 4, 5, 6)]  # tokens of the sequences of each batch


def kernel(query, key, value, first, second, max_q, max_k, *, scale=None, window_size=(-1, -1)):
    """Take what FlashAttention takes, with its loops over the sequences left out."""
    return query * (1.0 if scale is None else scale) + (key + value) * max_q + first.sum()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", ["llama", "opt", "bert"])
def test_a_layer_is_one_graph(tiny, monkeypatch, kind, autocast):
    monkeypatch.setattr(attention, "varlen_attn", kernel)
    monkeypatch.setattr(attention, "_VARLEN_PARAMETERS", frozenset({"scale", "window_size"}))
    monkeypatch.setattr(attention, "_has_kernel", lambda device: True)
    dtype = torch.float32 if autocast else torch.bfloat16
    model = AutoModel.from_pretrained(tiny[kind], dtype=dtype).eval()
    use_packed_attention(model)
    assert graphs_of(model, "cpu", kind, autocast) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", ["llama", "opt", "bert"])
def test_a_layer_is_one_graph_with_the_true_kernel(tiny, kind, autocast):
    model = AutoModel.from_pretrained(tiny[kind], dtype=torch.float32 if autocast else torch.bfloat16).eval().cuda()
    use_packed_attention(model)
    assert graphs_of(model, "cuda", kind, autocast) == 1


def graphs_of(model, device, kind, autocast):
    """Compile the first layer, pass all shapes through it, and count its graphs; a second one in a pass is an error."""
    torch._dynamo.reset()
    counter = CompileCounter()
    layer = next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))[0]
    layer.forward = torch.compile(layer.forward, dynamic=True, fullgraph=True, backend=counter)
    for lengths in SHAPES:
        batch = packed_batch(random_sequences(lengths, model), causal=kind != "bert").to(device)
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            packed_hidden_states(model, batch)
    return counter.frame_count
