"""What the probes of finished runs share: arguments, JSON lines, metrics of ranks, and heads on frozen vectors.

A probe that measures under both protocols (`docs/protocols.md`) names what is found with all items ranked plainly
(``ndcg10``), and what is found with the items of each row's history left out of its ranking with an ending
(``ndcg10_left_out``).
"""

import argparse
import copy
import json
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_llm.errors import RecBoleLLMError
from recbole_llm.evaluation.counting import leave_out, target_ranks
from recbole_llm.quick_start.run import Parts, load
from recbole_llm.utils.files import write_json

_ROWS = 4096  # that a head ranks at once
_PATIENCE = 5  # epochs without a better validation metric


def parser(text: str | None) -> argparse.ArgumentParser:
    """Return a parser of what every probe takes: where the data are, and a file for the lines."""
    found = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--data_path", help="where the dataset is, if not where the run had it")
    found.add_argument("--out", help="a JSON file that gets the list of all lines")
    return found


def training_parser(text: str | None) -> argparse.ArgumentParser:
    """Return a parser of what a probe takes that trains something small on a finished run."""
    found = parser(text)
    found.add_argument("--run", required=True)
    found.add_argument("--epochs", type=int, default=60)
    found.add_argument("--learning_rate", type=float, default=1e-3)
    return found


def load_run(run: str, data_path: str | None) -> Parts:
    """Return a finished run, see `recbole_llm.quick_start.run.load`."""
    logging.disable(logging.WARNING)
    return load(run, {"data_path": data_path} if data_path else None)


def call(main: Callable[[], None]) -> None:
    """Call the main function of a probe; what a user can mend ends in one sentence."""
    try:
        main()
    except RecBoleLLMError as error:
        sys.exit(f"error: {error}")


class Lines:
    """JSON lines of one probe, printed as they come.

    Args:
        name: the probe's, in every line.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.kept: list[dict[str, Any]] = []

    def add(self, **values: Any) -> None:
        """Print a line, numbers rounded, and keep it."""
        self.kept.append({"name": self.name, **values})
        line = {k: round(v, 4) if isinstance(v, float) else v for k, v in self.kept[-1].items()}
        print(json.dumps(line), flush=True)

    def write(self, path: str | None) -> None:
        """Write all lines as a JSON list, unless `path` is None. Raises StorageError."""
        if path is not None:
            write_json(path, self.kept)


def pieces(rows: int, size: int) -> Iterator[np.ndarray]:
    """Yield the numbers 0 to `rows` - 1 in order, at most `size` at a time."""
    for begin in range(0, rows, size):
        yield np.arange(begin, min(begin + size, rows))


def drawn_rows(rows: int, most: int | None) -> np.ndarray:
    """Return at most `most` of 0 to `rows` - 1, drawn at random and sorted; all if `most` is None."""
    return np.sort(np.random.default_rng(0).permutation(rows)[:most])


def gains(ranks: np.ndarray, k: int = 10) -> np.ndarray:
    """Return NDCG@k of each row with one target: float64, of the ranks [rows] from 1."""
    return np.where(ranks <= k, 1 / np.log2(ranks + 1), 0)


def rank_metrics(ranks: np.ndarray) -> dict[str, float]:
    """Return hit5, ndcg5, hit10, ndcg10 and mrr (over the whole ranking) of ranks [rows] from 1."""
    at = {k: {f"hit{k}": float((ranks <= k).mean()), f"ndcg{k}": float(gains(ranks, k).mean())} for k in (5, 10)}
    return {**at[5], **at[10], "mrr": float((1 / ranks).mean())}


# -- both protocols ----------------------------------------------------------------------------------------------------


def ranks_in_both(scores: Tensor, targets: Tensor, left_out: Tensor) -> Tensor:
    """Return the rank of each row's target among all items, and with the row's history left out: int64 [2, rows].

    Args:
        scores: [rows, items]; what is left out is -inf afterwards.
        targets: int64 [rows], item ids; a target stays, also one that its history holds.
        left_out: int64 [n], ``row * items + item``, as `KnownHistories.keys` gives it.
    """
    rows = torch.arange(len(scores), device=scores.device)
    kept = target_ranks(scores, rows, targets)
    leave_out(scores, left_out, rows, targets)
    return torch.stack([kept, target_ranks(scores, rows, targets)])


def named_left_out(values: dict[str, Any]) -> dict[str, Any]:
    """Return values found with the history left out, under their names in a line."""
    return {f"{name}_left_out": value for name, value in values.items()}


def both_metrics(ranks: np.ndarray) -> dict[str, float]:
    """Return the `rank_metrics` of ranks under both protocols [2, rows], see `ranks_in_both`."""
    kept, left_out = map(rank_metrics, ranks)
    return {**kept, **named_left_out(left_out)}


# -- heads on frozen vectors -------------------------------------------------------------------------------------------


@torch.no_grad()
def head_metrics(head: Callable[[Tensor], Tensor], vectors: Tensor, targets: Tensor) -> dict[str, float]:
    """Return the metrics of a head, ranked among all items but the padding.

    Args:
        head: from vectors [rows, size] to scores [rows, items].
        vectors: [rows, size].
        targets: int64 [rows], item ids.
    """
    ranks = []
    for part, wanted in zip(vectors.split(_ROWS), targets.split(_ROWS), strict=True):
        scores = head(part)
        scores[:, 0] = -torch.inf
        ranks.append(target_ranks(scores, torch.arange(len(part), device=part.device), wanted))
    return rank_metrics(torch.cat(ranks).cpu().numpy())


def train_head(
    head: nn.Module,
    train: tuple[Tensor, Tensor],
    valid: tuple[Tensor, Tensor],
    epochs: int,
    learning_rate: float,
) -> tuple[nn.Module, int]:
    """Train a softmax over all items with AdamW; return the head of the epoch best on validation, and which that was.

    Args:
        head: from vectors to scores, see `head_metrics`.
        train: vectors [rows, size] and targets [rows].
        valid: likewise; the epoch is chosen by NDCG@10 on these, and training ends after five epochs without a better.
        epochs: the most.
        learning_rate: of AdamW, whose weight decay is 0.01.
    """
    vectors, targets = train
    optimizer = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=0.01)
    generator = torch.Generator().manual_seed(0)
    best, best_score, best_epoch = head, -1.0, -1
    for epoch in range(epochs):
        head.train()
        for rows in torch.randperm(len(vectors), generator=generator).to(vectors.device).split(512):
            loss = F.cross_entropy(head(vectors[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        score = head_metrics(head.eval(), *valid)["ndcg10"]
        if score > best_score:
            best, best_score, best_epoch = copy.deepcopy(head), score, epoch
        elif epoch >= best_epoch + _PATIENCE:
            break
    return best, best_epoch
