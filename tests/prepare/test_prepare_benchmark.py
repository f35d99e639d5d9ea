"""Datasets with LLaRA's validation and test rows: files of made-up rows, and the real configuration on them."""

from pathlib import Path

import pandas as pd
import pytest
import yaml
from small_data import small_settings

from recbole_llm.cli import main as cli
from recbole_llm.errors import DataError, SettingError
from recbole_llm.prepare import prepare
from recbole_llm.quick_start.run import run
from recbole_llm.utils.files import read_yaml
from recbole_llm.utils.paths import shipped

HEADER = "user_id\titem_id_list\titem_id\n"
TITLES = {"1": "One", "2": "Two", "3": "Three", "4": "Four", "5": "Five", "6": "Nobody met it"}


def write_rows(raw: Path, valid: str = "b\t1 2 3\t4\n", test: str = "c\t2 1\t5\n") -> Path:
    raw.mkdir(exist_ok=True)
    inter = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    inter += ["a\t2\t5\t30", "b\t1\t1\t1", "a\t1\t3\t10", "a\t3\t3\t20", "d\t5\t1\t5", "c\t2\t1\t9", "a\t4\t4\t40"]
    (raw / "x.inter").write_text("\n".join([*inter, "e\t1\t1\t1", "e\t2\t2\t2"]) + "\n")
    items = [f"{item}\t{title}" for item, title in TITLES.items()]
    (raw / "x.item").write_text("\n".join(["item_id:token\ttitle:token_seq", *items]) + "\n")
    (raw / "valid.tsv").write_text(HEADER + valid)
    (raw / "test.tsv").write_text(HEADER + test)
    return raw


def rows_settings(settings_file, **changes):
    files = {"interactions": "x.inter", "items": "x.item", "valid": "valid.tsv", "test": "test.tsv"}
    sources = {role: {"file": name} for role, name in files.items()}
    common = {"format": "llara-rows", "sources": sources, "item_fields": ["title"], "filters": []}
    return settings_file(**{**common, "benchmark": {"history": 2, "all_items": True}, **changes})


def read(folder: Path, kind: str) -> list[str]:
    return (folder / f"{folder.name}.{kind}").read_text().splitlines()[1:]


def test_rows_of_a_published_split(settings_file, tmp_path):
    done = prepare(rows_settings(settings_file), raw=write_rows(tmp_path / "raw"), out=tmp_path / "out")
    # a: 1 3 2 4 in time; b and c have rows; d has one interaction
    assert read(done.folder, "train.inter") == ["a\t1\t3", "a\t1 3\t2", "a\t3 2\t4", "e\t1\t2"]
    assert read(done.folder, "valid.inter") == ["b\t2 3\t4"]
    assert read(done.folder, "test.inter") == ["c\t2 1\t5"]
    header = (done.folder / "toy.test.inter").read_text().splitlines()[0]
    assert header == "user_id:token\titem_id_list:token_seq\titem_id:token"
    assert sorted(read(done.folder, "item")) == [f"{item}\t{title}" for item, title in TITLES.items()]
    assert done.manifest["skipped"] == {"interactions: of users with a row": 2}
    assert set(done.manifest["outputs"]) == {"toy.train.inter", "toy.valid.inter", "toy.test.inter", "toy.item"}
    assert not prepare(rows_settings(settings_file), raw=tmp_path / "raw", out=tmp_path / "out").made
    with pytest.raises(SettingError, match="leave out --report"):
        prepare(rows_settings(settings_file), tmp_path / "raw", tmp_path / "out", report=tmp_path / "r.html")


def test_without_all_items_only_those_that_occur_are_written(settings_file, tmp_path):
    settings = rows_settings(settings_file, benchmark={"history": 2})
    done = prepare(settings, raw=write_rows(tmp_path / "raw"), out=tmp_path / "out")
    assert len(read(done.folder, "item")) == 5


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"valid": "b\t1 2 3\n"}, "line 2 has not a user, a history and a target"),
        ({"valid": "b\t\t3\n"}, "line 2 has not a user, a history and a target"),
        ({"valid": "b\t1 77\t3\n"}, "valid.tsv has the item 77, which .*x.inter has not"),
        ({"valid": "b\t1 2\t3\nb\t1 2\t4\n"}, "user b has two rows"),
        ({"test": ""}, "the test part of toy has no row"),
    ],
)
def test_broken_rows(settings_file, tmp_path, files, message):
    with pytest.raises(DataError, match=message):
        prepare(rows_settings(settings_file), raw=write_rows(tmp_path / "raw", **files), out=tmp_path / "out")
    assert not (tmp_path / "out" / "toy").exists()


def test_other_tables_are_refused(settings_file, tmp_path):
    raw = write_rows(tmp_path / "raw")
    (raw / "valid.tsv").write_text("user,items\n1,2\n")
    with pytest.raises(DataError, match="must have the columns user_id, item_id_list, item_id"):
        prepare(rows_settings(settings_file), raw=raw, out=tmp_path / "out")


@pytest.mark.parametrize(
    ("benchmark", "message"),
    [
        ({"history": 0}, "history=0 must be a whole number from 1"),
        ({}, "must be a whole number, not None"),
        ({"history": 3, "items": "all"}, "setting 'items' under prepare.benchmark is unknown"),
        (10, "is written as 'history: 10', not 10"),
    ],
)
def test_wrong_settings(settings_file, tmp_path, benchmark, message):
    with pytest.raises(SettingError, match=message):
        prepare(rows_settings(settings_file, benchmark=benchmark), raw=tmp_path, out=tmp_path / "out")


def test_a_format_without_a_split_is_refused(settings_file, tmp_path):
    sources = {"interactions": {"file": "x.inter"}, "items": {"file": "x.item"}}
    settings = rows_settings(settings_file, format="atomic", sources=sources)
    with pytest.raises(DataError, match="the format 'atomic' publishes no split"):
        prepare(settings, raw=write_rows(tmp_path / "raw"), out=tmp_path / "out")


def test_an_id_that_reads_as_missing_is_refused(settings_file, tmp_path):
    raw = write_rows(tmp_path / "raw")
    text = (raw / "x.inter").read_text()
    (raw / "x.inter").write_text(text + "d\tNA\t1\t6\n")
    with pytest.raises(DataError, match="the item id 'NA' cannot stand in a list"):
        prepare(rows_settings(settings_file), raw=raw, out=tmp_path / "out")


def steam(raw: Path) -> Path:
    """Made-up rows in the form of LLaRA's Steam tables."""

    def window(*items):
        return [*items, *[3581] * (10 - len(items))]

    rows = {
        "train_data.df": [
            (window(1, 2, 3), 3, 4),
            (window(1, 2, 3, 4), 4, 5),  # goes on
            (window(7, 1, 2), 3, 3),
            *(([(user * 5 + place * 3) % 50 + 8 for place in range(10)], 10, 1) for user in range(12)),
        ],
        "Val_data.df": [(window(5, 4, 3), 3, 2), (window(5, 4, 3, 2), 4, 6)],  # two rows, though one goes on
        "Test_data.df": [(window(2, 3, 7), 3, 1), (window(*range(8, 18)), 10, 2)],
    }
    raw.mkdir(exist_ok=True)
    for name, table in rows.items():
        pd.DataFrame(table, columns=["seq", "len_seq", "next"]).to_pickle(raw / name)
    (raw / "id2name.txt").write_text("".join(f"{item}::Game number {item}\n" for item in range(1, 60)))
    return raw


def test_steam_with_llaras_rows(tmp_path):
    done = prepare("steam-llara", raw=steam(tmp_path / "raw"), out=tmp_path / "out")
    assert read(done.folder, "train.inter")[:6] == [
        "train-0\t1\t2",
        "train-0\t1 2\t3",
        "train-0\t1 2 3\t4",
        "train-0\t1 2 3 4\t5",
        "train-1\t7\t1",
        "train-1\t7 1\t2",
    ]
    assert read(done.folder, "valid.inter") == ["valid-0\t5 4 3\t2", "valid-1\t5 4 3 2\t6"]
    assert read(done.folder, "test.inter") == ["test-0\t2 3 7\t1", "test-1\t8 9 10 11 12 13 14 15 16 17\t2"]
    assert len(read(done.folder, "item")) == 59


@pytest.mark.parametrize("model", ["ST2SI", "Caser", "SASRec", "GRU4Rec"])
def test_a_run_on_steam_with_llaras_rows(workdir, tiny, model):
    prepare("steam-llara", raw=steam(workdir / "raw"), out=workdir)
    settings = small_settings(workdir, model=model, dataset="steam-llara", epochs=1, candidates=20, candidate_seeds=4)
    if model == "ST2SI":
        settings["backbone"] = str(tiny["opt"])
    result = run(settings=settings)
    assert result["counts"] == {"users": 18, "items": 59, "train": 4 + 3 + 12 * 10, "valid": 2, "test": 2}
    assert result["candidates"]["size"] == 20
    assert result["test"]["mrr"] > 0


def test_movielens_from_recboles_own_files_and_two_tables(workdir, capsys):
    """The shipped settings without the hashes of LLaRA's tables, which do not travel with the project."""
    raw = workdir / "raw"
    raw.mkdir()
    history = "242 302 377 51 346 474 265 465 451 86"
    (raw / "valid.tsv").write_text(f"{HEADER}196\t{history}\t257\n")
    (raw / "test.tsv").write_text(f"{HEADER}186\t{history}\t222\n")
    settings = read_yaml(shipped("dataset_configs") / "ml-100k-llara.yaml")
    for role in ("valid", "test"):
        assert len(settings["prepare"]["sources"][role].pop("sha256")) == 64
    (workdir / "mine.yaml").write_text(yaml.safe_dump(settings))
    assert cli.main(["prepare", "--dataset=mine.yaml", f"--raw={raw}", "--out=out"]) == 0
    assert "1,682" in capsys.readouterr().out
    folder = workdir / "out" / "mine"
    assert read(folder, "valid.inter") == [f"196\t{history}\t257"]
    assert len(read(folder, "item")) == 1682
    train = pd.read_csv(folder / "mine.train.inter", sep="\t", dtype=str)
    assert train["user_id:token"].nunique() == 941
    assert train["item_id_list:token_seq"].str.split().str.len().max() == 10
    inter = pd.read_csv(shipped_ml_100k(), sep="\t", dtype=str)
    kept = inter[~inter["user_id:token"].isin(["196", "186"])]
    assert len(train) == len(kept) - 941
    user = kept[kept["user_id:token"] == "22"].sort_values("timestamp:float", kind="stable")["item_id:token"].tolist()
    rows = train[train["user_id:token"] == "22"]
    assert rows["item_id:token"].tolist() == user[1:]
    expected = [" ".join(user[max(0, end - 10) : end]) for end in range(1, len(user))]
    assert rows["item_id_list:token_seq"].tolist() == expected


def shipped_ml_100k() -> Path:
    import recbole

    return Path(recbole.__file__).parent / "dataset_example" / "ml-100k" / "ml-100k.inter"
