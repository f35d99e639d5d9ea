"""Tries, exact scores of their leaves and beams in them, against transformers' own forward of every path."""

import numpy as np
import pytest
import torch
from beam_checks import assert_a_wide_beam_is_exact
from tiny_models import rough
from transformers import AutoModelForCausalLM

from recbole_llm.backbone.decoding import decoder as decoder_module
from recbole_llm.backbone.decoding.beams import beam_answers, beam_items
from recbole_llm.backbone.decoding.decoder import Decoder, left_padded
from recbole_llm.backbone.decoding.exact import path_log_probabilities
from recbole_llm.backbone.decoding.trie import build_trie, clashing_paths
from recbole_llm.packing.ragged import RaggedTable

PROMPTS = [[0, 20, 31, 9, 44], [7], [12, 300, 4, 8, 8, 19, 77, 100]]
# Item 0 is the padding id; paths of one, two and four tokens.
PATHS = [[], [5, 9], [6], [5, 7, 7, 7], [8, 5], [5, 7, 7, 9], [8, 6], [10, 10], [5, 7, 11, 9]]


@pytest.fixture
def models(tiny):
    causal = rough(AutoModelForCausalLM.from_pretrained(tiny["llama"])).eval()
    weight = causal.get_output_embeddings().weight
    return causal, Decoder(causal.base_model, lambda: weight, causal.get_input_embeddings())


def prompts_of(decoder):
    flat = torch.tensor([token for prompt in PROMPTS for token in prompt])
    with torch.no_grad():
        return left_padded(decoder.embed(flat), np.array([len(prompt) for prompt in PROMPTS]))


@torch.no_grad()
def brute_force(causal, prompt, path, allowed=None):
    """log P of a path, token by token; `allowed` gives the tokens that may follow a beginning."""
    total = 0.0
    for place, token in enumerate(path):
        logits = causal(torch.tensor([[*prompt, *path[:place]]])).logits[0, -1]
        if allowed is not None:
            mask = torch.full_like(logits, -torch.inf)
            mask[allowed(path[:place])] = 0
            logits = logits + mask
        total += float(logits.log_softmax(-1)[token])
    return total


def allowed_after(beginning):
    return sorted({path[len(beginning)] for path in PATHS[1:] if path[: len(beginning)] == beginning})


def test_every_path_is_found_again():
    trie = build_trie(RaggedTable.from_rows(PATHS))
    assert (trie.depth, trie.item_count, len(trie.inner)) == (4, 9, 7)
    for leaf in trie.items.nonzero()[:, 0].tolist():
        path, node = [], leaf
        while node:
            parent = int(trie.parents[node])
            assert int(trie.first[parent]) <= node < int(trie.first[parent] + trie.counts[parent])
            path.insert(0, int(trie.tokens[node]))
            node = parent
        assert path == PATHS[int(trie.items[leaf])]
        assert len(path) == int(trie.depths[leaf])


@pytest.mark.parametrize(
    ("rows", "clash"), [([[], [1, 2], [3], [1, 2]], (1, 3)), ([[], [1, 2, 3], [1], [2]], (2, 1)), (PATHS, None)]
)
def test_clashes_are_found(rows, clash):
    table = RaggedTable.from_rows(rows)
    assert clashing_paths(table) == clash
    if clash is not None:
        with pytest.raises(ValueError, match="begins another"):
            build_trie(table)


@pytest.mark.parametrize("among_children", [False, True])
@pytest.mark.parametrize("piece", [1, 1 << 30])
def test_exact_scores_are_sums_of_transformers_log_probabilities(models, monkeypatch, among_children, piece):
    causal, decoder = models
    monkeypatch.setitem(decoder_module._LOGITS_BYTES, "cpu", piece)
    trie = build_trie(RaggedTable.from_rows(PATHS))
    found = path_log_probabilities(decoder, prompts_of(decoder), trie, among_children)
    assert (found[:, 0] == -torch.inf).all()
    for row, prompt in enumerate(PROMPTS):
        expected = [brute_force(causal, prompt, path, allowed_after if among_children else None) for path in PATHS[1:]]
        np.testing.assert_allclose(found[row, 1:], expected, atol=1e-3)
    sums = found.exp().sum(dim=1)
    if among_children:
        torch.testing.assert_close(sums, torch.ones(3))
    else:
        assert (sums < 0.9).all()


@pytest.mark.parametrize("among_children", [False, True])
def test_a_beam_as_wide_as_the_catalogue_is_the_exact_ranking(models, among_children):
    _, decoder = models
    assert_a_wide_beam_is_exact(decoder, prompts_of, PATHS, among_children)


def test_a_narrow_beam_is_that_of_a_plain_search(models):
    causal, decoder = models
    trie = build_trie(RaggedTable.from_rows(PATHS))
    items, scores = beam_items(decoder, prompts_of(decoder), trie, 2, False)
    for row, prompt in enumerate(PROMPTS):
        beams = [([], 0.0)]
        while any(path not in PATHS[1:] for path, _ in beams):
            every = [each for each in beams if each[0] in PATHS[1:]]
            every += [
                ([*path, token], brute_force(causal, prompt, [*path, token]))
                for path, _ in beams
                if path not in PATHS[1:]
                for token in allowed_after(path)
            ]
            beams = sorted(every, key=lambda each: -each[1])[:2]
        assert items[row].tolist() == [PATHS.index(path) for path, _ in beams]
        np.testing.assert_allclose(scores[row], [score for _, score in beams], atol=1e-3)


def test_a_free_beam_is_that_of_a_plain_search(models):
    """Beams that end early stay; at the longest, the end alone may follow."""
    causal, decoder = models
    width, longest = 3, 3
    with torch.no_grad():  # an end that is probable at once for one prompt, so that beams end at different places
        end = int(causal(torch.tensor([PROMPTS[0]])).logits[0, -1].topk(2).indices[1])
    found = beam_answers(decoder, prompts_of(decoder), width, longest, end)
    vocabulary = causal.config.vocab_size
    for row, prompt in enumerate(PROMPTS):
        beams = [([], 0.0)]
        for place in range(longest + 1):
            every = []
            for path, score in beams:
                if path[-1:] == [end]:
                    every.append((path, score))
                    continue
                with torch.no_grad():
                    logs = causal(torch.tensor([[*prompt, *path]])).logits[0, -1].log_softmax(-1)
                tokens = [end] if place == longest else range(vocabulary)
                every += [([*path, token], score + float(logs[token])) for token in tokens]
            beams = sorted(every, key=lambda each: -each[1])[:width]
        answers = [
            tokens[:length].tolist() for tokens, length in zip(found.tokens[row], found.lengths[row], strict=True)
        ]
        assert answers == [path[:-1] for path, _ in beams]
        np.testing.assert_allclose(found.scores[row], [score for _, score in beams], atol=1e-3)


def test_a_search_ends_where_all_beams_are_leaves(models):
    causal, decoder = models
    with torch.no_grad():
        best = int(causal(torch.tensor([PROMPTS[0]])).logits[0, -1].argmax())
        prompt = left_padded(decoder.embed(torch.tensor(PROMPTS[0])), np.array([len(PROMPTS[0])]))
    trie = build_trie(RaggedTable.from_rows([[], [best + 1, 8, 9], [best]]))
    items, scores = beam_items(decoder, prompt, trie, 1, False)
    assert items.tolist() == [[2]]
    assert float(scores) == pytest.approx(brute_force(causal, PROMPTS[0], [best]), abs=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("autocast", [False, True])
def test_a_gpu_gives_the_same(models, autocast):
    causal, decoder = models
    trie = build_trie(RaggedTable.from_rows(PATHS))
    expected = path_log_probabilities(decoder, prompts_of(decoder), trie, False)
    causal.cuda()
    weight = causal.get_output_embeddings().weight
    moved = Decoder(causal.base_model, lambda: weight, causal.get_input_embeddings(), autocast)
    flat = torch.tensor([token for prompt in PROMPTS for token in prompt], device="cuda")
    with torch.no_grad():
        prompts = left_padded(moved.embed(flat), np.array([len(prompt) for prompt in PROMPTS]))
    found = path_log_probabilities(moved, prompts, trie.to("cuda"), False)
    torch.testing.assert_close(found.cpu()[:, 1:], expected[:, 1:], atol=1.0 if autocast else 1e-3, rtol=1e-2)
    items, scores = beam_items(moved, prompts, trie.to("cuda"), len(PATHS) - 1, False)
    torch.testing.assert_close(found.gather(1, items), scores, atol=1.0 if autocast else 1e-3, rtol=1e-2)
