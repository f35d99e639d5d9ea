"""Beam search, free or within a trie. A beam that has ended stays, and the others go on beside it.

The score is log P of all tokens, the end included, without any normalisation by length: a probability of the answer.

All beams of a prompt share its keys and values: each token of a beam is a further column of the cache, which the tokens
of other beams do not see. So nothing is copied when beams are reordered, and memory grows by a token per beam and step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_llm.backbone.decoding.decoder import Decoder, PaddedPrompts, Prefix, states_per_piece
from recbole_llm.backbone.decoding.trie import Trie


@dataclass(frozen=True)
class Answers:
    """The answers that a free search found, the most probable first.

    Attributes:
        tokens: int64 [rows, beams, tokens], without the token that ends an answer; what lies behind means nothing.
        lengths: int64 [rows, beams], tokens of each answer.
        scores: float32 [rows, beams], log P.
    """

    tokens: Tensor
    lengths: Tensor
    scores: Tensor


@torch.no_grad()
def beam_answers(decoder: Decoder, prompts: PaddedPrompts, beams: int, max_tokens: int, end: int) -> Answers:
    """Return the answers of a free beam search.

    Args:
        decoder: writes.
        prompts: of one batch.
        beams: how many answers there are at most; fewer only if fewer are possible.
        max_tokens: the most that an answer holds, its end not counted.
        end: the token that ends an answer.
    """
    states, read = _Beams.read(decoder, prompts)
    rows, device = len(states), states.device
    scores = torch.zeros(rows, 1, device=device)
    ended = torch.zeros(rows, 1, dtype=torch.bool, device=device)
    lengths = torch.zeros(rows, 1, dtype=torch.int64, device=device)
    tokens = torch.zeros(rows, 1, 0, dtype=torch.int64, device=device)
    for place in range(max_tokens + 1):
        logs = decoder.log_probabilities(states)
        if place == max_tokens:  # there is room for the end alone
            only = torch.full_like(logs, float("-inf"))
            only[:, :, end] = logs[:, :, end]
            logs = only
        going = (scores[:, :, None] + logs).masked_fill(ended[:, :, None], float("-inf"))
        scores, beam, token = _best(going, scores.masked_fill(~ended, float("-inf")), beams)
        stays = ended.gather(1, beam)
        ended = stays | (token == end)
        lengths = lengths.gather(1, beam) + ~ended
        tokens = tokens.gather(1, beam[:, :, None].expand(-1, -1, tokens.shape[2]))
        tokens = torch.cat([tokens, token[:, :, None]], dim=2)
        if bool(ended.all()) or place == max_tokens:
            break
        states = read.follow(beam, token)
    return Answers(tokens, lengths, scores)


@torch.no_grad()
def beam_items(
    decoder: Decoder, prompts: PaddedPrompts, trie: Trie, beams: int, among_children: bool
) -> tuple[Tensor, Tensor]:
    """Return the items of a beam search within a trie, the most probable first.

    Args:
        decoder: writes.
        prompts: of one batch.
        trie: of the items, on the same device.
        beams: how many items; fewer where fewer paths survive the search.
        among_children: see `recbole_llm.backbone.decoding.exact.path_log_probabilities`.

    Returns:
        Item ids, int64 [rows, beams or fewer], and log P of their paths, float32, -inf where there is no item.
    """
    states, read = _Beams.read(decoder, prompts)
    rows, device = len(states), states.device
    scores = torch.zeros(rows, 1, device=device)
    nodes = torch.zeros(rows, 1, dtype=torch.int64, device=device)
    vocabulary, places = None, trie.tokens
    if among_children:  # no other token's logit is needed
        vocabulary, places = torch.unique(trie.tokens, return_inverse=True)
    for depth in range(trie.depth):
        counts = trie.counts[nodes]
        if not int(counts.max()):
            break
        column = torch.arange(int(counts.max()), device=device)
        children = trie.first[nodes][:, :, None] + column
        there = column < counts[:, :, None]
        children = children.masked_fill(~there, 0)
        chosen, total = _logits_of(decoder, states, places[children], vocabulary)
        chosen = chosen.masked_fill(~there, float("-inf"))
        if total is None:
            total = chosen.logsumexp(dim=2).masked_fill(~there[:, :, 0], 0)
        at_leaf = scores.masked_fill(counts > 0, float("-inf"))
        scores, beam, child = _best(scores[:, :, None] + chosen - total[:, :, None], at_leaf, beams)
        stays = child < 0
        parent = nodes.gather(1, beam)
        nodes = torch.where(stays, parent, trie.first[parent] + child.clamp_min(0))
        nodes = nodes.masked_fill(scores == float("-inf"), 0)  # a beam that nothing is left for
        if depth + 1 < trie.depth:
            states = read.follow(beam, trie.tokens[nodes])
    return trie.items[nodes], scores


def _logits_of(
    decoder: Decoder, states: Tensor, places: Tensor, vocabulary: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return the logits of some tokens after states, and log of the sum of exp(logit) over all that the head knows.

    Args:
        decoder: has the language head.
        states: [rows, beams, width].
        places: int64 [rows, beams, choices], the places of these tokens in the vocabulary.
        vocabulary: int64 [tokens]; None for all that the head knows.

    Returns:
        Float32 [rows, beams, choices] and [rows, beams]; None for the latter with a vocabulary.
    """
    size = len(decoder.weight()) if vocabulary is None else len(vocabulary)
    piece = states_per_piece(size, states.device)
    chosen, totals = [], []
    for some, wanted in zip(states.flatten(0, 1).split(piece), places.flatten(0, 1).split(piece), strict=True):
        logits = decoder.logits(some, vocabulary)
        chosen.append(logits.gather(1, wanted))
        if vocabulary is None:
            totals.append(logits.logsumexp(dim=1))
    return torch.cat(chosen).view(places.shape), torch.cat(totals).view(places.shape[:2]) if totals else None


def _best(going: Tensor, staying: Tensor, beams: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best continuations of all beams of each row.

    Args:
        going: [rows, beams, choices], the score of every beam with every choice.
        staying: [rows, beams], the score of a beam that has ended, -inf for others.
        beams: how many to return at most.

    Returns:
        Scores, the beam that each goes on from, and its choice, -1 where it stays: [rows, beams or fewer] each.
    """
    _, before, choices = going.shape
    every = torch.cat([going.flatten(1), staying], dim=1)
    scores, index = every.topk(min(beams, every.shape[1]), dim=1)
    stays = index >= before * choices
    beam = torch.where(stays, index - before * choices, index // choices)
    return scores, beam, torch.where(stays, -1, index % choices)


@dataclass
class _Beams:
    """What the beams of each prompt have read.

    Attributes:
        decoder: reads.
        prefix: of the prompts.
        own: bool [rows, beams, columns], which columns behind the prompt hold a beam's tokens.
    """

    decoder: Decoder
    prefix: Prefix
    own: Tensor

    @classmethod
    def read(cls, decoder: Decoder, prompts: PaddedPrompts) -> tuple[Tensor, "_Beams"]:
        """Return the states after prompts, [rows, 1, width], and one beam per prompt."""
        states, prefix = decoder.read(prompts)
        return states[:, None], cls(decoder, prefix, prefix.visible.new_zeros(len(states), 1, 0))

    def follow(self, beam: Tensor, tokens: Tensor) -> Tensor:
        """Let a token follow each new beam, and return the states after them: [rows, new beams, width].

        Args:
            beam: int64 [rows, new beams], the old beam of each within its row.
            tokens: int64 [rows, new beams], anything for a beam that has ended.
        """
        rows, beams = beam.shape
        before = self.own.gather(1, beam[:, :, None].expand(-1, -1, self.own.shape[2]))
        itself = torch.eye(beams, dtype=torch.bool, device=beam.device).expand(rows, beams, beams)
        depths = before.sum(dim=2)
        self.own = torch.cat([before, itself], dim=2)
        return self.decoder.branch(self.prefix, tokens.clamp_min(0), self.own, depths)
