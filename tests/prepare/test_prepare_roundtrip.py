"""ml-100k as RecBole ships it, written back into the publisher's format, comes out the same."""

import csv
import importlib.util
from collections import Counter
from pathlib import Path

import pytest

from recbole_llm.prepare import prepare
from recbole_llm.prepare.formats.movielens import _GENRES
from recbole_llm.prepare.spec import load_spec


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        table = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    names = [name.partition(":")[0] for name in table[0]]
    return [dict(zip(names, row, strict=True)) for row in table[1:]]


@pytest.fixture(scope="module")
def recbole() -> Path:
    spec = importlib.util.find_spec("recbole")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "dataset_example" / "ml-100k"


def test_ml_100k(recbole, tmp_path, monkeypatch):
    theirs = rows(recbole / "ml-100k.inter")
    movies = rows(recbole / "ml-100k.item")
    raw = tmp_path / "raw" / "ml-100k"
    raw.mkdir(parents=True)
    key = ("user_id", "item_id", "rating", "timestamp")
    (raw / "u.data").write_text("".join("\t".join(row[name] for name in key) + "\n" for row in theirs))
    with (raw / "u.item").open("w", encoding="latin-1") as file:
        for movie in movies:
            year = "" if movie["movie_title"] == "unkonwn" else f" ({movie['release_year']})"
            flags = "|".join(str(int(genre in movie["class"].split())) for genre in _GENRES)
            file.write(f"{movie['item_id']}|{movie['movie_title']}{year}|01-Jan-1995||http://x|{flags}\n")

    done = prepare("ml-100k", raw=tmp_path / "raw", out=tmp_path / "out")
    assert done.counts.as_dict() == load_spec("ml-100k").paper_counts["st2si"]

    ours = rows(done.folder / "ml-100k.inter")
    assert Counter(tuple(row[name] for name in key) for row in ours) == Counter(
        tuple(row[name] for name in key) for row in theirs
    )
    # Users in the order of the file, each one's rows by time, ties in the file's order.
    users = {user: place for place, user in enumerate(dict.fromkeys(row["user_id"] for row in theirs))}
    expected = sorted(theirs, key=lambda row: (users[row["user_id"]], int(row["timestamp"])))
    assert [row["item_id"] for row in ours] == [row["item_id"] for row in expected]

    known = {movie["item_id"]: movie for movie in movies}
    for movie in rows(done.folder / "ml-100k.item"):
        original = known[movie["item_id"]]
        if original["release_year"] == "V":  # "... (1995) (V)": RecBole took the V for the year
            original |= {"movie_title": original["movie_title"].removesuffix(" (1995)"), "release_year": "1995"}
        assert movie["movie_title"].strip() == original["movie_title"].strip()
        if original["release_year"].isdigit():
            assert movie["release_year"] == original["release_year"]
        assert set(movie["class"].split()) == set(original["class"].split())
