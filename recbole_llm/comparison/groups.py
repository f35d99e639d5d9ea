"""Who gains: metrics by popularity of the target, by length of the history and by length of the target's text.

Every target is measured by itself, also where a user has several; the intervals draw users, see
`significance.bootstrap_intervals`.

* **popularity**, by what the training part holds. *head*: the items more popular than this one hold less than 20 % of
  the training interactions; *tail*: the items less popular hold less than 20 %; *middle*: neither, or both; *never*:
  the item has no training interaction. Shares of interactions, not of items: where most items are rare, as in review
  data, a fifth of the items would hold nearly everything. Items of equal popularity are always in one group.
* **history_length**: how many interactions the user has in the training and validation parts, whatever the model reads
  of them; four groups of about equally many targets.
* **text_length**: words of the target's text fields, so that no tokenizer has a say; four groups likewise.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from recbole.data.dataset import Dataset
from recbole.utils import ModelType

from recbole_llm.comparison.significance import DRAWS, SEED, bootstrap_intervals
from recbole_llm.comparison.user_values import list_values
from recbole_llm.config.config import Config
from recbole_llm.config.names import has_folder
from recbole_llm.data.build import create_dataset
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.errors import DataError

SHARE = 0.2
KINDS = ("popularity", "history_length", "text_length")
_POPULARITY = ("head", "middle", "tail", "never")
_QUARTILES = (0.25, 0.5, 0.75)


@dataclass
class Facts:
    """What is known of users and items apart from any model.

    Attributes:
        popularity: int64, training interactions of each item token.
        history_length: int64, interactions of each user token before its test targets.
        text_length: int64, words of each item token's text; None where there is no text.
    """

    popularity: pd.Series
    history_length: pd.Series
    text_length: pd.Series | None


def read_facts(settings: dict[str, Any]) -> Facts:
    """Build the data set of a run, without its model, and count.

    Args:
        settings: of the run.

    Raises:
        RecBoleLLMError: if the data are not here, or do not tell.
    """
    place = settings.get("data_path", "dataset/")
    if not has_folder(settings["dataset"], Path(place)):
        raise DataError(f"its data are not in {place}")  # nothing is fetched to compare runs
    config = Config(config_dict=settings)
    if config["benchmark_filename"] is not None:
        raise DataError("the split is given by files whose rows do not say what a user did before")
    sequential = config["MODEL_TYPE"] == ModelType.SEQUENTIAL
    # HistoryDataset has RecBole's rows without a padded history in each
    dataset = create_dataset(config, HistoryDataset if sequential else Dataset)
    item, user = dataset.iid_field, dataset.uid_field
    frame = dataset.inter_feat
    items = np.bincount(frame[item], minlength=dataset.item_num)
    users = np.bincount(frame[user], minlength=dataset.user_num)
    texts = _texts(dataset, config)
    _, valid, test = dataset.build()
    for part in (valid, test):
        items = items - np.bincount(part.inter_feat[item].numpy(), minlength=dataset.item_num)
    users = users - np.bincount(test.inter_feat[user].numpy(), minlength=dataset.user_num)
    return Facts(
        popularity=pd.Series(items, index=dataset.field2id_token[item].astype(str)).iloc[1:],
        history_length=pd.Series(users, index=dataset.field2id_token[user].astype(str)).iloc[1:],
        text_length=texts,
    )


def _texts(dataset: Any, config: Any) -> pd.Series | None:
    fields = config["item_text_fields"]
    try:
        texts = dataset.item_texts_by_id(fields).iloc[1:]
    except DataError as error:
        logging.getLogger().warning("no groups by length of text: %s", error)
        return None
    words = sum((texts[field].str.split().str.len() for field in fields), start=pd.Series(0, index=texts.index))
    return words.astype(np.int64)


def popularity_groups(popularity: np.ndarray) -> np.ndarray:
    """Return the place in (head, middle, tail, never) of every item, see the top of this file.

    Args:
        popularity: int64 [items], training interactions.
    """
    counts, place = np.unique(popularity, return_inverse=True)
    held = np.bincount(place, weights=popularity)  # interactions held by the items of each count
    total = max(held.sum(), 1)
    less = (np.cumsum(held) - held) / total
    more = 1 - np.cumsum(held) / total
    # the rounding of a sum must not decide
    head, tail = more < SHARE - 1e-9, less < SHARE - 1e-9
    group = np.where(head & ~tail, 0, np.where(tail & ~head, 2, 1))
    group[counts == 0] = 3
    return group[place]


def quartile_groups(values: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Cut whole numbers into four groups of about equally many; equal numbers are in one group.

    Returns:
        The group of each, int64, and the groups' names, such as ``3-5``; fewer than four where many are equal.
    """
    edges = np.unique(np.quantile(values, _QUARTILES, method="lower"))
    _, group = np.unique(np.searchsorted(edges, values, side="left"), return_inverse=True)
    names = []
    for number in range(group.max() + 1):
        least, most = values[group == number].min(), values[group == number].max()
        names.append(f"{least}" if least == most else f"{least}-{most}")
    return group, names


def target_groups(facts: Facts, ranks: pd.DataFrame) -> dict[str, tuple[np.ndarray, list[str]]]:
    """Return for each kind of group the group of every target and the groups' names.

    Args:
        facts: of the data set.
        ranks: columns user and item, from `read_ranks`.

    Raises:
        DataError: if a user or an item of `ranks` is not in the data.
    """
    items, users = _rows(facts.popularity, ranks["item"], "item"), _rows(facts.history_length, ranks["user"], "user")
    groups = {
        "popularity": (popularity_groups(facts.popularity.to_numpy())[items], list(_POPULARITY)),
        "history_length": quartile_groups(facts.history_length.to_numpy()[users]),
    }
    if facts.text_length is not None:
        groups["text_length"] = quartile_groups(facts.text_length.to_numpy()[items])
    return groups


def _rows(known: pd.Series, tokens: pd.Series, what: str) -> np.ndarray:
    rows = pd.Index(known.index).get_indexer(pd.Index(tokens))
    if (rows < 0).any():
        raise DataError(f"the {what} '{tokens.iloc[int(np.argmax(rows < 0))]}' that was tested is not in the data here")
    return rows


def group_metrics(
    facts: Facts,
    runs: Mapping[str, Sequence[pd.DataFrame]],
    metrics: Sequence[str],
    draws: int = DRAWS,
    seed: int = SEED,
) -> list[dict[str, Any]]:
    """Return the metrics of models in each group.

    Args:
        facts: of the data set.
        runs: by label the ranks of its runs (seeds), columns user, item and rank; all have the same targets.
        metrics: names that `user_values.has_user_values`.
        draws: of the bootstrap.
        seed: of the bootstrap; all models meet the same draws.

    Returns:
        Entries with label, by, group, order (of the groups of one kind), targets, and per metric mean, low and high.

    Raises:
        DataError: if the runs have other targets than the data or than each other.
    """
    targets, values = _target_values(runs, metrics)
    _, owner = np.unique(targets["user"].to_numpy(dtype=str), return_inverse=True)
    columns = [(label, metric) for label in runs for metric in metrics]
    found: dict[str, list[dict[str, Any]]] = {label: [] for label in runs}
    for by, (group, names) in target_groups(facts, targets).items():
        for order, name in enumerate(names):
            chosen = group == order
            if not chosen.any():
                continue
            _, user = np.unique(owner[chosen], return_inverse=True)
            inside = values[chosen]
            sums = np.stack([np.bincount(user, weights=column) for column in inside.T], axis=1)
            bounds = bootstrap_intervals(sums, np.bincount(user), draws, seed)
            for entries in found.values():
                entries.append({"by": by, "group": name, "order": order, "targets": len(inside), "metrics": {}})
            for (label, metric), mean, low, high in zip(columns, inside.mean(axis=0), *bounds, strict=True):
                found[label][-1]["metrics"][metric] = {"mean": float(mean), "low": float(low), "high": float(high)}
    return [{"label": label, **entry} for label, entries in found.items() for entry in entries]


def _target_values(
    runs: Mapping[str, Sequence[pd.DataFrame]], metrics: Sequence[str]
) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the targets in sorted order, and the values of each, meaned over seeds: [targets, labels x metrics]."""
    targets: pd.DataFrame | None = None
    columns = []
    for of_label in runs.values():
        seeds = []
        for run in of_label:
            ordered = run.sort_values(["user", "item"], kind="stable", ignore_index=True)
            here = ordered[["user", "item"]]
            targets = here if targets is None else targets
            if not here.equals(targets):
                raise DataError("two runs were tested on different targets")
            each = np.arange(len(ordered))
            seeds.append(np.stack([list_values(m, each, ordered["rank"].to_numpy()) for m in metrics], axis=1))
        columns.append(np.mean(seeds, axis=0))
    if targets is None:
        raise DataError("there are no runs to measure")
    return targets, np.concatenate(columns, axis=1)
