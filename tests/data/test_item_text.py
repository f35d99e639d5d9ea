"""Item text: what the rules at the top of item_text.py say, checked against transformers' tokenizer called by hand."""

import logging

import numpy as np
import pytest
from small_data import HISTORIES, TITLES, build_parts, write_dataset
from transformers import AutoTokenizer

from recbole_llm.data.item_text import clean, read_item_fields, tokenize_items
from recbole_llm.errors import DataError


@pytest.fixture
def tokenizer(tiny):
    return AutoTokenizer.from_pretrained(tiny["llama"])


def item_file(folder, *lines, header="item_id:token\ttitle:token_seq"):
    path = folder / "x.item"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


# -- reading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("Guns &amp; Roses &#39;N&#39; &lt;b&gt;", "Guns & Roses 'N' <b>"),
        ("  two   spaces\u00a0and&nbsp;more ", "two spaces and more"),
        ("&amp;amp; once only", "&amp; once only"),
        ("七人の侍", "七人の侍"),
        ("الرسالة", "الرسالة"),
        ("🎸 guitar 👩‍👩‍👧", "🎸 guitar 👩‍👩‍👧"),
        ('"Weird Al" Yankovic', '"Weird Al" Yankovic'),
        ('"unbalanced', '"unbalanced'),
        ("N/A", "N/A"),  # a title, not a missing value
        ("null", "null"),
        ("", ""),
        ("&nbsp;", ""),
    ],
)
def test_cleaned_text(workdir, written, read):
    texts = read_item_fields(item_file(workdir, f"i1\t{written}", "i2\tnext"), "item_id", ["title"])
    assert list(texts.index) == ["i1", "i2"]
    assert list(texts["title"]) == [read, "next"]
    assert clean(written) == read


def test_first_of_duplicated_rows_counts(workdir):
    path = item_file(workdir, "i1\tfirst", "i2\tother", "i1\tsecond")
    assert read_item_fields(path, "item_id", ["title"])["title"].to_dict() == {"i1": "first", "i2": "other"}


def test_fields_come_in_the_order_asked_for_whatever_the_file_holds(workdir):
    path = item_file(workdir, "Acme\t2\ti1\tPump", header="brand:token\tprice:float\titem_id:token\ttitle:token_seq")
    texts = read_item_fields(path, "item_id", ["title", "brand"])
    assert list(texts.columns) == ["title", "brand"]
    assert list(texts.loc["i1"]) == ["Pump", "Acme"]


def test_row_cut_short_has_empty_fields(workdir):
    path = item_file(workdir, "i1\tPump\tAcme", "i2\tHose", "i3", header="item_id:token\ttitle:token\tbrand:token")
    texts = read_item_fields(path, "item_id", ["title", "brand"])
    assert texts.to_numpy().tolist() == [["Pump", "Acme"], ["Hose", ""], ["", ""]]


def test_missing_field_names_the_nearest_column(workdir):
    path = item_file(workdir, "1\tToy Story\t1995", header="item_id:token\tmovie_title:token_seq\trelease_year:token")
    with pytest.raises(DataError, match=r"no column 'title'; did you mean 'movie_title'\? .*item_text_fields"):
        read_item_fields(path, "item_id", ["title"])


def test_missing_and_empty_files_are_told_apart(workdir):
    with pytest.raises(DataError, match="does not exist"):
        read_item_fields(workdir / "none.item", "item_id", ["title"])
    (workdir / "empty.item").touch()
    with pytest.raises(DataError, match=r"empty\.item is empty"):
        read_item_fields(workdir / "empty.item", "item_id", ["title"])
    (workdir / "latin.item").write_bytes("item_id:token\ttitle:token\ni1\tCaf\xe9\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.item.*UTF-8"):
        read_item_fields(workdir / "latin.item", "item_id", ["title"])


# -- tokens ------------------------------------------------------------------------------------------------------------


def test_further_fields_follow_by_name_each_cut_to_its_own_length(workdir, tokenizer):
    long = "Filament " * 60
    path = item_file(
        workdir,
        f"p\t{long}\t{long}\t",
        "q\tPump\t\tred",
        header="item_id:token\ttitle:token\tbrand:token\tcolour:token",
    )
    texts = read_item_fields(path, "item_id", ["title", "brand", "colour"])
    table = tokenize_items(texts, tokenizer, 32)
    assert len(ids(tokenizer, long.strip())) > 32
    assert table.row(0).tolist() == ids(tokenizer, long.strip())[:32] + ids(tokenizer, f" brand: {long.strip()}")[:32]
    assert table.row(1).tolist() == ids(tokenizer, "Pump") + ids(tokenizer, " colour: red")


def test_item_without_title_has_no_tokens_even_with_a_brand(workdir, tokenizer):
    path = item_file(workdir, "i1\t\tAcme", header="item_id:token\ttitle:token\tbrand:token")
    table = tokenize_items(read_item_fields(path, "item_id", ["title", "brand"]), tokenizer, 32)
    assert table.lengths.tolist() == [0]


@pytest.mark.parametrize("backbone", ["llama", "opt"])
def test_any_script_survives_the_tokens_and_no_special_token_is_added(workdir, tiny, backbone):
    tokenizer = AutoTokenizer.from_pretrained(tiny[backbone])
    titles = ["七人の侍", "الرسالة", "🎸 guitar", '"quoted', "plain"]
    path = item_file(workdir, *(f"i{n}\t{title}" for n, title in enumerate(titles)))
    table = tokenize_items(read_item_fields(path, "item_id", ["title"]), tokenizer, 64)
    assert [tokenizer.decode(table.row(row)) for row in range(len(titles))] == titles
    assert not set(table.values.tolist()) & set(tokenizer.all_special_ids)


def test_row_is_recboles_internal_id(small, tiny):
    parts = build_parts(small, backbone=str(tiny["llama"]))
    dataset, model = parts.dataset, parts.model
    tokenizer = AutoTokenizer.from_pretrained(tiny["llama"])
    full_stop = tokenizer.get_vocab()["."]
    assert model.inputs.table.row(0).tolist() == []
    for item, title in TITLES.items():
        row = dataset.token2id("item_id", item)
        assert model.inputs.table.row(row).tolist() == [*ids(tokenizer, title), full_stop]
    assert len({dataset.token2id("item_id", item) for item in TITLES}) == dataset.item_num - 1


# -- cache -------------------------------------------------------------------------------------------------------------


def cached(folder):
    return sorted((folder / "cache" / "item_text").glob("*.npz"))


def test_cache_is_keyed_by_all_that_the_tokens_depend_on(workdir, tiny, tokenizer):
    def make(*titles, fields=("title",), tokens=32, with_tokenizer=tokenizer):
        header = "item_id:token\t" + "\t".join(f"{field}:token" for field in fields)
        path = item_file(workdir, *(f"i{n}\t{title}" for n, title in enumerate(titles)), header=header)
        return tokenize_items(read_item_fields(path, "item_id", list(fields)), with_tokenizer, tokens)

    first = make("Pump", "Hose")
    assert len(cached(workdir)) == 1
    assert make("Pump", "Hose").values.tolist() == first.values.tolist()
    assert len(cached(workdir)) == 1, "the same content must be read from the cache"
    variants = [
        make("Pump", "Hoses"),
        make("Hose", "Pump"),
        make("Pump", "Hose", tokens=2),
        make("Pump\tHose", fields=("title", "brand")),
        make("Pump\tHose", fields=("title", "maker")),
        make("Pump", "Hose", with_tokenizer=AutoTokenizer.from_pretrained(tiny["opt"])),
    ]
    assert len(cached(workdir)) == 1 + len(variants)
    assert variants[1].row(0).tolist() == first.row(1).tolist()


def test_cache_is_really_read(workdir, tokenizer, monkeypatch):
    texts = read_item_fields(item_file(workdir, "i1\tPump"), "item_id", ["title"])
    first = tokenize_items(texts, tokenizer, 32)
    monkeypatch.setattr("recbole_llm.data.item_text._tokenize", lambda *_: pytest.fail("the cache was not read"))
    second = tokenize_items(texts, tokenizer, 32)
    np.testing.assert_array_equal(first.values, second.values)
    np.testing.assert_array_equal(first.offsets, second.offsets)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not an archive", "half"])
def test_broken_cache_file_is_made_anew(workdir, tokenizer, damage, caplog):
    texts = read_item_fields(item_file(workdir, "i1\tPump", "i2\tHose"), "item_id", ["title"])
    first = tokenize_items(texts, tokenizer, 32)
    (file,) = cached(workdir)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if damage == "half" else damage)
    with caplog.at_level(logging.WARNING):
        again = tokenize_items(texts, tokenizer, 32)
    assert "made again" in caplog.text
    np.testing.assert_array_equal(first.values, again.values)
    assert file.read_bytes() == whole


# -- items without a title ---------------------------------------------------------------------------------------------


def without_titles(folder, *items):
    """Titles of HISTORIES, where the first of `items` has an empty one and the others have no row at all."""
    titles = {item: title for item, title in TITLES.items() if item not in items[1:]}
    return write_dataset(folder, titles={**titles, items[0]: " &nbsp; "})


@pytest.mark.parametrize("model", ["ST2SI", "SASRec", "BPR"])
def test_items_without_title_are_dropped_with_a_count_for_every_model(workdir, tiny, model, caplog):
    settings = {"backbone": str(tiny["llama"])} if model == "ST2SI" else {}
    titles = dict.fromkeys("abcdefgxyz", "Pump") | {"b": ""}
    del titles["x"]
    histories = {**HISTORIES, "u8": "xyz"}
    caplog.set_level(logging.WARNING)
    parts = build_parts(write_dataset(workdir, histories, titles), model=model, **settings)
    dropped = sum(items.count("b") + items.count("h") + items.count("x") for items in histories.values())
    assert f"3 items of small have no text in 'title': they and their {dropped} interactions are dropped" in caplog.text
    assert set(parts.dataset.field2id_token["item_id"]) == {"[PAD]", *"acdefgyz"}


def test_items_without_title_are_an_error_by_setting(workdir, tiny):
    path = without_titles(workdir, "b", "h")
    with pytest.raises(DataError, match=r"2 items of small have no text in 'title'.*items_without_text=drop"):
        build_parts(path, backbone=str(tiny["llama"]), items_without_text="error")


def test_items_without_title_are_kept_by_setting_where_the_model_reads_none(workdir):
    parts = build_parts(without_titles(workdir, "b", "h"), model="SASRec", items_without_text="keep")
    assert parts.dataset.item_num - 1 == len(TITLES)


def test_items_without_title_cannot_be_kept_by_a_model_that_reads_them(workdir, tiny):
    path = without_titles(workdir, "b", "h")
    with pytest.raises(DataError, match=r"2 items of small have no text.*items_without_text"):
        build_parts(path, backbone=str(tiny["llama"]), items_without_text="keep")


def test_no_title_at_all_is_an_error(workdir, tiny):
    path = write_dataset(workdir, titles=dict.fromkeys(TITLES, ""))
    with pytest.raises(DataError, match=r"no item of .*small\.item has a text in its column 'title'"):
        build_parts(path, backbone=str(tiny["llama"]))


def test_title_that_opens_a_quotation_swallows_no_other_item(workdir, tiny):
    titles = {**TITLES, "b": '"Guitar, the open quotation', "e": 'a "closed" one'}
    parts = build_parts(write_dataset(workdir, titles=titles), backbone=str(tiny["llama"]))
    tokenizer = AutoTokenizer.from_pretrained(tiny["llama"])
    for item, title in titles.items():
        assert tokenizer.decode(parts.model.inputs.table.row(parts.dataset.token2id("item_id", item))) == title + "."
