"""Hidden states on the disk: whole and of the right content, or not there; within a limit."""

import os

import numpy as np
import pytest
import torch

from recbole_llm.backbone.feature_cache import SharedRows, StateMemory
from recbole_llm.backbone.feature_store import FeatureStore, stored_or_computed
from recbole_llm.backbone.stored_states import read_states, states_key, write_states
from recbole_llm.packing.ragged import RaggedTable
from recbole_llm.packing.sequences import Sequences, digests, distinct
from recbole_llm.utils.paths import cache_folder

CPU = torch.device("cpu")


def table_of(rows=5, width=3, dtype=torch.float32):
    return torch.arange(rows * width).view(rows, width).mul(0.37).to(dtype)


def write(key, table, limit):
    write_states(key, table.shape, table.dtype, table.split(2), limit)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("in_memory", [0, 2**20])
def test_states_come_back_bit_for_bit(workdir, dtype, in_memory):
    table = table_of(dtype=dtype)
    write("a", table, 1e9)
    store = FeatureStore.of(read_states("a", 5, 3, dtype), CPU, in_memory)
    assert torch.equal(store.take(torch.tensor([4, 0])), table[[4, 0]])
    assert torch.equal(store.table, table)
    assert [path.name for path in cache_folder("states").iterdir()] == ["a.npy"]


@pytest.mark.parametrize(
    "damage",
    [lambda raw: raw[:-1], lambda raw: b"", lambda raw: b"no numpy file" * 9, lambda raw: raw[: len(raw) // 2]],
)
def test_a_broken_file_is_computed_again(workdir, damage):
    table, computed = table_of(), []

    def parts():
        computed.append(1)
        yield from table.split(2)

    def get():
        return stored_or_computed("a", (5, 3), torch.float32, CPU, workdir, 1e9, parts).table

    assert torch.equal(get(), table) and torch.equal(get(), table)
    assert len(computed) == 1
    path = cache_folder("states") / "a.npy"
    path.write_bytes(damage(path.read_bytes()))
    assert torch.equal(get(), table) and torch.equal(get(), table)
    assert len(computed) == 2


def test_another_shape_or_type_is_another_table(workdir):
    write("a", table_of(), 1e9)
    assert read_states("a", 5, 4, torch.float32) is None
    assert read_states("a", 4, 3, torch.float32) is None
    assert read_states("a", 5, 3, torch.bfloat16) is None
    assert read_states("b", 5, 3, torch.float32) is None


def test_the_least_recently_used_leave_for_new_ones(workdir):
    folder = cache_folder("states")
    for age, name in ((300, "a"), (200, "b"), (100, "c")):
        write(name, table_of(), 1e9)
        past = (folder / f"{name}.npy").stat().st_mtime - age
        os.utime(folder / f"{name}.npy", (past, past))
    assert read_states("a", 5, 3, torch.float32) is not None  # which uses it
    write("d", table_of(), 3.5 * (folder / "a.npy").stat().st_size)
    assert sorted(path.stem for path in folder.iterdir()) == ["a", "c", "d"]
    write("e", table_of(), 5 * 3 * 4)  # larger than the limit: it takes no other's place
    write("e", table_of(), 0)
    assert sorted(path.stem for path in folder.iterdir()) == ["a", "c", "d"]


def test_a_cache_that_cannot_be_written_only_stores_nothing(workdir, monkeypatch):
    (workdir / "file").touch()
    monkeypatch.setenv("RECBOLE_LLM_CACHE", str(workdir / "file"))
    write("a", table_of(), 1e9)
    assert read_states("a", 5, 3, torch.float32) is None


def test_the_key_is_that_of_all_that_changes_states():
    keys = [
        states_key("weights", "content", precision=torch.float32, budget=1),
        states_key("other", "content", precision=torch.float32, budget=1),
        states_key("weights", "other", precision=torch.float32, budget=1),
        states_key("weights", "content", precision=torch.bfloat16, budget=1),
        states_key("weights", "content", precision=torch.float32, budget=2),
    ]
    assert len(set(keys)) == 5
    assert keys[0] == states_key("weights", "content", budget=1, precision=torch.float32)


# -- by content --------------------------------------------------------------------------------------------------------


def test_digests_are_those_of_tokens_and_places(workdir):
    """Rows 0 and 3 have the same tokens; 1 and 2 together have those of 4; labels do not count."""
    table = RaggedTable.from_rows([[5, 6], [7], [8], [5, 6], [7, 8]])
    rows = [[0, 1], [3, 1], [0, 2], [1, 2], [4], [0, 1]]
    masks = [[0, 1], [0, 1], [0, 1], [0, 1], [1], [1, 1]]
    flat = np.concatenate([np.array(row) for row in rows])
    read = np.concatenate([np.array(mask, dtype=bool) for mask in masks])
    sequences = Sequences(flat, np.array([len(row) for row in rows]), read, np.arange(len(flat)))
    first, index = distinct(digests(sequences, table))
    assert first.tolist() == [0, 2, 3, 5]
    assert index.tolist() == [0, 0, 1, 2, 2, 3]


def test_rows_of_one_content_share_a_state():
    store = FeatureStore.of(table_of(), CPU)
    shared = SharedRows(store, torch.tensor([2, 0, 2]))
    assert torch.equal(shared.take(torch.tensor([0, 1, 2])), table_of()[[2, 0, 2]])


def test_memory_computes_each_content_once_while_there_is_room():
    computed = []
    memory = StateMemory(room=2 * 3 * 4)  # two rows

    def take(text):
        keys = [letter.encode() for letter in text]

        def compute(missing):
            computed.append("".join(text[i] for i in missing))
            return torch.tensor([[float(ord(text[i]))] * 3 for i in missing])

        return "".join(chr(int(row[0])) for row in memory.take(keys, compute))

    assert take("abab") == "abab"
    assert take("bcacc") == "bcacc"
    assert take("cb") == "cb"
    assert computed == ["ab", "c", "c"]
