"""What a head on the id model's user vector alone reaches, without any language model.

    python benchmarks/user_vector_probe.py --run=saved/<run of a sequential model> [--data_path=dataset/]

Trains a softmax over all items on the frozen user vectors of all training prefixes, chooses the epoch by validation
NDCG@10 and prints one JSON line each for the model itself, a linear head, and one with a hidden layer as wide as
MiniLM.
What IDLE-Adapter gains over its id model, beyond these, is the language model's doing.
"""

import argparse
import copy
import logging
import sys
from typing import Any

import numpy as np
import torch
from shapes import print_line
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_llm.evaluation.ranks import target_ranks
from recbole_llm.model.user_vector import user_vectors
from recbole_llm.quick_start import load

_ROWS = 4096


@torch.no_grad()
def rows_of(model: Any, dataset: Any) -> tuple[Tensor, Tensor]:
    """Return the user vectors [rows, interests x d] and the targets [rows] of a part of the data."""
    vectors, targets = [], []
    for begin in range(0, len(dataset), _ROWS):
        rows = dataset[np.arange(begin, min(begin + _ROWS, len(dataset)))].to(model.device)
        vectors.append(user_vectors(model, rows).flatten(1))
        targets.append(rows[model.POS_ITEM_ID])
    return torch.cat(vectors), torch.cat(targets)


@torch.no_grad()
def metrics(head: nn.Module, vectors: Tensor, targets: Tensor) -> dict[str, float]:
    """Return the metrics of a head, ranked among all items but the padding."""
    ranks = []
    for part, wanted in zip(vectors.split(_ROWS), targets.split(_ROWS), strict=True):
        scores = head(part)
        scores[:, 0] = -torch.inf
        ranks.append(target_ranks(scores, torch.arange(len(part), device=part.device), wanted))
    rank = torch.cat(ranks).cpu().numpy()
    gains = np.where(rank <= 10, 1 / np.log2(rank + 1), 0)
    return {
        "hit5": float((rank <= 5).mean()), "hit10": float((rank <= 10).mean()), "ndcg10": float(gains.mean()),
        "mrr": float((1 / rank).mean()),
    }  # fmt: skip


def train(head: nn.Module, parts: list[tuple[Tensor, Tensor]], arguments: argparse.Namespace) -> tuple[nn.Module, int]:
    """Return the head of the epoch that is best on validation, and which one that was."""
    (vectors, targets), (valid_vectors, valid_targets), _ = parts
    optimizer = torch.optim.AdamW(head.parameters(), lr=arguments.learning_rate, weight_decay=0.01)
    generator = torch.Generator().manual_seed(0)
    best, best_score, best_epoch = head, -1.0, -1
    for epoch in range(arguments.epochs):
        head.train()
        for rows in torch.randperm(len(vectors), generator=generator).split(512):
            loss = F.cross_entropy(head(vectors[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        score = metrics(head.eval(), valid_vectors, valid_targets)["ndcg10"]
        if score > best_score:
            best, best_score, best_epoch = copy.deepcopy(head), score, epoch
        elif epoch >= best_epoch + 5:
            break
    return best, best_epoch


def main() -> None:
    """Print the three lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--data_path")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    loaded = load(arguments.run, {"data_path": arguments.data_path} if arguments.data_path else None)
    model = loaded.model.eval()
    parts = [rows_of(model, loader._dataset) for loader in (loaded.train, loaded.valid, loaded.test)]
    size, items = parts[0][0].shape[1], model.n_items
    torch.manual_seed(0)
    heads = {
        "linear": nn.Linear(size, items, bias=False),
        "one hidden layer": nn.Sequential(
            nn.Linear(size, 384), nn.GELU(), nn.LayerNorm(384), nn.Dropout(0.1), nn.Linear(384, items, bias=False)
        ),
    }
    if hasattr(model, "item_embedding"):
        own = lambda vectors: vectors @ model.item_embedding.weight[:items].T  # noqa: E731
        print_line(name="user_vector_probe", head="the model's own", **metrics(own, *parts[2]))
    for name, head in heads.items():
        best, epoch = train(head.to(model.device), parts, arguments)
        numbers = metrics(best, *parts[2])
        valid = metrics(best, *parts[1])["ndcg10"]
        print_line(name="user_vector_probe", head=name, **numbers, valid_ndcg10=valid, best_epoch=epoch)


if __name__ == "__main__":
    sys.exit(main())
