"""Filters against the same rules in plain Python."""

from collections import Counter

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_llm.errors import SettingError
from recbole_llm.prepare.filters import FILTERS, ROW, Data, KCore, MinimumLength, Repeats, SampleUsers, Titles
from recbole_llm.prepare.formats.base import ITEM

Rows = list[tuple[str, str, int]]
rows_of_anyone = st.lists(
    st.tuples(st.sampled_from("uvwxyz"), st.sampled_from("abcdef"), st.integers(0, 5)), min_size=1, max_size=60
)


def data(rows: Rows, titles: dict[str, str] | None = None, seed: int = 0) -> Data:
    users, items = pl.Categorical(pl.Categories.random()), pl.Categorical(pl.Categories.random())
    table = pl.DataFrame(rows, schema={"user": pl.String, ITEM: pl.String, "time": pl.Int64}, orient="row")
    table = table.cast({"user": users, ITEM: items}).with_row_index(ROW)
    texts = pl.DataFrame(
        {ITEM: list(titles or {}), "title": list((titles or {}).values())}, schema_overrides={ITEM: items}
    )
    return Data(table, texts, seed)


def left(result: Data) -> list[int]:
    return result.interactions[ROW].to_list()


def python_k_core(rows: Rows, user: int, item: int, once: bool) -> list[int]:
    kept = list(range(len(rows)))
    while True:
        users, items = Counter(rows[k][0] for k in kept), Counter(rows[k][1] for k in kept)
        after = [k for k in kept if users[rows[k][0]] >= user and items[rows[k][1]] >= item]
        if once or after == kept:
            return after
        kept = after


@settings(max_examples=80, deadline=None)
@given(rows_of_anyone, st.integers(0, 4), st.integers(0, 4), st.sampled_from(["once", "stable"]))
def test_k_core(rows, user, item, until):
    assert left(KCore(user, item, until).apply(data(rows))) == python_k_core(rows, user, item, until == "once")


@settings(max_examples=60, deadline=None)
@given(rows_of_anyone, st.sampled_from(["all", "first", "last"]))
def test_repeats(rows, keep):
    expected = list(range(len(rows)))
    if keep != "all":
        chosen: dict[tuple[str, str], int] = {}
        for place in sorted(expected, key=lambda k: (rows[k][2], k), reverse=keep == "last"):
            chosen.setdefault(rows[place][:2], place)
        expected = sorted(chosen.values())
    assert left(Repeats(keep).apply(data(rows))) == expected


@settings(max_examples=40, deadline=None)
@given(rows_of_anyone, st.integers(1, 5))
def test_minimum_length(rows, least):
    lengths = Counter(row[0] for row in rows)
    assert left(MinimumLength(least).apply(data(rows))) == [k for k, row in enumerate(rows) if lengths[row[0]] >= least]


def test_titles():
    rows = [("u", item, 0) for item in "abcd"]
    titles = {"a": "short", "b": "x" * 200, "c": "x" * 201}  # d has none
    assert left(Titles().apply(data(rows, titles))) == [0, 1, 2]
    assert left(Titles(max_characters=200).apply(data(rows, titles))) == [0, 1]
    assert left(Titles(empty="keep", max_characters=200).apply(data(rows, titles))) == [0, 1, 3]
    assert left(Titles(containing=("or",)).apply(data(rows, titles))) == [1, 2]


def test_sampling_is_seeded_and_off_by_default():
    rows = [(f"user{n}", "a", 0) for n in range(2000)]
    assert SampleUsers().apply(data(rows)).interactions.height == 2000
    first = left(SampleUsers(count=50).apply(data(rows, seed=1)))
    assert len(first) == 50
    assert first == left(SampleUsers(count=50).apply(data(rows, seed=1)))
    assert first != left(SampleUsers(count=50).apply(data(rows, seed=2)))
    # A smaller sample is part of a larger one, and others' presence does not matter.
    assert set(first) < set(left(SampleUsers(count=60).apply(data(rows, seed=1))))
    fifth = left(SampleUsers(one_in=5).apply(data(rows, seed=1)))
    assert 320 < len(fifth) < 480
    assert [k for k in fifth if k < 1000] == left(SampleUsers(one_in=5).apply(data(rows[:1000], seed=1)))


def test_the_lots_are_fixed_numbers():
    """A change of these changes published samples."""
    rows = [(name, "a", 0) for name in "abcdefghij"]
    assert left(SampleUsers(count=3).apply(data(rows, seed=2024))) == [2, 5, 7]


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("titles", {"empty": "no"}, "titles.empty is 'drop' or 'keep', not 'no'"),
        ("titles", {"max_characters": 0}, "at least 1"),
        ("repeats", {"keep": "some"}, "repeats.keep"),
        ("k_core", {"user": -1}, "k_core.user"),
        ("k_core", {"until": "done"}, "k_core.until"),
        ("minimum_length", {"interactions": 2.5}, "whole number"),
        ("sample_users", {"count": 5, "one_in": 5}, "not both"),
    ],
)
def test_wrong_settings(name, values, message):
    with pytest.raises(SettingError, match=message):
        FILTERS[name](**values)
