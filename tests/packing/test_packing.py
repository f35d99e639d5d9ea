"""Ragged tables, groups within a budget, and packed rows, against plain loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.packing.ragged import RaggedTable, ranges
from recbole_llm.packing.sequences import Sequences, concatenate, pack, within_budget

tables = st.lists(st.lists(st.integers(0, 9), max_size=5), min_size=1, max_size=8)


# -- ragged tables -----------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5)), max_size=8))
def test_ranges(pairs):
    starts, lengths = (np.array([p[n] for p in pairs], dtype=np.int64) for n in (0, 1))
    assert ranges(starts, lengths).tolist() == [v for s, n in pairs for v in range(s, s + n)]


@given(tables, st.data())
def test_table_gives_back_its_rows(rows, data):
    table = RaggedTable.from_rows(rows)
    assert [table.row(n).tolist() for n in range(len(table))] == rows
    picked = data.draw(st.lists(st.integers(0, len(rows) - 1)))
    values, lengths = table.gather(np.array(picked, dtype=np.int64))
    assert values.tolist() == [v for n in picked for v in rows[n]]
    assert lengths.tolist() == [len(rows[n]) for n in picked]


@given(tables)
def test_row_ends_and_a_further_row(rows):
    table = RaggedTable.from_rows(rows).with_row_ends(77).with_row([5, 6])
    expected = [[*row, 77] if row else [] for row in rows] + [[5, 6]]
    assert [table.row(n).tolist() for n in range(len(table))] == expected


# -- groups ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 30), max_size=40), st.integers(1, 40))
def test_groups_hold_the_budget_and_are_as_few_as_possible(tokens, budget):
    groups = within_budget(np.array(tokens, dtype=np.int64), budget)
    assert [index for group in groups for index in group] == list(range(len(tokens)))
    for group in groups:
        assert len(group) == 1 or sum(tokens[index] for index in group) <= budget
    fewest, room = 0, -1
    for n in tokens:  # filling each group as far as it goes is optimal for consecutive groups
        if n > room:
            fewest, room = fewest + 1, budget
        room -= n
    assert len(groups) == fewest


def test_groups_are_evenly_filled():
    groups = within_budget(np.full(101, 10), 500)  # greedy: 50, 50 and 1
    assert [len(group) for group in groups] == [34, 34, 33]


# -- packed rows -------------------------------------------------------------------------------------------------------

TABLE = RaggedTable.from_rows([[], [11, 12, 9], [21, 9], [31, 32, 33, 34, 9], [5, 6, 7]])  # 9 the query, row 4 unread
SEQUENCES = Sequences(
    rows=np.array([1, 2, 3, 2, 4, 1]),
    counts=np.array([3, 1, 2]),
    query_mask=np.array([True, False, True, True, False, True]),
    labels=np.array([2, 0, 7, 3, 0, 1]),
)


def test_packed_row_by_hand():
    batch = pack(SEQUENCES, TABLE)
    assert batch.token_ids.tolist() == [11, 12, 9, 21, 9, 31, 32, 33, 34, 9, 21, 9, 5, 6, 7, 11, 12, 9]
    assert batch.positions.tolist() == [*range(10), *range(2), *range(6)]
    assert batch.bounds.lengths == (10, 2, 6)
    assert batch.bounds.offsets.tolist() == [0, 10, 12, 18]
    assert batch.bounds.causal
    assert batch.query_index.tolist() == [2, 9, 11, 17]
    assert batch.labels is not None
    assert batch.labels.tolist() == [2, 7, 3, 1]
    assert SEQUENCES.tokens(TABLE).tolist() == [10, 2, 6]
    assert SEQUENCES.queries().tolist() == [2, 1, 1]


@pytest.mark.parametrize("order", [[2, 0], [1], [0, 1, 2], [1, 1]])
def test_selected_sequences_pack_as_they_did(order):
    picked = SEQUENCES.select(np.array(order))
    rows = [[1, 2, 3], [2], [4, 1]]
    assert picked.rows.tolist() == [row for n in order for row in rows[n]]
    whole = concatenate([SEQUENCES.select(np.array([n])) for n in order])
    for name in ("rows", "counts", "query_mask", "labels"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(picked, name))
