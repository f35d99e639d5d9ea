"""Decoding with a cache over padded prompts against transformers' own forward and generate, one prompt at a time."""

import numpy as np
import pytest
import torch
from tiny_models import rough
from transformers import AutoModelForCausalLM, DynamicCache

from recbole_llm.backbone.attention import use_packed_attention
from recbole_llm.backbone.decoding.decoder import Decoder, KeptCache, left_padded
from recbole_llm.backbone.decoding.greedy import greedy
from recbole_llm.backbone.decoding.likelihood import answer_log_likelihoods
from recbole_llm.errors import BackboneError
from recbole_llm.packing.ragged import RaggedTable

PROMPTS = [[0, 20, 31, 9, 44], [7], [12, 300, 4, 8, 8, 19, 77, 100]]


@pytest.fixture(params=["llama", "opt"])
def models(tiny, request):
    """A model with a head by transformers, and a decoder on its base model."""
    causal = rough(AutoModelForCausalLM.from_pretrained(tiny[request.param])).eval()
    base = causal.base_model if request.param == "llama" else causal.model
    embedding = causal.get_input_embeddings()
    return causal, Decoder(base, lambda: causal.get_output_embeddings().weight, embedding)


def padded(decoder, shift=None):
    flat = torch.tensor([token for prompt in PROMPTS for token in prompt])
    with torch.no_grad():
        return left_padded(decoder.embed(flat), np.array([len(prompt) for prompt in PROMPTS]), shift)


def test_states_are_those_of_each_prompt_alone(models):
    causal, decoder = models
    states, prefix = decoder.read(padded(decoder))
    more = decoder.follow(prefix, torch.tensor([3, 50, 60]))
    for row, (prompt, token) in enumerate(zip(PROMPTS, (3, 50, 60), strict=True)):
        with torch.no_grad():
            expected = causal(torch.tensor([[*prompt, token]])).logits.log_softmax(-1)[0]
        torch.testing.assert_close(decoder.log_probabilities(states[row]), expected[-2], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(decoder.log_probabilities(more[row]), expected[-1], atol=1e-4, rtol=1e-4)


def test_autocast_keeps_what_it_multiplies(models, monkeypatch):
    """Bfloat16 keys and values give what transformers' own cache gives, which keeps Llama's in float32."""
    _, decoder = models
    decoder.autocast = True
    results = []
    for kind in (KeptCache, DynamicCache):
        monkeypatch.setattr("recbole_llm.backbone.decoding.decoder.KeptCache", kind)
        states, prefix = decoder.read(padded(decoder))
        more = decoder.follow(prefix, torch.tensor([3, 50, 60]))
        tree = torch.tensor([[True, False, False], [True, True, False], [False, False, True]])[None]
        depths = torch.tensor([[0, 1, 0]])
        branched = decoder.branch(prefix, torch.tensor([[5, 6, 7]] * 3), tree, depths)
        results.append((prefix.cache, states, more, branched))
    (kept, *found), (_, *right) = results
    for layer in kept.layers:
        assert layer.keys.dtype == layer.values.dtype == torch.bfloat16
        assert layer.keys.shape[2] == max(map(len, PROMPTS)) + 1 + 3
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)


def test_a_cache_is_as_wide_as_its_model_without_autocast(models):
    _, prefix = models[1].read(padded(models[1]))
    assert {tensor.dtype for layer in prefix.cache.layers for tensor in (layer.keys, layer.values)} == {torch.float32}


def test_attention_is_as_before(models):
    _, decoder = models
    use_packed_attention(decoder.model)
    before = decoder.model.config._attn_implementation
    decoder.read(padded(decoder))
    assert decoder.model.config._attn_implementation == before != "sdpa"


@pytest.mark.parametrize("stops", [1, 60])
def test_greedy_is_transformers_generate(models, stops):
    causal, decoder = models
    stop = list(range(stops))
    found = greedy(decoder, padded(decoder), 12, stop)
    for prompt, answer in zip(PROMPTS, found, strict=True):
        expected = causal.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=12, do_sample=False,
            eos_token_id=stop, pad_token_id=0,
        )[0, len(prompt) :].tolist()  # fmt: skip
        expected = expected[: next((i for i, token in enumerate(expected) if token in stop), 12)]
        assert answer.tolist() == expected


def test_likelihoods_are_sums_of_transformers_log_probabilities(models):
    causal, decoder = models
    answers = [[[5, 6, 7], [5, 9], [5]], [[200]], [[8, 8, 8, 8], [31, 2]]]
    table = RaggedTable.from_rows([answer for of_row in answers for answer in of_row])
    counts = np.array([len(of_row) for of_row in answers])
    found = answer_log_likelihoods(decoder, padded(decoder), table, counts).tolist()
    expected = []
    for prompt, of_row in zip(PROMPTS, answers, strict=True):
        for answer in of_row:
            with torch.no_grad():
                logs = causal(torch.tensor([[*prompt, *answer]])).logits.log_softmax(-1)[0]
            expected.append(sum(float(logs[len(prompt) - 1 + i, token]) for i, token in enumerate(answer)))
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_shift_is_added_to_what_follows_alone(models):
    _, decoder = models
    shift = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    states, prefix = decoder.read(padded(decoder, shift))
    plain, unshifted = decoder.read(padded(decoder))
    assert torch.equal(states, plain)
    tokens = torch.tensor([3, 50, 60])
    more = decoder.follow(prefix, tokens)
    embed = decoder.embed
    decoder.embed = lambda ids: embed(ids) + shift[:, None]
    torch.testing.assert_close(more, decoder.follow(unshifted, tokens))


def test_window_is_refused(models):
    _, decoder = models
    decoder.model.config.sliding_window = 4
    with pytest.raises(BackboneError, match="sees a window of 4: shorten the history"):
        decoder.read(padded(decoder))
