"""BM25 over the titles of items: the package bm25s, and an order in which equal scores are told apart by item id."""

import re
from collections.abc import Sequence

import numpy as np

from recbole_llm.utils.packages import hidden_package

# Where JAX is installed, bm25s computes with it as soon as it is imported, and JAX then takes three quarters of a GPU's
# memory. What is used of bm25s here is numpy alone.
with hidden_package("jax"):
    import bm25s

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """Return the words of a text in lower case; nothing is stemmed, and no word is left out."""
    return _WORD.findall(text.lower())


class TitleSearch:
    """Finds titles that share words with a query.

    The score is Lucene's BM25: sum over the query's words of idf * tf / (tf + k1 (1 - b + b |title| / mean |title|)),
    idf = log(1 + (N - n + .5) / (n + .5)), which is never negative.

    Args:
        titles: row = item id; row 0, the padding id, is never found.
        k1: how soon a word that is repeated in a title counts no more.
        b: how much a long title counts less, from 0 to 1.
    """

    def __init__(self, titles: Sequence[str], k1: float, b: float) -> None:
        self._search = bm25s.BM25(method="lucene", k1=k1, b=b)
        self._search.index([words(title) for title in titles[1:]], show_progress=False)
        self._empty = np.zeros(len(titles) - 1, dtype=np.float32)
        self._known = set(self._search.vocab_dict)

    def scores(self, query: str) -> np.ndarray:
        """Return the score of every item but the padding id: float32 [items - 1]."""
        known = [word for word in words(query) if word in self._known]
        if not known:
            return self._empty
        found: np.ndarray = self._search.get_scores(known)
        return found

    def best(self, query: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the best items for a query, those that share a word with it alone.

        Args:
            query: a text.
            count: how many at most.

        Returns:
            Item ids int64, the best first and of equals the smallest; and their scores, float32.
        """
        scores = self.scores(query)
        found = np.flatnonzero(scores > 0)
        if len(found) > count:
            worst = np.partition(scores[found], -count)[-count]
            found = found[scores[found] >= worst]  # with all that are equal to the last
        found = found[np.argsort(-scores[found], kind="stable")][:count]
        return found + 1, scores[found]


def in_rounds(lists: Sequence[np.ndarray], per_round: int, count: int) -> list[int]:
    """Return one list of items from those of several queries, the best query first.

    In a round each query in turn gives its next `per_round` items that are not in the list yet. The first round is
    GPT4Rec's own retrieval with `per_round` = K / m items for each of m queries; further rounds go on behind it.

    Args:
        lists: of each query, item ids in their order.
        per_round: how many a query gives in one round.
        count: how long the list is at most.
    """
    taken: dict[int, None] = {}
    at = [0] * len(lists)
    while any(place < len(items) for place, items in zip(at, lists, strict=True)):
        for query, items in enumerate(lists):
            given = 0
            while given < per_round and at[query] < len(items):
                item = int(items[at[query]])
                at[query] += 1
                if item not in taken:
                    taken[item] = None
                    given += 1
                    if len(taken) == count:
                        return list(taken)
    return list(taken)
