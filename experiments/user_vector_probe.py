"""What a head on the ID model's user vector alone reaches, without any language model.

    python experiments/user_vector_probe.py --run=saved/<run of a sequential model> [--data_path=dataset/]
        [--out=FILE.json]

Trains a softmax over all items on the frozen user vectors of all training prefixes, chooses the epoch by validation
NDCG@10 and prints one JSON line each for the model itself, a linear head, and one with a hidden layer as wide as
MiniLM.
What IDLE-Adapter gains over its ID model, beyond these, is the language model's doing.
"""

import sys
from typing import Any

import torch
from probing import Lines, call, head_metrics, load_run, pieces, train_head, training_parser
from torch import Tensor, nn

from recbole_llm.model.id_model.user_vector import user_vectors

_ROWS = 4096


@torch.no_grad()
def rows_of(model: Any, dataset: Any) -> tuple[Tensor, Tensor]:
    """Return the user vectors [rows, interests x d] and the targets [rows] of a part of the data."""
    vectors, targets = [], []
    for part in pieces(len(dataset), _ROWS):
        rows = dataset[part].to(model.device)
        vectors.append(user_vectors(model, rows).flatten(1))
        targets.append(rows[model.POS_ITEM_ID])
    return torch.cat(vectors), torch.cat(targets)


def main() -> None:
    """Print the three lines."""
    arguments = training_parser(__doc__).parse_args()
    loaded = load_run(arguments.run, arguments.data_path)
    model, lines = loaded.model, Lines("user_vector_probe")
    train, valid, test = (rows_of(model, loader._dataset) for loader in (loaded.train, loaded.valid, loaded.test))
    size, items = train[0].shape[1], model.n_items
    torch.manual_seed(0)
    heads = {
        "linear": nn.Linear(size, items, bias=False),
        "one hidden layer": nn.Sequential(
            nn.Linear(size, 384), nn.GELU(), nn.LayerNorm(384), nn.Dropout(0.1), nn.Linear(384, items, bias=False)
        ),
    }
    if hasattr(model, "item_embedding"):
        own = lambda vectors: vectors @ model.item_embedding.weight[:items].T  # noqa: E731
        lines.add(head="the model's own", **head_metrics(own, *test))
    for name, head in heads.items():
        best, epoch = train_head(head.to(model.device), train, valid, arguments.epochs, arguments.learning_rate)
        chosen = head_metrics(best, *valid)["ndcg10"]
        lines.add(head=name, **head_metrics(best, *test), valid_ndcg10=chosen, best_epoch=epoch)
    lines.write(arguments.out)


if __name__ == "__main__":
    sys.exit(call(main))
