"""Whether ST2SI's projection should be tied to the item table of the ID model that is mixed in.

    python experiments/item_table_probe.py --run=saved/<ST2SI run with an ID model> [--data_path=dataset/]
        [--epochs=60] [--learning_rate=0.001] [--out=FILE.json]

The run's hidden states at the last query, h, are taken as they are, and heads are trained on them over all training
prefixes, their epoch chosen by validation NDCG@10: a free projection ``W h`` (ST2SI's own form), one tied to the id
model's item embeddings E, ``E A h``, and both in sum, where W has to add only what E cannot say. Weight decay is .01.
The run's own projection, trained with alignment inputs, is the first.

Prints two JSON lines a head: its test metrics alone, and with the ID model's scores mixed in by the weight that is best
on validation. The states are kept on the device: rows x width x 4 bytes.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from frozen_text_probe import LinearHead
from probing import Lines, call, head_metrics, load_run, pieces, rank_metrics, train_head, training_parser
from torch import Tensor, nn

from recbole_llm.errors import SettingError
from recbole_llm.evaluation.counting import target_ranks
from recbole_llm.model.sequential_recommender.st2si.model import ST2SI

_ROWS = 2048


class TableHead(nn.Module):
    """``E A h``, with or without ``W h`` beside it, of standardised h.

    Args:
        vectors: [rows, width], that say mean and deviation of every dimension.
        table: E [items, size]; it is not trained.
        own: whether there is a W.
    """

    table: Tensor

    def __init__(self, vectors: Tensor, table: Tensor, own: bool) -> None:
        super().__init__()
        self.register_buffer("table", table.detach().clone())
        self.to_table = LinearHead(vectors, table.shape[1])
        self.own = LinearHead(vectors, len(table)) if own else None

    def forward(self, vectors: Tensor) -> Tensor:
        """Return the scores [rows, items] of vectors [rows, width]."""
        scores = self.to_table(vectors) @ self.table.T
        return scores if self.own is None else scores + self.own(vectors)


class Windows:
    """The states of windows, each computed once, whoever's it is.

    Args:
        model: the run's.
    """

    def __init__(self, model: ST2SI) -> None:
        self.model = model
        self.known: dict[bytes, Tensor] = {}

    @torch.no_grad()
    def states(self, rows: Any) -> Tensor:
        """Return the states at the last query of RecBole's rows: [rows, width]."""
        sequences = self.model._prefixes(rows)
        windows = np.split(sequences.rows, np.cumsum(sequences.counts)[:-1])
        keys = [window.tobytes() for window in windows]
        new = {key: number for number, key in enumerate(keys) if key not in self.known}
        if new:
            found = self.model.states_of(sequences.select(np.array(list(new.values())))).float()
            self.known.update(zip(new, found, strict=True))
        return torch.stack([self.known[key] for key in keys])


class Part:
    """One part of the data: the states [rows, width] and targets [rows] of all its rows.

    Args:
        windows: of the run.
        dataset: training, validation or test part.
    """

    def __init__(self, windows: Windows, dataset: Any) -> None:
        self.dataset = dataset
        states, targets = [], []
        for numbers in pieces(len(dataset), _ROWS):
            rows = dataset[numbers]
            states.append(windows.states(rows))
            targets.append(rows[windows.model.POS_ITEM_ID].to(windows.model.device))
        self.states, self.targets = torch.cat(states), torch.cat(targets)

    @torch.no_grad()
    def scored(
        self, head: Callable[[Tensor], Tensor]
    ) -> Iterator[tuple[Any, Tensor, tuple[Tensor, Tensor], None, None]]:
        """Yield the rows, a head's scores of them, and where their targets are; see `IdScores.choose_weight`."""
        for numbers in pieces(len(self.dataset), _ROWS):
            place = torch.from_numpy(numbers).to(self.states.device)
            lines = torch.arange(len(numbers), device=self.states.device)
            yield self.dataset[numbers], head(self.states[place]), (lines, self.targets[place]), None, None


def mixed_metrics(model: ST2SI, head: Callable[[Tensor], Tensor], valid: Part, test: Part) -> dict[str, Any]:
    """Return the weight that is best on validation, and the test metrics with it."""
    mixture = model.id_scores
    assert mixture is not None
    mixture.choose_weight(valid.scored(head))
    ranks = [target_ranks(mixture.mix(scores, rows), *targets) for rows, scores, targets, *_ in test.scored(head)]
    return {"weight": float(mixture.weight), **rank_metrics(torch.cat(ranks).cpu().numpy())}


def main() -> None:
    """Print the lines."""
    arguments = training_parser(__doc__).parse_args()
    loaded = load_run(arguments.run, arguments.data_path)
    model, lines = loaded.model.eval(), Lines("item_table_probe")
    if not isinstance(model, ST2SI) or model.id_scores is None:
        raise SettingError(f"{arguments.run} is no run of ST2SI with an ID model: give one that had --id_model=SASRec")
    if not hasattr(model.id_scores.model, "item_embedding"):
        raise SettingError(f"the ID model of {arguments.run} has no item embeddings: take SASRec, GRU4Rec or FDSA")
    table = model.id_scores.model.item_embedding.weight[: model.n_items].to(model.device)
    windows = Windows(model)
    train, valid, test = (Part(windows, loader._dataset) for loader in (loaded.train, loaded.valid, loaded.test))
    torch.manual_seed(0)
    heads: dict[str, nn.Module] = {
        "the run's own projection": model.projection,
        "projection": LinearHead(train.states, model.n_items),
        "tied to the item table": TableHead(train.states, table, own=False),
        "both": TableHead(train.states, table, own=True),
    }
    for name, head in heads.items():
        best: Any = head
        if head is not model.projection:
            on_train, on_valid = ((part.states, part.targets) for part in (train, valid))
            best, _ = train_head(head.to(model.device), on_train, on_valid, arguments.epochs, arguments.learning_rate)
        chosen = head_metrics(best, valid.states, valid.targets)["ndcg10"]
        lines.add(head=name, scores="alone", **head_metrics(best, test.states, test.targets), valid_ndcg10=chosen)
        lines.add(head=name, scores="mixed", **mixed_metrics(model, best, valid, test))
    lines.write(arguments.out)


if __name__ == "__main__":
    sys.exit(call(main))
