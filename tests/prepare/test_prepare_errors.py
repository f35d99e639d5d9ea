"""Bad input, a full disk, a locked folder: one clear sentence each, and nothing half-written."""

import gzip
import json
import os
import shutil
import tempfile
import zipfile
from pathlib import Path

import pytest
from raw_files import METADATA, REVIEWS, SETTINGS, pack

from recbole_llm.cli.prepare import main, parser
from recbole_llm.errors import DataError, RecBoleLLMError, SettingError, StorageError
from recbole_llm.prepare import download as download_module
from recbole_llm.prepare import prepare, write


def check(error: RecBoleLLMError, out: Path) -> None:
    message = str(error)
    assert "\n" not in message
    assert "Traceback" not in message
    left = {path.name for path in out.iterdir()} if out.is_dir() else set()
    assert left <= {".toy.lock"}


def reviews_with(**last: object) -> list[str]:
    return [json.dumps(review) for review in [*REVIEWS, {"reviewerID": "u1", "asin": "A", "unixReviewTime": 1} | last]]


def without(name: str) -> list[str]:
    return [json.dumps({key: value for key, value in review.items() if key != name}) for review in REVIEWS]


def truncated(raw: Path, name: str) -> None:
    content = (raw / name).read_bytes()
    (raw / name).write_bytes(content[: len(content) // 2])


def damaged(raw: Path, name: str) -> None:
    content = bytearray((raw / name).read_bytes())
    content[len(content) // 2] ^= 0xFF
    (raw / name).write_bytes(content)


BREAK = {
    "a gzip cut off": (
        lambda raw: truncated(raw, "reviews_5.json.gz"),
        "reviews_5.json.gz ends in the middle: download it",
    ),
    "a gzip damaged inside": (
        lambda raw: damaged(raw, "meta.json.gz"),
        "meta.json.gz cannot be unpacked .*: download it again",
    ),
    "no gzip at all": (
        lambda raw: (raw / "reviews_5.json.gz").write_text("<html>not found</html>"),
        "reviews_5.json.gz cannot be unpacked .*Not a gzipped file.*: download it again",
    ),
    "an empty file": (
        lambda raw: (raw / "reviews_5.json.gz").write_bytes(b""),
        "reviews_5.json.gz holds no interactions: it is",
    ),
    "an empty gzip": (lambda raw: pack(raw / "reviews_5.json.gz", []), "holds no interactions: it is empty"),
    "only broken lines": (lambda raw: pack(raw / "reviews_5.json.gz", ["{", "x"]), "or no line of it could be read"),
    "an empty metadata file": (lambda raw: pack(raw / "meta.json.gz", []), "has no entry for any of the 5 items"),
    "no metadata for any item": (
        lambda raw: pack(raw / "meta.json.gz", ['{"asin": "other", "title": "t"}']),
        "meta.json.gz has no entry for any of the 5 items of the interactions: the two files do not belong together",
    ),
    "no metadata has a title": (
        lambda raw: pack(raw / "meta.json.gz", ['{"asin": "A", "title": ""}']),
        r"no interaction of toy is left after the filter \{'titles'",
    ),
    "no user column": (
        lambda raw: pack(raw / "reviews_5.json.gz", without("reviewerID")),
        "has no user column: is it the file",
    ),
    "no item column": (
        lambda raw: pack(raw / "reviews_5.json.gz", without("asin")),
        "has no item column: is it the file that",
    ),
    "no time column": (
        lambda raw: pack(raw / "reviews_5.json.gz", without("unixReviewTime")),
        "has no timestamp column: is it",
    ),
    "a timestamp that is a word": (
        lambda raw: pack(raw / "reviews_5.json.gz", reviews_with(unixReviewTime="yesterday")),
        "the timestamp 'yesterday' of user u1 and item A is not a number: mend or remove that line",
    ),
    "a timestamp that is nan": (
        lambda raw: pack(raw / "reviews_5.json.gz", reviews_with(unixReviewTime="nan")),
        "the timestamp 'nan' of user u1 and item A is not a number",
    ),
}


@pytest.mark.parametrize("case", BREAK)
def test_bad_input(settings_file, amazon, tmp_path, case):
    breaking, message = BREAK[case]
    breaking(amazon)
    with pytest.raises(DataError, match=message) as error:
        prepare(settings_file(), raw=amazon, out=tmp_path / "out")
    check(error.value, tmp_path / "out")


def test_a_wrong_hash_of_a_file_on_disk(settings_file, amazon, tmp_path):
    sources = SETTINGS["sources"] | {"items": {"file": "meta.json.gz", "sha256": "1" * 64}}
    with pytest.raises(
        DataError, match=r"meta\.json\.gz is not the published file .*: remove it and download it again"
    ) as error:
        prepare(settings_file(sources=sources), raw=amazon, out=tmp_path / "out")
    check(error.value, tmp_path / "out")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("user,itm,timestamp\nu,i,1\n", "has no column 'item'; did you mean 'itm'.: it has user, itm, timestamp"),
        ("user,item,timestamp\nu,i,soon\n", "the timestamp 'soon' of user u and item i is neither a number nor a date"),
        ("user,item,timestamp\n", "holds no interactions"),
        ("", "is empty: get it again from its source"),
        ('user,item,timestamp\nu,"i,1\n', "could not be read as a table|no interactions|not a number|no timestamp"),
    ],
)
def test_bad_tables(settings_file, tmp_path, table, message):
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "x.csv").write_text(table)
    settings = settings_file(format="table", sources={"interactions": {"file": "x.csv"}}, item_fields=[], filters=[])
    with pytest.raises(DataError, match=message) as error:
        prepare(settings, raw=raw, out=tmp_path / "out")
    check(error.value, tmp_path / "out")


def test_bad_archives(settings_file, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    sources = {role: {"file": "ml.zip", "member": f"ml/{role}.dat"} for role in ("interactions", "items")}
    settings = settings_file(format="movielens-1m", sources=sources, item_fields=["title"], filters=[])
    with zipfile.ZipFile(raw / "ml.zip", "w") as archive:
        archive.writestr("ml/other.dat", "1::2::3::4\n")
    with pytest.raises(DataError, match=r"the archive .*ml\.zip has no file 'ml/interactions\.dat': download it again"):
        prepare(settings, raw=raw, out=tmp_path / "out")
    (raw / "ml.zip").write_text("not an archive")
    with pytest.raises(DataError, match="cannot be unpacked") as error:
        prepare(settings, raw=raw, out=tmp_path / "out")
    check(error.value, tmp_path / "out")


@pytest.mark.parametrize("part", ["inter_file", "item_file"])
def test_a_full_disk(settings_file, amazon, tmp_path, monkeypatch, part):
    real = getattr(write, part)
    # Every byte written to this device meets a full disk.
    monkeypatch.setattr(write, part, lambda path, *rest: real(Path("/dev/full"), *rest))
    with pytest.raises(StorageError, match=r"no space is left on the disk while writing .*out/toy: free") as error:
        prepare(settings_file(), raw=amazon, out=tmp_path / "out")
    check(error.value, tmp_path / "out")


def test_a_full_disk_while_downloading(tmp_path, monkeypatch):
    class Answer:
        class raw:
            @staticmethod
            def stream(*arguments, **named):
                yield b"x" * 100_000

    monkeypatch.setattr(download_module._Transfer, "part", property(lambda self: Path("/dev/full")))
    with pytest.raises(StorageError, match="no space is left on the disk"):
        download_module._Transfer("http://x", tmp_path / "file")._save(Answer(), 0, None)


def test_a_target_below_a_plain_file(settings_file, amazon, tmp_path):
    (tmp_path / "plain").write_text("")
    with pytest.raises(StorageError, match=r"plain may not be written \(.*\): choose another folder") as error:
        prepare(settings_file(), raw=amazon, out=tmp_path / "plain")
    check(error.value, tmp_path / "plain")


def test_a_target_without_permission(settings_file, amazon, tmp_path):
    open_to_all = Path(tempfile.mkdtemp())
    try:
        open_to_all.chmod(0o755)
        raw, out = open_to_all / "raw", open_to_all / "out"
        shutil.copytree(amazon, raw)
        settings = shutil.copy(settings_file(), open_to_all / "toy.yaml")
        out.mkdir(mode=0o555)
        was = os.geteuid()
        if was == 0:
            os.seteuid(65534)  # permissions do not bind root
        try:
            with pytest.raises(
                StorageError, match=r"out may not be written \(Permission denied\): choose another"
            ) as error:
                prepare(str(settings), raw=raw, out=out)
        finally:
            os.seteuid(was)
        check(error.value, out)
    finally:
        shutil.rmtree(open_to_all)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "amazon-2019"}, r"format 'amazon-2019' is unknown; did you mean 'amazon-20"),
        ({"filter": []}, r"setting 'filter' under prepare is unknown; did you mean 'filters'\?"),
        ({"filters": [{"kcore": {}}]}, r"filter 'kcore' is unknown; did you mean 'k_core'\?"),
        (
            {"filters": [{"k_core": {"users": 5}}]},
            r"setting 'users' under prepare.filters.k_core is unknown; did you mean 'user'",
        ),
        ({"filters": ["titles"]}, "each entry of prepare.filters is one"),
        ({"sources": {"interactions": {"file": "x"}}}, "prepare.sources lacks 'items'"),
        ({"sources": {"interactions": {"sha256": None}, "items": {"file": "x"}}}, "needs a 'url' or a 'file'"),
        ({"item_fields": ["titel"]}, r"item field 'titel' is not given by this format; did you mean 'title'\?"),
        ({"inter_fields": ["price"]}, "knows 'rating' only"),
        ({"options": {"padding": 3}}, "setting 'padding' under prepare.options is unknown"),
        ({"seed": "x"}, "prepare.seed must be a whole number"),
    ],
)
def test_wrong_settings_are_named(settings_file, changes, message):
    settings = settings_file(**changes)
    with pytest.raises(SettingError, match=message) as error:
        prepare(settings)
    assert str(error.value).startswith(settings)


def test_the_command_raises_for_the_cli_to_print():
    for argv, message in (
        ([], "prepare needs a dataset: --dataset=Scientific"),
        (["--dataset=Scientifik"], "did you mean 'Scientific'"),
        (["--dataset=Games", "--nope"], "prepare has no setting 'nope'"),
    ):
        with pytest.raises(SettingError, match=message):
            main(parser().read(argv))


def test_a_broken_line_costs_only_itself(settings_file, amazon, tmp_path):
    """A line broken inside, among thousands of good ones in one block."""
    lines = [json.dumps({"reviewerID": f"u{n // 4}", "asin": "ABC"[n % 3], "unixReviewTime": n}) for n in range(4000)]
    lines[1717] = lines[1717].replace(": ", ":: ")
    lines[2024] = '{"reviewerID": "u", "asin": "A", "unixReviewTime": NaN}'
    pack(amazon / "reviews_5.json.gz", lines)
    pack(amazon / "meta.json.gz", METADATA)
    filters = [{"titles": {}}]
    with pytest.raises(DataError, match="'NaN' of user u and item A is not a number"):
        prepare(settings_file(filters=filters), raw=amazon, out=tmp_path / "out")
    del lines[2024]
    pack(amazon / "reviews_5.json.gz", lines)
    done = prepare(settings_file(filters=filters), raw=amazon, out=tmp_path / "out")
    assert done.counts.interactions == 3998
    assert done.manifest["skipped"]["interactions: broken line"] == 1


def test_gzip_of_several_members_is_read_whole(settings_file, amazon, tmp_path):
    packed = b"".join(gzip.compress((json.dumps(review) + "\n").encode()) for review in REVIEWS)
    (amazon / "reviews_5.json.gz").write_bytes(packed)
    assert prepare(settings_file(), raw=amazon, out=tmp_path / "out").counts.interactions == 8
