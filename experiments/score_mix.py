"""What a mix of the scores of two or three finished runs reaches, and how different the users are whom they serve.

    python experiments/score_mix.py --runs=saved/<run>,saved/<run>[,saved/<run>] [--data_path=dataset/]
        [--own] [--out=FILE.json]

The runs are of one dataset and of any models that score all items at once; all must have the same validation and test
rows. A mix is ``w_1 log p_1 + w_2 log p_2 (+ w_3 log p_3)`` over all items but the padding, p being the softmax of a
run's scores (with --own, without those of an ID model that ST2SI mixes in). The weights are those of a grid (steps of
0.05 for two runs, 0.1 for three) with the best NDCG@10 on validation. A tie counts against the target, as in every
evaluation here.

Everything is found twice, from the same scores: with all items ranked, and with each row's history left out, under
names that end in ``_left_out``. Each protocol chooses weights of its own (``weights``, ``weights_left_out``).

Prints JSON lines: every run alone, the chosen mix, the mix that is best on test (a bound: nobody could have chosen it),
the oracle (each user served by the run that ranks its target best, a bound, too), how often the first ten of two runs
hold the target both, one alone or neither, and NDCG@10 on test by the groups of `recbole_llm.comparison.groups`.
"""

import sys
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from probing import Lines, both_metrics, call, gains, load_run, named_left_out, parser, pieces
from recbole.data.dataloader import FullSortEvalDataLoader
from torch import Tensor
from torch.nn import functional as F

from recbole_llm.comparison.groups import read_facts, target_groups
from recbole_llm.config import renamed
from recbole_llm.errors import DataError, SettingError
from recbole_llm.evaluation.counting import leave_out, target_ranks
from recbole_llm.quick_start.run import Parts
from recbole_llm.runs import folder as run_folder

_SCORES = 2**23  # of one run that are held at once, once for each protocol
_ROWS = 2048
_STEPS = {2: 20, 3: 10}
_BOTH = np.arange(2)  # the protocols, as `log_shares` gives them


def grid(runs: int) -> np.ndarray:
    """Return all weights [points, runs] of the grid, each row's sum 1; the first run alone comes last."""
    steps = _STEPS[runs]
    whole = [(n, *rest) for n in range(steps + 1) for rest in _shares(steps - n, runs - 1)]
    return np.array(whole) / steps


def _shares(total: int, runs: int) -> list[tuple[int, ...]]:
    if runs == 1:
        return [(total,)]
    return [(n, *rest) for n in range(total + 1) for rest in _shares(total - n, runs - 1)]


@torch.no_grad()
def log_shares(parts: Parts, loader: Any, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[Tensor, Tensor]]:
    """Return users, targets (internal ids, int64 [targets]) and log p over all items but the padding, twice.

    Args:
        parts: a run.
        loader: of one of its parts.
        rows: of the loader: users of a general model, else targets.

    Returns:
        The last are float64 [targets, items - 1]: the softmax then makes no ties that the scores do not have. The
        second has -inf for each item of the row's history that is not its target.

    Raises:
        SettingError: if the model does not score all items at once.
        DataError: if a score is not finite.
    """
    batch, _, row, target = loader.collate_fn(rows)
    name = parts.config["model"]
    try:
        scores = parts.model.full_sort_predict(batch.to(parts.config["device"]))
    except NotImplementedError:
        raise SettingError(f"{name} does not score all items at once (full_sort_predict): leave it out") from None
    scores = scores.reshape(len(batch), parts.dataset.item_num)[:, 1:].double()
    if not torch.isfinite(scores).all():
        raise DataError(f"{name} has scores that are not finite: they cannot be mixed")
    users = batch[parts.dataset.uid_field].cpu().numpy()[row.cpu().numpy()]
    shares, lists = scores.log_softmax(dim=1), row.to(scores.device)
    left_out = F.pad(shares, (1, 0), value=-torch.inf)  # ids as the known histories have them
    known = loader._dataset.known_histories.keys(batch, None, scores.device)
    leave_out(left_out, known, lists, target.to(scores.device))
    return users, target.cpu().numpy(), (shares[lists], left_out[lists, 1:])


def mixed_ranks(shares: Sequence[Tensor], targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the rank of every target in every mix, int64 [points, targets].

    Args:
        shares: of each run [targets, items - 1], see `log_shares`; what a run of some weight leaves out, the mix does.
        targets: int64 [targets], item ids from 1.
        weights: [points, runs].
    """
    device = shares[0].device
    place = torch.from_numpy(targets).to(device) - 1
    rows, found = torch.arange(len(targets), device=device), []
    for point in weights.tolist():
        mixed = sum(weight * share for weight, share in zip(point, shares, strict=True) if weight)
        found.append(target_ranks(mixed, rows, place))
    return torch.stack(found).cpu().numpy()


def part_ranks(runs: dict[str, Parts], part: str, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return users and targets (internal ids, int64 [targets]) and ranks [2, points, targets] of a part of the data.

    The first ranks are among all items, the second with the history left out.

    Args:
        runs: by label.
        part: valid or test.
        weights: of the grid.

    Raises:
        DataError: if the runs have not the same rows.
    """
    loaders = [getattr(run, part) for run in runs.values()]
    labels, items = list(runs), next(iter(runs.values())).dataset.item_num
    for label, loader in zip(labels, loaders, strict=True):
        if not isinstance(loader, FullSortEvalDataLoader):
            raise DataError(f"{label} has no {part} part in which each target is ranked among all items")
        if loader.sample_size != loaders[0].sample_size:
            raise _different(labels[0], label, part)
    found = []
    for rows in pieces(loaders[0].sample_size, min(_ROWS, max(_SCORES // items, 1))):
        users, targets, shares = zip(
            *(log_shares(run, loader, rows) for run, loader in zip(runs.values(), loaders, strict=True)), strict=True
        )
        for label, other, wanted in zip(labels, users, targets, strict=True):
            if not (np.array_equal(other, users[0]) and np.array_equal(wanted, targets[0])):
                raise _different(labels[0], label, part)
        device = shares[0][0].device
        in_both = [
            mixed_ranks([share.to(device) for share in of_runs], targets[0], weights)
            for of_runs in zip(*shares, strict=True)
        ]
        found.append((users[0], targets[0], np.stack(in_both)))
    users, targets, ranks = zip(*found, strict=True)
    return np.concatenate(users), np.concatenate(targets), np.concatenate(ranks, axis=2)


def _different(first: str, other: str, part: str) -> DataError:
    return DataError(
        f"the {part} rows of {first} and {other} differ in users, targets or order: their runs were filtered or split "
        f"in different ways"
    )


def check_catalogues(runs: dict[str, Parts]) -> None:
    """Refuse runs whose ids do not stand for the same users and items. Raises DataError."""
    (first, parts), *others = runs.items()
    for label, other in others:
        for what, field in (("users", parts.dataset.uid_field), ("items", parts.dataset.iid_field)):
            own = getattr(other.dataset, "uid_field" if what == "users" else "iid_field")
            tokens, theirs = parts.dataset.field2id_token[field], other.dataset.field2id_token[own]
            if not np.array_equal(np.asarray(tokens, dtype=str), np.asarray(theirs, dtype=str)):
                raise DataError(f"{first} and {label} have different {what}: mix runs of one dataset, filtered alike")


def load_runs(folders: Sequence[str], data_path: str | None) -> dict[str, Parts]:
    """Return the runs by label: the model's name, or the folder's where two are of one model.

    Raises:
        SettingError: if there are fewer than two, more than three, or one twice.
        DataError: if they are of different catalogues.
    """
    names = [Path(run_folder.open_existing(folder)[0]).resolve().name for folder in folders]
    if len(folders) not in _STEPS or len(set(names)) < len(names):
        raise SettingError(f"--runs={','.join(folders)} must name two or three runs, each another")
    loaded = [load_run(folder, data_path) for folder in folders]
    models = [parts.config["model"] for parts in loaded]
    labels = models if len(set(models)) == len(models) else names
    runs = dict(zip(labels, loaded, strict=True))
    check_catalogues(runs)
    return runs


def weights_of(runs: Iterable[str], points: np.ndarray) -> dict[str, dict[str, float]]:
    """Return the weights of each run in a mix, which has one point of the grid under each protocol [2, runs]."""
    kept, left_out = ({"weights": dict(zip(runs, point, strict=True))} for point in points.round(4).tolist())
    return {**kept, **named_left_out(left_out)}


def overlap(first: np.ndarray, second: np.ndarray, k: int = 10) -> dict[str, int]:
    """Return in how many rows both rank the target among the first `k`, one alone does, and neither does.

    Args:
        first: ranks of one run under both protocols [2, targets].
        second: of another, likewise.
        k: how many are the first.
    """
    one, other = first <= k, second <= k
    rows = {"both": one & other, "only_first": one & ~other, "only_second": ~one & other, "neither": ~one & ~other}
    kept, left_out = ({name: int(found[way].sum()) for name, found in rows.items()} for way in (0, 1))
    return {**kept, **named_left_out(left_out)}


def add_groups(lines: Lines, settings: dict[str, Any], targets: pd.DataFrame, ranks: dict[str, np.ndarray]) -> None:
    """Add a line for every group of targets with NDCG@10 of each of `ranks`; one that says why, where there are none.

    Args:
        lines: of this probe.
        settings: of a run.
        targets: columns user and item, tokens.
        ranks: by what ranked, under both protocols int64 [2, targets].
    """
    try:
        kinds = target_groups(read_facts(settings), targets)
    except DataError as error:
        lines.add(by="none", reason=str(error))
        return
    for by, (group, names) in kinds.items():
        for order, name in enumerate(names):
            chosen = group == order
            if chosen.any():
                kept, left_out = (
                    {"ndcg10": {what: round(float(gains(rank[way][chosen]).mean()), 4) for what, rank in ranks.items()}}
                    for way in (0, 1)
                )
                lines.add(by=by, group=name, targets=int(chosen.sum()), **kept, **named_left_out(left_out))


def main() -> None:
    """Print all lines."""
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--runs", required=True, help="two or three folders of runs, separated by commas")
    arguments_of.add_argument("--own", action="store_true", help="leave out the ID model that a run of ST2SI mixes in")
    arguments = arguments_of.parse_args()
    folders = [folder for folder in arguments.runs.split(",") if folder]
    runs, lines = load_runs(folders, arguments.data_path), Lines("score_mix")
    for parts in runs.values():
        if arguments.own and hasattr(parts.model, "id_scores"):
            parts.model.id_scores = None
    weights = grid(len(runs))
    alone = {label: int(np.flatnonzero(weights[:, place] == 1)[0]) for place, label in enumerate(runs)}
    users, targets, ranks, best = {}, {}, {}, {}
    for part in ("valid", "test"):
        users[part], targets[part], ranks[part] = part_ranks(runs, part, weights)
        best[part] = np.argmax(gains(ranks[part]).mean(axis=2), axis=1)
    shown = {label: np.array([point, point]) for label, point in alone.items()}  # the point of each protocol
    shown |= {"mix": best["valid"], "mix best on test (a bound)": best["test"]}
    for scores, points in shown.items():
        mixed = {} if scores in alone else weights_of(runs, weights[points])
        for part, found in ranks.items():
            lines.add(scores=scores, part=part, rows=found.shape[2], **mixed, **both_metrics(found[_BOTH, points]))
    for part, found in ranks.items():
        oracle = found[:, list(alone.values())].min(axis=1)
        lines.add(scores="oracle (a bound)", part=part, rows=found.shape[2], **both_metrics(oracle))
    for first, second in combinations(alone, 2):
        counts = overlap(ranks["test"][:, alone[first]], ranks["test"][:, alone[second]])
        lines.add(hits10_on_test=[first, second], **counts)
    dataset = next(iter(runs.values())).dataset
    tokens = pd.DataFrame(
        {
            "user": dataset.id2token(dataset.uid_field, users["test"]),
            "item": dataset.id2token(dataset.iid_field, targets["test"]),
        }
    ).astype(str)
    settings = renamed.known(run_folder.open_existing(folders[0])[1])
    if arguments.data_path:
        settings["data_path"] = arguments.data_path
    shown_ranks = {scores: ranks["test"][_BOTH, points] for scores, points in shown.items() if "bound" not in scores}
    add_groups(lines, settings, tokens, shown_ranks)
    lines.write(arguments.out)


if __name__ == "__main__":
    sys.exit(call(main))
