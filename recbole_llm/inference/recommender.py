"""Recommendations from a trained model: histories of item tokens in, the best items and their scores out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import pandas as pd
import torch
from recbole.data.interaction import Interaction
from recbole.utils import ModelType
from torch import Tensor

from recbole_llm.config.hooks import ScoresOfItems, hooks_of
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.errors import DataError, SettingError, TrainingError, nearest
from recbole_llm.inference.approximate_search import SAMPLE, ApproximateBest, ApproximateSearch
from recbole_llm.inference.best_items import best_in_blocks, best_items
from recbole_llm.inference.user_histories import user_histories

_SAMPLE_SEED = 2020
_NEAREST_AMONG = 50_000  # in a larger catalogue the search for a token of nearly the same name takes seconds


@dataclass(frozen=True)
class Recommendation:
    """The best items for one user, best first.

    Attributes:
        items: item tokens, as in the dataset's files.
        scores: the model's scores of these items, descending.
    """

    items: list[str]
    scores: list[float]


def check_k(k: Any, items: int, name: str) -> None:
    """Raise SettingError if `k` is not from 1 to the number of `items` of the dataset `name`, new ones included."""
    if not isinstance(k, int | np.integer) or isinstance(k, bool) or k < 1:
        raise SettingError(f"k={k} must be a whole number from 1")
    if k > items:
        raise SettingError(f"k={k} is more than the {items} items of {name}")


def leaves_seen_out(dataset: Any) -> bool:
    """Tell whether a run on `dataset` left what users met before out of its rankings; False if it was not a run's."""
    protocol = getattr(dataset, "item_protocol", None)
    return protocol is not None and not protocol.repeatable


def recommendations(scores: np.ndarray, best: np.ndarray, tokens: np.ndarray, model: Any) -> list[Recommendation]:
    """Return what `best_items` found as item tokens; items that are left out are not among them.

    Raises:
        TrainingError: if a score is not a number.
    """
    if np.isnan(scores).any():
        raise TrainingError(f"the scores of {type(model).__name__} are not numbers: its training diverged")
    ranked = scores > -np.inf
    return [
        Recommendation(tokens[ids[kept]].tolist(), values[kept].tolist())
        for ids, values, kept in zip(best, scores, ranked, strict=True)
    ]


class Recommender:
    """Top-k items for histories that the model need not have seen.

    The ranking is that of the model's ``full_sort_predict``, made for some users at a time, so that memory for
    [users, items] is bounded however many users are asked for; by a model with `scores_of_items`, for some items at a
    time. The scores of a block of items may differ from those of all in their last bit, as those of another batch do.

    Args:
        model: a trained `ST2SI` or any sequential model of RecBole.
        dataset: the training part of its data, ``parts.train._dataset``; with all interactions (``parts.dataset``)
            items that are held out for validation and test count as trained.
        cuda_graph: for `ST2SI` on a GPU: one user alone is computed by a CUDA graph (see `SingleSequence`), which is
            captured at the first request of a length. A model with float32 weights that computes in bf16 gets a bf16
            copy of its backbone for this: scores differ by bf16's rounding, and further training is not seen. Longer
            histories than the largest graph, batches, an `ST2SI` with an ID model, other models and the CPU go the
            plain way.
        allow_untrained: whether histories may hold items that no training interaction has, for models that know items
            by id, IDLEAdapter's ID model among them. (ST2SI reads their texts alone, and always may.)
        new_items: texts of items that are not in the dataset, indexed by item token, see `read_new_items`: they are
            added to the model, ranked among the others, and may stand in histories as untrained items may.
        search: how an index of the item vectors is searched for up to ``search.k`` items; their scores are exact, and
            new items are all scored. None: all items are, and more items or a CUDA graph are answered so in any case.
            The index is of the weights as they are now: further training is not seen.

    Raises:
        SettingError: if the model does not recommend from histories, or knows items by id and there are new ones; and
            for a `search` that the model cannot have, or whose recall is too low.
        TrainingError: if the model's scores are not numbers and `search` is given.
        StorageError: if the index of `search` cannot be stored.
        DataError: if a new item is in the dataset, or has no text.
    """

    def __init__(
        self,
        model: Any,
        dataset: Any,
        *,
        cuda_graph: bool = False,
        allow_untrained: bool = False,
        new_items: pd.DataFrame | None = None,
        search: ApproximateSearch | None = None,
    ) -> None:
        if getattr(model, "type", None) != ModelType.SEQUENTIAL:
            raise SettingError(
                f"{type(model).__name__} knows users by id and reads no history: name users of its dataset, or take a "
                f"sequential model, such as ST2SI or SASRec"
            )
        self.model = model.eval()
        self.dataset = dataset
        self.device = torch.device(model.device)
        self._tokens = np.asarray(dataset.field2id_token[dataset.iid_field])
        self._ids: dict[str, int] = dataset.field2token_id[dataset.iid_field]
        hooks = hooks_of(model)
        self._on_host = hooks.histories_on_host
        self._trained = None if allow_untrained or hooks.reads_text_only else _trained_items(dataset)
        self._single = hooks.single_sequence() if cuda_graph else None
        self.leaves_seen_out = leaves_seen_out(dataset)
        if new_items is not None:
            self._add(new_items)
        self._approximate = None if search is None else self._approximate_best(search)

    def _add(self, new_items: pd.DataFrame) -> None:
        """Add items that the dataset does not have, to the model and to what is known here."""
        for token in new_items.index:
            if token in self._ids:
                raise DataError(
                    f"the new item '{token}' is in {self.dataset.dataset_name}, which ranks it already: leave it out"
                )
        hooks_of(self.model).add_items(new_items)
        first = len(self._tokens)
        self._tokens = np.concatenate([self._tokens, new_items.index.to_numpy(dtype=str)])
        self._ids = {**self._ids, **{token: first + number for number, token in enumerate(new_items.index)}}
        if self._trained is not None:
            self._trained = np.concatenate([self._trained, np.zeros(len(new_items), dtype=bool)])

    @property
    def items(self) -> int:
        """How many items there are to recommend."""
        return len(self._tokens) - 1

    @property
    def search_summary(self) -> str | None:
        """How much of the exact best items `search` finds, in one line; None without one."""
        return None if self._approximate is None else self._approximate.summary

    @property
    def trained(self) -> np.ndarray | None:
        """Which item ids a history may hold: bool [items]; None for all."""
        return self._trained

    def unknown_items(self, history: Sequence[str]) -> list[str]:
        """Return the items of a history that there are not, each once, in its order."""
        return list(dict.fromkeys(str(token) for token in history if not self._ids.get(str(token), 0)))

    def check_history(self, history: Sequence[str]) -> None:
        """Raise DataError for a history that is empty, or has an item that is unknown or was never trained on."""
        self._history_ids(history)

    @overload  # a token is a sequence of tokens to the type checker
    def recommend(  # type: ignore[overload-overlap]
        self,
        histories: Sequence[str],
        k: int = 10,
        exclude_seen: bool | None = None,
        users: str | None = None,
        also_seen: Sequence[str] | None = None,
    ) -> Recommendation: ...
    @overload
    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        k: int = 10,
        exclude_seen: bool | None = None,
        users: Sequence[str] | None = None,
        also_seen: Sequence[Sequence[str]] | None = None,
    ) -> list[Recommendation]: ...
    def recommend(
        self, histories: Any, k: int = 10, exclude_seen: bool | None = None, users: Any = None, also_seen: Any = None
    ) -> Any:
        """Return the best `k` items after each history.

        Args:
            histories: item tokens of one user, oldest first, or a list of such lists.
            k: how many items.
            exclude_seen: whether the items of a user's whole history are left out; fewer than `k` may then be left.
                None: as the run was evaluated, see `repeatable`.
            users: user tokens, for models that also read who the user is (Caser, FPMC, HGN, ...): one a history.
            also_seen: item tokens beside the history that `exclude_seen` leaves out, too: a list of them per history.

        Returns:
            One `Recommendation` for one history, a list for a list.

        Raises:
            DataError: for an empty history, an unknown item or user, or one that the model cannot read.
            SettingError: if `k` is not from 1 to the number of items.
            TrainingError: if the model's scores are not numbers.
        """
        check_k(k, self.items, self.dataset.dataset_name)
        exclude_seen = self.leaves_seen_out if exclude_seen is None else exclude_seen
        if len(histories) == 0:
            raise DataError("a history is empty: there is nothing to recommend from")
        single = isinstance(histories[0], str | int | np.integer)
        if single:
            histories, users = [histories], None if users is None else [users]
            also_seen = None if also_seen is None else [also_seen]
        ids = [self._history_ids(history) for history in histories]
        seen = self._seen_ids(ids, also_seen) if exclude_seen else None
        user_ids = None if users is None else self._user_ids(users, len(ids))
        if self.model.training:
            self.model.eval()
        found = self._top_of_one(ids[0], int(k), seen) if single else None
        if found is None:
            found = self._top(ids, int(k), seen, user_ids)
        rows = recommendations(*found, self._tokens, self.model)
        return rows[0] if single else rows

    # -- from tokens to ids ----------------------------------------------------------------------------------------

    def _history_ids(self, history: Sequence[str], read: bool = True) -> np.ndarray:
        """Return the ids of item tokens, which the model must be able to `read` if it shall."""
        if len(history) == 0:
            raise DataError("a history is empty: there is nothing to recommend from")
        ids = np.array([self._ids.get(str(token), 0) for token in history], dtype=np.int64)
        name = self.dataset.dataset_name
        if not ids.all():
            token = str(history[int(np.argmin(ids))])
            close = nearest(token, self._ids) if len(self._ids) <= _NEAREST_AMONG else ""
            raise DataError(f"there is no item '{token}' in {name}{close}")
        if read and self._trained is not None and not self._trained[ids].all():
            token = history[int(np.argmin(self._trained[ids]))]
            raise DataError(
                f"item '{token}' of {name} was never trained on, and {type(self.model).__name__} knows items by id: "
                f"leave it out of the history, or set allow_untrained=True"
            )
        return ids

    def _seen_ids(self, ids: list[np.ndarray], also_seen: Sequence[Sequence[str]] | None) -> list[np.ndarray]:
        """Return the ids of the items that each user has met."""
        if also_seen is None:
            return ids
        if len(also_seen) != len(ids):
            raise DataError(f"there are {len(ids)} histories but {len(also_seen)} lists of items in also_seen")
        return [
            np.concatenate([own, self._history_ids(tokens, False)]) if len(tokens) else own
            for own, tokens in zip(ids, also_seen, strict=True)
        ]

    def _user_ids(self, users: Sequence[str], count: int) -> np.ndarray:
        if len(users) != count:
            raise DataError(f"there are {count} histories but {len(users)} users: give one user a history")
        known = self.dataset.field2token_id[self.dataset.uid_field]
        for user in users:
            if not known.get(str(user), 0):
                raise DataError(f"there is no user '{user}' in {self.dataset.dataset_name}")
        return np.array([known[str(user)] for user in users], dtype=np.int64)

    # -- scores ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _top(
        self, ids: list[np.ndarray], k: int, seen: list[np.ndarray] | None, users: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return scores and ids [users, k], best first."""

        def scorer(begin: int, end: int) -> ScoresOfItems | None:
            return self._scorer(ids[begin:end], None if users is None else users[begin:end])

        def scores(begin: int, end: int) -> Tensor:
            return self._scores(ids[begin:end], None if users is None else users[begin:end])

        shape = (len(ids), len(self._tokens), k, seen)
        if self._approximate is not None and k <= self._approximate.settings.k:
            return self._approximate.best(scorer, *shape)
        found = best_in_blocks(scorer, *shape)
        return best_items(scores, *shape) if found is None else found

    def _scorer(self, ids: list[np.ndarray], users: np.ndarray | None) -> ScoresOfItems | None:
        found: ScoresOfItems | None = self._asked(hooks_of(self.model).scores_of_items, self._interaction(ids, users))
        return found

    @torch.no_grad()
    def _approximate_best(self, search: ApproximateSearch) -> ApproximateBest:
        """Return the search in an index of the catalogue, whose recall is measured for users of the dataset."""
        histories = user_histories(self.dataset)
        users = np.flatnonzero(histories.lengths)
        users = np.sort(np.random.default_rng(_SAMPLE_SEED).permutation(users)[:SAMPLE])
        ids = [histories.row(int(user)) for user in users]
        left_out = self.leaves_seen_out if search.exclude_seen is None else search.exclude_seen
        seen = ids if left_out else None
        name = type(self.model).__name__
        return ApproximateBest(search, self._scorer(ids, users), seen, self.dataset.item_num, name)

    def _scores(self, ids: list[np.ndarray], users: np.ndarray | None) -> Tensor:
        scores: Tensor = self._asked(self.model.full_sort_predict, self._interaction(ids, users))
        return scores.view(len(ids), -1)

    def _asked(self, question: Callable[[Interaction], Any], interaction: Interaction) -> Any:
        """Return what the model answers; what it lacks is a SettingError or DataError."""
        try:
            return question(interaction)
        except NotImplementedError:
            raise SettingError(
                f"{type(self.model).__name__} cannot rank all items: it has no full_sort_predict"
            ) from None
        except KeyError as error:
            column = str(error.args[0]) if error.args else "?"
            if column not in {*self.dataset.field2type, self.model.USER_ID} or column in interaction:
                raise
            hint = "give users" if column == self.model.USER_ID else "it cannot recommend from item tokens alone"
            raise DataError(f"{type(self.model).__name__} also reads '{column}': {hint}") from error

    def _interaction(self, ids: list[np.ndarray], users: np.ndarray | None) -> Interaction:
        """Return histories as RecBole batches them: the most recent items, from the left, padded to full width."""
        width = self.dataset.max_item_list_len
        histories = np.zeros((len(ids), width), dtype=np.int64)
        for row, history in enumerate(ids):
            recent = history[-width:]
            histories[row, : len(recent)] = recent
        lengths = np.minimum([len(history) for history in ids], width)
        columns = {self.model.ITEM_SEQ: torch.from_numpy(histories), self.model.ITEM_SEQ_LEN: torch.from_numpy(lengths)}
        if users is not None:
            columns[self.model.USER_ID] = torch.from_numpy(users)
        interaction = Interaction(columns)
        return interaction if self._on_host else interaction.to(self.device)

    # -- one user on a GPU -----------------------------------------------------------------------------------------

    def _top_of_one(
        self, ids: np.ndarray, k: int, seen: list[np.ndarray] | None
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Return what `_top` does for one history, or None if there is no graph for it."""
        if self._single is None:
            return None
        recent = ids[-self.dataset.max_item_list_len :]
        found = self._single.top(recent, k, None if seen is None else np.unique(seen[0]))
        return None if found is None else (found[0][None], found[1][None])


def _trained_items(dataset: Any) -> np.ndarray:
    """Return which item ids some interaction of `dataset` has: bool [items]."""
    trained = np.zeros(dataset.item_num, dtype=bool)
    if isinstance(dataset, HistoryDataset):
        trained[dataset.items_of_histories()] = True
    for field in (dataset.iid_field, getattr(dataset, "item_id_list_field", None)):
        if field is not None and field in dataset.inter_feat:
            trained[np.unique(dataset.inter_feat[field].numpy())] = True
    return trained
