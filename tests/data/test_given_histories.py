"""Datasets whose files give the split and the histories: RecBole's rows, laid flat where sequences go on."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.data.dataset import SequentialDataset
from small_data import TITLES, small_settings

from recbole_llm.config.config import Config
from recbole_llm.data.dataset import HISTORY_END, HistoryDataset, with_protocol
from recbole_llm.data.given_histories import flat_histories
from recbole_llm.errors import DataError
from recbole_llm.quick_start.run import run

BENCHMARK = {
    "benchmark_filename": ["train", "valid", "test"],
    "alias_of_item_id": ["item_id_list"],
    "load_col": {"inter": ["user_id", "item_id_list", "item_id"], "item": ["item_id"]},
    "MAX_ITEM_LIST_LENGTH": 4,
}
ROWS = {
    "train": [
        # prefixes of one sequence, of at most three items
        *(("u1", "a", "b"), ("u1", "a b", "c"), ("u1", "a b c", "d"), ("u1", "b c d", "a"), ("u1", "c d a", "e")),
        *(("u2", "b", "a"), ("u2", "f g", "a")),  # two sequences of one user
        ("u3", "a h d", "e"),
    ],
    "valid": [("u4", "e d c b", "a"), ("u5", "h", "g")],
    "test": [("u3", "a h d e", "f"), ("u6", "a g e h", "c"), ("u6", "g e h c", "b")],
}


def write_benchmark(root, rows=ROWS, name="small"):
    folder = root / name
    folder.mkdir()
    for part, lines in rows.items():
        header = "user_id:token\titem_id_list:token_seq\titem_id:token\n"
        (folder / f"{name}.{part}.inter").write_text(header + "".join("\t".join(line) + "\n" for line in lines))
    items = "".join(f"{item}\t{title}\n" for item, title in TITLES.items())
    (folder / f"{name}.item").write_text(f"item_id:token\ttitle:token_seq\n{items}")
    return root


def parts(root, dataset_class, **changes):
    return with_protocol(dataset_class)(
        Config(config_dict=small_settings(root, model="SASRec", **{**BENCHMARK, **changes}))
    ).build()


@pytest.mark.parametrize("width", [2, 4, 7])
def test_both_data_sets_give_the_rows_of_the_files(workdir, width):
    write_benchmark(workdir)
    ours = parts(workdir, HistoryDataset, MAX_ITEM_LIST_LENGTH=width)
    theirs = parts(workdir, SequentialDataset, MAX_ITEM_LIST_LENGTH=width)
    for our_part, their_part, lines in zip(ours, theirs, ROWS.values(), strict=True):
        index = torch.randperm(len(lines))
        our_rows, their_rows = our_part[index], their_part[index]
        for field in ("user_id", "item_id", "item_id_list", "item_length"):
            assert torch.equal(our_rows[field], their_rows[field]), field
        assert our_rows["item_id_list"].shape == (len(lines), width)
        rows = our_part[torch.arange(len(lines))]
        users, targets = (our_part.id2token(field, rows[field]) for field in ("user_id", "item_id"))
        histories = [
            " ".join(our_part.id2token("item_id", items[:length]))
            for items, length in zip(rows["item_id_list"], rows["item_length"], strict=True)
        ]
        read = list(zip(users, histories, targets, strict=True))
        assert read == [(user, " ".join(items.split()[-width:]), target) for user, items, target in lines]
    assert torch.equal(ours[0].history_items[ours[0][:][HISTORY_END]], ours[0][:]["item_id"])


def test_sequences_that_go_on_are_laid_once(workdir):
    write_benchmark(workdir)
    part = parts(workdir, HistoryDataset, MAX_ITEM_LIST_LENGTH=3)[0]
    flat = "".join(part.id2token("item_id", part.history_items.numpy()))
    # u1 once; u2 twice; u3 in training and, at most three items long, again in test; both rows of u6 in one
    assert flat == "abcdae" + "ba" + "fga" + "ahde" + "dcba" + "hg" + "hdef" + "gehcb"
    starts = part.history_start.numpy()
    assert starts[:6].tolist() == [0] * 6
    assert (np.diff(np.unique(starts)) == [6, 2, 3, 4, 4, 2, 4]).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(1, 4), min_size=2, max_size=9), min_size=1, max_size=6), st.integers(1, 5))
def test_all_prefixes_are_laid_as_their_sequences(sequences, width):
    users, lists, targets = [], [], []
    for user, items in enumerate(sequences):
        for end in range(1, len(items)):
            users.append(user)
            lists.append(items[max(0, end - width) : end])
            targets.append(items[end])
    lengths = np.array([len(items) for items in lists])
    padded = np.array([items + [0] * (width - len(items)) for items in lists])
    flat, starts, ends = flat_histories(np.array(users), padded, lengths, np.array(targets), np.array([0]))
    assert flat.tolist() == [item for items in sequences for item in items]
    assert starts.tolist() == [
        start for start, items in zip(np.cumsum([0, *map(len, sequences[:-1])]), sequences, strict=True) for _ in items
    ]
    for end, length, items in zip(ends, lengths, lists, strict=True):
        assert flat[end - length : end].tolist() == items


PADDED = {
    "behind": ({"train": [("u1", "a b 0 0", "c")], "valid": [("u2", "a", "b")]}, 1, "line 2 of small.train.inter"),
    "before": (
        {"valid": [("u2", "a", "b"), ("u4", "0 0 c", "d"), ("u5", "0 c", "d")]},
        2,
        "line 3 of small.valid.inter",
    ),
    "in the test": ({"test": [("u6", "a", "c"), ("u6", "a 0", "b")]}, 1, "line 3 of small.test.inter"),
}


@pytest.mark.parametrize(("changed", "count", "place"), PADDED.values(), ids=PADDED)
def test_lists_that_are_filled_up_are_told(workdir, caplog, changed, count, place):
    write_benchmark(workdir, {**ROWS, **changed})
    parts(workdir, HistoryDataset)
    assert f"{count} rows of small have '0' in 'item_id_list', the first in {place}" in caplog.text


@pytest.mark.parametrize("rows", [ROWS, {**ROWS, "valid": [("u4", "0 d c b", "a"), ("u5", "h", "0")]}])
def test_an_item_of_that_name_is_an_item(workdir, caplog, rows):
    write_benchmark(workdir, rows)
    parts(workdir, HistoryDataset)
    assert "'0'" not in caplog.text


def test_an_empty_history_is_an_error(workdir):
    write_benchmark(workdir, {**ROWS, "valid": [("u4", "", "a"), ("u5", "h", "g")]})
    with pytest.raises(DataError, match="1 rows of small have an empty history"):
        parts(workdir, HistoryDataset)


def test_a_history_that_is_not_loaded_is_an_error(workdir):
    write_benchmark(workdir)
    with pytest.raises(DataError, match="no column 'item_id_list' with the history"):
        parts(workdir, HistoryDataset, load_col={"inter": ["user_id", "item_id"]})


@pytest.mark.parametrize("tuning", ["full", "ilp"])
def test_st2si_reads_it(workdir, tiny, tuning):
    write_benchmark(workdir)
    settings = small_settings(workdir, backbone=str(tiny["llama"]), tuning=tuning, epochs=2, **BENCHMARK)
    result = run(settings=settings)
    assert result["counts"] == {"users": 6, "items": 8, "train": 8, "valid": 2, "test": 3}
