"""BM25 against the formula written out, and the order of what several queries find."""

import math
import random

import numpy as np
import pytest

from recbole_llm.data.title_search import TitleSearch, in_rounds, words

WORDS = ("acoustic", "guitar", "strings", "light", "gauge", "black", "super", "mario", "zelda", "the", "of", "printer")


def titles(count=50):
    chance = random.Random(0)
    return ["", *(" ".join(chance.choices(WORDS, k=chance.randint(1, 7))) for _ in range(count))]


def formula(texts, query, k1, b):
    """Lucene's BM25 of every title, by its definition."""
    documents = [words(text) for text in texts]
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        score = 0.0
        for word in words(query):
            holding = sum(word in other for other in documents)
            if not holding:
                continue
            idf = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
            count = document.count(word)
            score += idf * count / (count + k1 * (1 - b + b * len(document) / mean))
        scores.append(score)
    return scores


@pytest.mark.parametrize(("k1", "b"), [(1.2, 0.75), (0.5, 0.0), (2.0, 1.0)])
@pytest.mark.parametrize("query", ["Super Mario", "the guitar, the light guitar strings!", "nothing known", ""])
def test_scores_are_those_of_the_formula(k1, b, query):
    search = TitleSearch(titles(), k1, b)
    np.testing.assert_allclose(search.scores(query), formula(titles()[1:], query, k1, b), atol=1e-5)


@pytest.mark.parametrize("count", [1, 3, 10, 100])
def test_best_are_in_order_and_equals_by_id(count):
    search = TitleSearch(titles(), 1.2, 0.75)
    scores = search.scores("mario zelda")
    expected = sorted((i for i in range(50) if scores[i] > 0), key=lambda i: (-scores[i], i))[:count]
    found, values = search.best("mario zelda", count)
    assert (found - 1).tolist() == expected
    assert values.tolist() == scores[expected].tolist()


def test_a_title_finds_itself_first():
    found = ["", "Toy Story (1995)", "Toy Story 2 (1999)", "Story of a Toy"]
    search = TitleSearch(found, 1.2, 0.75)
    assert [int(search.best(title, 1)[0][0]) for title in found[1:]] == [1, 2, 3]


def test_rounds():
    lists = [np.array([1, 2, 3]), np.array([2, 1, 4, 5]), np.array([], dtype=np.int64)]
    assert in_rounds(lists, 1, 10) == [1, 2, 3, 4, 5]
    assert in_rounds(lists, 2, 10) == [1, 2, 4, 5, 3]
    assert in_rounds(lists, 1, 2) == [1, 2]
    assert in_rounds([], 1, 2) == []
