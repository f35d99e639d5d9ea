"""Windows of whole histories: every training row of RecBole is one labelled position, once an epoch."""

from collections import Counter

import numpy as np
import pytest
import torch
from atomic_files import quick_settings, write_atomic_files
from hypothesis import given
from hypothesis import strategies as st
from small_data import HISTORIES, small_settings, write_dataset

from recbole_llm.config.config import Config
from recbole_llm.data.position_windows import LabelledWindows, WindowTable, batch_widths, labelled_windows
from recbole_llm.data.windows import Windows
from recbole_llm.quick_start.run import build


def parts_of(small, **settings):
    wanted = small_settings(small, model="GRU4Rec", train_positions="all", **settings)
    return build(Config(config_dict=wanted))


def pairs_of(table, longest):
    """Count (items read before, target) of all labelled positions of an epoch."""
    found = Counter()
    for width, windows in table.epoch(seed=5, epoch=3):
        histories, labels = table.rows(windows, width)
        assert histories.shape == labels.shape == (len(windows), width)
        assert width <= longest
        for row, following in zip(histories.tolist(), labels.tolist(), strict=True):
            for place, label in enumerate(following):
                if label:
                    found[(*row[: place + 1], label)] += 1
    return found


def rows_of(part):
    """Count (history, target) of RecBole's training rows."""
    rows = part[torch.arange(len(part))]
    return Counter(
        (*history[:length], target)
        for history, length, target in zip(
            rows["item_id_list"].tolist(), rows["item_length"].tolist(), rows["item_id"].tolist(), strict=True
        )
    )


@pytest.mark.parametrize("share", [None, 0.5])
def test_positions_of_histories_that_fit_are_recboles_rows(small, share):
    part = parts_of(small, MAX_ITEM_LIST_LENGTH=16, train_share=share).train._dataset
    table = WindowTable(labelled_windows(part, 16), 16, 3, torch.device("cpu"))
    assert pairs_of(table, 16) == rows_of(part)
    assert table.predictions == len(part)


def test_longer_histories_are_covered_once(small):
    part = parts_of(small, MAX_ITEM_LIST_LENGTH=4).train._dataset
    table = WindowTable(labelled_windows(part, 4), 4, 3, torch.device("cpu"))
    found = pairs_of(table, 4)
    # By hand, for each user: inputs up to the last training target, windows of 4 counted back from the end.
    ids = {token: number for number, token in enumerate(part.field2id_token["item_id"].tolist())}
    expected = Counter()
    for history in HISTORIES.values():
        # Two are held out, but the first target of a short history stays.
        trained = [ids[item] for item in history[: max(len(history) - 2, 2)]]
        inputs = len(trained) - 1
        for place in range(inputs):
            behind = inputs - 1 - place
            start = max(inputs - 4 * (behind // 4 + 1), 0)
            expected[(*trained[start : place + 1], trained[place + 1])] += 1
    assert found == expected
    assert sum(found.values()) == len(part)
    # Items that are held out stand in no window, neither as input nor as label.
    held_out = Counter(target for *_, target in rows_of(part).elements())
    assert Counter(target for *_, target in found.elements()) == held_out


def test_recent_windows_are_the_last_of_every_user(small):
    part = parts_of(small, MAX_ITEM_LIST_LENGTH=4).train._dataset
    every, recent = labelled_windows(part, 4).windows, labelled_windows(part, 4, recent=True).windows
    last = {end for end in every.ends if not ((every.starts == end).any())}
    assert sorted(recent.ends.tolist()) == sorted(last)
    assert set(zip(recent.starts, recent.ends, strict=True)) <= set(zip(every.starts, every.ends, strict=True))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=200), st.integers(1, 20), st.integers(0, 3))
def test_every_window_is_in_one_batch_that_is_wide_enough(lengths, batch_size, epoch):
    lengths = np.array(lengths)
    ends = np.cumsum(lengths)
    items = np.arange(1, ends[-1] + 1)
    table = WindowTable(
        LabelledWindows(items, items, Windows(ends - lengths, ends)), 50, batch_size, torch.device("cpu")
    )
    batches = list(table.epoch(0, epoch))
    assert len(batches) == table.batches == -(-len(lengths) // batch_size)
    assert sorted(torch.cat([windows for _, windows in batches]).tolist()) == list(range(len(lengths)))
    assert sum(len(windows) < batch_size for _, windows in batches) <= 1
    for width, windows in batches:
        histories, _ = table.rows(windows, width)
        assert ((histories > 0).sum(1).numpy() == lengths[windows.numpy()]).all()
        assert table.labelled(windows).item() == lengths[windows.numpy()].sum()
    again = list(table.epoch(0, epoch))
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(batches, again, strict=True))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=200), st.integers(1, 20))
def test_batches_of_positions_have_every_window_once(lengths, batch_size):
    lengths = np.array(lengths)
    ends = np.cumsum(lengths)
    items = np.arange(1, ends[-1] + 1)
    labelled = LabelledWindows(items, items, Windows(ends - lengths, ends))
    table = WindowTable(labelled, 50, batch_size, torch.device("cpu"), by_positions=True)
    batches = list(table.epoch(0, 0))
    assert len(batches) == table.batches
    assert sorted(torch.cat([windows for _, windows in batches]).tolist()) == list(range(len(lengths)))


def test_batches_of_positions_have_as_many_positions():
    """Of 800 windows of 4 items and 80 of 40, in batches of 22 windows of mean length (7.27): 40 of 4, or 4 of 40."""
    lengths = np.repeat([4, 40], [800, 80])
    ends = np.cumsum(lengths)
    items = np.arange(1, ends[-1] + 1)
    labelled = LabelledWindows(items, items, Windows(ends - lengths, ends))
    table = WindowTable(labelled, 50, 22, torch.device("cpu"), by_positions=True)
    found = Counter((width, len(windows), table.labelled(windows).item()) for width, windows in table.epoch(0, 0))
    assert found == {(8, 40, 160): 20, (40, 4, 160): 20}


def test_epochs_differ():
    items = np.arange(1, 301)
    windows = Windows(np.arange(0, 300, 3), np.arange(3, 303, 3))
    table = WindowTable(LabelledWindows(items, items, windows), 50, 10, torch.device("cpu"))
    first, second, other = (torch.cat([w for _, w in table.epoch(*key)]).tolist() for key in ((0, 0), (0, 1), (1, 0)))
    assert first != second
    assert first != other


def test_widths_are_taken_by_a_batch_at_least():
    assert batch_widths(np.array([5] * 10 + [50]), 50, 4) == [8, 50]
    assert batch_widths(np.array([5] * 3 + [12] * 3 + [50]), 50, 4) == [12, 50]
    assert batch_widths(np.array([5, 6]), 50, 4) == [6]
    assert batch_widths(np.array([2, 200] * 4), 200, 4) == [8, 200]


def test_device_table_off_changes_nothing(tmp_path):
    folder = write_atomic_files(tmp_path / "tiny")
    found = []
    for on in (True, False):
        settings = quick_settings(folder, model="GRU4Rec", train_positions="all", device_table=on)
        part = build(Config(config_dict=settings)).train._dataset
        found.append(labelled_windows(part, 8))
    assert (found[0].labels == found[1].labels).all()
    assert (found[0].windows.starts == found[1].windows.starts).all()


def test_a_ratio_split_trains_its_own_rows_alone(workdir):
    small = write_dataset(workdir)
    args = {"split": {"RS": [0.5, 0.25, 0.25]}, "order": "TO", "group_by": "user", "mode": "full"}
    part = parts_of(small, MAX_ITEM_LIST_LENGTH=16, eval_args=args).train._dataset
    table = WindowTable(labelled_windows(part, 16), 16, 3, torch.device("cpu"))
    assert pairs_of(table, 16) == rows_of(part)
