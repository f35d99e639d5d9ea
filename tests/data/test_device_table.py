"""Batches from tables on the device are RecBole's batches, in RecBole's order, for the same seed."""

import numpy as np
import pytest
import torch
from atomic_files import KNOWLEDGE, quick_settings, write_atomic_files
from recbole.data.dataset import SequentialDataset
from recbole.utils import init_seed

from recbole_llm.config.config import Config
from recbole_llm.data import device_table
from recbole_llm.data.build import create_dataset, data_preparation
from recbole_llm.data.dataset import HISTORY_END, KNOWN_END, PrefixDataset
from recbole_llm.errors import SettingError

RATED = {
    "load_col": {
        "inter": ["user_id", "item_id", "rating", "tags", "timestamp"],
        "user": ["user_id", "age"],
        "item": ["item_id", "category", "class", "price"],
    },
}
CASES = {
    "SASRec": ("SASRec", {}),
    "GRU4Rec": ("GRU4Rec", {}),
    "Caser": ("Caser", {}),
    "NARM": ("NARM", {}),
    "fields of all kinds": ("GRU4Rec", RATED),
    "attribute": ("FDSA", {"selected_features": ["class"]}),
    "masked at random": ("BERT4Rec", {}),
    "turned round": ("SHAN", {}),
    "negative samples, pairs": ("FPMC", {}),
    "negative samples, points": ("DIN", {}),
    "lists of a whole part": ("FEARec", {}),
    "knowledge graph": ("KSR", KNOWLEDGE),
    "in order": ("SASRec", {"shuffle": False}),
    "a last full batch": ("SASRec", {"train_batch_size": 1}),
    "ratio split": (
        "SASRec",
        {"eval_args": {"split": {"RS": [0.6, 0.2, 0.2]}, "order": "TO", "group_by": "user", "mode": "full"}},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Users with 5 to 20 interactions, several of them at one time, with a rating and tags; and ages of users."""
    folder = write_atomic_files(tmp_path_factory.mktemp("data") / "tiny", users=30, ties=True)
    lines = (folder / "tiny.inter").read_text().splitlines()
    tags = ["tags:token_seq", *(" ".join(f"t{n % 7 + k}" for k in range(n % 3 + 1)) for n in range(len(lines) - 1))]
    text = "\n".join(f"{line}\t{tag}" for line, tag in zip(lines, tags, strict=True))
    (folder / "tiny.inter").write_text(text + "\n")
    ages = "\n".join(f"u{n}\t{20 + n}" for n in range(30))
    (folder / "tiny.user").write_text(f"user_id:token\tage:float\n{ages}\n")
    return folder


def loaders(folder, model="SASRec", **settings):
    config = Config(config_dict=quick_settings(folder, model=model, **{"train_batch_size": 64, **settings}))
    return data_preparation(config, create_dataset(config))


def assert_equal_rows(found, expected):
    ours_alone = {HISTORY_END, KNOWN_END}  # where whole histories end
    assert set(found.columns) - ours_alone == set(expected.columns) - ours_alone
    for name in set(expected.columns) - {KNOWN_END}:
        if found[name].shape != expected[name].shape:  # padded to the longest of the batch alone, see test_padding.py
            wider = torch.zeros_like(expected[name])
            wider[:, : found[name].shape[1]] = found[name]
            found[name] = wider
        assert found[name].dtype == expected[name].dtype, name
        assert torch.equal(found[name], expected[name]), name


@pytest.mark.parametrize("case", CASES)
def test_batches_of_two_epochs_and_of_evaluation_are_recboles(case, folder):
    model, settings = CASES[case]
    epochs = []
    for on_device in (False, True):
        train, valid, test = loaders(folder, model, device_table=on_device, **settings)
        init_seed(5, True)  # transforms and negative samples draw from the process's generators
        batches = [list(part) for part in (train, train, valid, test)]
        epochs.append((batches, train.generator.get_state(), torch.get_rng_state(), np.random.get_state()[1]))
        assert isinstance(train, device_table.TableLoader) == on_device
        assert (train._dataset.__class__.__name__ == "PrefixDataset") == (on_device and model not in ("FEARec", "KSR"))
    theirs, ours = epochs
    for part, (found, expected) in enumerate(zip(ours[0], theirs[0], strict=True)):
        assert len(found) == len(expected) > 0
        for our_batch, their_batch in zip(found, expected, strict=True):
            if part < 2:
                assert_equal_rows(our_batch, their_batch)
            else:
                assert_equal_rows(our_batch[0], their_batch[0])
                assert our_batch[1] is their_batch[1] is None
                assert torch.equal(our_batch[2], their_batch[2]) and torch.equal(our_batch[3], their_batch[3])
    for our_state, their_state in zip(ours[1:], theirs[1:], strict=True):
        assert np.array_equal(our_state, their_state)
    if case != "in order":
        assert not torch.equal(ours[0][0][0]["user_id"], ours[0][1][0]["user_id"])


def test_the_fields_that_the_comparison_needs_are_there(folder):
    rows = next(iter(loaders(folder, "GRU4Rec", **RATED)[0]))
    for name in ("age", "category", "class", "price", "rating_list", "tags_list", "timestamp_list", "item_id_list"):
        assert name in rows.columns
    assert rows["tags_list"].shape[1:] == (8, 3)


def test_rows_by_index_are_recboles(folder):
    """Without a loader, too: what evaluation among few candidates and others read."""
    parts = [
        cls(Config(config_dict=quick_settings(folder, model="SASRec"))).build()
        for cls in (PrefixDataset, SequentialDataset)
    ]
    for ours, theirs in zip(*parts, strict=True):
        index = torch.randperm(len(theirs))
        assert_equal_rows(ours[index], theirs[index])
        known = np.unique(theirs.inter_feat["item_id_list"].numpy())
        assert np.array_equal(ours.items_of_histories(), known[known > 0])


def test_no_padded_history_is_stored(folder):
    train = loaders(folder)[0]
    assert all(values.dim() == 1 for values in train._dataset.inter_feat.interaction.values())
    assert len(train._dataset.history_items) < len(train._dataset) + len(train._dataset) * 8


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("BPR", {}),  # not sequential
        ("SASRec", {"worker": 1}),
        ("SASRec", {"device_table": False}),
    ],
)
def test_recboles_loader_stays(folder, model, settings):
    train, valid, _ = loaders(folder, model, **settings)
    assert not isinstance(train, device_table.TableLoader)
    assert not isinstance(valid, device_table.TableLoader)


def test_sampled_evaluation_keeps_recboles_loader(folder):
    protocol = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "uni20"}
    train, valid, _ = loaders(folder, eval_args=protocol)
    assert isinstance(train, device_table.TableLoader) and not isinstance(valid, device_table.TableLoader)
    assert len(next(iter(valid))[0]) > 0


def test_device_table_is_true_or_false(folder):
    with pytest.raises(SettingError, match="device_table=maybe must be True or False"):
        loaders(folder, device_table="maybe")


# -- where the tables are ----------------------------------------------------------------------------------------------


class Device:
    """Stands for a CUDA device: tables there are recorded, and are in fact on the CPU."""

    def __init__(self, monkeypatch, free):
        self.placed = []
        place = device_table._place

        def record(taken, device):
            self.placed.append(device.type)
            place(taken, torch.device("cpu"))

        monkeypatch.setattr(device_table, "_place", record)
        monkeypatch.setattr(device_table, "free_bytes", lambda device: free)


def placed_on_cuda(folder, monkeypatch, free=1 << 30, model="SASRec", **settings):
    """Return where tables are put on a machine with a CUDA device that has `free` bytes, and the loaders."""
    found = loaders(folder, model, **settings)
    device = Device(monkeypatch, free)
    config = found[0].config
    config["device"] = torch.device("cuda")
    device_table.give_tables(config, list(found))
    return device.placed, found


def test_tables_are_on_the_device_where_they_fit(folder, monkeypatch):
    placed, found = placed_on_cuda(folder, monkeypatch)
    assert placed == ["cuda"]
    need = device_table.needed_bytes([loader._dataset for loader in found])
    # user, item, time, rating, length and end of a row are 8 or 4 bytes each, the flat arrays 8, 4 and 4 ...
    rows = sum(len(loader._dataset) for loader in found)
    flat = sum(v.numel() * v.element_size() for v in found[0]._dataset.flat.values())
    features = sum(v.numel() * v.element_size() for v in found[0]._dataset.item_feat.interaction.values())
    assert need == rows * (4 * 8 + 2 * 4) + flat + features
    assert placed_on_cuda(folder, monkeypatch, free=2 * need)[0] == ["cuda"]


def test_tables_stay_on_the_cpu_where_they_do_not_fit(folder, monkeypatch, caplog):
    need = device_table.needed_bytes([loader._dataset for loader in loaders(folder)])
    placed, found = placed_on_cuda(folder, monkeypatch, free=2 * need - 1)
    assert placed == ["cpu"]
    assert [record.levelname for record in caplog.records if "put together on the CPU" in record.message] == ["WARNING"]
    assert "0 MiB free" in caplog.text
    assert_equal_rows(next(iter(found[0])), next(iter(loaders(folder, device_table=False)[0])))


def test_a_device_without_memory_is_noticed_while_moving(folder, monkeypatch, caplog):
    found = loaders(folder)
    real = device_table._place

    def place(taken, device):
        if device.type == "cuda":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        real(taken, device)

    monkeypatch.setattr(device_table, "_place", place)
    monkeypatch.setattr(device_table, "free_bytes", lambda device: 1 << 40)
    found[0].config["device"] = torch.device("cuda")
    device_table.give_tables(found[0].config, list(found))
    assert "CUDA out of memory" in caplog.text
    assert found[0].table.device.type == "cpu"


@pytest.mark.parametrize(("model", "settings"), [("BERT4Rec", {}), ("FPMC", {}), ("SASRec", {"loss_type": "BPR"})])
def test_batches_that_are_changed_stay_on_the_cpu(folder, monkeypatch, model, settings):
    assert placed_on_cuda(folder, monkeypatch, model=model, **settings)[0] == ["cpu"]


def test_parts_share_what_is_on_the_device(folder):
    tables = [loader.table for loader in loaders(folder)]
    for name, values in tables[0]._flat.items():
        assert values.data_ptr() == tables[1]._flat[name].data_ptr() == tables[2]._flat[name].data_ptr()


@pytest.mark.gpu
@pytest.mark.parametrize("case", ["SASRec", "fields of all kinds", "attribute"])
def test_batches_on_a_gpu_are_recboles(case, folder):
    model, settings = CASES[case]
    theirs = loaders(folder, model, device_table=False, use_gpu=True, **settings)
    ours = loaders(folder, model, use_gpu=True, **settings)
    for _ in range(2):
        for found, expected in zip(ours[0], theirs[0], strict=True):
            assert found["item_id"].device.type == "cuda"
            assert_equal_rows(found.to("cpu"), expected)
    for found, expected in zip(ours[1], theirs[1], strict=True):
        assert_equal_rows(found[0].to("cpu"), expected[0])
        assert torch.equal(found[3].cpu(), expected[3])
