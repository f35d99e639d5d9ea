"""What is no file of data ends in one sentence, in bounded memory and time."""

import gzip
import os

import pytest

from recbole_llm.errors import DataError, SettingError
from recbole_llm.prepare import prepare
from recbole_llm.prepare import raw as raw_module
from recbole_llm.prepare.raw import RawFile, blocks


def settings_of(settings_file, kind="table", file="x.csv", **changes):
    sources = {"interactions": {"file": file}, **changes.pop("sources", {})}
    return settings_file(**{"format": kind, "sources": sources, "item_fields": [], "filters": [], **changes})


def prepared(settings, tmp_path):
    return prepare(settings, raw=tmp_path / "raw", out=tmp_path / "out").folder


@pytest.fixture
def raw(tmp_path):
    (tmp_path / "raw").mkdir()
    return tmp_path / "raw"


@pytest.mark.parametrize("kind", ["table", "atomic"])
def test_a_byte_order_mark_is_no_part_of_the_first_column(settings_file, raw, tmp_path, kind):
    text = (
        "user,item,timestamp\nu,i,1\n"
        if kind == "table"
        else "user_id:token\titem_id:token\ttimestamp:float\nu\ti\t1\n"
    )
    (raw / "x.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    folder = prepared(settings_of(settings_file, kind), tmp_path)
    assert (folder / "toy.inter").read_text().splitlines()[1:] == ["u\ti\t1"]


@pytest.mark.parametrize("kind", ["table", "atomic"])
@pytest.mark.parametrize("encoding", ["gbk", "utf-16"])
def test_another_encoding_is_named(settings_file, raw, tmp_path, kind, encoding):
    text = "user,item,timestamp\n用户,物品,1\n"
    if kind == "atomic":
        text = "user_id:token\titem_id:token\ttimestamp:float\n用户\t物品\t1\n"
    (raw / "x.csv").write_bytes(text.encode(encoding))
    with pytest.raises(DataError, match=r"x\.csv is not UTF-8 text: convert it, such as by 'iconv -f GBK"):
        prepared(settings_of(settings_file, kind), tmp_path)


def test_a_folder_and_a_pipe_are_no_files(settings_file, raw, tmp_path):
    (raw / "x.csv").mkdir()
    with pytest.raises(DataError, match=r"x\.csv is no file but a folder"):
        RawFile(raw / "x.csv").require_file()
    os.mkfifo(raw / "pipe")
    with pytest.raises(DataError, match="pipe is no file but a device or pipe"), RawFile(raw / "pipe").open():
        pytest.fail("it was opened")


def test_links_in_a_circle_are_named(raw):
    (raw / "a").symlink_to(raw / "b")
    (raw / "b").symlink_to(raw / "a")
    with pytest.raises(DataError, match=r"raw/a could not be read: .*symbolic links"):
        RawFile(raw / "a").require_file()


def test_a_line_without_end_is_refused(raw, monkeypatch):
    monkeypatch.setattr(raw_module, "_MAX_LINE_BYTES", 1000)
    (raw / "x").write_bytes(b"short\n" + b"a" * 5000)
    with (raw / "x").open("rb") as stream:
        pieces = blocks(stream, size=6)
        assert next(pieces) == b"short\n"
        with pytest.raises(DataError, match="a line of more than"):
            list(pieces)


@pytest.mark.parametrize("kind", ["table", "amazon-2018"])
def test_a_file_that_unpacks_to_too_much_is_refused(settings_file, raw, tmp_path, kind, monkeypatch):
    monkeypatch.setattr(raw_module, "_FREE_BYTES", 1 << 20)
    (raw / "x.csv.gz").write_bytes(gzip.compress(b"0" * (20 << 20)))
    more = {"sources": {"items": {"file": "x.csv.gz"}}} if kind != "table" else {}
    with pytest.raises(DataError, match="unpacks to more than 500 times its size"):
        prepared(settings_of(settings_file, kind, "x.csv.gz", **more), tmp_path)


def test_texts_without_their_file_are_refused(settings_file, raw, tmp_path):
    (raw / "x.csv").write_text("user,item,timestamp\nu,i,1\n")
    with pytest.raises(SettingError, match=r"item_fields asks for texts of items, but prepare\.sources has no 'items'"):
        prepared(settings_of(settings_file, item_fields={"title": "name"}), tmp_path)


@pytest.mark.parametrize("name", ["a:b", "a\tb", "item_id", "", "two words", "a\nb"])
def test_a_column_that_would_break_the_header_is_refused(settings_file, raw, tmp_path, name):
    (raw / "x.csv").write_text("user,item,timestamp\nu,i,1\n")
    changes = {"sources": {"items": {"file": "x.csv"}}, "item_fields": {name: "user"}}
    with pytest.raises(SettingError, match="cannot write a column called"):
        prepared(settings_of(settings_file, **changes), tmp_path)


@pytest.mark.parametrize("kind", ["table", "atomic"])
def test_the_item_itself_may_be_the_text(settings_file, raw, tmp_path, kind):
    table = "user_id,item_id,timestamp,item\nu,Toy Story,1,x\n".replace(",", "," if kind == "table" else "\t")
    (raw / "x.csv").write_text(table)
    changes = {
        "sources": {"items": {"file": "x.csv"}},
        "options": {"columns": {"user": "user_id", "item": "item_id"}},
        "item_fields": {"title": "item_id", "other": "item"},
    }
    folder = prepared(settings_of(settings_file, kind, **changes), tmp_path)
    assert (folder / "toy.item").read_text().splitlines()[1:] == ["Toy Story\tToy Story\tx"]


def test_one_column_for_two_things_is_refused(settings_file, raw, tmp_path):
    (raw / "x.csv").write_text("user,item,timestamp\nu,i,1\n")
    with pytest.raises(SettingError, match="names one column twice"):
        prepared(settings_of(settings_file, options={"columns": {"user": "user", "item": "user"}}), tmp_path)
