"""What nested runs read of the same files is read once, and is what they would have read themselves."""

import pytest
import torch
from atomic_files import quick_settings, write_atomic_files
from recbole.data.dataset import Dataset
from small_data import HISTORIES, small_settings, write_dataset

from recbole_llm.config.config import Config
from recbole_llm.data import shared
from recbole_llm.data.build import create_dataset
from recbole_llm.data.shared import SharedData
from recbole_llm.quick_start.run import load, run

SASREC = {"hidden_size": 8, "inner_size": 8, "n_layers": 1, "n_heads": 2, "epochs": 1}


@pytest.fixture
def counted(monkeypatch):
    """For which models a dataset was read, and for which it was split."""
    found = {"read": [], "split": []}
    build = Dataset.build

    def create(config):
        found["read"].append(config["model"])
        return create_dataset(config)

    def split(self):
        found["split"].append(self.config["model"])
        return build(self)

    monkeypatch.setattr(shared, "create_dataset", create)
    monkeypatch.setattr(Dataset, "build", split)
    return found


def adapter(tiny, **settings):
    return {
        "backbone": str(tiny["bert"]), "id_model": "SASRec", "id_model_settings": SASREC, "epochs": 1,
        "train_batch_size": 8, "max_prompt_tokens": 128, **settings,
    }  # fmt: skip


def idle_over_sasrec(data_path, tiny, **settings):
    return small_settings(data_path, model="IDLEAdapter", **adapter(tiny, **settings))


def st2si_over_both(data_path, tiny, **settings):
    own = {"backbone": str(tiny["llama"]), "tuning": "ilp", "epochs": 1, "id_model": "IDLEAdapter"}
    return small_settings(data_path, **own, id_model_settings=adapter(tiny, MAX_ITEM_LIST_LENGTH=6, **settings))


def test_a_run_with_an_id_model_reads_once(small, tiny, counted):
    """SASRec is trained, then loaded: its own parts are split once, as the adapter's are."""
    result = run(settings=idle_over_sasrec(small, tiny))
    assert counted == {"read": ["IDLEAdapter"], "split": ["IDLEAdapter", "SASRec"]}
    load(result["path"])
    assert counted == {"read": ["IDLEAdapter"] * 2, "split": ["IDLEAdapter", "SASRec"] * 2}


def test_three_models_in_one_read_once(small, tiny, counted):
    """Whether the adapter's histories have the length of the host's, and so its parts, or not."""
    run(settings=st2si_over_both(small, tiny))
    assert counted == {"read": ["ST2SI"], "split": ["ST2SI", "IDLEAdapter", "SASRec"]}
    counted["read"].clear(), counted["split"].clear()
    write_dataset(small, {**HISTORIES, "u8": "abd"})
    settings = st2si_over_both(small, tiny)
    run(settings={**settings, "MAX_ITEM_LIST_LENGTH": 6})
    assert counted == {"read": ["ST2SI"], "split": ["ST2SI", "SASRec"]}


def test_other_columns_are_read_again(small, tiny, counted):
    """FDSA loads the items' attributes, which no other model does."""
    own = {**SASREC, "selected_features": ["title"]}
    run(settings=idle_over_sasrec(small, tiny, id_model="FDSA", id_model_settings=own))
    assert counted["read"] == ["IDLEAdapter", "FDSA"]


def test_s3rec_reads_once(tmp_path, workdir, counted):
    data = write_atomic_files(tmp_path / "tiny", users=30, items=30)
    run("S3Rec", settings=quick_settings(data, pretrain_epochs=1, hidden_size=16, inner_size=16, n_layers=1))
    assert counted == {"read": ["S3Rec"], "split": ["S3Rec"]}


MODELS = {
    "ST2SI": {"tuning": "ilp", "MAX_ITEM_LIST_LENGTH": 5},
    "SASRec": {**SASREC, "MAX_ITEM_LIST_LENGTH": 4},
    "GRU4Rec": {"device_table": False, "MAX_ITEM_LIST_LENGTH": 7},  # RecBole's own padded histories
    "BPR": {},
}


def tensors_of(part):
    found = {f"inter {name}": part.inter_feat[name] for name in part.inter_feat}
    for features in ("user_feat", "item_feat"):
        columns = getattr(part, features)
        found.update({f"{features} {name}": columns[name] for name in columns or ()})
    found.update(getattr(part, "flat", {}))
    return found


def test_copies_are_what_each_model_reads_alone(small):
    """Every tensor of every part, the fields and the ids, whichever model came first; the first is not touched."""
    data, made = SharedData(), {}
    write_dataset(small, {user: items for user, items in HISTORIES.items() if user != "u4"})
    keep = {"max_sequence_tokens", "train_batch_tokens", "precision"}
    configs = {}
    for name, settings in MODELS.items():
        given = small_settings(small, model=name, **settings)
        own = given if name == "ST2SI" else {k: v for k, v in given.items() if k not in keep}
        configs[name] = Config(config_dict=own)
    for name, config in configs.items():
        dataset = data.dataset(config)
        made[name] = [dataset, *data.build(config, dataset)]
    for name, config in configs.items():
        alone = create_dataset(config)
        alone_parts = [*alone.build()]
        for part, expected in zip(made[name], [alone, *alone_parts], strict=True):
            assert type(part) is type(expected)
            assert part.config is config
            found = tensors_of(part)
            assert found.keys() == tensors_of(expected).keys()
            assert all(torch.equal(found[key], values) for key, values in tensors_of(expected).items()), name
            assert part.field2type == expected.field2type
            assert part.field2seqlen == expected.field2seqlen
            assert list(part.field2id_token["item_id"]) == list(expected.field2id_token["item_id"])
