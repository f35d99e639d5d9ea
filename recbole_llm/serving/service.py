"""What a server answers, without HTTP: questions in, recommendations with titles out, many at once."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from recbole_llm.errors import DataError, RecBoleLLMError, SettingError
from recbole_llm.inference.approximate_search import ApproximateSearch
from recbole_llm.inference.recommender import Recommendation, check_k
from recbole_llm.inference.titles import item_titles
from recbole_llm.inference.users import UserRecommender


@dataclass(frozen=True)
class Question:
    """Whom to recommend to.

    Attributes:
        history: item tokens, the oldest first; None: all that `user` did.
        user: a token; with a history: whose it is, for models that read who the user is.
        k: how many items.
        exclude_seen: whether items of the history are left out; None: as the run was evaluated.
    """

    history: tuple[str, ...] | None
    user: str | None
    k: int
    exclude_seen: bool | None = None


@dataclass(frozen=True)
class Limits:
    """What one question may ask for.

    Attributes:
        k: the most items that it may ask for.
        history: the most items that its history may have.
    """

    k: int = 1000
    history: int = 10_000


class UnknownItemsError(DataError):
    """Items of a history that the dataset does not have.

    Attributes:
        items: their tokens.
    """

    def __init__(self, items: list[str], dataset: str) -> None:
        some = ", ".join(f"'{item}'" for item in items[:5]) + (", ..." if len(items) > 5 else "")
        super().__init__(f"there is no item {some} in {dataset}")
        self.items = items


class Service:
    """Recommends by a loaded run.

    Args:
        parts: of a run, see `quick_start.load`.
        limits: of a question.
        exclude_seen: for questions that leave it open; None: as the run was evaluated.
        new_items: as in `Recommender`.
        search: as in `Recommender`. Its `k` is made a power of two, from 16, as those of questions are.
        options: of `Recommender`: `cuda_graph` and `allow_untrained`.

    Attributes:
        titles: of items by token; None where the dataset has no texts.
    """

    def __init__(
        self,
        parts: Any,
        limits: Limits,
        exclude_seen: bool | None = None,
        new_items: pd.DataFrame | None = None,
        search: ApproximateSearch | None = None,
        **options: bool,
    ) -> None:
        self._limits, self._exclude_seen = limits, exclude_seen
        if search is not None:
            search = replace(search, k=_power_of_two(search.k), exclude_seen=exclude_seen)
        self._searched = None if search is None else search.k
        self._users = UserRecommender(parts, new_items=new_items, search=search, **options)
        self._dataset, self.model_name = parts.dataset, type(parts.model).__name__
        self._known_users = parts.dataset.field2token_id[parts.dataset.uid_field]
        titles = item_titles(parts)
        if new_items is not None:
            titles = {**(titles or {}), **dict(zip(new_items.index, new_items.iloc[:, 0], strict=True))}
        self.titles = titles

    @property
    def dataset_name(self) -> str:
        """The name of the dataset."""
        return str(self._dataset.dataset_name)

    @property
    def search_summary(self) -> str | None:
        """As of `Recommender`."""
        return self._users.search_summary

    @property
    def items(self) -> int:
        """How many items are ranked."""
        return self._users.items

    def check(self, question: Question) -> None:
        """Refuse what cannot be answered, before it shares a batch with others. It is quick in a large catalogue, too.

        Raises:
            DataError: for an unknown user, unknown items (`UnknownItemsError`) and a history that cannot be read.
            SettingError: if `k` is out of range, or the model reads no histories.
        """
        check_k(question.k, self.items, self.dataset_name)
        if question.k > self._limits.k:
            raise SettingError(f"k={question.k} is more than {self._limits.k}, the most that this server answers")
        if question.user is not None and not self._known_users.get(question.user, 0):
            raise DataError(f"there is no user '{question.user}' in {self.dataset_name}")
        if question.history is None:
            if question.user is None:
                raise SettingError("a request needs a history or a user: there is nobody to recommend to")
            self._users.readable_history(question.user)
            return
        if len(question.history) > self._limits.history:
            raise DataError(
                f"the history has {len(question.history)} items, more than the {self._limits.history} that this server "
                f"reads: send the most recent"
            )
        from_histories = self._users.from_histories
        unknown = from_histories.unknown_items(question.history)
        if unknown:
            raise UnknownItemsError(unknown, self.dataset_name)
        from_histories.check_history(question.history)

    def answer(self, questions: Sequence[Question]) -> list[Recommendation | Exception]:
        """Return one recommendation for each question that `check` lets pass, or the error of that question alone.

        Questions of one kind are one batch of the model's; of those with different `k` the largest decides, and the
        others get the first of it. Those for more items than are searched for approximately are a kind of their own.
        """
        kinds: dict[Any, list[int]] = defaultdict(list)
        for number, question in enumerate(questions):
            exact = self._searched is not None and question.k > self._searched
            kinds[question.history is None, question.user is None, question.exclude_seen, exact].append(number)
        found: list[Any] = [None] * len(questions)
        for places in kinds.values():
            for place, row in zip(places, self._of_one_kind([questions[place] for place in places]), strict=True):
                found[place] = row
        return found

    def _of_one_kind(self, questions: list[Question]) -> Sequence[Recommendation | Exception]:
        try:
            rows = self._recommended(questions)
        except RecBoleLLMError as error:
            if len(questions) == 1:
                return [error]
            return [self._of_one_kind([question])[0] for question in questions]
        return [
            Recommendation(row.items[: question.k], row.scores[: question.k])
            for question, row in zip(questions, rows, strict=True)
        ]

    def _recommended(self, questions: list[Question]) -> list[Recommendation]:
        first, k = questions[0], self._rounded(max(question.k for question in questions))
        exclude_seen = self._exclude_seen if first.exclude_seen is None else first.exclude_seen
        if first.history is None:
            return self._users.recommend([str(question.user) for question in questions], k, exclude_seen)
        histories = [list(question.history or ()) for question in questions]
        users = None if first.user is None else [str(question.user) for question in questions]
        recommender = self._users.from_histories
        if len(questions) == 1:  # which a CUDA graph may answer
            alone: Any = recommender.recommend(histories[0], k, exclude_seen, users and users[0])
            return [alone]
        return recommender.recommend(histories, k, exclude_seen, users)

    def _rounded(self, k: int) -> int:
        """Return a power of two that is no less, from 16, if there are as many items: a CUDA graph is made for each."""
        return min(_power_of_two(k), self.items)


def _power_of_two(k: int) -> int:
    return max(1 << (k - 1).bit_length(), 16)
