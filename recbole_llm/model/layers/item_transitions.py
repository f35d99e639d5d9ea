"""Linear transitions between items in closed form: which item follows a history, by ridge regression.

With s the row of a history, in which an item weighs decay^k if k items follow it (one that stands there twice has the
sum), S the rows of all training histories and Y the items that follow them, one row each, the transitions are

    B = argmin ||Y - S B||^2 + ridge ||B||^2 = (S'S + ridge I)^-1 S'Y

which is SLIT of Choi et al., "Session-aware Linear Item-Item Models for Session-based Recommendation" (WWW 2021), with
the next item alone as what follows and without their weights of time.
"""

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.nn import functional as F

from recbole_llm.packing.ragged import ranges

_ROWS = 65536  # whose products are held at once


def history_rows(flat: np.ndarray, ends: np.ndarray, lengths: np.ndarray, decay: float, items: int) -> sp.csr_matrix:
    """Return S, float32 [rows, items].

    Args:
        flat: int64, item ids of all histories.
        ends: int64 [rows], where in `flat` each history ends (exclusive).
        lengths: int64 [rows], its number of items, at least 1.
        decay: above 0, up to 1.
        items: number of items, the padding id among them.
    """
    places = ranges(ends - lengths, lengths)
    following = np.repeat(ends, lengths) - 1 - places
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    return sp.csr_matrix(((decay**following).astype(np.float32), flat[places], bounds), (len(ends), items))


def item_transitions(
    flat: np.ndarray,
    ends: np.ndarray,
    lengths: np.ndarray,
    targets: np.ndarray,
    decay: float,
    ridge: float,
    items: int,
    device: torch.device,
) -> tuple[Tensor, float]:
    """Return B, float32 [items, items] on `device`, whose row and column 0 (padding) are zero, and ||Y - S B||^2.

    As (S'S + ridge I) B = S'Y, the sum of squares is ||Y||^2 - <B, S'Y> - ridge ||B||^2: no row is read again.

    Args:
        flat: int64, item ids of all histories.
        ends: int64 [rows], where in `flat` each history ends (exclusive).
        lengths: int64 [rows], its number of items, at least 1.
        targets: int64 [rows], the item that follows each history.
        decay: above 0, up to 1.
        ridge: above 0.
        items: number of items, the padding id among them.
        device: where the system of equations is solved.
    """
    gram, products = (np.zeros((items, items), dtype=np.float32) for _ in range(2))
    for first in range(0, len(ends), _ROWS):
        part = slice(first, first + _ROWS)
        rows = history_rows(flat, ends[part], lengths[part], decay, items)
        ones = np.ones(rows.shape[0], dtype=np.float32)
        following = sp.csr_matrix((ones, targets[part], np.arange(rows.shape[0] + 1)), rows.shape)
        _add(gram, rows.T @ rows)
        _add(products, rows.T @ following)
    system = torch.from_numpy(gram).to(device)
    system.diagonal().add_(ridge)
    right = torch.from_numpy(products).to(device)
    found = torch.cholesky_solve(right, torch.linalg.cholesky(system))
    explained = right.mul_(found).sum(dtype=torch.float64) + ridge * found.square().sum(dtype=torch.float64)
    return found, len(targets) - float(explained)


def _add(whole: np.ndarray, part: sp.spmatrix) -> None:
    """Add a sparse product to a table, without a table of its own."""
    found = part.tocoo()
    whole[found.row, found.col] += found.data  # a product has no place twice


def decayed_sum(table: Tensor, histories: Tensor, decay: float) -> Tensor:
    """Return ``s table`` [batch, size] of padded histories.

    Args:
        table: [items, size]; row 0 (padding) is zero.
        histories: int64 [batch, length], the oldest item first, zeros after the last.
        decay: of an item, for each that follows it.
    """
    following = (histories > 0).sum(dim=1, keepdim=True) - 1 - torch.arange(histories.shape[1], device=histories.device)
    weights = torch.where(histories > 0, decay ** following.to(table.dtype), 0.0)
    return F.embedding_bag(histories, table, per_sample_weights=weights, mode="sum")
