"""The probability of every item's path, exactly: all inner nodes of a trie follow the prompt in one pass."""

import torch
from torch import Tensor

from recbole_llm.backbone.decoding.decoder import Decoder, PaddedPrompts, states_per_piece
from recbole_llm.backbone.decoding.trie import Trie


@torch.no_grad()
def path_log_probabilities(decoder: Decoder, prompts: PaddedPrompts, trie: Trie, among_children: bool) -> Tensor:
    """Return log P(path of the item | prompt) of every item: float32 [rows, items], -inf for the padding id.

    Args:
        decoder: has the model.
        prompts: of one batch.
        trie: of the items, on the same device.
        among_children: whether a token's probability is among the children of its node, so that those of all items
            have the sum 1; else among the whole vocabulary.
    """
    states, prefix = decoder.read(prompts)
    rows, inner = len(states), trie.inner
    states = states[:, None]
    if len(inner) > 1:
        following = trie.tokens[inner[1:]].expand(rows, -1)
        branched = decoder.branch(prefix, following, trie.sees[None], trie.depths[inner[1:]][None] - 1)
        states = torch.cat([states, branched], dim=1)
    edges = _edge_log_probabilities(decoder, states, trie, among_children)
    nodes = edges.new_zeros(rows, len(trie.tokens))
    for begin, end in zip(trie.levels[1:], trie.levels[2:], strict=False):
        nodes[:, begin:end] = nodes[:, trie.parents[begin:end]] + edges[:, begin - 1 : end - 1]
    leaves = trie.items.nonzero()[:, 0]
    scores = edges.new_full((rows, trie.item_count), float("-inf"))
    scores[:, trie.items[leaves]] = nodes[:, leaves]
    return scores


def _edge_log_probabilities(decoder: Decoder, states: Tensor, trie: Trie, among_children: bool) -> Tensor:
    """Return log p of the token that leads to every node but the root: float32 [rows, nodes - 1].

    Args:
        decoder: has the language head.
        states: [rows, inner nodes, width], after each inner node.
        trie: the tree.
        among_children: see `path_log_probabilities`.
    """
    vocabulary, places = None, trie.tokens[1:]
    if among_children:  # no other token's logit is needed
        vocabulary, places = torch.unique(places, return_inverse=True)
    size = len(decoder.weight()) if vocabulary is None else len(vocabulary)
    piece = max(states_per_piece(size, states.device) // len(states), 1)
    counts = trie.counts[trie.inner]
    ends = counts.cumsum(0).tolist()  # inner nodes in their order have their children in theirs
    edges = torch.empty(len(states), len(places), device=states.device)
    for start in range(0, len(counts), piece):
        some = counts[start : start + piece]
        first, last = (ends[start - 1] if start else 0), ends[start + len(some) - 1]
        owners = torch.repeat_interleave(torch.arange(len(some), device=states.device), some)
        logits = decoder.logits(states[:, start : start + piece], vocabulary)
        chosen = logits[:, owners, places[first:last]]
        if among_children:
            column = torch.arange(last - first, device=states.device) - (some.cumsum(0) - some)[owners]
            of_children = chosen.new_full((len(chosen), len(some), int(some.max())), float("-inf"))
            of_children[:, owners, column] = chosen
            total = of_children.logsumexp(dim=2)
        else:
            total = logits.logsumexp(dim=2)
        edges[:, first:last] = chosen - total[:, owners]
    return edges
