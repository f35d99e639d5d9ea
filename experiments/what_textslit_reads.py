"""What of a finished run of TextSLIT its ranking comes from, with the history left out.

    python experiments/what_textslit_reads.py --run=saved/<run> [--data_path=dataset/] [--against=RUN,RUN] [--out=FILE]

Every row is ranked again with something taken away or exchanged; transitions and texts are those of the run, of which
the transitions have read no text, so that each line is what training in that way would give. With `--against`, runs or
runs in archives whose test ranks leave the history out, too, how often the first ten of the run and of each of these
hold the target both, one alone or neither, and NDCG@10 if each user were served by the better of the two: a bound,
nobody could choose so.

Prints JSON lines and writes them as a list.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from probing import Lines, call, gains, load_run, parser, rank_metrics
from torch import Tensor

from recbole_llm.errors import DataError, SettingError
from recbole_llm.evaluation.counting import leave_out, target_ranks
from recbole_llm.model.layers.item_transitions import decayed_sum
from recbole_llm.quick_start.run import Parts
from recbole_llm.runs.finished import read_test_ranks

Scores = Callable[[Tensor, Tensor], Tensor]  # of histories [batch, length] and another user's [batch, length]


def last_items(histories: Tensor, count: int) -> Tensor:
    """Return histories [batch, length], padded on the right, cut to their last `count` items."""
    following = (histories > 0).sum(dim=1, keepdim=True) - torch.arange(histories.shape[1], device=histories.device)
    rolled = torch.where((following > 0) & (following <= count), histories, 0)
    order = (rolled == 0).to(torch.int8).argsort(dim=1, stable=True)  # items first, in their order
    return rolled.gather(1, order)


def variants(model: Any) -> dict[str, Scores]:
    """Return what scores the rows, by the name of what is taken away or exchanged."""
    whole = model.settings
    texts = model.texts.clone()
    drawn = torch.from_numpy(np.random.default_rng(0).permutation(len(texts) - 1)) + 1
    exchanged = texts[torch.cat([torch.zeros(1, dtype=torch.long), drawn]).to(texts.device)]

    def scores(histories: Tensor, settings: Any = whole, table: Tensor = texts) -> Tensor:
        model.settings, model.texts = settings, table
        found: Tensor = model.scores_of(histories)
        model.settings, model.texts = whole, texts
        return found

    untold = dataclasses.replace(whole, text_similarity=0.0)

    def texts_alone(histories: Tensor) -> Tensor:
        likeness = decayed_sum(texts, histories, whole.similarity_decay)
        return whole.text_similarity * likeness @ texts.T / whole.temperature

    return {
        "as it is": lambda own, other: scores(own),
        "without texts": lambda own, other: scores(own, untold),
        "texts alone": lambda own, other: texts_alone(own),
        "texts of other items": lambda own, other: scores(own, table=exchanged),
        "last item alone": lambda own, other: scores(last_items(own, 1)),
        "another user's history": lambda own, other: scores(other),
        "another user's history for the texts": lambda own, other: scores(own, untold) + texts_alone(other),
    }


@torch.no_grad()
def ranks_of(parts: Parts, part: str, score: Scores) -> np.ndarray:
    """Return the rank of every target of ``valid`` or ``test`` under a way to score, items of the history left out."""
    loader = getattr(parts, part)
    known, model = loader._dataset.known_histories, parts.model
    everyone = loader._dataset[torch.arange(len(loader._dataset.inter_feat))][model.ITEM_SEQ]
    others = everyone[torch.from_numpy(np.random.default_rng(0).permutation(len(everyone)))]
    found, seen = [], 0
    for interaction, _, rows, items in loader:
        histories = interaction[model.ITEM_SEQ]
        other = others[seen : seen + len(histories)]
        seen += len(histories)
        device = model.transitions.device
        scores = score(histories.to(device), other.to(device))
        scores[:, 0] = -torch.inf
        rows, items = rows.to(device), items.to(device)
        leave_out(scores, known.keys(interaction, None, device), rows, items)
        found.append(target_ranks(scores, rows, items))
    return torch.cat(found).cpu().numpy()


def add_overlaps(lines: Lines, run: str, others: list[str]) -> None:
    """Add a line for each other run: which users both serve among the first ten, and the bound of choosing per user."""
    own = read_test_ranks(Path(run))
    for other in others:
        ranks = read_test_ranks(Path(other))
        if own is None or ranks is None:
            raise DataError(f"{run if own is None else other} has no ranks of its test targets")
        both = own.merge(ranks, on=["user", "item"], validate="one_to_one")
        if len(both) != len(own):
            raise DataError(f"{other} has other test targets than {run}")
        first, second = both["rank_x"].to_numpy(), both["rank_y"].to_numpy()
        hits = first <= 10, second <= 10
        lines.add(
            against=Path(other).parent.name,
            both=float((hits[0] & hits[1]).mean()),
            run_alone=float((hits[0] & ~hits[1]).mean()),
            other_alone=float((~hits[0] & hits[1]).mean()),
            neither=float((~hits[0] & ~hits[1]).mean()),
            better_of_both_ndcg10=float(gains(np.minimum(first, second)).mean()),
        )


def main() -> None:
    """Print all lines."""
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--run", required=True)
    arguments_of.add_argument("--against", default="", help="other runs, separated by commas")
    arguments = arguments_of.parse_args()
    parts = load_run(arguments.run, arguments.data_path)
    if parts.config["model"] != "TextSLIT" or not parts.model.settings.reads_text:
        raise SettingError(f"{arguments.run} is none of TextSLIT that reads texts, which this probe is for")
    parts.model.eval()
    lines = Lines("what_textslit_reads")
    for name, score in variants(parts.model).items():
        for part in ("valid", "test"):
            metrics = rank_metrics(ranks_of(parts, part, score))
            lines.add(scores=name, part=part, **{k: metrics[k] for k in ("ndcg10", "hit10", "mrr")})
    add_overlaps(lines, arguments.run, [run for run in arguments.against.split(",") if run])
    lines.write(arguments.out)


if __name__ == "__main__":
    sys.exit(call(main))
