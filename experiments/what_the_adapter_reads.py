"""What a finished IDLE-Adapter run predicts from: its test metrics with other users' prompts, or other users' vectors.

    python experiments/what_the_adapter_reads.py --run=saved/<run> [--data_path=dataset/] [--rows=2000]
        [--out=FILE.json]

Prints one JSON line for the run as it is, for prompts shuffled over the test rows (each user keeps its vector), for
user vectors shuffled over them (each keeps its prompt), for vectors replaced by their mean, and, where prompts hold
more than one item, for prompts of the last item alone. What a shuffle costs is what the head takes from that side.

Each line has the metrics with all items ranked, and those with the history left out (``ndcg10_left_out``). Left out is
always the history of the user whose target is ranked, whatever prompt or vector the head is shown. Where the run mixes
its ID model's scores in, these are not: all is of the head alone.
"""

import sys
from typing import Any

import numpy as np
import torch
from probing import Lines, both_metrics, call, drawn_rows, load_run, parser, pieces, ranks_in_both

_ROWS = 1024


@torch.no_grad()
def vectors_of(model: Any, dataset: Any) -> torch.Tensor:
    """Return the user vectors of all rows [rows, interests, d]."""
    return torch.cat([model.user_vectors(dataset[rows]) for rows in pieces(len(dataset), _ROWS)])


@torch.no_grad()
def ranks(
    model: Any, dataset: Any, vectors: torch.Tensor, prompts: np.ndarray, last_item_alone: bool = False
) -> np.ndarray:
    """Return the ranks of all targets under both protocols [2, rows], see `ranks_in_both`.

    Args:
        model: of the run.
        dataset: its rows.
        vectors: what each row's virtual tokens are made of [rows, interests, d].
        prompts: int64 [rows], the row whose history is each row's prompt.
        last_item_alone: whether only the last item of that history is.
    """
    found = []
    for rows in pieces(len(dataset), _ROWS):
        shown, own = dataset[prompts[rows]], dataset[rows]
        tokens = model.virtual_tokens(vectors[torch.from_numpy(rows).to(vectors.device)])
        histories, lengths = shown[model.ITEM_SEQ].cpu().numpy(), shown[model.ITEM_SEQ_LEN].cpu().numpy()
        if last_item_alone:
            histories, lengths = histories[np.arange(len(rows)), lengths - 1][:, None], np.ones_like(lengths)
        states = [
            model.pooled_states(batch.to(model.device), tokens[:, torch.from_numpy(part).to(tokens.device)])
            for part, batch in model.inputs.prompts_of(histories, lengths, model.settings.eval_batch_tokens)
        ]
        scores = model.projection(torch.cat(states))
        targets = own[model.POS_ITEM_ID].to(scores.device)
        left_out = dataset.known_histories.keys(own, None, scores.device)
        found.append(ranks_in_both(scores, targets, left_out).cpu().numpy())
    return np.concatenate(found, axis=1)


def main() -> None:
    """Print the lines."""
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--run", required=True)
    arguments_of.add_argument("--rows", type=int, help="test rows, drawn at random; all if not given")
    arguments = arguments_of.parse_args()
    parts = load_run(arguments.run, arguments.data_path)
    model, dataset, lines = parts.model, parts.test._dataset, Lines("what_the_adapter_reads")
    if arguments.rows is not None:
        dataset = dataset.copy(dataset.inter_feat[drawn_rows(len(dataset), arguments.rows)])
    vectors = vectors_of(model, dataset)
    own, shuffled = np.arange(len(dataset)), np.random.default_rng(0).permutation(len(dataset))
    for name, read, prompts in (
        ("as trained", vectors, own),
        ("prompts shuffled", vectors, shuffled),
        ("user vectors shuffled", vectors[torch.from_numpy(shuffled).to(vectors.device)], own),
        ("user vectors replaced by their mean", vectors.mean(dim=0, keepdim=True).expand_as(vectors), own),
    ):
        lines.add(inputs=name, rows=len(dataset), **both_metrics(ranks(model, dataset, read, prompts)))
    if model.settings.max_items > 1:
        found = ranks(model, dataset, vectors, own, last_item_alone=True)
        lines.add(inputs="last item alone", rows=len(dataset), **both_metrics(found))
    lines.write(arguments.out)


if __name__ == "__main__":
    sys.exit(call(main))
