"""Rows to train on that are shown a list of candidates: the target among random items outside the history so far."""

from dataclasses import dataclass

import numpy as np

from recbole_llm.data.targets import Targets, TrainingHistories
from recbole_llm.errors import DataError


@dataclass(frozen=True)
class ListSamples:
    """Rows with a seed each, from which their lists are drawn: batches of any size have the same lists.

    Attributes:
        targets: the rows.
        seeds: int64 [rows].
    """

    targets: Targets
    seeds: np.ndarray

    def __len__(self) -> int:
        return len(self.targets)

    def select(self, indices: np.ndarray) -> "ListSamples":
        """Return the rows at `indices`, in that order."""
        return ListSamples(self.targets.select(indices), self.seeds[indices])


def list_samples(targets: Targets, rng: np.random.Generator) -> ListSamples:
    """Return rows with a seed each that `rng` draws."""
    return ListSamples(targets, rng.integers(0, 1 << 62, len(targets)))


def few(targets: Targets, count: int | None, seed: int) -> Targets:
    """Return `count` rows, drawn once by `seed`; None, or more than there are: all of them."""
    if count is None or count >= len(targets):
        return targets
    return targets.select(np.sort(np.random.default_rng(seed).permutation(len(targets))[:count]))


def drawn_list(histories: TrainingHistories, end: int, length: int, count: int, seed: int) -> np.ndarray:
    """Return the candidates of one row in the order in which they are shown: int64 [count], the target among them.

    Args:
        histories: the training part.
        end: where the target is in the flat histories.
        length: items of history before it.
        count: candidates.
        seed: of the draw and the order.

    Raises:
        DataError: if too few items are left outside the history.
    """
    rng = np.random.default_rng(seed)
    known = np.unique(histories.flat[end - length : end + 1])
    wanted = min(count - 1 + len(known), histories.items - 1)
    # Of different items in random order those that are left after the known ones are random, too.
    drawn = 1 + rng.choice(histories.items - 1, wanted, replace=False)
    others = drawn[~np.isin(drawn, known)][: count - 1]
    if len(others) < count - 1:
        raise DataError(
            f"the catalogue is too small: a row has {len(others)} items outside its history where {count - 1} are to "
            f"be drawn; lower candidates"
        )
    return rng.permutation(np.append(others, histories.flat[end]))
