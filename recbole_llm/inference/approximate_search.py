"""The best items by an index of the item vectors, scored exactly, and how many of the truly best ones it finds."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recbole_llm.config.hooks import ScoresOfItems
from recbole_llm.errors import SettingError, TrainingError, require_share, require_whole
from recbole_llm.inference.best_items import MAX_USERS, best_in_blocks, best_of_piece, block_size
from recbole_llm.inference.item_index import ItemIndex
from recbole_llm.inference.item_lists import ItemVectors
from recbole_llm.utils.item_products import ItemProducts
from recbole_llm.utils.packages import require_faiss

SAMPLE = 1000  # users by whom the recall is measured
_AT_ONCE = 256  # users that are searched for together
_ROUNDING = 1e-6  # of the size of a score: what the order of a sum may change


@dataclass(frozen=True)
class ApproximateSearch:
    """How an index of the item vectors is searched.

    Attributes:
        k: the recall is measured for that many items; whoever asks for more is answered exactly.
        min_recall: the least share of the exact best `k` items that the search must find, from above 0 to 1.
        nprobe: how many of the index' lists are read for a user; None: as few as reach `min_recall`.
        exclude_seen: whether the recall is measured for users who leave their own items out; None: as the run was
            evaluated.

    Raises:
        SettingError: for a value out of range.
    """

    k: int = 10
    min_recall: float = 0.99
    nprobe: int | None = None
    exclude_seen: bool | None = None

    def __post_init__(self) -> None:
        require_whole("k", self.k)
        if self.nprobe is not None:
            require_whole("nprobe", self.nprobe)
        require_share("min_recall", self.min_recall)


class ApproximateBest:
    """Finds the best items of each user in an index of a catalogue.

    The index is made of the item vectors and measured: for a sample of users, what share of their exact best items it
    finds. Items behind the catalogue (`Recommender`'s `new_items`) are not in the index; all of them are scored.

    Args:
        settings: of the search.
        sample: what `ModelHooks.scores_of_items` returns for a sample of users.
        seen: the item ids that each of them leaves out, as the items will be asked for; None: nothing.
        items: item ids of the catalogue, the padding id included, without new items.
        model_name: for messages.

    Attributes:
        settings: of the search.
        nprobe: how many lists are read.
        lists: how many there are.
        recall: the share of their exact best `settings.k` items that the lists gave the users of the sample. Whoever
            is answered exactly because the lists hold too little is not counted in its favour.
        summary: these in one line.

    Raises:
        SettingError: if the scores are no products of vectors, the package is missing, or the recall is too low.
        TrainingError: if the scores are not numbers.
        StorageError: if the index cannot be stored.
    """

    def __init__(
        self,
        settings: ApproximateSearch,
        sample: ScoresOfItems | None,
        seen: Sequence[np.ndarray] | None,
        items: int,
        model_name: str,
    ) -> None:
        require_faiss()
        self.settings, self._items = settings, items
        if not isinstance(sample, ItemProducts):
            raise no_products(f"those of {model_name} with these settings are not")
        vectors = ItemVectors(sample.with_bias, items)
        if not (math.isfinite(vectors.longest) and bool(sample.users.isfinite().all())):
            raise TrainingError(f"the scores of {model_name} are not numbers: its training diverged")
        self._index = ItemIndex(vectors)
        self.lists = self._index.lists
        if settings.nprobe is not None and settings.nprobe > self.lists:
            raise SettingError(f"nprobe={settings.nprobe} is more than the {self.lists} lists of the index")
        self.nprobe, self.recall = self._measured(sample, seen)
        self.summary = (
            f"approximate search reads {self.nprobe} of {self.lists} lists of items: recall@{settings.k} "
            f"{self.recall:.4f} of {len(sample.users)} users"
        )
        logging.getLogger().info(self.summary)

    def best(
        self,
        scorer_of: Callable[[int, int], ScoresOfItems | None],
        rows: int,
        items: int,
        k: int,
        seen: Sequence[np.ndarray] | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return exact scores and ids [rows, k] of the best items that are found, best first.

        A user for whom the lists hold fewer than `k` items that are not left out is answered exactly. For the
        arguments see `best_in_blocks`; `items` counts new items, too.
        """
        found = []
        for begin in range(0, rows, MAX_USERS):
            end = min(begin + MAX_USERS, rows)
            products = scorer_of(begin, end)
            assert isinstance(products, ItemProducts)
            found.append(self._best(products, items, k, seen and seen[begin:end], self.nprobe))
        values, ids = zip(*found, strict=True)
        return np.concatenate(values), np.concatenate(ids)

    def _best(
        self,
        products: ItemProducts,
        items: int,
        k: int,
        seen: Sequence[np.ndarray] | None,
        nprobe: int,
        complete: bool = True,
    ) -> tuple[np.ndarray, np.ndarray]:
        users = len(products.users)
        left_out = None if seen is None else [np.unique(row) for row in seen]
        values, ids = np.empty((users, k), dtype=np.float32), np.empty((users, k), dtype=np.int64)
        # Those who leave out many items ask for many more: they are asked for together.
        order = np.arange(users) if left_out is None else np.argsort([len(row) for row in left_out], kind="stable")
        for begin in range(0, users, _AT_ONCE):
            rows = order[begin : begin + _AT_ONCE]
            own = products.of_rows(torch.from_numpy(rows).to(products.users.device))
            own_left_out = None if left_out is None else [left_out[row] for row in rows]
            found = self._best_of_piece(own, items, k, own_left_out, nprobe)
            if complete:
                self._complete(own, items, k, own_left_out, found)
            values[rows], ids[rows] = found
        return values, ids

    def _best_of_piece(
        self, products: ItemProducts, items: int, k: int, left_out: list[np.ndarray] | None, nprobe: int
    ) -> tuple[np.ndarray, np.ndarray]:
        candidates = self._candidates(products, k, left_out, nprobe)
        scores = products.of_pairs(candidates)
        scores[candidates == 0] = -torch.inf
        if items > self._items:
            size = block_size(len(scores), k)
            new = best_of_piece(products, items, k, left_out, size, self._items)
            scores, candidates = torch.cat([scores, new[0]], dim=1), torch.cat([candidates, new[1]], dim=1)
        found, places = scores.topk(k, dim=1)
        return found.float().cpu().numpy(), candidates.gather(1, places).cpu().numpy()

    def _complete(
        self,
        products: ItemProducts,
        items: int,
        k: int,
        left_out: list[np.ndarray] | None,
        found: tuple[np.ndarray, np.ndarray],
    ) -> None:
        """Answer exactly, in place, those for whom fewer than `k` items were `found` though there are more."""
        values, ids = found
        counts = np.zeros(len(values), dtype=np.int64) if left_out is None else np.array([len(row) for row in left_out])
        short = np.flatnonzero((values > -np.inf).sum(axis=1) < np.minimum(k, items - 1 - counts))
        if len(short):
            few = products.of_rows(torch.from_numpy(short).to(products.users.device))
            few_left_out = None if left_out is None else [left_out[row] for row in short]
            exact = best_in_blocks(lambda *_: few, len(short), items, k, few_left_out)
            assert exact is not None
            values[short], ids[short] = exact

    def _candidates(self, products: ItemProducts, k: int, left_out: list[np.ndarray] | None, nprobe: int) -> Tensor:
        """Return items int64 [batch, n] with large products, each once and none that is left out; 0 stands for none."""
        users = products.users_with_one().detach().float().cpu()
        batch, interests, size = users.shape
        # Some more than needed: those that are left out, and for the rounding of the index' 16-bit floats.
        most = 0 if left_out is None else max(map(len, left_out))
        count = min(k + most + max(k // 2, 8), self._items - 1)
        found = self._index.search(users.reshape(-1, size).contiguous(), count, nprobe).reshape(batch, -1)
        found[found < 0] = 0
        if interests > 1:
            found.sort(axis=1)
            found[:, 1:][found[:, 1:] == found[:, :-1]] = 0
        if left_out is not None:
            for row, items in zip(found, left_out, strict=True):
                row[np.isin(row, items)] = 0
        missing = max(k - found.shape[1], 0)
        return torch.from_numpy(np.pad(found, ((0, 0), (0, missing)))).to(products.users.device)

    # -- recall --------------------------------------------------------------------------------------------------------

    def _measured(self, sample: ItemProducts, seen: Sequence[np.ndarray] | None) -> tuple[int, float]:
        """Return how many lists are read, and the recall that this reaches."""
        settings, users = self.settings, len(sample.users)
        k = min(settings.k, self._items - 1)
        exact = best_in_blocks(lambda begin, end: sample, users, self._items, k, seen)
        assert exact is not None
        # Scored as what is found will be: a product of many items at once is summed in another order.
        best = sample.of_pairs(torch.from_numpy(exact[1]).to(sample.users.device)).float().cpu().numpy()
        best[np.isneginf(exact[0])] = -np.inf

        def recall(nprobe: int) -> float:
            return recall_of(self._best(sample, self._items, k, seen, nprobe, False)[0], best)

        if settings.nprobe is not None:
            found = recall(settings.nprobe)
            if found < settings.min_recall:
                raise SettingError(
                    f"the approximate search finds {found:.4f} of the exact best {k} with nprobe={settings.nprobe} of "
                    f"{self.lists} lists, below min_recall={settings.min_recall}: raise nprobe, or leave it out"
                )
            return settings.nprobe, found
        nprobe, most = 1, max(self.lists // 2, 1)
        while (found := recall(nprobe)) < settings.min_recall:
            if nprobe == most:
                raise SettingError(
                    f"the approximate search finds {found:.4f} of the exact best {k} even if it reads half of its "
                    f"{self.lists} lists, below min_recall={settings.min_recall}: set search=exact, or a larger nprobe"
                )
            nprobe = min(2 * nprobe, most)
        return nprobe, found


def no_products(what: str) -> SettingError:
    """Return the error for scores that an index cannot search; `what` says whose."""
    return SettingError(
        f"search=approximate needs scores that are products of a user's and an item's vector, and {what}: "
        f"set search=exact"
    )


def recall_of(values: np.ndarray, exact: np.ndarray) -> float:
    """Return the mean share of the exact best items that were found, of users who have any.

    An item counts if its score is no less than the last of the exact ones: which of several equal ones is found does
    not matter.

    Args:
        values: exact scores [users, k] of what was found, -inf for nothing.
        exact: the best scores there are, [users, k].
    """
    ranked = exact > -np.inf
    counts = ranked.sum(axis=1)
    rows = counts > 0
    size = np.where(ranked, np.abs(exact), 0).max(axis=1)
    last = np.where(ranked, exact, np.inf).min(axis=1)
    found = ((values > -np.inf) & (values >= (last - _ROUNDING * size)[:, None])).sum(axis=1)
    return float((np.minimum(found, counts)[rows] / counts[rows]).mean()) if rows.any() else 1.0
