"""Text survives both readers, and HTML is undone."""

import csv
from pathlib import Path

import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_llm.prepare import text, write
from recbole_llm.prepare.formats.base import ITEM


def clean(value: str) -> str:
    return pl.select(text.one_line(pl.lit(value, dtype=pl.String))).item()


def recbole(path: Path) -> pd.DataFrame:
    """Read as recbole/data/dataset/dataset.py, _load_feat, does."""
    header = path.read_text().split("\n")[0].split("\t")
    return pd.read_csv(
        path, delimiter="\t", usecols=header, dtype=dict.fromkeys(header, str), encoding="utf-8", engine="python"
    ).fillna("")


def ours(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [[cell.strip(" ") for cell in row] for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)][
            1:
        ]


def written(folder: Path, titles: list[str]) -> Path:
    path = folder / "x.item"
    items = pl.DataFrame({ITEM: [f"i{n}" for n in range(len(titles))], "title": titles, "brand": titles[::-1]})
    write.item_file(path, items, {"title": "title", "brand": "brand"})
    return path


NASTY = [
    '"',
    '""',
    '"open quote',
    '12" ruler',
    'a "b" c',
    '"whole"',
    "NA",
    "None",
    "nan",
    "null",
    "",
    "-",
    "'",
    "#N/A",
    "\\N",
]


def check(path: Path, titles: list[str]) -> None:
    expected = [clean(title) for title in titles]
    assert [row[1] for row in ours(path)] == expected
    assert [row[2] for row in ours(path)] == expected[::-1]
    table = recbole(path)
    # RecBole cuts a token_seq at single spaces and drops nothing else.
    assert [value.split() for value in table["title:token_seq"]] == [value.split() for value in expected]
    assert [value.split() for value in table["brand:token_seq"]] == [value.split() for value in expected[::-1]]


def test_nasty_texts_survive_both_readers(tmp_path):
    check(written(tmp_path, NASTY), NASTY)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text() | st.sampled_from(NASTY), min_size=1, max_size=20))
def test_any_text_survives_both_readers(tmp_path_factory, titles):
    titles = [clean(title) for title in titles]
    check(written(tmp_path_factory.mktemp("any"), titles), titles)


def test_the_texts_that_read_as_missing_are_those_of_pandas():
    from pandas._libs.parsers import STR_NA_VALUES

    assert STR_NA_VALUES - {""} <= set(text._READ_AS_MISSING)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("plain", "plain"),
        ("A &amp; B", "A & B"),
        ("A &amp;amp; B", "A & B"),
        ("<b>bold</b> text", " bold  text"),
        ("x <script type='a'>var a = 1 < 2;</script> y", "x   y"),
        ("a<!-- no <b> -->b", "a b"),
        ("size < 5 > 3", "size < 5 > 3"),
        ("I <3 you", "I <3 you"),
        ("&lt;i&gt;escaped&lt;/i&gt;", " escaped "),
        ("100&euro; &notanentity;", "100€ ¬anentity;"),
        (None, None),
    ],
)
def test_from_html(raw, expected):
    assert text.from_html(pl.Series([raw], dtype=pl.String)).to_list() == [expected]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ('["a", "b"]', "a, b"),
        ('[["a", "b"], ["c"], []]', "a, b, c"),
        ('["", null, 3]', "3"),
        ("[not a list", "[not a list"),
        ("plain", "plain"),
        (None, None),
    ],
)
def test_from_list(raw, expected):
    assert text.from_list(raw) == expected


def test_one_line_takes_every_kind_of_white_space():
    assert clean(" a\t\r\n\x00b\u2028c\u00a0d\x85e\ufeff ") == "a b c d e"


def test_recbole_itself_loads_every_row_and_word(tmp_path, monkeypatch):
    numpy = pytest.importorskip("numpy")
    for old, new in (("float_", numpy.float64), ("complex_", numpy.complex128), ("unicode_", numpy.str_)):
        monkeypatch.setattr(numpy, old, new, raising=False)  # removed in numpy 2, and read by RecBole 1.2.1
    for name in ("bool", "int", "float", "complex", "object", "str", "long", "unicode"):
        monkeypatch.setattr(numpy, name, getattr(numpy, name, None), raising=False)  # set by RecBole; undone at the end
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # likewise
    from recbole.config import Config
    from recbole.data import create_dataset

    titles = [*NASTY, "last"]
    (tmp_path / "x").mkdir()
    written(tmp_path / "x", titles)
    rows = "".join(f"u{n % 3}\ti{n}\t{n}\n" for n in range(len(titles)))
    (tmp_path / "x" / "x.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n" + rows)
    monkeypatch.setattr("sys.argv", ["pytest"])
    load = {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "title", "brand"]}
    settings_of_run = {"data_path": str(tmp_path), "load_col": load, "train_neg_sample_args": None, "state": "ERROR"}
    dataset = create_dataset(Config(model="GRU4Rec", dataset="x", config_dict=settings_of_run))
    assert dataset.inter_num == len(titles)
    assert dataset.item_num == len(titles) + 1
    for number, title in enumerate(titles):
        item = dataset.token2id("item_id", f"i{number}")
        words = dataset.item_feat["title"][item].tolist()
        assert [dataset.id2token("title", word) for word in words if word] == title.split()
