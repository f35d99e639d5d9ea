"""The best items of each row of scores, exactly, in memory that neither users nor items decide.

Where a model can score some items at a time, all users of a piece meet one block of items after the other, so a large
catalogue is read once per piece. Elsewhere all items are scored for as many users as have room.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from recbole_llm.config.hooks import ScoresOfItems
from recbole_llm.evaluation.blocks import BestItems, PairsByItem

SCORES_BYTES = 256 * 1024**2  # the most that the float32 scores that are looked at together may take
MAX_USERS = 4096  # of one piece


def best_items(
    scores_of: Callable[[int, int], Tensor], rows: int, items: int, k: int, seen: Sequence[np.ndarray] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and ids [rows, k], best first, of which some rows at a time are computed.

    Args:
        scores_of: gives the scores [end - begin, items] of the rows from `begin` to `end`; they may be overwritten.
        rows: how many there are.
        items: item ids, the padding id included.
        k: how many items of each row.
        seen: the item ids that each row leaves out: their scores are -inf.
    """
    piece = min(max(SCORES_BYTES // (4 * items), 1), MAX_USERS)
    found = []
    for begin in range(0, rows, piece):
        scores = scores_of(begin, min(begin + piece, rows))
        scores[:, 0] = -torch.inf  # not every model of RecBole leaves the padding id out itself
        if seen is not None:
            scores[_pairs(seen[begin : begin + piece], scores.device).between(0, items)] = -torch.inf
        found.append(_on_host(*scores.topk(k, dim=1)))
    return _joined(found)


def best_in_blocks(
    scorer_of: Callable[[int, int], ScoresOfItems | None],
    rows: int,
    items: int,
    k: int,
    seen: Sequence[np.ndarray] | None,
    block: int | None = None,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return scores and ids [rows, k], best first, of which one block of items at a time is scored.

    They are those of the whole ranking: the best k of all items are among the best k of the blocks. No table of
    [rows, items] is made.

    Args:
        scorer_of: gives, for the rows from `begin` to `end`, what scores a slice of the item ids, float [end - begin,
            items of the block], which may be overwritten; or None where the model cannot.
        rows: how many there are.
        items: item ids, the padding id included.
        k: how many items of each row.
        seen: the item ids that each row leaves out: their scores are -inf.
        block: how many items are scored at once; None: as many as `SCORES_BYTES` hold, at least `k`.

    Returns:
        None if `scorer_of` gave None.
    """
    found = []
    for begin in range(0, rows, MAX_USERS):
        end = min(begin + MAX_USERS, rows)
        scores_of = scorer_of(begin, end)
        if scores_of is None:
            return None
        size = block or block_size(end - begin, k)
        found.append(_on_host(*best_of_piece(scores_of, items, k, seen and seen[begin:end], size)))
    return _joined(found)


def block_size(rows: int, k: int) -> int:
    """Return how many items are scored at once for some rows: as many as `SCORES_BYTES` hold, at least `k`."""
    return max(SCORES_BYTES // (4 * rows), k)


def best_of_piece(
    scores_of: ScoresOfItems, items: int, k: int, seen: Sequence[np.ndarray] | None, size: int, first: int = 0
) -> tuple[Tensor, Tensor]:
    """Return scores and ids [rows, k], best first, of rows that are scored together; fewer where there are fewer items.

    Args:
        scores_of: scores a slice of the item ids, see `best_in_blocks`.
        items: item ids, the padding id included.
        k: how many items of each row.
        seen: the item ids that each row leaves out: their scores are -inf.
        size: how many items are scored at once.
        first: the item id that is the first to be ranked.
    """
    best, left_out = BestItems(k), None
    for begin in range(first, items, size):
        end = min(begin + size, items)
        scores = scores_of(slice(begin, end))
        if begin == 0:
            scores[:, 0] = -torch.inf
        if seen is not None:
            left_out = left_out or _pairs(seen, scores.device)
            scores[left_out.between(begin, end)] = -torch.inf
        best.add(begin, scores)
    assert best.values is not None
    return best.values, best.items


def _pairs(seen: Sequence[np.ndarray], device: torch.device) -> PairsByItem:
    rows = np.repeat(np.arange(len(seen)), [len(row) for row in seen])
    return PairsByItem(torch.from_numpy(rows).to(device), torch.from_numpy(np.concatenate(seen)).to(device))


def _on_host(values: Tensor, ids: Tensor) -> tuple[np.ndarray, np.ndarray]:
    return values.float().cpu().numpy(), ids.cpu().numpy()


def _joined(found: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    values, ids = zip(*found, strict=True)
    return np.concatenate(values), np.concatenate(ids)
