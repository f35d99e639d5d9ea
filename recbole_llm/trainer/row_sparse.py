"""Optimisers that update the rows of an item table that a step has read, and leave all others alone.

A table of 10^7 items has a gradient in some thousand rows of a step that draws items (`SampledCE`, `gBCE`), and a plain
optimiser reads and writes all of them. Here the gradient is a sparse tensor, and a step costs what its rows cost.

* adamw: AdamW (Loshchilov & Hutter, ICLR 2019) as if each step had these rows alone. It differs from the plain one:
  moments of a row do not decay, and the row does not move, while no step reads it; t counts all steps. Without weight
  decay it is `torch.optim.SparseAdam`.
* rowwise_adagrad: w -= lr g / (sqrt(s) + 1e-10), s += mean of g^2 over the row: one number a row is kept, where AdamW
  keeps two for each weight (Gupta et al., "Training Recommender Systems at Scale", 2020, and as in FBGEMM).

Weight decay is AdamW's in both, of the rows that are read: w -= lr decay w.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

ROWS = "rows"  # the key of a parameter group: how its tables are updated
_ADAGRAD_EPSILON = 1e-10  # torch's own default
_MOST = 2**31 - 1  # numbers of a gradient whose rows torch adds up at once: on a GPU it counts them in 32 bits


class RowSparse(torch.optim.Optimizer):
    """Stands before an optimiser of torch: groups with the key `ROWS` are updated row by row, others as ever."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update all weights. Gradients of the tables are dropped, so that the optimiser behind sees none.

        Raises:
            ValueError: if a table has a gradient that is not sparse.
        """
        for group in self.param_groups:
            for table in group["params"] if group.get(ROWS) else ():
                if table.grad is None:
                    continue
                if not table.grad.is_sparse:
                    raise ValueError("a table that is updated row by row has a gradient for all rows")
                (rows, values), table.grad = _coalesced(table.grad), None
                # Also of no row, where other processes have those that the step has read: their state counts steps.
                _UPDATES[group[ROWS]](self.state[table], table, rows, values, group)
        return super().step(closure)


def _coalesced(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of a sparse gradient, each once and in order, and the sum of the values of each [rows, width]."""
    rows, values = gradient._indices(), gradient._values()
    if values.numel() <= _MOST:
        whole = gradient.coalesce()
        return whole.indices()[0], whole.values()
    added = [
        torch.sparse_coo_tensor(rows, part.contiguous(), (len(gradient), part.shape[1])).coalesce()
        for part in values.split(max(_MOST // len(values), 1), dim=1)
    ]
    return added[0].indices()[0], torch.cat([part.values() for part in added], dim=1)


def _adamw(state: dict[str, Any], table: Tensor, rows: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
    if not state:
        state.update(step=torch.zeros(()), exp_avg=torch.zeros_like(table), exp_avg_sq=torch.zeros_like(table))
    state["step"] += 1
    (first, second), steps = group["betas"], float(state["step"])
    mean, square = state["exp_avg"].index_select(0, rows), state["exp_avg_sq"].index_select(0, rows)
    mean.lerp_(gradient, 1 - first)
    square.lerp_(gradient.square(), 1 - second)
    state["exp_avg"].index_copy_(0, rows, mean)
    state["exp_avg_sq"].index_copy_(0, rows, square)
    root = square.div_(1 - second**steps).sqrt_().add_(group["eps"])
    _move(table, rows, mean.div_(1 - first**steps).div_(root), group)


def _rowwise_adagrad(
    state: dict[str, Any], table: Tensor, rows: Tensor, gradient: Tensor, group: dict[str, Any]
) -> None:
    if not state:
        state.update(step=torch.zeros(()), sum=torch.zeros(len(table), dtype=table.dtype, device=table.device))
    state["step"] += 1  # Adam's way to read a stored state asks for it
    total = state["sum"].index_select(0, rows) + gradient.square().mean(dim=1)
    state["sum"].index_copy_(0, rows, total)
    _move(table, rows, gradient / (total.sqrt_() + _ADAGRAD_EPSILON)[:, None], group)


def _move(table: Tensor, rows: Tensor, step: Tensor, group: dict[str, Any]) -> None:
    """Take a step [rows, width] times the learning rate from the rows, after their decay."""
    rate = float(group["lr"])
    weights = table.index_select(0, rows)
    if group["weight_decay"]:
        weights.mul_(1 - rate * group["weight_decay"])
    table.index_copy_(0, rows, weights.sub_(step, alpha=rate))


_Update = Callable[[dict[str, Any], Tensor, Tensor, Tensor, dict[str, Any]], None]
_UPDATES: dict[str, _Update] = {"adamw": _adamw, "rowwise_adagrad": _rowwise_adagrad}
ITEM_OPTIMIZERS = tuple(_UPDATES)


def row_options(config: Any) -> dict[str, Any]:
    """Return what the group of an item table has of its own in a run with `item_optimizer`; nothing without."""
    if config["item_optimizer"] is None:
        return {}
    rate = config["item_learning_rate"]
    return {ROWS: config["item_optimizer"], **({} if rate is None else {"lr": rate})}


@functools.cache
def with_rows(optimizer_class: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """Return an optimiser class of torch, such as AdamW, with `RowSparse` before it."""
    return type(f"RowSparse{optimizer_class.__name__}", (RowSparse, optimizer_class), {})
