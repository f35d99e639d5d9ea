"""Ranking among few candidates: the target and others drawn from the items outside the history (ST2SI, appendix C.3).

Every row is scored once; candidates are drawn many times from the same scores. The draws depend on the dataset, the
number of candidates and the number of the draw alone, so all models of a table meet the same candidates.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_llm.data.known_histories import KnownHistories
from recbole_llm.errors import DataError, TrainingError
from recbole_llm.packing.ragged import RaggedTable
from recbole_llm.utils.collectives import sum_

_CHUNK = 16_384


def draw_candidates(excluded: RaggedTable, items: int, count: int, seed: int) -> np.ndarray:
    """Draw `count` different items for every row, each set of them with the same probability.

    Args:
        excluded: per row the item ids that may not be drawn, each once and in rising order.
        items: the number of item ids; ids are 0 to ``items - 1``.
        count: how many to draw.
        seed: of the draw.

    Returns:
        int64 [rows, count].

    Raises:
        DataError: if fewer than `count` items are left in a row.
    """
    rows = len(excluded)
    left = items - excluded.lengths
    if (left < count).any():
        raise DataError(
            f"the catalogue is too small: a row has {int(left.min())} items outside its history where {count} are to "
            f"be drawn; lower candidates"
        )
    places = _distinct(left, count, np.random.default_rng(seed))
    # The place among the items left becomes an id: one more for every excluded id that lies before it.
    row = np.repeat(np.arange(rows), excluded.lengths)
    within = np.arange(len(excluded.values)) - excluded.offsets[row]
    before = row * items + excluded.values - within
    wanted = np.arange(rows)[:, None] * items + places
    return places + np.searchsorted(before, wanted, side="right") - excluded.offsets[:-1, None]


def _distinct(bounds: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `count` different numbers below the bound of each row: [rows, count] (Floyd's algorithm by columns)."""
    chosen = np.full((len(bounds), count), -1, dtype=np.int64)
    for place in range(count):
        top = bounds - count + place
        number = rng.integers(0, top + 1)
        taken = (chosen[:, :place] == number[:, None]).any(axis=1)
        chosen[:, place] = np.where(taken, top, number)
    return chosen


class CandidateRanking:
    """Hits at rank 1 among drawn candidates, for all rows of one evaluated part; a tie counts against the target.

    Args:
        part: the evaluated part.
        earlier: the parts before it in time, whose interactions belong to a user's history, too.
        size: candidates, the target included.
        seeds: how often they are drawn; the draws have the seeds 0 to ``seeds - 1``.

    Raises:
        DataError: if the catalogue is too small.
    """

    def __init__(self, part: Any, earlier: list[Any], size: int, seeds: int) -> None:
        self.size, self.seeds = size, seeds
        excluded = excluded_items(part, earlier)
        others = [draw_candidates(excluded, part.item_num, size - 1, seed) for seed in range(seeds)]
        self._others = torch.from_numpy(np.stack(others, axis=1).astype(np.int32))  # [rows, seeds, size - 1]
        self.clear()

    def clear(self) -> None:
        """Begin again at the first row."""
        self._row = 0
        self._hits = torch.zeros(self.seeds, dtype=torch.int64)

    def collect(self, scores: Tensor, targets: Tensor) -> None:
        """Take the scores of the next rows.

        Args:
            scores: [rows, items].
            targets: int64 [rows], item ids.

        Raises:
            TrainingError: if a score is not a number.
        """
        others = self.next_drawn(len(scores), scores.device)
        drawn = scores.gather(1, others.flatten(1)).view(others.shape)
        own = scores.gather(1, targets.to(scores.device)[:, None])
        if torch.isnan(drawn).any() or torch.isnan(own).any():
            raise TrainingError("the model's scores are not numbers: training diverged; lower the learning rate")
        self.count(own[:, 0], drawn.amax(dim=2))

    def next_drawn(self, rows: int, device: torch.device) -> Tensor:
        """Return what was drawn for the next rows: int64 [rows, seeds, size - 1], item ids; they count as scored."""
        self._row += rows
        return self._others[self._row - rows : self._row].to(device, torch.int64)

    def count(self, own: Tensor, best: Tensor) -> None:
        """Count the hits of some rows.

        Args:
            own: [rows], the scores of the targets.
            best: [rows, seeds], the best score among what was drawn.
        """
        self._hits += (own[:, None] > best).sum(dim=0).cpu()

    def skip(self, rows: int) -> None:
        """Pass over the next rows, which another process scores."""
        self._row += rows

    def add_processes(self) -> None:
        """Add the hits of the other processes that share the evaluation. All of them call it together."""
        sum_(self._hits)

    def hit_ratio(self) -> dict[str, float]:
        """Return HitRatio@1, its mean and its standard deviation (of a sample) over the draws."""
        if self._row != len(self._others):
            raise ValueError(f"{self._row} of {len(self._others)} rows were scored")
        return mean_and_std(self._hits.numpy() / self._row)

    def entry(self, rule: str) -> dict[str, Any]:
        """Return what `result.json` holds. A best score is always a candidate, so the ratio of valid choices is 1."""
        del rule  # of answers in words
        whole = {"mean": 1.0, "std": 0.0}
        return {"size": self.size, "seeds": self.seeds, "hit@1": self.hit_ratio(), "valid_ratio": whole}


def mean_and_std(ratios: np.ndarray) -> dict[str, float]:
    """Return the mean and the standard deviation (of a sample) of ratios, float [draws]."""
    std = float(ratios.std(ddof=1)) if len(ratios) > 1 else 0.0
    return {"mean": round(float(ratios.mean()), 4), "std": round(std, 4)}


def excluded_items(part: Any, earlier: list[Any], known: KnownHistories | None = None) -> RaggedTable:
    """Return for every row of `part` what is no candidate: the padding id, the target and the whole known history.

    Whether `repeatable` ranks the history among all items makes no difference here.

    Args:
        part: the evaluated part.
        earlier: the parts before it in time.
        known: what its rows' users met before, where it is at hand.
    """
    items, known = int(part.item_num), known or KnownHistories(part, earlier)
    keys = [np.empty(0, dtype=np.int64)]
    for start in range(0, len(part), _CHUNK):
        rows = part.inter_feat[start : start + _CHUNK]
        lines = torch.arange(len(rows)) * items
        met = torch.cat([known.keys(rows), lines, lines + rows[part.iid_field]])
        keys.append(np.unique(met.numpy()) + start * items)
    unique = np.concatenate(keys)
    return RaggedTable(unique % items, np.searchsorted(unique, np.arange(len(part) + 1) * items))


def candidate_ranking(config: Any, part: Any, earlier: list[Any]) -> CandidateRanking | None:
    """Return the ranking that the setting `candidates` asks for; None without it, and for a part that is not there."""
    if config["candidates"] is None or part is None:
        return None
    loaded = [each._dataset for each in earlier if each is not None]
    return CandidateRanking(part._dataset, loaded, config["candidates"], config["candidate_seeds"])
