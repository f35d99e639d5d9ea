"""What a finished ST2SI run predicts from: how far it learnt its training rows by heart, and what a history gives it.

    python experiments/what_st2si_reads.py --run=saved/<ST2SI run> [--data_path=dataset/] [--rows=N] [--out=FILE.json]

Prints JSON lines:

* over-fitting: mean cross-entropy and metrics of the run's weights, without dropout, on training rows (each predicts
  one training target from the items before it), validation rows and test rows; of each at most `rows`, drawn at random,
  and no more training rows than test rows.
* history: the metrics on test rows with the last item alone, with the last three, with the order of the items shuffled
  (of those that the model reads, all of them or all but the last), and with another row's history.
* text similarity: the same test rows ranked by the cosine of item vectors and no model: an item's vector is the mean
  over its text's tokens of the last hidden states of the backbone as it was before any tuning (the item read alone),
  less the mean over all items. The history is the last item's vector, or the mean vector of the last five items; the
  history's own items are left in, or masked (a target that is masked counts as ranked last).

Of test and validation rows the first two parts also have the metrics with the history left out of the ranking
(``ndcg10_left_out``): always the row's own, the whole of it, whatever history the model is shown.

Where the run mixes an ID model's scores in, these are left out: all is of ST2SI alone.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from probing import Lines, both_metrics, call, drawn_rows, load_run, parser, pieces, rank_metrics, ranks_in_both
from recbole.data.interaction import Interaction
from torch import Tensor
from torch.nn import functional as F

from recbole_llm.backbone.attention import packed_hidden_states, use_packed_attention
from recbole_llm.backbone.loading import load_backbone
from recbole_llm.backbone.pooling import segments
from recbole_llm.errors import SettingError
from recbole_llm.evaluation.counting import target_ranks
from recbole_llm.model.sequential_recommender.st2si.model import ST2SI
from recbole_llm.packing.ragged import RaggedTable
from recbole_llm.packing.sequences import Sequences, pack, within_budget

_ROWS = 1024


@dataclass(frozen=True)
class Rows:
    """Rows of a part of the data.

    Attributes:
        histories: int64 [rows, width], item ids from the left, zeros after them.
        lengths: int64 [rows], how many items there are.
        targets: int64 [rows], item ids.
        left_out: from some of the rows and a device to the whole history of each, ``place * items + item``, which stays
            when another history is read; None for rows of the training part.
    """

    histories: np.ndarray
    lengths: np.ndarray
    targets: np.ndarray
    left_out: Callable[[np.ndarray, Any], Tensor] | None = None


def rows_of(model: Any, dataset: Any, most: int | None) -> Rows:
    """Return at most `most` rows of a part of the data."""
    batch = dataset[drawn_rows(len(dataset), most)]
    fields = (model.ITEM_SEQ, model.ITEM_SEQ_LEN, model.POS_ITEM_ID)
    known = getattr(dataset, "known_histories", None)  # the evaluated parts have it
    left_out = None if known is None else lambda rows, device: known.keys(batch[rows], None, device)
    return Rows(*(batch[field].cpu().numpy() for field in fields), left_out)


# -- histories that are changed ----------------------------------------------------------------------------------------


def last_items(rows: Rows, most: np.ndarray | int) -> Rows:
    """Return the rows with the last `most` items of each history (one number, or int64 [rows])."""
    lengths = np.minimum(rows.lengths, most)
    columns = np.arange(rows.histories.shape[1])
    source = np.minimum((rows.lengths - lengths)[:, None] + columns, len(columns) - 1)
    kept = np.take_along_axis(rows.histories, source, axis=1)
    return replace(rows, histories=np.where(columns < lengths[:, None], kept, 0), lengths=lengths)


def shuffled(rows: Rows, in_place: int = 0) -> Rows:
    """Return the rows with each history in a random order; the last `in_place` items stay where they are."""
    keys = np.random.default_rng(0).random(rows.histories.shape)
    columns = np.arange(rows.histories.shape[1])
    keys = np.where(columns < (rows.lengths - in_place)[:, None], keys, 1 + columns)
    return replace(rows, histories=np.take_along_axis(rows.histories, np.argsort(keys, axis=1), axis=1))


def of_others(rows: Rows) -> Rows:
    """Return the rows with the history of another row each to read, so that every history is used once."""
    order = np.random.default_rng(0).permutation(len(rows.targets))
    source = np.empty_like(order)
    source[order] = np.roll(order, 1)
    return replace(rows, histories=rows.histories[source], lengths=rows.lengths[source])


# -- the model ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def measured(model: Any, rows: Rows) -> dict[str, float]:
    """Return the mean cross-entropy over all items, and the metrics, of a model that reads `rows`.

    Where the rows know what to leave out, the metrics are those of both protocols.
    """
    losses, ranks = [], []
    for part in pieces(len(rows.targets), _ROWS):
        histories, lengths, targets = (
            torch.from_numpy(values[part]) for values in (rows.histories, rows.lengths, rows.targets)
        )
        scores = model.full_sort_predict(Interaction({model.ITEM_SEQ: histories, model.ITEM_SEQ_LEN: lengths}))
        targets = targets.to(scores.device)
        losses.append(F.cross_entropy(scores.float(), targets, reduction="none"))
        if rows.left_out is None:
            ranks.append(target_ranks(scores, torch.arange(len(part), device=scores.device), targets))
        else:
            ranks.append(ranks_in_both(scores, targets, rows.left_out(part, scores.device)))
    metrics = rank_metrics if rows.left_out is None else both_metrics
    return {
        "cross_entropy": float(torch.cat(losses).double().mean()),
        **metrics(torch.cat(ranks, dim=-1).cpu().numpy()),
    }


# -- texts alone -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def text_vectors(backbone: str, text: RaggedTable, budget: int, device: Any) -> Tensor:
    """Return the centred vectors of all items [items, width], float32; 0 for an item without text.

    Args:
        backbone: the name of a language model.
        text: token ids of every item.
        budget: maximum number of tokens of a pass.
        device: where to compute.
    """
    loaded = load_backbone(backbone)
    model = loaded.model.to(device)
    use_packed_attention(model)
    items = np.flatnonzero(text.lengths > 0)
    vectors = torch.zeros(len(text), loaded.width, device=device)
    for group in within_budget(text.lengths[items], budget):
        rows = items[group]
        unread = np.zeros(len(rows), dtype=np.int64)
        batch = pack(Sequences(rows, np.ones_like(rows), unread.astype(bool), unread), text).to(device)
        pooled = segments("mean", text.lengths[rows]).to(device).pool(packed_hidden_states(model, batch))
        vectors[torch.from_numpy(rows).to(device)] = pooled
    known = torch.from_numpy(items).to(device)
    vectors[known] -= vectors[known].mean(dim=0)
    return vectors


def similarity_ranks(vectors: Tensor, rows: Rows, last: int, mask: bool) -> np.ndarray:
    """Return the rank of every target by cosine with the mean vector of the history's last items.

    Args:
        vectors: of all items [items, width], see `text_vectors`.
        rows: histories and targets.
        last: how many items.
        mask: whether no item of the history is recommended again.
    """
    ranks, directions, recent = [], F.normalize(vectors, dim=1), last_items(rows, last)
    for part in pieces(len(rows.targets), _ROWS):
        width = int(recent.lengths[part].max())
        read = torch.from_numpy(recent.histories[part, :width]).to(vectors.device)
        sums = torch.where((read > 0)[..., None], vectors[read], 0).sum(dim=1)  # the cosine needs no division
        scores = F.normalize(sums, dim=1) @ directions.T
        if mask:
            seen = torch.from_numpy(rows.histories[part]).to(scores.device)
            scores.scatter_(1, seen, -torch.inf)
        targets = torch.from_numpy(rows.targets[part]).to(scores.device) - 1
        ranks.append(target_ranks(scores[:, 1:], torch.arange(len(part), device=scores.device), targets))
    return torch.cat(ranks).cpu().numpy()


def main() -> None:
    """Print all lines."""
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--run", required=True)
    arguments_of.add_argument("--rows", type=int, help="the most of each part, drawn at random; all if not given")
    arguments = arguments_of.parse_args()
    parts, lines = load_run(arguments.run, arguments.data_path), Lines("what_st2si_reads")
    model = parts.model
    if not isinstance(model, ST2SI):
        raise SettingError(f"{arguments.run} is a run of {parts.config['model']}: give one of ST2SI")
    model.id_scores = None
    test_rows = len(parts.test._dataset)
    most = test_rows if arguments.rows is None else min(arguments.rows, test_rows)
    known = {
        name: rows_of(model, loader._dataset, most)
        for name, loader in (("train", parts.train), ("valid", parts.valid), ("test", parts.test))
    }
    for name, rows in known.items():
        lines.add(probe="over-fitting", part=name, rows=len(rows.targets), **measured(model, rows))
    # Tokens are limited, too: a shuffled history must hold the items that the model read before.
    read = last_items(
        known["test"], model.inputs.prefix_sequences(known["test"].histories, known["test"].lengths).counts
    )
    for name, rows in (
        ("as it is", read),
        ("the last item", last_items(read, 1)),
        ("the last three items", last_items(read, 3)),
        ("shuffled", shuffled(read)),
        ("shuffled, the last item in its place", shuffled(read, in_place=1)),
        ("of another row", of_others(read)),
    ):
        lines.add(probe="history", history=name, rows=len(rows.targets), **measured(model, rows))
    text = model.inputs.text
    vectors = text_vectors(str(parts.config["backbone"]), text, model.settings.eval_batch_tokens, model.device)
    for last in (1, 5):
        for mask in (False, True):
            rank = similarity_ranks(vectors, known["test"], last, mask)
            lines.add(
                probe="text similarity", items_of_history=last, history_masked=mask, rows=len(rank),
                **rank_metrics(rank),
            )  # fmt: skip
    lines.write(arguments.out)


if __name__ == "__main__":
    sys.exit(call(main))
