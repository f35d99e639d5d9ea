"""properties/protocol: one file makes a run measure as others do, whatever the model; docs/protocols.md names each."""

from pathlib import Path

import pytest

from recbole_llm.config.config import Config
from recbole_llm.config.paper import list_rows, row_settings
from recbole_llm.errors import SettingError
from recbole_llm.utils.paths import shipped

FILES = sorted((shipped("properties") / "protocol").glob("*.yaml"))
REPEATABLE = {"llara": True, "papers": True, "seqrec-public": False, "unseen": False}
LENGTH = {"llara": 10, "seqrec-public": 200}


def test_there_is_a_file_for_each():
    assert [file.stem for file in FILES] == sorted(REPEATABLE)
    page = (Path(__file__).resolve().parents[2] / "docs" / "protocols.md").read_text()
    assert all(f"properties/protocol/{name}.yaml" in page for name in REPEATABLE)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
@pytest.mark.parametrize("model", ["SASRec", "ST2SI", "IDLEAdapter", "BPR", "FM"])
def test_every_model_takes_it(file, model):
    if file.stem == "llara" and model in ("BPR", "FM"):
        with pytest.raises(SettingError, match="candidates=20 needs a sequential model"):
            Config(model, "ml-100k", [file])
        return
    dataset = "ml-100k"
    config, default = Config(model, dataset, [file]), Config(model, dataset)
    assert config["repeatable"] is REPEATABLE[file.stem] and default["repeatable"] == "auto"
    assert config["eval_args"]["mode"] == {"valid": "full", "test": "full"}
    assert config["eval_args"]["split"] == {"LS": "valid_and_test"}
    assert config["MAX_ITEM_LIST_LENGTH"] == LENGTH.get(file.stem, default["MAX_ITEM_LIST_LENGTH"])
    assert config["candidates"] == (20 if file.stem == "llara" else None)


def test_every_row_of_a_paper_ranks_all_items():
    assert all(row_settings(name)["repeatable"] is True for name in list_rows())
