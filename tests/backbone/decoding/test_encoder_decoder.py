"""Decoding by a T5 against transformers' own forward and generate, one prompt at a time."""

import numpy as np
import pytest
import torch
from beam_checks import assert_a_wide_beam_is_exact
from tiny_models import rough, tiny_t5
from transformers import AutoModelForSeq2SeqLM

from recbole_llm.backbone.decoding.beams import beam_answers
from recbole_llm.backbone.decoding.decoder import left_padded
from recbole_llm.backbone.decoding.encoder_decoder import EncoderDecoder
from recbole_llm.backbone.decoding.exact import path_log_probabilities
from recbole_llm.backbone.decoding.greedy import greedy
from recbole_llm.backbone.decoding.likelihood import answer_log_likelihoods
from recbole_llm.backbone.decoding.trie import build_trie
from recbole_llm.backbone.language_head import language_head
from recbole_llm.backbone.loading import load_backbone
from recbole_llm.backbone.tuning import TuningSettings
from recbole_llm.packing.ragged import RaggedTable

PROMPTS = [[20, 31, 9, 44, 1], [7, 1], [12, 99, 4, 8, 8, 19, 77, 100, 1]]
PATHS = [[], [5, 9], [6], [5, 7, 7, 7], [8, 5], [5, 7, 7, 9], [8, 6], [10, 10], [5, 7, 11, 9]]
FULL = TuningSettings("full", 8, 16, 0.0, "all-linear", "fp32", False, False)


@pytest.fixture(params=[{}, {"own_head": True}, {"many": True}], ids=["T5", "T5 1.1", "mT5"])
def models(tmp_path, request):
    """A T5 by transformers, and what reads and writes with its base model and head."""
    folder = tiny_t5(tmp_path / "t5", **request.param)
    whole = rough(AutoModelForSeq2SeqLM.from_pretrained(folder)).eval()
    whole.save_pretrained(folder)
    loaded = load_backbone(str(folder), encoder_decoder=True)
    head = language_head(loaded, FULL, torch.float32)
    assert (head.own is not None) == bool(request.param)
    return whole, EncoderDecoder(loaded.model, lambda: head.weight, loaded.model.get_input_embeddings())


@torch.no_grad()
def padded(decoder):
    flat = torch.tensor([token for prompt in PROMPTS for token in prompt])
    return left_padded(decoder.embed(flat), np.array([len(prompt) for prompt in PROMPTS]))


@torch.no_grad()
def log_probabilities(whole, prompt, answer):
    """log p of every token at each place of an answer, by transformers: [tokens, vocabulary]."""
    fed = torch.tensor([[0, *answer[:-1]]])
    return whole(input_ids=torch.tensor([prompt]), decoder_input_ids=fed).logits[0].log_softmax(-1)


def brute_force(whole, prompt, answer):
    logs = log_probabilities(whole, prompt, answer)
    return sum(float(logs[place, token]) for place, token in enumerate(answer))


def test_greedy_is_transformers_generate(models):
    whole, decoder = models
    found = greedy(decoder, padded(decoder), 12, [1])
    for prompt, answer in zip(PROMPTS, found, strict=True):
        expected = whole.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, 1:].tolist()
        assert answer.tolist() == expected[: expected.index(1) if 1 in expected else 12]


def test_likelihoods_are_sums_of_transformers_log_probabilities(models):
    whole, decoder = models
    answers = [[[5, 6, 7], [5, 9], [5]], [[100]], [[8, 8, 8, 8, 8, 9], [31, 2]]]
    table = RaggedTable.from_rows([answer for of_row in answers for answer in of_row])
    found = answer_log_likelihoods(decoder, padded(decoder), table, np.array([len(of_row) for of_row in answers]))
    expected = [brute_force(whole, p, answer) for p, of_row in zip(PROMPTS, answers, strict=True) for answer in of_row]
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_exact_scores_are_those_of_every_path_alone(models):
    """Nodes of one level lie side by side: the distance of a node to its parent is 1, however far its column is."""
    whole, decoder = models
    trie = build_trie(RaggedTable.from_rows(PATHS))
    found = path_log_probabilities(decoder, padded(decoder), trie, False)
    assert (found[:, 0] == -torch.inf).all()
    for row, prompt in enumerate(PROMPTS):
        expected = [brute_force(whole, prompt, path) for path in PATHS[1:]]
        np.testing.assert_allclose(found[row, 1:], expected, atol=1e-3)


@pytest.mark.parametrize("among_children", [False, True])
def test_a_beam_as_wide_as_the_catalogue_is_the_exact_ranking(models, among_children):
    _, decoder = models
    assert_a_wide_beam_is_exact(decoder, padded, PATHS, among_children)


def test_a_free_beam_is_that_of_transformers(models):
    whole, decoder = models
    found = beam_answers(decoder, padded(decoder), 3, 4, 1)
    for row, prompt in enumerate(PROMPTS):
        for beam in range(3):
            answer = [*found.tokens[row, beam, : found.lengths[row, beam]].tolist(), 1]
            assert float(found.scores[row, beam]) == pytest.approx(brute_force(whole, prompt, answer), abs=1e-3)


def test_bfloat16_is_close(tiny):
    """Float32 weights are multiplied in bfloat16."""
    model = load_backbone(str(tiny["t5"]), encoder_decoder=True).model
    decoder = EncoderDecoder(model, lambda: model.shared.weight, model.get_input_embeddings())
    trie = build_trie(RaggedTable.from_rows(PATHS))
    expected = path_log_probabilities(decoder, padded(decoder), trie, False)
    decoder.autocast = True
    found = path_log_probabilities(decoder, padded(decoder), trie, False)
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found[:, 1:], expected[:, 1:], atol=0.15, rtol=0)


def test_the_model_is_left_as_it_was(models):
    _, decoder = models
    decoder.read(padded(decoder))
    assert "compute_bias" not in vars(decoder.model.decoder.block[0].layer[0].SelfAttention)
