"""Atomic files in other encodings, with quotation marks, with columns that cannot be: read right, or one sentence."""

import logging
import re

import pytest
import torch
from recbole.data.dataset import SequentialDataset
from small_data import TITLES, build_parts, small_settings, write_dataset

from recbole_llm.config.config import Config
from recbole_llm.data.build import create_dataset
from recbole_llm.errors import DataError, SettingError
from recbole_llm.inference.recommender import Recommender
from recbole_llm.inference.users import UserRecommender
from recbole_llm.quick_start.run import run

EVERYTHING = {"inter": "*", "item": "*"}


def dataset_of(root, model="SASRec", dataset_class=None, **changes):
    given = {"load_col": EVERYTHING, **changes}
    return create_dataset(Config(config_dict=small_settings(root, model=model, **given)), dataset_class)


def titles_read_by_recbole(dataset):
    words = dataset.field2id_token["title"]
    frame = dataset.item_feat
    tokens = dataset.field2id_token["item_id"][frame["item_id"]]
    return {token: " ".join(words[ids]) for token, ids in zip(tokens, frame["title"], strict=True) if token != "[PAD]"}


def rewrite(root, *endings, change=str, encoding="utf-8"):
    for ending in endings:
        path = root / "small" / f"small.{ending}"
        path.write_bytes(change(path.read_text(encoding="utf-8")).encode(encoding))


# -- encodings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", [None, "utf-8", "UTF8", "utf-8-sig"])
@pytest.mark.parametrize("endings", [("inter",), ("item",), ("inter", "item")])
def test_a_byte_order_mark_is_passed_over(small, endings, encoding):
    expected = dataset_of(small)
    rewrite(small, *endings, encoding="utf-8-sig")
    found = dataset_of(small, encoding=encoding)
    assert found.inter_feat.equals(expected.inter_feat)
    assert titles_read_by_recbole(found) == titles_read_by_recbole(expected) == TITLES
    assert found.item_texts(["title"])["title"].to_dict() == TITLES


@pytest.mark.parametrize("encoding", ["gbk", "utf-16", "latin-1", "shift_jis"])
def test_another_encoding_is_read_if_it_is_named_and_refused_with_the_file_if_not(workdir, encoding):
    title = {"gbk": "玩具总动员", "utf-16": "玩具 é", "latin-1": "Amélie", "shift_jis": "千と千尋"}[encoding]
    root = write_dataset(workdir, titles={**TITLES, "h": title})  # in the last line, long after the header
    rewrite(root, "inter", "item", encoding=encoding)
    found = dataset_of(root, encoding=encoding)
    assert titles_read_by_recbole(found)["h"] == found.item_texts(["title"])["title"]["h"] == title
    wrong = r"small.(inter|item)" if encoding == "utf-16" else "small.item"  # ASCII is the same in the others
    for model in ("SASRec", "FDSA"):
        with pytest.raises(DataError, match=rf"{wrong} is not UTF-8 text: convert it, or set encoding"):
            dataset_of(root, model, **({"selected_features": ["title"]} if model == "FDSA" else {}))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32"])
def test_text_of_wide_characters_is_no_utf_8(small, encoding):
    rewrite(small, "inter", encoding=encoding)
    with pytest.raises(DataError, match=r"small.inter is not UTF-8 text: .* set encoding"):
        dataset_of(small)


def test_a_wrong_name_of_the_encoding_names_the_file(small):
    with pytest.raises(DataError, match=r"small.inter is not UTF-16 text"):
        dataset_of(small, encoding="utf-16")


# -- quotation marks ---------------------------------------------------------------------------------------------------

QUOTED = ['"Hello', 'Hello"', '"', '""', '"Hello"', '12" vinyl', '"a" and "b', "it's", '"a"b"c"']


@pytest.mark.parametrize("title", QUOTED)
@pytest.mark.parametrize("item", ["a", "h"])
def test_quotation_marks_are_text(workdir, title, item):
    """In RecBole's own columns, too; pandas would read on to the next such mark, lines later."""
    titles = {**TITLES, item: title}
    dataset = dataset_of(write_dataset(workdir, titles=titles))
    assert titles_read_by_recbole(dataset) == dataset.item_texts(["title"])["title"].to_dict() == titles


@pytest.mark.parametrize("token", ['"b', '"b"', 'b"'])
def test_quotation_marks_in_ids_are_text(small, token):
    expected = len(dataset_of(small).inter_feat)
    rewrite(small, "inter", change=lambda text: text.replace("\tb\t", f"\t{token}\t"))
    rewrite(small, "item", change=lambda text: text.replace("\nb\t", f"\n{token}\t"))
    dataset = dataset_of(small)
    assert len(dataset.inter_feat) == expected
    assert token in dataset.field2id_token["item_id"]
    assert titles_read_by_recbole(dataset)[token] == TITLES["b"]


def test_recboles_own_datasets_read_as_before(workdir):
    """What is repaired for a run is not changed for the process."""
    root = write_dataset(workdir, titles={**TITLES, "a": '"Hello there"'})
    config = Config(config_dict=small_settings(root, model="SASRec", load_col=EVERYTHING))
    assert titles_read_by_recbole(SequentialDataset(config))["a"] == "Hello there"
    assert titles_read_by_recbole(dataset_of(root))["a"] == '"Hello there"'


def test_models_that_read_text_rank_the_same_items(workdir, tiny):
    """A swallowed line would be an item, and its interactions, fewer."""
    root = write_dataset(workdir, titles={**TITLES, "b": '"Hello'})
    for model in ({"model": "ST2SI", "backbone": str(tiny["llama"])}, {"model": "SASRec"}):
        assert build_parts(root, load_col=EVERYTHING, **model).dataset.item_num == 9


# -- columns -----------------------------------------------------------------------------------------------------------

HEADERS = {
    "user twice": ("inter", "user_id:token", "item_id:token", "2 columns 'item_id'"),
    "time twice": ("inter", "user_id:token", "timestamp:token", "2 columns 'timestamp'"),
    "item twice": ("item", "title:token_seq", "item_id:token_seq", "2 columns 'item_id'"),
    "no type": ("inter", "user_id:token", "user_id", "must be 'name:type' columns"),
    "two types": ("inter", "user_id:token", "user_id:token:float", "must be 'name:type' columns"),
    "no type of an item": ("item", "title:token_seq", "title", "must be 'name:type' columns"),
    "unknown type": ("item", "title:token_seq", "title:tokens", "'title' .* type 'tokens'; did you mean 'token'"),
    "items in lists": ("inter", "item_id:token", "item_id:token_seq", "must be 'item_id:token'"),
    "numbers of users": ("inter", "user_id:token", "user_id:float", "must be 'user_id:token'"),
}


@pytest.mark.parametrize("model", ["SASRec", "BPR"])
@pytest.mark.parametrize(("ending", "old", "new", "words"), HEADERS.values(), ids=HEADERS)
def test_a_header_that_cannot_be_is_refused(small, model, ending, old, new, words):
    rewrite(small, ending, change=lambda text: text.replace(old, new, 1))
    with pytest.raises(DataError, match=rf"small\.{ending}") as error:
        dataset_of(small, model)
    assert re.search(words, str(error.value))


def test_a_text_column_that_is_there_twice_is_refused(small, tiny):
    rewrite(small, "item", change=lambda text: text.replace("\n", "\tx\n").replace("\tx", "\ttitle:token_seq", 1))
    with pytest.raises(DataError, match=r"small.item has 2 columns 'title': rename or remove all but one"):
        build_parts(small, backbone=str(tiny["llama"]))


LOADED = {
    "no time": ({"load_col": {"inter": ["user_id", "item_id"]}}, "leave 'timestamp' of .*small.inter out"),
    "no item": ({"load_col": {"inter": ["user_id", "timestamp"]}}, "leave 'item_id' of .*small.inter out"),
    "no interactions": ({"load_col": {"item": ["item_id"]}}, "leave 'user_id' of .*small.inter out"),
    "nothing": ({"load_col": {}}, "leave 'user_id' of .*small.inter out"),
    "no column": ({"load_col": {"inter": []}}, "leave 'user_id' of .*small.inter out"),
    "title alone": ({"load_col": {"inter": "*", "item": ["title"]}}, "leave 'item_id' of .*small.item out"),
    "a word": ({"load_col": "inter"}, "load_col=inter must be a mapping such as"),
    "a list": ({"load_col": ["user_id", "item_id"]}, "must be a mapping such as"),
    "none": ({"load_col": {"inter": None}}, "load_col.inter=None must be a list"),
    "a column": ({"load_col": {"inter": "user_id"}}, "load_col.inter=user_id must be a list"),
    "a number": ({"load_col": {"inter": [3]}}, "load_col.inter=.* must be a list"),
    "no such file": ({"load_col": {"inter": "*", "items": "*"}}, "columns of 'items', .*did you mean 'item'"),
    "time left out": ({"unload_col": {"inter": ["timestamp"]}}, "leave 'timestamp' of .*small.inter out"),
    "item left out": ({"unload_col": {"inter": ["item_id"]}}, "leave 'item_id' of .*small.inter out"),
    "id of items left out": ({"unload_col": {"item": ["item_id"]}}, "leave 'item_id' of .*small.item out"),
    "left out of no file": ({"unload_col": {"iter": ["x"]}}, "columns of 'iter', .*did you mean 'inter'"),
    "left out as a word": ({"unload_col": "inter"}, "unload_col=inter must be a mapping such as"),
    "both": (
        {"load_col": {"inter": ["user_id"]}, "unload_col": {"inter": ["item_id"]}},
        "both name columns of 'inter'",
    ),
    "unused in no file": ({"unused_col": {"iter": ["x"]}}, "unused_col names columns of 'iter'"),
}


@pytest.mark.parametrize("model", ["SASRec", "BPR"])
@pytest.mark.parametrize(("changes", "words"), LOADED.values(), ids=LOADED)
def test_columns_that_are_not_loaded_are_one_sentence(small, model, changes, words):
    with pytest.raises(SettingError, match=words):
        create_dataset(Config(config_dict=small_settings(small, model=model, **changes)))


WORKS = [
    ({"load_col": None}, {"user_id", "item_id", "timestamp"}, {"item_id", "title"}),
    ({}, {"user_id", "item_id", "timestamp"}, None),
    ({"unload_col": {"item": ["title"]}}, {"user_id", "item_id", "timestamp"}, {"item_id"}),
    ({"unload_col": {"inter": ["note"]}}, {"user_id", "item_id", "timestamp"}, None),
    ({"unload_col": {"inter": []}}, {"user_id", "item_id", "timestamp", "note"}, None),
    ({"load_col": {"inter": "*"}, "unload_col": {"inter": ["note"]}}, {"user_id", "item_id", "timestamp"}, None),
]


@pytest.mark.parametrize(("changes", "interactions", "items"), WORKS, ids=[str(changes) for changes, *_ in WORKS])
def test_columns_that_are_loaded(small, changes, interactions, items):
    if "note" in str(changes) or interactions == {"user_id", "item_id", "timestamp", "note"}:
        rewrite(small, "inter", change=lambda text: text.replace("\n", "\tn\n").replace("\tn", "\tnote:token", 1))
    dataset = create_dataset(Config(config_dict=small_settings(small, model="SASRec", **changes)))
    assert set(dataset.inter_feat) == interactions
    assert (None if dataset.item_feat is None else set(dataset.item_feat)) == items


def test_an_attribute_is_loaded_beside_what_is_left_out(small):
    config = Config(
        config_dict=small_settings(small, model="FDSA", selected_features=["title"], unload_col={"item": []})
    )
    assert set(create_dataset(config).item_feat) == {"item_id", "title"}


@pytest.mark.parametrize("setting", ["load_col", "unload_col"])
def test_a_column_that_is_not_there_is_told(small, caplog, setting):
    named = {"load_col": ["user_id", "item_id", "timestamp", "titel"], "unload_col": ["timestammp"]}
    with caplog.at_level(logging.WARNING):
        create_dataset(
            Config(config_dict=small_settings(small, model="SASRec", **{setting: {"inter": named[setting]}}))
        )
    assert f"{setting} names '{named[setting][-1]}', which" in caplog.text


# -- names of columns --------------------------------------------------------------------------------------------------


def renamed(root):
    """The dataset `small` under other names of all columns, and a column of the default name for something else."""
    (root / "other").mkdir()
    for ending in ("inter", "item"):
        lines = (root / "small" / f"small.{ending}").read_text().splitlines()
        header = lines[0].replace("item_id", "asin").replace("user_id", "who").replace("timestamp", "when")
        rows = [f"{header}\titem_id:token", *(f"{line}\tx{n % 3}" for n, line in enumerate(lines[1:]))]
        (root / "other" / f"other.{ending}").write_text("\n".join(rows) + "\n")
    names = {"USER_ID_FIELD": "who", "ITEM_ID_FIELD": "asin", "TIME_FIELD": "when"}
    return {**names, "dataset": "other"}


@pytest.mark.parametrize("loaded", [{}, {"load_col": {"inter": "*"}}], ids=["default", "all"])
@pytest.mark.parametrize("model", ["ST2SI", "SASRec", "FEARec", "BPR"])
def test_columns_may_have_other_names(workdir, tiny, model, loaded):
    """The same rows, and for the same weights the same scores of all items."""
    root = write_dataset(workdir, {"u1": "abcde", "u2": "cdefgh", "u3": "hgf", "u4": "abcdefg"})
    names, backbone = renamed(root), {"backbone": str(tiny["llama"])} if model == "ST2SI" else {}
    ours, theirs = (build_parts(root, model=model, **backbone, **loaded, **more) for more in ({}, names))
    rows, other_rows = (next(iter(parts.test)) for parts in (ours, theirs))
    for name, other in (("user_id", "who"), ("item_id", "asin"), ("item_id_list", "asin_list")):
        if name in rows[0]:
            assert torch.equal(rows[0][name], other_rows[0][other])
    theirs.model.load_state_dict(ours.model.state_dict())
    known = [UserRecommender(parts) for parts in (ours, theirs)]
    assert known[0].users == known[1].users
    for user in known[0].users:
        assert known[0].history(user) == known[1].history(user)
        assert known[0].recommend(user, 3).items == known[1].recommend(user, 3).items
    if model != "BPR":
        after = [Recommender(parts.model, parts.train._dataset, allow_untrained=True) for parts in (ours, theirs)]
        assert after[0].recommend(["a", "c"], 3) == after[1].recommend(["a", "c"], 3)
    scores = [parts.model.eval().full_sort_predict(row[0]) for parts, row in ((ours, rows), (theirs, other_rows))]
    assert torch.equal(*scores) and torch.isfinite(scores[0]).any()


@pytest.mark.parametrize("model", ["ST2SI", "SASRec", "IDLEAdapter"])
def test_candidates_and_id_models_under_other_names(workdir, tiny, model):
    root = write_dataset(workdir, {"u1": "abcde", "u2": "cdefgh", "u3": "hgf", "u4": "abcdeg"})
    more = {"backbone": str(tiny["llama"])} if model != "SASRec" else {}
    if model != "SASRec":
        more |= {"id_model": "SASRec", "id_model_settings": {"epochs": 1}}
    if model == "IDLEAdapter":
        more |= {"max_prompt_tokens": 100}
    settings = {"candidates": 2, "epochs": 1, "load_col": {"inter": "*"}, **more}
    ours, theirs = (
        run(settings=small_settings(root, model=model, **settings, **names)) for names in ({}, renamed(root))
    )
    assert ours["candidates"] == theirs["candidates"] and ours["test"] == theirs["test"]
