"""Ranks by counting, in pieces of users and of items: no copy of the scores of a batch is made."""

import torch
from torch import Tensor

from recbole_llm.errors import TrainingError

PIECE_BYTES = 64 * 2**20  # of what one piece of a count holds beside the scores


def target_ranks(scores: Tensor, rows: Tensor, targets: Tensor, piece_bytes: int = PIECE_BYTES) -> Tensor:
    """Return the rank of each target among all candidates, 1 the best; a tie counts against the target.

    Args:
        scores: [users, items]; items that are no candidates have -inf.
        rows: int64 [targets], the row of each target.
        targets: int64 [targets], item ids.
        piece_bytes: the most that is held beside the scores.

    Returns:
        int64 [targets].

    Raises:
        TrainingError: if a score is not a number.
    """
    require_numbers(scores)
    own = scores[rows, targets][:, None]
    # Where each row has its one target, as for sequential models, pieces are views.
    one_each = len(rows) == len(scores) and torch.equal(rows, torch.arange(len(rows), device=rows.device))
    line = scores.element_size() + 1  # bytes of an item: a copy of its score, and whether it is in front
    items = min(max(piece_bytes // line, 1), scores.shape[1])
    lines = max(piece_bytes // (line * items), 1)
    ranks = torch.zeros(len(rows), dtype=torch.int64, device=scores.device)
    for first in range(0, len(rows), lines):
        piece = slice(first, first + lines)
        for begin in range(0, scores.shape[1], items):
            of_items = scores[:, begin : begin + items]
            block = of_items[piece] if one_each else of_items.index_select(0, rows[piece])
            ranks[piece] += (block >= own[piece]).sum(dim=1)
    return ranks


def require_numbers(scores: Tensor) -> None:
    """Raise TrainingError if a score is not a number; it is the maximum then."""
    if scores.numel() and torch.isnan(scores.amax()):
        raise TrainingError("the model's scores are not numbers: training diverged; lower the learning rate")


def leave_out(scores: Tensor, keys: Tensor, rows: Tensor, targets: Tensor) -> None:
    """Set what is left out of the rankings to -inf, in place; a target stays, also one that is among it.

    Args:
        scores: [rankings, items].
        keys: int64 [left out], ``ranking * items + item``.
        rows: int64 [targets], the ranking of each target.
        targets: int64 [targets], item ids.
    """
    own = scores[rows, targets]
    items = scores.shape[1]
    scores[keys // items, keys % items] = -torch.inf
    scores[rows, targets] = own


def hits_of_ranks(rows: Tensor, targets: Tensor, ranks: Tensor, lines: int, cut: int) -> Tensor:
    """Return RecBole's table of hits: 1 at each place of a list where a target stands, and last, how many it has.

    `recbole/evaluator/collector.py:150` takes the places from ``torch.topk``, which breaks ties by chance: items with
    the same text have the same score for a model of texts, and so have all items that Pop counts as often. Here a tie
    counts against the target, as in the ranks. Targets of one list that tie with one another share their places.

    Args:
        rows: int64 [targets], the list of each target.
        targets: int64 [targets], item ids; one that is named twice in a list counts once.
        ranks: int64 [targets], from 1, a tie against the target.
        lines: how many lists there are.
        cut: the largest cut-off.

    Returns:
        int64 [lines, cut + 1].
    """
    pairs = torch.unique(torch.stack([rows, ranks, targets], dim=1), dim=0)  # sorted by list, then by rank
    rows, ranks = pairs[:, 0], pairs[:, 1]
    begins = torch.ones(len(pairs), dtype=torch.bool, device=pairs.device)
    begins[1:] = (rows[1:] != rows[:-1]) | (ranks[1:] != ranks[:-1])
    number = torch.arange(len(pairs), device=pairs.device)
    first = torch.cummax(torch.where(begins, number, 0), dim=0).values
    places = ranks - 1 - (number - first)
    hits = torch.zeros(lines, cut + 1, dtype=torch.int64, device=pairs.device)
    inside = places < cut
    hits[rows[inside], places[inside]] = 1
    hits[:, cut] = torch.bincount(rows, minlength=lines)
    return hits
