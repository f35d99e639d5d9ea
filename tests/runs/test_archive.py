"""Archives of runs: what goes in comes out as from the folders, and commands take a run from either place."""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from kept_runs import ML_100K, kept_result, unpack, write_ranks_of

from recbole_llm.comparison.compare import Options, compare
from recbole_llm.comparison.finished import find_runs, read_result
from recbole_llm.errors import CheckpointError, DataError, StorageError
from recbole_llm.plots.records import read_runs
from recbole_llm.runs.archive import archived_run, find_archived, read_archive, split_path, write_archive
from recbole_llm.runs.ranks import read_ranks

# What a reader of tables may take for a missing value or a number.
USERS = ["NA", "null", "007", "7", "1e3", "ü", "", "7"]
ITEMS = ["nan", "3.0", "a b", '"quoted"', "x", "x", "None", "y"]


def make_run(folder, ranks=None, valid=None, items=ITEMS, **fields):
    """A run's folder `<label>/seed-<n>`, with the ranks of `USERS`."""
    folder.mkdir(parents=True)
    result = kept_result("ml-100k", "Pop") | {"seed": int(folder.name.removeprefix("seed-"))} | fields
    (folder / "result.json").write_text(json.dumps(result, indent=2))
    for split, own in (("test", ranks), ("valid", valid)):
        if own is not None:
            frame = pd.DataFrame({"user": USERS[: len(own)], "item": items[: len(own)], "rank": own})
            write_ranks_of(frame, folder / f"ranks-{split}.tsv.gz")
    return folder


@pytest.fixture
def folders(tmp_path):
    """Runs with all that differs between runs: targets, their order, splits, and no ranks at all."""
    big = [1, 255, 256, 257, 65_535, 65_536, 16_777_217, 4_294_967_295]
    root = tmp_path / "folders"
    return [
        make_run(root / "A" / "seed-2020", big, [8, 7, 6], note="line\nbreak, \x1f, ü, 0.1", loss=[0.1, 1e-300, 1 / 3]),
        make_run(root / "A" / "seed-3", list(range(1, 9)), [5, 6, 7]),
        make_run(root / "A-b" / "seed-3", [3, 2, 1, 1, 1, 1, 1, 1], items=ITEMS[::-1]),
        make_run(root / "none" / "seed-0"),
        make_run(root / "empty" / "seed-1", []),
    ]


def assert_same(run, folder):
    assert json.dumps(run.result) == json.dumps(json.loads((folder / "result.json").read_text()))
    assert (run.label, run.seed) == (folder.parent.name, run.result["seed"])
    for split in ("test", "valid"):
        path = folder / f"ranks-{split}.tsv.gz"
        if path.exists():
            pd.testing.assert_frame_equal(run.ranks(split), read_ranks(path), check_exact=True)
        else:
            assert run.ranks(split) is None


def test_runs_come_back_as_they_were_in_their_folders(folders, tmp_path):
    archive = tmp_path / "runs.parquet"
    write_archive(folders, archive)
    runs = read_archive(archive)
    places = [run.path.relative_to(archive).as_posix() for run in runs]
    assert places == sorted(folder.relative_to(folder.parents[1]).as_posix() for folder in folders)
    for folder in folders:
        assert_same(archived_run(archive / folder.parent.name / folder.name), folder)


def test_ranks_of_one_split_can_be_left_out(folders, tmp_path):
    archive = tmp_path / "runs.parquet"
    write_archive(folders, archive, ["test"])
    for folder in folders:
        run = archived_run(archive / folder.parent.name / folder.name)
        assert run.ranks("valid") is None
        path = folder / "ranks-test.tsv.gz"
        if path.exists():
            pd.testing.assert_frame_equal(run.ranks(), read_ranks(path), check_exact=True)


def test_targets_are_written_once_and_order_of_runs_does_not_matter(folders, tmp_path):
    first, second, third = (tmp_path / f"{name}.parquet" for name in "abc")
    write_archive(folders, first)
    write_archive(folders[::-1], second)
    write_archive(read_archive(second), third)
    assert first.read_bytes() == second.read_bytes() == third.read_bytes()
    frame = pl.read_parquet(first)
    assert dict(frame.select("label", "test_targets").rows()) == {"A": 1, "A-b": 0, "empty": 3, "none": None}
    assert frame["test_users"].is_null().to_list() == [False, False, True, False, True]
    # rows that a reader without this package puts together
    planes = [np.frombuffer(frame[f"test_ranks_{place}"][1], np.uint8).astype(np.int64) for place in range(4)]
    assert (
        sum(plane * 256**place for place, plane in enumerate(planes)).tolist()
        == read_ranks(folders[0] / "ranks-test.tsv.gz")["rank"].tolist()
    )


def test_a_changed_archive_is_read_anew(folders, tmp_path):
    archive = tmp_path / "runs.parquet"
    write_archive(folders[:1], archive)
    (run,) = read_archive(archive)
    assert len(run.ranks()) == 8
    write_archive([*folders[1:], *read_archive(archive)], archive)
    assert len(read_archive(archive)) == 5
    assert run.ranks()["rank"].max() == 4_294_967_295


def test_patterns_name_runs_in_archives(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_archive(folders, "one.parquet")
    write_archive([make_run(tmp_path / "C[1]" / "seed-5")], "two.parquet")

    def found(pattern):
        return [path.as_posix() for path in find_archived(pattern)]

    assert found("one.parquet/A") == ["one.parquet/A/seed-2020", "one.parquet/A/seed-3"]
    assert found("one.parquet/A*/seed-3") == ["one.parquet/A-b/seed-3", "one.parquet/A/seed-3"]
    assert found("one.parquet/none/seed-0/result.json") == ["one.parquet/none/seed-0"]
    assert found("two.parquet/C[1]/seed-5") == ["two.parquet/C[1]/seed-5"], "a name as it is, too"
    assert len(found("*.parquet")) == len(found("*.parquet/*/*")) == 6
    assert find_runs(["one.parquet/none", "mine:two.parquet"]) == [
        ("none", Path("one.parquet/none/seed-0")), ("mine", Path("two.parquet/C[1]/seed-5")),
    ]  # fmt: skip
    assert split_path("a/b/c") is None
    for pattern, message in (
        ("three.parquet", "no archive of runs is at three.parquet"),
        ("one.parquet/B", "no finished run is at one.parquet/B"),
        ("one.parquet/A/seed-3/more", "no finished run is at"),
    ):
        with pytest.raises(CheckpointError, match=message):
            find_runs([pattern])
    with pytest.raises(CheckpointError, match=r"the archive one.parquet has no run A/seed-4"):
        read_result(Path("one.parquet/A/seed-4"))


def test_what_cannot_be_archived_or_read(folders, tmp_path):
    archive = tmp_path / "runs.parquet"
    zero = make_run(tmp_path / "zero" / "seed-1", [1, 0])
    renamed = folders[3].rename(folders[3].with_name("best"))
    for runs, message in (
        ([folders[0], folders[0]], "two of the runs for .* are called A/seed-2020"),
        ([renamed], "best must be a run's folder with the name seed-<number>, where its seed is 0"),
        ([tmp_path / "nothing"], "nothing/result.json does not exist"),
        ([zero], "has the rank 0, but ranks begin at 1"),
    ):
        with pytest.raises(DataError, match=message):
            write_archive(runs, archive)
    with pytest.raises(DataError, match=r"must have a name that ends in \.parquet"):
        write_archive(folders, tmp_path / "runs.zip")
    with pytest.raises(StorageError):
        write_archive(folders[:1], folders[0] / "result.json" / "runs.parquet")
    assert not list(tmp_path.glob("*runs*"))
    archive.write_text("no parquet")
    with pytest.raises(DataError, match=r"runs.parquet is not an archive of runs"):
        read_archive(archive)
    pl.DataFrame({"label": ["A"]}).write_parquet(archive)
    with pytest.raises(DataError, match=r"runs.parquet is not an archive of runs"):
        find_runs([str(archive)])


def test_a_result_in_an_archive_that_is_broken_is_named(folders, tmp_path):
    """The table can be read, but one of its texts is cut, holds no number or is a list."""
    archive = tmp_path / "runs.parquet"
    write_archive(folders[:1], archive)
    whole = pl.read_parquet(archive)
    for text, message in (
        (whole["result"][0][:20], "is not a readable result of a run"),
        ('{"seed": NaN}', "it holds NaN, which is not a number"),
        ("[1]", "is not a result of a run: it holds a list"),
    ):
        whole.with_columns(result=pl.lit(text)).write_parquet(archive)
        with pytest.raises(DataError, match=rf"runs\.parquet/A/seed-2020 .*{message}"):
            read_result(archive / "A" / "seed-2020")


def test_a_comparison_is_the_same_from_an_archive_and_from_folders(workdir):
    for run in read_archive(ML_100K):
        unpack(run.path, workdir / "runs" / run.label / f"seed-{run.seed}")
    comparisons = [
        compare(Options(runs=[runs], out=out, show="mrr,ndcg@10,interval.mrr"))
        for runs, out in ((str(ML_100K), "archive"), ("runs/*/*", "folders"))
    ]
    runs = [[cell.pop("run") for cell in comparison["cells"]] for comparison in comparisons]
    for archived, folder in zip(*runs, strict=True):
        result = archived_run(os.path.normpath(workdir / "archive" / archived)).result
        assert result == read_result(workdir / "folders" / folder).to_dict()
    for name in comparisons[0].keys() - {"created", "path"}:
        assert comparisons[0][name] == comparisons[1][name], name
    assert comparisons[0]["significance"] and len(comparisons[0]["cells"]) == 6


def test_plots_read_an_archive_as_folders(workdir):
    for run in read_archive(ML_100K):
        unpack(run.path, workdir / run.label / f"seed-{run.seed}")
    archived, unpacked = read_runs(str(ML_100K)), read_runs("*/*")
    assert archived.labels == unpacked.labels and archived.metrics == unpacked.metrics
    for one, other in zip(archived.records, unpacked.records, strict=True):
        assert vars(one) | {"source": ""} == vars(other) | {"source": ""}


def test_runs_are_added_to_an_archive(folders, tmp_path, capsys):
    path = Path(__file__).parents[2] / "experiments" / "keep_runs.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    archive, whole = tmp_path / "added.parquet", tmp_path / "whole.parquet"
    assert tool.main([str(archive), str(folders[0]), str(folders[2])]) == 0
    other = make_run(tmp_path / "else" / "A-b" / "seed-3", [4, 4], mrr_note="another")
    assert tool.main([str(archive), str(other), *map(str, folders[3:]), str(folders[1])]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["replaced A-b/seed-3", f"{archive} has 5 runs"]
    assert_same(archived_run(archive / "A-b" / "seed-3"), other)
    write_archive([*folders[:2], other, *folders[3:]], whole, ["test"])
    assert archive.read_bytes() == whole.read_bytes()
    assert tool.main([str(archive), str(tmp_path)]) == 1
    assert "result.json does not exist" in capsys.readouterr().err
    assert archive.read_bytes() == whole.read_bytes()
