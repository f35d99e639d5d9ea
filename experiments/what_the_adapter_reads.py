"""What a finished IDLE-Adapter run predicts from: its test metrics with other users' prompts, or other users' vectors.

    python experiments/what_the_adapter_reads.py --run=saved/<run> [--data_path=dataset/] [--rows=2000]
        [--out=FILE.json]

Prints one JSON line for the run as it is, for prompts shuffled over the test rows (each user keeps its vector), for
user vectors shuffled over them (each keeps its prompt), and for vectors replaced by their mean. What a shuffle costs
is what the head takes from that side.
"""

import sys
from typing import Any

import numpy as np
import torch
from probing import Lines, call, drawn_rows, load_run, parser, pieces, rank_metrics

from recbole_llm.evaluation.counting import target_ranks

_ROWS = 1024


@torch.no_grad()
def vectors_of(model: Any, dataset: Any) -> torch.Tensor:
    """Return the user vectors of all rows [rows, interests, d]."""
    return torch.cat([model.user_vectors(dataset[rows]) for rows in pieces(len(dataset), _ROWS)])


@torch.no_grad()
def ranks(model: Any, dataset: Any, vectors: torch.Tensor, prompts: np.ndarray) -> np.ndarray:
    """Return the rank of every row's target, read from `vectors[row]` and the prompt of row ``prompts[row]``."""
    found = []
    for rows in pieces(len(dataset), _ROWS):
        shown, own = dataset[prompts[rows]], dataset[rows]
        tokens = model.virtual_tokens(vectors[torch.from_numpy(rows).to(vectors.device)])
        histories, lengths = shown[model.ITEM_SEQ].cpu().numpy(), shown[model.ITEM_SEQ_LEN].cpu().numpy()
        states = [
            model.pooled_states(batch.to(model.device), tokens[:, torch.from_numpy(part).to(tokens.device)])
            for part, batch in model.inputs.prompts_of(histories, lengths, model.settings.eval_batch_tokens)
        ]
        scores = model.projection(torch.cat(states))
        targets = own[model.POS_ITEM_ID].to(scores.device)
        found.append(target_ranks(scores, torch.arange(len(rows), device=scores.device), targets).cpu().numpy())
    return np.concatenate(found)


def main() -> None:
    """Print the four lines."""
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
        rank = ranks(model, dataset, read, prompts)
        lines.add(inputs=name, rows=len(rank), **rank_metrics(rank))
    lines.write(arguments.out)


if __name__ == "__main__":
    sys.exit(call(main))
