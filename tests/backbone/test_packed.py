"""Packed batches against transformers itself, one sequence at a time."""

import copy
import inspect

import numpy as np
import pytest
import torch
from tiny_models import MAX_POSITIONS
from transformers import AutoModel

from recbole_llm.backbone import attention
from recbole_llm.backbone.attention import packed_hidden_states, use_packed_attention
from recbole_llm.packing.batch import PackedBatch, sequence_bounds

TYPES = ["llama", "opt", "opt_projected", "bert"]
DECODERS = ["llama", "opt", "opt_projected"]
LENGTHS = [7, 1, 33, MAX_POSITIONS, 2, 1, 19]  # odd ones, single tokens, one that fills the limit


@pytest.fixture(scope="module")
def models(tiny):
    """By type: the model as it is packed, and transformers' own with each of its attention functions."""

    def load(kind, attention):
        model = AutoModel.from_pretrained(tiny[kind], attn_implementation=attention, dtype=torch.float32).eval()
        with torch.no_grad():  # larger weights than a fresh model's, so that attention is far from an average
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(6)
        return model

    loaded = {}
    for kind in TYPES:
        packed = load(kind, "sdpa")
        use_packed_attention(packed)
        loaded[kind] = {"packed": packed, "sdpa": load(kind, "sdpa"), "eager": load(kind, "eager")}
    return loaded


def random_sequences(lengths, model, seed=0):
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.integers(5, model.config.vocab_size, n)) for n in lengths]


def packed_batch(sequences, causal):
    lengths = np.array([len(s) for s in sequences])
    return PackedBatch(
        token_ids=torch.cat(sequences),
        positions=torch.cat([torch.arange(n) for n in lengths]),
        bounds=sequence_bounds(lengths, causal),
        query_index=torch.from_numpy(np.cumsum(lengths) - 1),
    )


def packed_states(model, sequences, causal):
    return packed_hidden_states(model, packed_batch(sequences, causal)).split([len(s) for s in sequences])


def alone(model, sequence):
    return model(input_ids=sequence[None], attention_mask=torch.ones_like(sequence)[None]).last_hidden_state[0]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", TYPES)
def test_states_equal_those_of_each_sequence_alone(models, kind, attention):
    packed, reference = models[kind]["packed"], models[kind][attention]
    sequences = random_sequences(LENGTHS, packed)
    with torch.no_grad():
        states = packed_states(packed, sequences, causal=kind != "bert")
        for sequence, found in zip(sequences, states, strict=True):
            torch.testing.assert_close(found, alone(reference, sequence), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", TYPES)
def test_gradients_equal_those_of_the_sequences_alone(models, kind):
    packed, reference = (copy.deepcopy(models[kind][name]) for name in ("packed", "eager"))
    sequences = random_sequences([7, 1, 19], packed)
    width = packed_states(packed, sequences, causal=True)[0].shape[1]
    weights = [torch.randn(len(s), width, generator=torch.Generator().manual_seed(n)) for n, s in enumerate(sequences)]
    states = packed_states(packed, sequences, causal=kind != "bert")
    sum((s * w).sum() for s, w in zip(states, weights, strict=True)).backward()
    sum((alone(reference, s) * w).sum() for s, w in zip(sequences, weights, strict=True)).backward()
    expected = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, parameter in packed.named_parameters():
        if name in expected:
            # A key's bias moves no softmax: its true gradient is zero and what is left is rounding.
            scale = expected[name].abs().max().clamp(min=1e-3 * largest)
            torch.testing.assert_close(parameter.grad / scale, expected[name] / scale, atol=1e-4, rtol=1e-4, msg=name)
        else:
            assert parameter.grad is None, name  # BERT's pooler


@pytest.mark.parametrize("kind", TYPES)
def test_no_sequence_sees_its_neighbours(models, kind):
    model, causal = models[kind]["packed"], kind != "bert"
    sequences = random_sequences([9, 14, 1, 30], model)
    others = random_sequences([9, 14, 1, 30], model, seed=1)
    with torch.no_grad():
        before = packed_states(model, sequences, causal)
        for changed in range(len(sequences)):
            mixed = [others[n] if n == changed else s for n, s in enumerate(sequences)]
            after = packed_states(model, mixed, causal)
            for n in range(len(sequences)):
                same = torch.allclose(before[n], after[n], atol=1e-6, rtol=0)
                assert same == (n != changed), f"sequence {changed} was changed, sequence {n} looked at"


@pytest.mark.parametrize("kind", DECODERS)
def test_later_tokens_change_no_earlier_position(models, kind):
    model = models[kind]["packed"]
    sequences = random_sequences([5, 21, 4], model)
    cut = 11
    changed = sequences[1].clone()
    changed[cut:] = random_sequences([21], model, seed=2)[0][cut:]
    with torch.no_grad():
        before = packed_states(model, sequences, causal=True)[1]
        after = packed_states(model, [sequences[0], changed, sequences[2]], causal=True)[1]
    torch.testing.assert_close(before[:cut], after[:cut], atol=1e-6, rtol=0)
    assert (before[cut] - after[cut]).abs().max() > 1e-2


def test_encoder_sees_both_ways(models):
    """An encoder's first position does depend on the last token: the bounds' `causal` is what tells."""
    model = models["bert"]["packed"]
    first = random_sequences([8], model)[0]
    second = first.clone()
    second[-1] = first[-1] - 1
    with torch.no_grad():
        (one,), (two,) = (packed_states(model, [s], causal=False) for s in (first, second))
        (one_causal,), (two_causal,) = (packed_states(model, [s], causal=True) for s in (first, second))
    assert (one[0] - two[0]).abs().max() > 1e-3
    torch.testing.assert_close(one_causal[0], two_causal[0], atol=1e-6, rtol=0)


def test_one_sequence_per_token(models):
    """The extreme of packing: every token a sequence of its own, at position 0."""
    model, reference = models["llama"]["packed"], models["llama"]["eager"]
    sequences = random_sequences([1] * 11, model)
    with torch.no_grad():
        for sequence, found in zip(sequences, packed_states(model, sequences, True), strict=True):
            torch.testing.assert_close(found, alone(reference, sequence), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", DECODERS)
def test_dropout_is_on_in_training_mode_alone(models, kind):
    model = copy.deepcopy(models[kind]["packed"])
    sequences = random_sequences([12, 3], model)

    def states():
        return torch.cat(packed_states(model, sequences, causal=True))

    with torch.no_grad():
        torch.testing.assert_close(states(), states(), atol=0, rtol=0)
        model.train()
        drops = getattr(model.config, "dropout", 0.0) > 0
        assert torch.equal(states(), states()) != drops


@pytest.mark.parametrize("knows_groups", [True, False])
def test_grouped_heads_are_not_expanded_where_the_kernel_knows_them(monkeypatch, knows_groups):
    """What the kernel gets, and that the result is that of heads expanded by hand."""
    seen = []

    def compute(query, key, value, offsets, options):
        seen.append((key.shape[1], options))
        groups = query.shape[1] // key.shape[1]
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
        parts = [
            torch.nn.functional.scaled_dot_product_attention(
                *(tensor[begin:end].transpose(0, 1) for tensor in (query, key, value)), is_causal=True
            ).transpose(0, 1)
            for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
        ]
        return torch.cat(parts)

    def older(query, key, value, first, second, max_q, max_k, *, scale=None, window_size=(-1, -1)):
        return compute(query, key, value, first, {})

    def newer(query, key, value, first, second, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):
        return compute(query, key, value, first, {"enable_gqa": enable_gqa})

    kernel = newer if knows_groups else older
    monkeypatch.setattr(attention, "varlen_attn", kernel)
    monkeypatch.setattr(attention, "_VARLEN_PARAMETERS", frozenset(inspect.signature(kernel).parameters))
    torch.manual_seed(0)
    bounds = sequence_bounds(np.array([5, 3]), causal=True)
    query, key, value = torch.randn(1, 6, 8, 4), torch.randn(1, 2, 8, 4), torch.randn(1, 2, 8, 4)
    found = attention._variable_length(query, key, value, bounds, None, 3, None)
    plain, _ = attention._packed_attention(torch.nn.Module(), query, key, value, None, sequence_bounds=bounds)
    torch.testing.assert_close(found, plain)
    assert seen == [(2, {"enable_gqa": True}) if knows_groups else (6, {})]
