"""What holds of a beam search within a trie, whatever language model reads."""

import torch

from recbole_llm.backbone.decoding.beams import beam_items
from recbole_llm.backbone.decoding.exact import path_log_probabilities
from recbole_llm.backbone.decoding.trie import build_trie
from recbole_llm.packing.ragged import RaggedTable


def assert_a_wide_beam_is_exact(decoder, prompts_of, paths, among_children):
    """A beam for each item finds all of them, in the order of their exact log-probabilities."""
    trie = build_trie(RaggedTable.from_rows(paths))
    exact = path_log_probabilities(decoder, prompts_of(decoder), trie, among_children)
    items, scores = beam_items(decoder, prompts_of(decoder), trie, len(paths) - 1, among_children)
    best = exact[:, 1:].sort(dim=1, descending=True)
    torch.testing.assert_close(scores, best.values, atol=1e-4, rtol=1e-4)
    assert torch.equal(items, best.indices + 1)
