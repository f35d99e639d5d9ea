"""Windows, against a plain loop over one user at a time."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_llm.data.windows import (
    Histories,
    WindowLimits,
    full_windows,
    random_windows,
    recent_windows,
)
from recbole_llm.errors import SettingError

ITEM_TOKENS = np.array([0, 1, 2, 3, 5, 7])  # of item ids 0 (padding) to 5
users = st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=14), min_size=1, max_size=5)
limits = st.builds(WindowLimits, items=st.integers(1, 6), tokens=st.integers(7, 20))


def histories_of(sequences, window_limits):
    items = np.array([item for sequence in sequences for item in sequence])
    begins = np.cumsum([0, *(len(sequence) for sequence in sequences)])
    user_start = np.repeat(begins[:-1], [len(sequence) for sequence in sequences])
    return Histories(items, user_start, ITEM_TOKENS, window_limits), begins


def tokens_of(histories, starts, ends):
    return [ITEM_TOKENS[histories.items[start:end]].sum() for start, end in zip(starts, ends, strict=True)]


def start_by_loop(histories, first, end):
    """Walk back from `end` while one more item fits both limits."""
    start, tokens = end, 0
    while start > first and end - start < histories.limits.items:
        tokens += ITEM_TOKENS[histories.items[start - 1]]
        if tokens > histories.limits.tokens:
            break
        start -= 1
    return start


def last_training_targets(begins, held_out):
    """Flat index of every user's last training target, for users that have one (an item before it)."""
    ends = begins[1:] - held_out
    return np.array([end - 1 for begin, end in zip(begins[:-1], ends, strict=True) if end - begin >= 2], dtype=np.int64)


@given(users, limits)
def test_window_holds_the_most_recent_items_within_both_limits(sequences, window_limits):
    histories, begins = histories_of(sequences, window_limits)
    first = np.repeat(begins[:-1], np.diff(begins))
    ends = np.arange(len(histories.items)) + 1
    starts = histories.window_starts(first, ends)
    assert starts.tolist() == [start_by_loop(histories, f, e) for f, e in zip(first, ends, strict=True)]
    assert max(tokens_of(histories, starts, ends)) <= window_limits.tokens


def test_limits_of_fifty_items_and_of_tokens_by_hand():
    items = np.array([1] * 60 + [5] * 5)  # 60 items of 1 token, then 5 of 7
    histories = Histories(items, np.zeros(65, dtype=np.int64), ITEM_TOKENS, WindowLimits(50, 60))
    zero = np.zeros(4, dtype=np.int64)
    # 50 items; all there is; 35 + 25 tokens are exactly the limit; 50 items of 7 + 49 tokens
    assert histories.window_starts(zero, np.array([60, 30, 65, 61])).tolist() == [10, 0, 35, 11]
    tighter = Histories(items, np.zeros(65, dtype=np.int64), ITEM_TOKENS, WindowLimits(50, 34))
    assert tighter.window_starts(zero[:1], np.array([65])).tolist() == [61]  # 28 tokens; a fifth item makes 35


def test_item_longer_than_the_limit_is_an_error():
    with pytest.raises(SettingError, match=r"max_sequence_tokens=6 .*longest item text \(7 tokens"):
        histories_of([[1, 2]], WindowLimits(50, 6))
    histories_of([[1, 2]], WindowLimits(50, 7))


@given(users, limits, st.integers(0, 2))
def test_full_windows_read_every_training_position_once(sequences, window_limits, held_out):
    histories, begins = histories_of(sequences, window_limits)
    last = last_training_targets(begins, held_out)
    windows = full_windows(histories, last)
    positions, counts = windows.positions()
    inputs = [p for target in last for p in range(histories.user_start[target], target)]
    assert sorted(positions.tolist()) == inputs
    assert (counts > 0).all()
    assert (counts <= window_limits.items).all()
    assert max(tokens_of(histories, windows.starts, windows.ends), default=0) <= window_limits.tokens


@given(users, limits, st.integers(0, 2))
def test_recent_window_starts_where_the_next_prediction_reads_from(sequences, window_limits, held_out):
    histories, begins = histories_of(sequences, window_limits)
    last = last_training_targets(begins, held_out)
    expected = []
    for target in last:
        start = start_by_loop(histories, histories.user_start[target], target + 1)
        if start < target:
            expected.append((start, target))
    windows = recent_windows(histories, last)
    assert list(zip(windows.starts.tolist(), windows.ends.tolist(), strict=True)) == expected
    # ... and it is the last of the full ones.
    full = full_windows(histories, last)
    assert set(expected) <= set(zip(full.starts.tolist(), full.ends.tolist(), strict=True))


@settings(max_examples=50)
@given(users, limits, st.integers(0, 2), st.integers(0, 2**32 - 1))
def test_random_windows_never_reach_a_held_out_item(sequences, window_limits, held_out, seed):
    histories, begins = histories_of(sequences, window_limits)
    last = last_training_targets(begins, held_out)
    windows = random_windows(histories, last, np.random.default_rng(seed))
    assert len(windows) == len(last)
    for start, end, target in zip(windows.starts, windows.ends, last, strict=True):
        # The item at `end` is the label of the window's last query: it must be a training target too.
        assert histories.user_start[target] <= start < end <= target
        assert start >= start_by_loop(histories, histories.user_start[target], end)


def test_random_windows_follow_the_authors_distribution():
    """Start uniform over all training items but the last, target uniform over those after it."""
    histories, _ = histories_of([[1, 1, 1, 1, 1, 2, 3]], WindowLimits(50, 100))
    draws, last = 30_000, 4  # training items 0..4; items 5 and 6 are held out
    windows = random_windows(histories, np.full(draws, last), np.random.default_rng(0))
    found = Counter(zip(windows.starts.tolist(), windows.ends.tolist(), strict=True))
    expected = {(s, t): draws / 4 / (4 - s) for s in range(4) for t in range(s + 1, 5)}
    assert set(found) == set(expected)
    chi_square = sum((found[pair] - n) ** 2 / n for pair, n in expected.items())
    assert chi_square < 29.6  # 9 degrees of freedom: exceeded once in 2,000 seeds
