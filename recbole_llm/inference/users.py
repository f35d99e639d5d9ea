"""Recommendations to users of the dataset, by models that read histories and by models that know users by id."""

import logging
from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import pandas as pd
import torch
from recbole.data.interaction import Interaction
from recbole.utils import ModelType
from torch import Tensor

from recbole_llm.config.hooks import hooks_of
from recbole_llm.errors import DataError, SettingError, nearest
from recbole_llm.inference.approximate_search import ApproximateSearch, no_products
from recbole_llm.inference.best_items import best_items
from recbole_llm.inference.recommender import (
    Recommendation,
    Recommender,
    check_k,
    leaves_seen_out,
    recommendations,
)
from recbole_llm.inference.user_histories import user_histories

_PREDICTED = 2**20  # maximum number of pairs of user and item that a model without full_sort_predict scores at once
_NEAREST_AMONG = 50_000  # among more users the search for a token of nearly the same name takes seconds


class UserRecommender:
    """Top-k items for users of the dataset: what comes after all that they did.

    A sequential model reads the whole history of a user, validation and test part included, of which it takes the most
    recent `MAX_ITEM_LIST_LENGTH` items. Items of it that were never trained on are left out, with one warning, for a
    model that knows items by id alone. Every other model (Pop, BPR, EASE, ...) is asked by the user's id.

    Args:
        parts: of a run, see `quick_start.load`.
        cuda_graph: as in `Recommender`.
        allow_untrained: whether items that were never trained on stay in the histories.
        new_items: as in `Recommender`.
        search: as in `Recommender`.
    """

    def __init__(
        self,
        parts: Any,
        *,
        cuda_graph: bool = False,
        allow_untrained: bool = False,
        new_items: pd.DataFrame | None = None,
        search: ApproximateSearch | None = None,
    ) -> None:
        self.model = parts.model.eval()
        self.dataset = parts.dataset
        self._sequential: Recommender | None = None
        if getattr(self.model, "type", None) == ModelType.SEQUENTIAL:
            self._sequential = Recommender(
                self.model,
                parts.train._dataset,
                cuda_graph=cuda_graph,
                allow_untrained=allow_untrained,
                new_items=new_items,
                search=search,
            )
        elif search is not None:
            raise no_products(f"{type(self.model).__name__} is asked by the user's id")
        elif new_items is not None:
            hooks_of(self.model).add_items(new_items)  # which refuses them: it knows items by id
        self._items = parts.train._dataset.get_item_feature() if self._sequential is None else None
        self._histories = user_histories(self.dataset)
        self._tokens = np.asarray(self.dataset.field2id_token[self.dataset.iid_field])
        self._warned = False

    @property
    def users(self) -> list[str]:
        """The tokens of the users that have a history."""
        tokens = np.asarray(self.dataset.field2id_token[self.dataset.uid_field])
        return tokens[self._histories.lengths > 0].tolist()

    @property
    def items(self) -> int:
        """How many items there are to recommend."""
        return self.dataset.item_num - 1 if self._sequential is None else self._sequential.items

    @property
    def search_summary(self) -> str | None:
        """As of `Recommender`."""
        return None if self._sequential is None else self._sequential.search_summary

    @property
    def from_histories(self) -> Recommender:
        """What recommends from histories that are given by hand, by the same model.

        Raises:
            SettingError: if the model knows users by id and reads no history.
        """
        if self._sequential is None:
            return Recommender(self.model, self.dataset)  # which says so
        return self._sequential

    def history(self, user: str) -> list[str]:
        """Return all items of a user, the most recent last.

        Raises:
            DataError: for an unknown user, or one without a history.
        """
        return self._tokens[self._histories.row(self._id(user))].tolist()

    def readable_history(self, user: str) -> list[str]:
        """Return the items of a user that the model can read: all, for a model that knows users by id.

        Raises:
            DataError: for an unknown user, or one without a history that the model can read.
        """
        history = self._histories.row(self._id(user))
        return self._tokens[history if self._sequential is None else self._readable(user, history)].tolist()

    @overload  # a token is a sequence of tokens to the type checker
    def recommend(  # type: ignore[overload-overlap]
        self, users: str, k: int = 10, exclude_seen: bool | None = None
    ) -> Recommendation: ...
    @overload
    def recommend(
        self, users: Sequence[str], k: int = 10, exclude_seen: bool | None = None
    ) -> list[Recommendation]: ...
    def recommend(self, users: Any, k: int = 10, exclude_seen: bool | None = None) -> Any:
        """Return the best `k` items for each user.

        Args:
            users: a user token, or a list of them.
            k: how many items.
            exclude_seen: whether the items of a user's whole history are left out; fewer than `k` may then be left.
                None: as the run was evaluated, see `repeatable`.

        Returns:
            One `Recommendation` for one user, a list for a list.

        Raises:
            DataError: for an unknown user, or one without a history that the model can read.
            SettingError: if `k` is not from 1 to the number of items, or the model cannot rank items for a user.
            TrainingError: if the model's scores are not numbers.
        """
        check_k(k, self.items, self.dataset.dataset_name)
        exclude_seen = leaves_seen_out(self.dataset) if exclude_seen is None else exclude_seen
        if isinstance(users, str | int | np.integer):
            return self.recommend([str(users)], k, exclude_seen)[0]
        if len(users) == 0:
            raise DataError("no user is named: there is nobody to recommend to")
        ids = [self._id(user) for user in users]
        if self._sequential is not None:
            return self._from_histories(ids, int(k), exclude_seen)
        return self._from_ids(ids, int(k), exclude_seen)

    def _id(self, user: Any) -> int:
        known = self.dataset.field2token_id[self.dataset.uid_field]
        name = self.dataset.dataset_name
        found = int(known.get(str(user), 0))
        if not found:
            close = nearest(str(user), known) if len(known) <= _NEAREST_AMONG else ""
            raise DataError(f"there is no user '{user}' in {name}{close}")
        if not self._histories.lengths[found]:
            raise DataError(
                f"user '{user}' of {name} has fewer than two interactions, which a sequential dataset leaves out: "
                f"give the history by hand"
            )
        return found

    # -- models that read histories --------------------------------------------------------------------------------

    def _from_histories(self, ids: list[int], k: int, exclude_seen: bool) -> list[Recommendation]:
        assert self._sequential is not None
        whole = [self._histories.row(user) for user in ids]
        users = self._user_tokens(ids)
        readable = [self._readable(user, history) for user, history in zip(users, whole, strict=True)]
        # What is left out of a history has still been seen.
        unread = [
            self._tokens[np.setdiff1d(all_items, kept)].tolist()
            for all_items, kept in zip(whole, readable, strict=True)
        ]
        histories = [self._tokens[kept].tolist() for kept in readable]
        if len(ids) == 1:
            return [self._sequential.recommend(histories[0], k, exclude_seen, users[0], unread[0])]
        return self._sequential.recommend(histories, k, exclude_seen, users, unread)

    def _readable(self, user: str, history: np.ndarray) -> np.ndarray:
        assert self._sequential is not None
        trained = self._sequential.trained
        if trained is None or trained[history].all():
            return history
        name, first = self.dataset.dataset_name, self._tokens[history[~trained[history]][0]]
        why = f"never trained on, and {type(self.model).__name__} knows items by id alone"
        if not trained[history].any():
            raise DataError(f"no item in the history of user '{user}' of {name} can be read: they were {why}")
        if not self._warned:
            logging.getLogger().warning(
                "items that were %s, are left out of histories (allow_untrained=True keeps them); the first is item "
                "'%s' of user '%s' of %s", why, first, user, name,
            )  # fmt: skip
            self._warned = True
        return history[trained[history]]

    def _user_tokens(self, ids: list[int]) -> list[str]:
        return np.asarray(self.dataset.field2id_token[self.dataset.uid_field])[ids].tolist()

    # -- models that know users by id ------------------------------------------------------------------------------

    @torch.no_grad()
    def _from_ids(self, ids: list[int], k: int, exclude_seen: bool) -> list[Recommendation]:
        self.model.eval()

        def scores(begin: int, end: int) -> Tensor:
            return self._scores(ids[begin:end]).view(end - begin, -1).clone()

        seen = [self._histories.row(user) for user in ids] if exclude_seen else None
        found = best_items(scores, len(ids), len(self._tokens), k, seen)
        return recommendations(*found, self._tokens, self.model)

    def _scores(self, ids: list[int]) -> Tensor:
        device = torch.device(self.model.device)
        rows = self.dataset.join(Interaction({self.dataset.uid_field: torch.tensor(ids)}))
        try:
            return self.model.full_sort_predict(rows.to(device))
        except NotImplementedError:
            return self._predicted(rows, device)
        except KeyError as error:
            raise self._cannot(error) from error

    def _predicted(self, rows: Interaction, device: torch.device) -> Tensor:
        """Score every pair of user and item, as RecBole's trainer does for models without `full_sort_predict`."""
        assert self._items is not None
        step, found = max(_PREDICTED // len(self._tokens), 1), []
        for begin in range(0, len(rows), step):
            part = rows[begin : begin + step]
            pairs = part.repeat_interleave(len(self._tokens))
            pairs.update(self._items.repeat(len(part)))
            try:
                found.append(self.model.predict(pairs.to(device)))
            except KeyError as error:
                raise self._cannot(error) from error
        return torch.cat(found)

    def _cannot(self, error: KeyError) -> Exception:
        column = str(error.args[0]) if error.args else "?"
        if column not in self.dataset.field2type:
            return error
        return SettingError(
            f"{type(self.model).__name__} also reads '{column}' of an interaction: it cannot rank items for a user"
        )
