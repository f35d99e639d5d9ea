"""The ranks of targets in the mix of two tables of scores, under many weights, in one pass over the tables."""

import torch
from torch import Tensor

from recbole_llm.evaluation.blocks import Candidates, ItemBlocks
from recbole_llm.evaluation.counting import PIECE_BYTES, require_numbers


def mixed_ranks(
    own: Tensor, other: Tensor, rows: Tensor, targets: Tensor, weights: Tensor, piece_bytes: int = PIECE_BYTES
) -> Tensor:
    """Return the rank of each target under ``(1 - w) own + w other`` for every weight w; ties count against it.

    Args:
        own: [rankings, items]; items that are no candidates have -inf.
        other: likewise; it is not looked at for what is no candidate in `own`.
        rows: int64 [targets], the ranking of each target.
        targets: int64 [targets], item ids.
        weights: from 0 to 1.
        piece_bytes: the most that is held beside the tables, about.

    Returns:
        int64 [weights, targets].

    Raises:
        TrainingError: if a score is not a number.
    """
    require_numbers(own)
    require_numbers(other)
    own_of_target, other_of_target = own[rows, targets], other[rows, targets]
    ranks = torch.zeros(len(weights), len(rows), dtype=torch.int64, device=own.device)
    lines = max(piece_bytes // (_bytes_of_an_item(own) * own.shape[1]), 1)
    for first in range(0, len(rows), lines):
        piece = slice(first, first + lines)
        ranks[:, piece] = _of_piece(
            own[rows[piece]], other[rows[piece]], own_of_target[piece], other_of_target[piece], weights
        )
    return ranks


def mixed_ranks_in_blocks(
    own: ItemBlocks,
    other: ItemBlocks,
    targets: Tensor,
    weights: Tensor,
    left_out: Tensor | None = None,
    piece_bytes: int = PIECE_BYTES,
) -> Tensor:
    """Return what `mixed_ranks` does of the log-probabilities of two models, from scores that come in blocks.

    The logarithms of the softmaxes' denominators are the same for all items of a row: no rank depends on them, so the
    scores are mixed as they are.

    Args:
        own: scores of one model; of several processes each has those of its own items.
        other: those of the other, in the same blocks.
        targets: int64 [rows], an item id per row.
        weights: from 0 to 1.
        left_out: int64 [left out], ``row * items + item``, what is no candidate, see `Candidates`; None: nothing.
        piece_bytes: the most that is held beside the blocks, about.

    Returns:
        int64 [weights, rows].

    Raises:
        TrainingError: if a score is not a number.
    """
    targets, left_out = own.all_rows(targets), None if left_out is None else own.all_keys(left_out)
    of_targets = own.of(targets).float(), other.of(targets).float()
    largest = torch.stack([scores.amax() for scores in of_targets])
    candidates = Candidates(targets, own.items, left_out)
    ranks = torch.zeros(len(weights), len(targets), dtype=torch.int64, device=own.device)
    for (begin, block), (_, other_block) in zip(own, other, strict=True):
        blocks = block.float(), other_block.float()
        largest = torch.maximum(largest, torch.stack([scores.amax() for scores in blocks]))
        for scores, score in zip(blocks, of_targets, strict=True):
            candidates.put_targets(begin, scores, score)
        blocks[0][candidates.left_out(begin, blocks[0])] = -torch.inf
        lines = max(piece_bytes // (_bytes_of_an_item(block) * block.shape[1]), 1)
        for first in range(0, len(targets), lines):
            piece = slice(first, first + lines)
            mine, theirs = (scores[piece] for scores in blocks)
            own_score, other_score = (score[piece] for score in of_targets)
            ranks[:, piece] += _of_piece(mine, theirs, own_score, other_score, weights)
    own.require_numbers(largest.amax())
    return own.own_rows(own.added_up(ranks.T.contiguous())).T


def _bytes_of_an_item(scores: Tensor) -> int:
    """Return about how many bytes `_of_piece` takes for an item of a row, beside the tables."""
    if scores.is_cpu:  # two scores, three answers, and up to eleven numbers of eight bytes where the tables disagree
        return 100
    return 16  # two scores, the mixed one and an answer


def _of_piece(own: Tensor, other: Tensor, own_of_target: Tensor, other_of_target: Tensor, weights: Tensor) -> Tensor:
    """Return the ranks [weights, targets] of some targets, whose rankings are the rows of the tables."""
    # To say where the tables disagree, a GPU's host has to wait for it twice per weight: milliseconds each where others
    # share the GPU. All items take more arithmetic, which is little beside that.
    ranks = _where_tables_disagree if own.is_cpu else _of_all_items
    return ranks(own, other, own_of_target, other_of_target, weights)


def _of_all_items(
    own: Tensor, other: Tensor, own_of_target: Tensor, other_of_target: Tensor, weights: Tensor
) -> Tensor:
    """Return what `_of_piece` does, from the whole tables mixed under every weight. Nothing waits for the device."""
    ranks = torch.empty(len(weights), len(own), dtype=torch.int64, device=own.device)
    for number, weight in enumerate(weights):
        of_target = torch.lerp(own_of_target, other_of_target, weight)[:, None]
        # No candidate: -inf in one of them makes NaN, which is not in front.
        ranks[number] = (torch.lerp(own, other, weight) >= of_target).sum(dim=1)
    return ranks


def _where_tables_disagree(
    own: Tensor, other: Tensor, own_of_target: Tensor, other_of_target: Tensor, weights: Tensor
) -> Tensor:
    """Return what `_of_piece` does, from the items about which the tables disagree.

    An item that is at least as good as the target in both tables is in front of it under every weight from 0 to 1, one
    that is worse in both under none.
    """
    in_own, in_other = own >= own_of_target[:, None], other >= other_of_target[:, None]
    always = (in_own & in_other).sum(dim=1)
    line, item = (in_own ^ in_other).nonzero(as_tuple=True)
    mine, theirs = own[line, item], other[line, item]
    ranks = always.repeat(len(weights), 1)
    for number, weight in enumerate(weights):
        # See `_of_all_items` for what is no candidate.
        wins = torch.lerp(mine, theirs, weight) >= torch.lerp(own_of_target, other_of_target, weight)[line]
        ranks[number] += torch.bincount(line[wins], minlength=len(own_of_target))
    return ranks
