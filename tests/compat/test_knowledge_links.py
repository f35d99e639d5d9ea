"""Links of unknown items and entities, and several of one, with filtered data and with files that give the split."""

from pathlib import Path

import pandas as pd
import pytest
from atomic_files import quick_settings, write_atomic_files

from recbole_llm.compat.knowledge_links import one_to_one
from recbole_llm.config.config import Config
from recbole_llm.data.build import create_dataset
from recbole_llm.quick_start.run import run

KNOWLEDGE = {
    "load_col": {
        "inter": ["user_id", "item_id", "timestamp"],
        "kg": ["head_id", "relation_id", "tail_id"],
        "link": ["item_id", "entity_id"],
    }
}
SPLITS = {"filtered": {}, "given files": {"benchmark_filename": ["train", "valid", "test"]}}
LINES = {
    "unknown item": [("ghost", "e3")],
    "unknown items first": [("ghost", "e3"), ("other", "e4"), ("third", "e999")],
    "unknown entity": [("i3", "e999")],
    "both unknown": [("ghost", "e999")],
    "no line more": [],
}


@pytest.fixture
def data(workdir) -> Path:
    """30 of 40 items are linked; the last items have no interaction; the split is there as files, too."""
    folder = write_atomic_files(workdir / "data" / "tiny", users=30, items=40)
    rows = pd.read_csv(folder / "tiny.inter", sep="\t").sort_values("timestamp:float", kind="stable")
    rows = rows[~rows["item_id:token"].isin([f"i{n}" for n in range(35, 40)])]
    rows.to_csv(folder / "tiny.inter", sep="\t", index=False)
    left = rows.groupby("user_id:token").cumcount(ascending=False).clip(upper=2)
    for name, place in (("train", 2), ("valid", 1), ("test", 0)):
        rows[left == place].to_csv(folder / f"tiny.{name}.inter", sep="\t", index=False)
    return folder


def write_links(data: Path, more=(), first: bool = True, last_item: int = 35) -> None:
    own = [(f"i{n}", f"e{n}") for n in range(last_item)]
    lines = [*more, *own] if first else [*own, *more]
    pd.DataFrame(lines, columns=["item_id:token", "entity_id:token"]).to_csv(data / "tiny.link", sep="\t", index=False)


def state(dataset) -> tuple:
    """All that models read of a knowledge graph, in tokens."""
    heads, tails, items = (dataset.field2id_token[f] for f in ("head_id", "tail_id", "item_id"))
    triples = {(heads[h], tails[t]) for h, t in dataset.kg_feat[["head_id", "tail_id"]].to_numpy()}
    linked = {(items[n], dataset.field2id_token["entity_id"][n]) for n in range(dataset.item_num)}
    return len(dataset.inter_feat), dataset.entity_num, dataset.item2entity, dataset.entity2item, triples, linked


def dataset_of(data: Path, split: str):
    return create_dataset(Config(config_dict=quick_settings(data, model="CKE", **{**KNOWLEDGE, **SPLITS[split]})))


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("lines", LINES)
@pytest.mark.parametrize("first", [True, False])
def test_lines_of_the_unknown_change_nothing(lines, split, first, data):
    write_links(data)
    expected = state(dataset_of(data, split))
    write_links(data, LINES[lines], first)
    found = dataset_of(data, split)
    assert state(found) == expected
    assert len(found.item2entity) == 35 and ("i3", "e3") in expected[-1]


def test_each_item_has_the_id_of_its_entity(data):
    write_links(data, [("ghost", "e2")])
    dataset = dataset_of(data, "given files")
    items, entities = dataset.field2id_token["item_id"], dataset.field2id_token["entity_id"]
    assert [(items[n], entities[n]) for n in range(1, 36)] == [(item, "e" + item[1:]) for item in items[1:36]]
    assert len(set(entities)) == len(entities) == 41  # each entity once, and the padding
    assert {f"e{n}" for n in range(40)} | {"[PAD]"} == set(entities)


def test_a_run_beside_given_files_equals_the_one_without_those_lines(data):
    write_links(data)
    settings = quick_settings(data, **{**KNOWLEDGE, **SPLITS["given files"]})
    expected = run("CFKG", settings={**settings, "eval_args": {"mode": {"valid": "uni9", "test": "uni9"}}})
    write_links(data, [("ghost", "e3"), ("i3", "e999")])
    found = run("CFKG", settings={**settings, "eval_args": {"mode": {"valid": "uni9", "test": "uni9"}}})
    assert found["test"] == expected["test"] and found["valid"] == expected["valid"]


@pytest.mark.parametrize("split", SPLITS)
def test_a_shared_entity_belongs_to_its_first_item(split, data):
    write_links(data, [("i34", "e0")], first=False, last_item=34)
    dataset = dataset_of(data, split)
    assert dataset.item2entity == {f"i{n}": f"e{n}" for n in range(34)}
    assert len(set(dataset.field2id_token["entity_id"])) == dataset.entity_num


def test_links_by_hand():
    items, entities = {"a", "b", "c"}, {"x", "y", "z"}
    assert one_to_one({"a": "x", "b": "x", "d": "y"}, {"x": "b", "y": "d"}, items, entities) == {"a": "x"}
    assert one_to_one({"d": "x", "a": "x"}, {"x": "a"}, items, entities) == {"a": "x"}
    assert one_to_one({"a": "q"}, {"x": "a", "q": "a"}, items, entities) == {"a": "x"}
    assert one_to_one({}, {}, items, entities) == {}
