"""IDs of items: unique, prefix-free, from training alone, and the same however RecBole numbers the items."""

import numpy as np
import pytest

from recbole_llm.backbone.decoding.trie import clashing_paths
from recbole_llm.data.item_indexing import (
    TrainingItems,
    collaborative_codes,
    independent_codes,
    numbers,
    random_order,
    sequential_order,
)

# Two groups of items that no user mixes; "n" and "m" were never trained on.
NAMES = np.array(["[PAD]", *"fhgbadcenm"])
GROUPS = ("abcd", "efgh")


def training(names=NAMES, users=60):
    number = {name: place for place, name in enumerate(names)}
    rng = np.random.default_rng(0)
    histories = [rng.permutation(list(GROUPS[user % 2]))[:3] for user in range(users)]
    items = np.array([number[name] for history in histories for name in history])
    return TrainingItems(items, np.array([len(history) for history in histories]), names)


def by_name(codes, names=NAMES):
    return {str(names[item]): tuple(codes.row(item).tolist()) for item in range(1, len(names))}


def test_numbers_are_of_one_length():
    found = numbers(np.array([3, 1, 2]))
    assert found == ["", "1002", "1003", "1001"]
    assert numbers(np.arange(1, 9000))[-1] == "9999"
    assert {len(text) for text in numbers(np.arange(1, 9001))[1:]} == {5}


def test_sequential_order_is_that_of_first_appearance():
    found = TrainingItems(np.array([5, 2, 5, 3, 2, 1]), np.array([3, 3]), np.array(["[PAD]", *"zyxwvu"]))
    assert sequential_order(found).tolist() == [5, 2, 3, 1, 6, 4]  # the last two by name: u, w


def test_random_order_is_seeded():
    assert random_order(training(), 0).tolist() == random_order(training(), 0).tolist()
    assert random_order(training(), 0).tolist() != random_order(training(), 1).tolist()
    assert sorted(random_order(training(), 0)) == list(range(1, len(NAMES)))


@pytest.mark.parametrize("size", [1, 2, 4, 100])
@pytest.mark.parametrize("clusters", [2, 3])
def test_codes_are_unique_and_begin_no_other(clusters, size):
    codes = collaborative_codes(training(), clusters, size, seed=0)
    assert (codes.lengths[1:] > 0).all()
    assert clashing_paths(codes) is None
    assert int(codes.values.max()) < max(clusters + 1, size)


def test_clusters_are_the_groups():
    codes = by_name(collaborative_codes(training(), 2, 4, seed=0))
    assert len({codes[name][0] for name in GROUPS[0]}) == len({codes[name][0] for name in GROUPS[1]}) == 1
    assert len({codes["a"][0], codes["e"][0], codes["n"][0]}) == 3
    assert codes["n"][0] == codes["m"][0]


def test_what_nothing_tells_apart_is_divided_evenly():
    names = np.array(["[PAD]", *(f"i{place:02}" for place in range(40))])
    everybody = TrainingItems(np.tile(np.arange(1, 31), 3), np.full(3, 30), names)
    codes = collaborative_codes(everybody, 4, 5, seed=0)
    assert clashing_paths(codes) is None
    assert codes.lengths.max() <= 4
    alone = TrainingItems(np.arange(1, 41), np.ones(40, dtype=np.int64), names)  # no two items have a user in common
    assert clashing_paths(collaborative_codes(alone, 4, 5, seed=0)) is None


@pytest.mark.parametrize("make", [lambda found: collaborative_codes(found, 2, 2, 0), independent_codes])
def test_codes_do_not_depend_on_the_ids_of_the_items(make):
    other = np.array(["[PAD]", *"mnabcdefgh"])
    assert by_name(make(training())) == by_name(make(training(other)), other)


@pytest.mark.parametrize("order", [sequential_order, lambda found: random_order(found, 0)])
def test_orders_do_not_depend_on_the_ids_of_the_items(order):
    other = np.array(["[PAD]", *"mnabcdefgh"])
    assert NAMES[order(training())].tolist() == other[order(training(other))].tolist()
