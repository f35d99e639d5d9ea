"""Maximum mean discrepancy with a Gaussian kernel: IDLE-Adapter, eq. 12."""

import torch
from torch import Tensor

from recbole_llm.utils.collectives import numbers_of_all, rows_of_all

_MEDIAN_SETS = 256  # sets whose distances the median is taken of: enough for three digits


def gaussian_mmd(x: Tensor, y: Tensor, rho: float | Tensor) -> Tensor:
    """Return M_k of sets of rows: mean K(x_a, x_b) + mean K(y_a, y_b) - 2 mean K(x_a, y_b), [sets], float32.

    K(x, y) = exp(-||x - y||^2 / (2 rho)).

    Args:
        x: [sets, rows, width].
        y: [sets, rows, width].
        rho: the kernel's width, in units of a squared distance.
    """
    within_x, within_y, between = (torch.exp(d / (-2 * rho)) for d in _squared_distances(x.float(), y.float()))
    return within_x.mean((1, 2)) + within_y.mean((1, 2)) - 2 * between.mean((1, 2))


def median_rho(x: Tensor, y: Tensor) -> Tensor:
    """Return the median of the squared distances between the rows of x and y, a scalar without gradient.

    x and y are as in `gaussian_mmd`; the distances are those between different rows of one set's x and y together.
    Where several processes share a step, the median is that of the sets of all of them, which call it together.
    """
    with torch.no_grad():
        rows = torch.cat([x[:_MEDIAN_SETS], y[:_MEDIAN_SETS]], dim=1).float()
        distances = _distances(rows, rows)
        first, second = torch.triu_indices(rows.shape[1], rows.shape[1], offset=1, device=rows.device)
        own = distances[:, first, second]
        whole = rows_of_all(own, numbers_of_all([len(own)])[:, 0].tolist())
        return whole.median().clamp_min(torch.finfo(torch.float32).tiny)


def _squared_distances(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _distances(x, x), _distances(y, y), _distances(x, y)


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Return ||x_a - y_b||^2 [sets, rows of x, rows of y], from products; never below zero."""
    products = x @ y.transpose(1, 2)
    squares = (x * x).sum(-1)[:, :, None] + (y * y).sum(-1)[:, None]
    return (squares - 2 * products).clamp_min(0)
