"""Each raw format, with its oddities, ends in atomic files that were worked out by hand."""

import gzip
import json
import pickle
import zipfile
from pathlib import Path

import pandas as pd
import polars as pl
import pytest
from raw_files import INTER, ITEM, METADATA, REVIEWS, pack

from recbole_llm.errors import DataError
from recbole_llm.prepare import prepare


def made(settings: str, raw: Path, out: Path) -> tuple[str, str, dict]:
    done = prepare(settings, raw=raw, out=out)
    item = done.folder / f"{done.dataset}.item"
    return (
        (done.folder / f"{done.dataset}.inter").read_text(),
        item.read_text() if item.is_file() else "",
        json.loads((done.folder / "manifest.json").read_text()),
    )


def test_amazon_2018(settings_file, amazon, tmp_path):
    inter, item, manifest = made(settings_file(), amazon, tmp_path / "out")
    assert inter == INTER
    assert item == ITEM
    assert manifest["skipped"] == {
        "interactions: no user, item or timestamp": 1,
        "items: broken line": 2,
        "items: listed again": 2,
    }
    assert manifest["read"] == {"interactions": 14, "items": 9}
    assert manifest["counts"] == {"users": 2, "items": 3, "interactions": 8}
    assert [step["interactions"] for step in manifest["steps"]] == [13, 11, 11, 8, 8]


def test_amazon_2018_unpacked_files_are_taken_too(settings_file, amazon, tmp_path):
    for packed in amazon.glob("*.gz"):
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
    assert made(settings_file(), amazon, tmp_path / "out")[:2] == (INTER, ITEM)


def test_amazon_block_borders_change_nothing(settings_file, amazon, tmp_path, monkeypatch):
    import recbole_llm.prepare.raw as raw

    monkeypatch.setattr(raw.blocks, "__defaults__", (7,))
    assert made(settings_file(), amazon, tmp_path / "out")[:2] == (INTER, ITEM)


def test_amazon_2014(settings_file, tmp_path):
    raw = tmp_path / "raw"
    pack(raw / "reviews_5.json.gz", [json.dumps(review) for review in REVIEWS])
    literal = [
        repr({"asin": "A", "title": "It's A", "brand": "b", "categories": [["Top", "Sub"], ["Top", "Other"]]}),
        repr({"asin": "B", "title": "B", "description": "text", "related": {"also_bought": ["A"]}}),
        repr({"asin": "C", "title": "C"}),
        "{'asin': 'D', 'title': unfinished",
    ]
    pack(raw / "meta.json.gz", literal)
    inter, item, manifest = made(settings_file(format="amazon-2014"), raw, tmp_path / "out")
    assert inter == INTER
    assert item == (
        "item_id:token\ttitle:token_seq\tbrand:token_seq\tcategories:token_seq\n"
        "B\tB\t\t\nA\tIt's A\tb\tTop, Sub, Top, Other\nC\tC\t\t\n"
    )
    assert manifest["skipped"]["items: broken line"] == 1


def test_amazon_2023(settings_file, tmp_path):
    raw = tmp_path / "raw"
    rows = [
        ("u", "P2", 1588687728923),
        ("u", "P1", 1588687728000),
        ("u", "P1", 1588687728923),
        ("u", "P3", 1588687728001),
    ]
    reviews = [
        {
            "rating": 4.0,
            "title": "nice",
            "text": "t",
            "images": [],
            "asin": "child",
            "parent_asin": item,
            "user_id": user,
        }
        | {"timestamp": time, "helpful_vote": 0, "verified_purchase": True}
        for user, item, time in rows
    ]
    pack(raw / "reviews_5.json.gz", [json.dumps(review) for review in reviews])
    texts = [
        {"parent_asin": f"P{n}", "title": f"T{n}", "store": "S", "categories": ["a", "b"], "price": None}
        for n in (1, 2, 3)
    ]
    pack(raw / "meta.json.gz", [json.dumps(text) for text in texts])
    inter, item, _ = made(settings_file(format="amazon-2023"), raw, tmp_path / "out")
    assert inter.splitlines()[1:] == [
        "u\tP1\t1588687728000",
        "u\tP3\t1588687728001",
        "u\tP2\t1588687728923",
        "u\tP1\t1588687728923",
    ]
    assert item.splitlines()[1:] == ["P1\tT1\tS\ta, b", "P3\tT3\tS\ta, b", "P2\tT2\tS\ta, b"]


@pytest.mark.parametrize("packed", [True, False])
def test_movielens_1m(settings_file, tmp_path, packed):
    ratings = "2::7::5::978300760\n1::1193::5::978300760\n1::661::3::978302109\n1::7::4::978300760\n"
    movies = (
        "7::C\xe9l\xe8bre: the::double (1997)::Drama\n"
        '661::"Great" One, The (1996)::Animation|Children\'s\n'
        "1193::X (1975)::Drama\n"
    )
    files = {"ml-1m/ratings.dat": ratings.encode("latin-1"), "ml-1m/movies.dat": movies.encode("latin-1")}
    raw = tmp_path / "raw"
    raw.mkdir()
    if packed:
        with zipfile.ZipFile(raw / "ml.zip", "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        for name, content in files.items():
            (raw / Path(name).name).write_bytes(content)
    settings = settings_file(
        format="movielens-1m",
        sources={
            role: {"file": "ml.zip", "member": name}
            for role, name in zip(("interactions", "items"), files, strict=True)
        },
        item_fields={"title": "title", "name": "name", "year": "release_year", "genres": "genres"},
        inter_fields=["rating"],
        filters=[],
    )
    inter, item, _ = made(settings, raw, tmp_path / "out")
    assert inter == (
        "user_id:token\titem_id:token\ttimestamp:float\trating:float\n"
        "2\t7\t978300760\t5\n1\t1193\t978300760\t5\n1\t7\t978300760\t4\n1\t661\t978302109\t3\n"
    )
    assert item == (
        "item_id:token\ttitle:token_seq\tname:token_seq\tyear:token_seq\tgenres:token_seq\n"
        "7\tCélèbre: the::double (1997)\tCélèbre: the::double\t1997\tDrama\n"
        "1193\tX (1975)\tX\t1975\tDrama\n"
        '661\t "Great" One, The (1996)\t "Great" One, The\t1996\tAnimation Children\'s\n'
    )


def test_movielens_100k_and_20m(settings_file, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "u.data").write_text("1\t2\t3\t100\n1\t1\t4\t90\n")
    flags = {1: "0|0|0|1|1|1" + "|0" * 13, 2: "1" + "|0" * 18}
    (raw / "u.item").write_bytes(
        f"1|Toy Story (1995)|01-Jan-1995||http://x|{flags[1]}\n2|unknown||||{flags[2]}\n".encode("latin-1")
    )
    fields = {"movie_title": "name", "release_year": "release_year", "class": "genres"}
    sources = {"interactions": {"file": "u.data"}, "items": {"file": "u.item"}}
    settings = settings_file("small", format="movielens-100k", sources=sources, item_fields=fields, filters=[])
    inter, item, _ = made(settings, raw, tmp_path / "out")
    assert inter.splitlines()[1:] == ["1\t1\t90", "1\t2\t100"]
    assert item.splitlines()[1:] == ["1\tToy Story\t1995\tAnimation Children's Comedy", "2\tunknown\t\tunknown"]

    (raw / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,2,3.5,100\n1,1,4.0,90\n")
    (raw / "movies.csv").write_text(
        'movieId,title,genres\n1,Toy Story (1995),A|B\n2,"American President, The (1995)",C\n'
    )
    sources = {"interactions": {"file": "ratings.csv"}, "items": {"file": "movies.csv"}}
    settings = settings_file(
        "large", format="movielens-20m", sources=sources, item_fields=fields, inter_fields=["rating"], filters=[]
    )
    inter, item, _ = made(settings, raw, tmp_path / "out")
    assert inter.splitlines()[1:] == ["1\t1\t90\t4.0", "1\t2\t100\t3.5"]
    assert item.splitlines()[1:] == ["1\tToy Story\t1995\tA B", "2\tAmerican President, The\t1995\tC"]


def test_steam_reviews(settings_file, tmp_path):
    raw = tmp_path / "raw"
    reviews = [
        "{u'username': u'Chaos Syren', u'hours': 0.1, u'product_id': u'725280', u'date': u'2018-01-02', "
        "u'text': u'it\\'s'}",
        "{u'username': u'\u2661 x', u'product_id': u'328100', u'date': u'2018-01-01'}",
        "{u'username': u'Chaos Syren', u'product_id': u'328100', u'date': u'1970-01-02'}",
    ]
    games = [
        "{u'publisher': u'P', u'genres': [u'Action', u'Indie'], u'app_name': u'Lost &amp; Found', u'id': u'725280'}",
        "{u'app_name': u'Rock\\u2122', u'id': u'328100'}",
        "{u'app_name': u'no id'}",
    ]
    pack(raw / "reviews_5.json.gz", reviews)
    pack(raw / "meta.json.gz", games)
    inter, item, _ = made(
        settings_file(format="steam", item_fields=["title", "genres"], filters=[]), raw, tmp_path / "out"
    )
    assert inter.splitlines()[1:] == [
        "Chaos Syren\t328100\t86400",
        "Chaos Syren\t725280\t1514851200",
        "\u2661 x\t328100\t1514764800",
    ]
    assert item.splitlines()[1:] == ["328100\tRock\u2122\t", "725280\tLost & Found\tAction, Indie"]


def llara_settings(settings_file, **changes):
    names = {"train": "train_data.df", "valid": "Val_data.df", "test": "Test_data.df", "items": "id2name.txt"}
    sources = {role: {"file": name} for role, name in names.items()}
    options = {"padding_item": 99, **changes.pop("options", {})}
    return settings_file(format="llara", sources=sources, options=options, item_fields=["title"], filters=[], **changes)


def write_llara(raw, pairs=False):
    def window(*items):
        filled = [*items, *[99] * (10 - len(items))]
        return [(item, 0 if item == 99 else 5) for item in filled] if pairs else filled

    def target(item):
        return (item, 5) if pairs else item

    rows = {
        # Windows of one history, [1, 2, 3] -> 4, then -> 5; and a history of its own.
        "train_data.df": [
            (window(1, 2, 3), 3, target(4)),
            (window(1, 2, 3, 4), 4, target(5)),
            (window(7, 1, 2), 3, target(3)),
        ],
        "Val_data.df": [(window(5, 4, 3), 3, target(2))],
        "Test_data.df": [(window(2, 2, 7), 3, target(1))],
    }
    raw.mkdir(exist_ok=True)
    for name, table in rows.items():
        pd.DataFrame(table, columns=["seq", "len_seq", "next"]).to_pickle(raw / name)
    (raw / "id2name.txt").write_text("1::One\n2::Two::Too\n3::Three\n4::Four\n5::Five\n7::  Seven \n8::Eight\n")


@pytest.mark.parametrize("pairs", [False, True])
def test_llara(settings_file, tmp_path, pairs):
    write_llara(tmp_path / "raw", pairs)
    settings = llara_settings(settings_file)
    inter, item, _ = made(settings, tmp_path / "raw", tmp_path / "out")
    rows = [line.split("\t") for line in inter.splitlines()[1:]]
    histories: dict[str, list[str]] = {}
    for user, thing, time in rows:
        histories.setdefault(user, []).append(thing)
        assert time == str(len(histories[user]))
    assert histories == {
        "train-0": ["1", "2", "3", "4", "5"],
        "train-1": ["7", "1", "2", "3"],
        "valid-0": ["5", "4", "3", "2"],
        "test-0": ["2", "2", "7", "1"],
    }
    assert item.splitlines()[1:] == ["1\tOne", "2\tTwo::Too", "3\tThree", "4\tFour", "5\tFive", "7\tSeven"]


def test_llara_rows_without_a_history_begin_a_user(settings_file, tmp_path):
    raw = tmp_path / "raw"
    write_llara(raw)

    def padded(*items):
        return [*items, *[99] * (10 - len(items))]

    # Two users whose first rows have no history, of which the second has one interaction and begins with the item
    # that ended the first; then one of twelve items, whose window moves.
    long = list(range(20, 32))
    train = [(padded(), 0, 1), (padded(1), 1, 2), (padded(1, 2), 2, 3), (padded(), 0, 3), (padded(), 0, 20)]
    train += [(padded(*long[max(end - 10, 0) : end]), min(end, 10), long[end]) for end in range(1, 12)]
    pd.DataFrame(train, columns=["seq", "len_seq", "next"]).to_pickle(raw / "train_data.df")
    # Each row is evaluated alone: one without a history has nothing to be read.
    valid = [(padded(), 0, 1), (padded(5, 4, 3), 3, 2)]
    pd.DataFrame(valid, columns=["seq", "len_seq", "next"]).to_pickle(raw / "Val_data.df")
    inter, _, manifest = made(llara_settings(settings_file, options={"rows_apart": True}), raw, tmp_path / "out")
    histories: dict[str, list[str]] = {}
    for line in inter.splitlines()[1:]:
        user, item, _ = line.split("\t")
        histories.setdefault(user, []).append(item)
    assert histories == {
        "train-0": ["1", "2", "3"],
        "train-1": ["3"],
        "train-2": [str(item) for item in long],
        "valid-0": ["5", "4", "3", "2"],
        "test-0": ["2", "2", "7", "1"],
    }
    assert manifest["skipped"]["windows of valid: no history"] == 1


def test_llara_refuses_a_pickle_that_runs_code(settings_file, tmp_path):
    write_llara(tmp_path / "raw")

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "raw" / "Val_data.df").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(DataError, match=r"no pickled table that may be loaded: it asks for pathlib"):
        prepare(llara_settings(settings_file), raw=tmp_path / "raw", out=tmp_path / "out")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["csv", "tsv", "csv.gz", "parquet"])
def test_plain_table(settings_file, tmp_path, kind):
    raw = tmp_path / "raw"
    raw.mkdir()
    table = pl.DataFrame({"who": ["b", "a", "b"], "t": [2.5, 1.0, 0.5], "what": [10, 11, 12], "more": ["x", "y", "z"]})
    texts = pl.DataFrame({"what": [10, 11, 12], "name": ['say "hi",\nyou', "<b>kept</b> &amp;", None]})
    for frame, stem in ((table, "inter"), (texts, "text")):
        path = raw / f"{stem}.{kind}"
        if kind == "parquet":
            frame.write_parquet(path)
        else:
            content = frame.write_csv(separator="\t" if kind == "tsv" else ",").encode()
            path.write_bytes(gzip.compress(content) if kind.endswith("gz") else content)
    settings = settings_file(
        format="table",
        sources={"interactions": {"file": f"inter.{kind}"}, "items": {"file": f"text.{kind}"}},
        options={"columns": {"user": "who", "item": "what", "timestamp": "t"}},
        item_fields={"title": "name"},
        filters=[],
    )
    inter, item, _ = made(settings, raw, tmp_path / "out")
    assert inter.splitlines()[1:] == ["b\t12\t0.5", "b\t10\t2.5", "a\t11\t1.0"]
    assert item.splitlines()[1:] == ["12\t", '10\tsay "hi", you', "11\t<b>kept</b> &amp;"]


def test_plain_table_without_texts_makes_no_item_file(settings_file, tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "x.csv").write_text("user,item,timestamp\nu,i,1\n")
    settings = settings_file(format="table", sources={"interactions": {"file": "x.csv"}}, item_fields=[], filters=[])
    inter, item, _ = made(settings, tmp_path / "raw", tmp_path / "out")
    assert inter.splitlines()[1:] == ["u\ti\t1"]
    assert item == ""


def test_atomic_files_come_back_the_same(settings_file, amazon, tmp_path):
    first = prepare(settings_file(), raw=amazon, out=tmp_path / "out")
    settings = settings_file(
        "again",
        format="atomic",
        sources={"interactions": {"file": "toy.inter"}, "items": {"file": "toy.item"}},
        filters=[],
    )
    inter, item, _ = made(settings, first.folder, tmp_path / "out")
    assert (inter, item) == (INTER, ITEM)


def test_every_metadata_line_is_read_once(settings_file, amazon, tmp_path):
    manifest = made(settings_file(), amazon, tmp_path / "out")[2]
    assert manifest["read"]["items"] == sum(bool(line) for line in METADATA)
