"""The verb ``recommend`` on a finished run: what it prints, and what it says of bad input."""

import csv
import io
import json
import shutil

import pytest
from small_data import HISTORIES, TITLES, small_settings, write_dataset

from recbole_llm.cli.main import main
from recbole_llm.quick_start.run import load, recommender, run


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """The folder of a run of one epoch."""
    root = write_dataset(tmp_path_factory.mktemp("recommend"))
    settings = small_settings(root, backbone=str(tiny["opt"]), tuning="ilp", epochs=1, alignment=False)
    return run(settings=settings)["path"].removesuffix("/result.json")


@pytest.fixture(autouse=True)
def _elsewhere(workdir):
    """Nothing is written into the folder that the tests are started from."""


@pytest.fixture(scope="module")
def pop(tmp_path_factory):
    """The folder of a run of a model that knows users by id, on a dataset without texts."""
    root = write_dataset(tmp_path_factory.mktemp("pop"), {"u1": "abc", "u2": "bcd", "u3": "dba"}, titles=None)
    return run(settings=small_settings(root, model="Pop"))["path"].removesuffix("/result.json")


def printed(capsys, *arguments):
    assert main(["recommend", *arguments]) == 0
    return capsys.readouterr().out


def csv_rows(text):
    return list(csv.DictReader(io.StringIO(text)))


def expected_rows(found):
    return [(str(n), item, TITLES[item]) for n, item in enumerate(found.items, start=1)]


def test_histories_from_a_file(finished, capsys, tmp_path):
    expected = recommender(finished).recommend([["a", "b", "c"], ["h"]], 3, exclude_seen=True)
    file = tmp_path / "histories.txt"
    file.write_text("a,b,c\nh\n")
    given = (f"--run={finished}", f"--histories={file}", "--k=3", "--exclude_seen=true")
    rows = csv_rows(printed(capsys, *given))  # not a terminal, and several: CSV
    assert [*rows[0]] == ["history", "rank", "item", "title", "score"]
    for number, found in enumerate(expected, start=1):
        own = [row for row in rows if row["history"] == str(number)]
        assert [(row["rank"], row["item"], row["title"]) for row in own] == expected_rows(found)
        assert [float(row["score"]) for row in own] == pytest.approx(found.scores, rel=1e-4, abs=1e-5)
    lines = [json.loads(line) for line in printed(capsys, *given, "--format=jsonl").splitlines()]
    assert [line["history"] for line in lines] == [["a", "b", "c"], ["h"]]
    for line, found in zip(lines, expected, strict=True):
        assert [(str(item["rank"]), item["item"], item["title"]) for item in line["items"]] == expected_rows(found)


def test_a_history_by_hand_is_a_table(finished, capsys):
    found = recommender(finished).recommend(["a", "b", "c"], len(TITLES))
    text = printed(capsys, f"--run={finished}", "--history=a, b, c", f"--k={len(TITLES)}")
    assert printed(capsys, f"--run={finished}", "--history=a,b,c", f"--k={len(TITLES)}") == text
    head, _, names, _, *rows = text.splitlines()
    assert head == f"history 1: 3 items, the last {TITLES['c']}"
    assert names.split() == ["rank", "item", "title", "score"]
    cells = [row.split(maxsplit=2) for row in rows]
    assert [(rank, item, rest.rsplit(maxsplit=1)[0]) for rank, item, rest in cells] == expected_rows(found)
    nothing = printed(capsys, f"--run={finished}", "--history=a,b,c,d,e,f,g,h", "--exclude_seen=true", "--k=2")
    assert nothing.endswith("nothing is left to recommend\n")


@pytest.mark.parametrize("kind", ["finished", "pop"])
def test_users_of_the_data_set(kind, request, capsys, tmp_path):
    folder = request.getfixturevalue(kind)
    parts = load(folder)
    users = parts.user_recommender.users
    assert len(users) == (len(HISTORIES) if kind == "finished" else 3)
    whole = printed(capsys, f"--run={folder}", "--users=all", "--k=2", "--exclude_seen=true")
    rows = csv_rows(whole)
    columns = ["user", "rank", "item", *(["title"] if kind == "finished" else []), "score"]
    assert [*rows[0]] == columns
    for user, found in zip(users, parts.recommend_to(users, 2, exclude_seen=True), strict=True):
        own = [row for row in rows if row["user"] == user]
        assert [row["item"] for row in own] == found.items
        assert [float(row["score"]) for row in own] == pytest.approx(found.scores, rel=1e-4, abs=1e-5)
    file = tmp_path / "users.txt"
    file.write_text("u3\nu1\n")
    some = [row for user in ("u3", "u1") for row in rows if row["user"] == user]
    for given in ("u3,u1", file):
        asked = (f"--run={folder}", f"--users={given}", "--k=2", "--exclude_seen=true")
        assert csv_rows(printed(capsys, *asked)) == some
    one = printed(capsys, f"--run={folder}", "--user=u3", "--k=2", "--exclude_seen=true", "--format=csv")
    assert csv_rows(one) == [row for row in rows if row["user"] == "u3"]
    table = printed(capsys, f"--run={folder}", "--user=u3", "--k=2")
    assert table.startswith("user u3: 3 items, the last ")
    line = json.loads(printed(capsys, f"--run={folder}", "--user=u3", "--k=2", "--exclude_seen=true", "--format=jsonl"))
    assert line["user"] == "u3"
    assert [item["item"] for item in line["items"]] == [row["item"] for row in rows if row["user"] == "u3"]


def test_many_users_are_written_in_pieces(finished, capsys, monkeypatch):
    whole = printed(capsys, f"--run={finished}", "--users=all", "--k=2")
    monkeypatch.setattr("recbole_llm.cli.recommend._AT_ONCE", 3)
    pieces = printed(capsys, f"--run={finished}", "--users=all", "--k=2")
    drop = [[{**row, "score": ""} for row in csv_rows(text)] for text in (whole, pieces)]
    assert drop[0] == drop[1]


def test_a_file_is_written_whole_or_not_at_all(finished, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("recbole_llm.cli.recommend._AT_ONCE", 1)
    folder = tmp_path / "out"
    histories = tmp_path / "histories.txt"
    histories.write_text("a,b\nc\n")
    given = (f"--run={finished}", f"--histories={histories}", "--k=2")
    for name, form in (("best.csv", "csv"), ("best.jsonl", "jsonl"), ("best.txt", "csv")):
        assert printed(capsys, *given, f"--out={folder / name}") == f"{folder / name}\n"
        assert (folder / name).read_text() == printed(capsys, *given, f"--format={form}")
    kept = (folder / "best.csv").read_text()
    histories.write_text("a,b\nnobody\n")  # the first is answered before the second is read
    assert main(["recommend", *given, f"--out={folder / 'best.csv'}"]) == 1
    assert "there is no item 'nobody' in small" in capsys.readouterr().err
    assert (folder / "best.csv").read_text() == kept
    assert sorted(path.name for path in folder.iterdir()) == ["best.csv", "best.jsonl", "best.txt"]


def test_a_model_that_reads_no_history(pop, capsys):
    assert main(["recommend", f"--run={pop}", "--history=a,b"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: Pop knows users by id and reads no history: name users of its dataset")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--history=a"], "needs the folder of a finished run"),
        (["--run=R"], "needs one of --user=USER, --users="),
        (["--run=R", "--history=a", "--histories=b"], "needs one of --user=USER, --users="),
        (["--run=R", "--users=u1", "--histories=b"], "needs one of --user=USER, --users="),
        (["--run=R", "--user=u1", "--users=u2"], "--user goes alone or with --history, not with --users"),
        (["--run=R", "--user=nobody"], "there is no user 'nobody' in small"),
        (["--run=R", "--users=u1,u77"], "there is no user 'u77' in small; did you mean 'u7'?"),
        (["--run=R", "--users="], "users= names no user"),
        (["--run=R", "--users=" + "u1," * 200 + "u77"], "there is no user 'u77' in small"),  # too long for a file name
        (["--run=R", "--users=empty.txt"], "empty.txt is empty: it needs one user a line"),
        (["--run=R", "--users=gap.txt"], "line 2 of gap.txt is empty: it needs one user a line"),
        (
            ["--run=R", "--user=u1", "--format=json"],
            "format=json is not one of table, jsonl, csv; did you mean 'jsonl'",
        ),
        (["--run=R", "--history=a", "--history=b"], "--history is given twice"),
        (["--run=R", "--history=a", "--topk=3"], "no setting 'topk'"),
        (["--run=R", "history=a"], "'history=a' is not understood"),
        (["--run=R", "--history=a", "--exclude_seen=maybe"], "exclude_seen=maybe must be true or false"),
        (["--run=R", "--histories=none.txt"], "the file of histories none.txt does not exist"),
        (["--run=R", "--histories=empty.txt"], "empty.txt is empty"),
        (["--run=R", "--histories=gap.txt"], "line 2 of gap.txt is empty"),
        (["--run=R", "--history=", "--k=2"], "a history is empty"),
        (["--run=R", "--history=a", "--k=many"], "k=many must be a whole number"),
        (["--run=R", "--history=a", "--k=99"], "k=99 is more than the 8 items of small"),
        (["--run=R", "--history=nobody", "--k=2"], "there is no item 'nobody' in small"),
        (["--run=R", "--history=a b", "--k=2"], "no item 'a b' in small, whose items may have blanks in their names"),
        (["--run=R", '--history="a', "--k=2"], "the history '\"a' is not understood"),
    ],
)
def test_bad_input(finished, capsys, workdir, arguments, message):
    (workdir / "empty.txt").write_text("")
    (workdir / "gap.txt").write_text("a,b\n\nc\n")
    assert main(["recommend", *[a.replace("--run=R", f"--run={finished}") for a in arguments]]) in (1, 2)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


ODD = {"a": "red pump", "b": 'say "hi", you', "c": "=1+1", "d": "\x1b[31mred", "e": "e", "f": "-5"}


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A run on items whose tokens and titles hold blanks, commas, quotes, formulas and control characters."""
    histories = {
        user: [ODD[item] for item in text] for user, text in {"u 1": "abcde", "=u2": "fedcba", "u3": "acf"}.items()
    }
    titles = {token: f"{token} \x9b2J \u2028" for token in ODD.values()}
    root = write_dataset(tmp_path_factory.mktemp("odd"), histories, titles)
    return run(settings=small_settings(root, model="SASRec", epochs=1, loss_type="CE", train_neg_sample_args=None))[
        "path"
    ].removesuffix("/result.json")


def test_tokens_with_blanks_and_commas(odd, capsys, tmp_path):
    asked = 'red pump,"say ""hi"", you", e'
    found = recommender(odd).recommend(["red pump", ODD["b"], "e"], 6)
    (line,) = printed(capsys, f"--run={odd}", f"--history={asked}", "--k=6", "--format=jsonl").splitlines()
    shown = json.loads(line)
    assert shown["history"] == ["red pump", ODD["b"], "e"]
    assert [row["item"] for row in shown["items"]] == list(found.items)
    (tmp_path / "many.txt").write_text(f"{asked}\ne\n")
    lines = printed(capsys, f"--run={odd}", f"--histories={tmp_path}/many.txt", "--k=6", "--format=jsonl").splitlines()
    assert [json.loads(line)["history"] for line in lines] == [shown["history"], ["e"]]


@pytest.mark.parametrize("shown", ["table", "jsonl", "csv"])
def test_no_control_character_is_printed(odd, capsys, shown):
    text = printed(capsys, f"--run={odd}", "--users=all", "--k=6", "--exclude_seen=false", f"--format={shown}")
    assert "\n" in text
    assert all(character.isprintable() or character == "\n" for character in text)
    if shown == "csv":
        rows = csv_rows(text)
        assert len(rows) == 3 * 6
        assert {row["user"] for row in rows} == {"u 1", "'=u2", "u3"}
        assert {row["item"] for row in rows} == {"red pump", ODD["b"], "'=1+1", "\ufffd[31mred", "e", "-5"}


def test_an_unfinished_run(odd, capsys, tmp_path):
    unfinished = tmp_path / "unfinished"
    shutil.copytree(odd, unfinished)
    (unfinished / "result.json").unlink()
    assert main(["recommend", f"--run={unfinished}", "--users=all"]) == 1
    assert f"the run {unfinished} is not finished: resume it with recbole-llm run" in capsys.readouterr().err


# -- items that the model was never trained on -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_texts(tiny, tmp_path_factory):
    """The folders of a run of each model that ranks new items."""
    root = write_dataset(tmp_path_factory.mktemp("by_texts"))
    own = {"hidden_size": 8, "inner_size": 8, "n_layers": 1, "n_heads": 2, "epochs": 2, "learning_rate": 0.01}
    more = {"AlphaFuse": {"null_size": 4}, "UniSRec": {"item_ids": True}, "ZESRec": {}}
    return {
        model: run(settings=small_settings(root, model=model, backbone=str(tiny["bert"]), **own, **settings))[
            "path"
        ].removesuffix("/result.json")
        for model, settings in more.items()
    }


@pytest.fixture
def new_items(tmp_path):
    """A file with a twin of the item d, another item, and a column that nobody reads."""
    file = tmp_path / "new.item"
    file.write_text(f"item_id:token\tprice:float\ttitle:token_seq\ntwin\t1\t{TITLES['d']}\nother\t2\tUSB &amp; Cable\n")
    return file


@pytest.mark.parametrize("model", ["ZESRec", "UniSRec", "AlphaFuse"])
def test_new_items_are_ranked_among_the_others(model, by_texts, new_items, capsys):
    """All are ranked; the others have the scores that they had, and a twin that of the item whose text it has."""
    given = (f"--run={by_texts[model]}", "--history=a,b,c", "--format=jsonl")
    before = json.loads(printed(capsys, *given, "--k=8"))["items"]
    found = json.loads(printed(capsys, *given, "--k=10", f"--new_items={new_items}"))["items"]
    scores = {row["item"]: row["score"] for row in found}
    assert set(scores) == {*TITLES, "twin", "other"}
    assert [row["score"] for row in found] == sorted(scores.values(), reverse=True)
    assert {row["item"]: row["score"] for row in before}.items() <= scores.items()
    assert {row["item"]: row["title"] for row in found}["other"] == "USB & Cable"
    if model == "ZESRec":  # the others also have learned vectors, which a new item lacks
        assert scores["twin"] == pytest.approx(scores["d"], abs=1e-5)
    else:
        assert scores["twin"] != pytest.approx(scores["d"], abs=1e-5)


def test_a_new_item_may_stand_in_a_history(by_texts, new_items, capsys):
    """For a text model it reads as its twin does; one that knows items by id as well must be allowed to."""
    given = ("--format=jsonl", "--k=10", f"--new_items={new_items}")
    ranked = [
        json.loads(printed(capsys, f"--run={by_texts['ZESRec']}", f"--history=a,{item}", *given))["items"]
        for item in ("d", "twin")
    ]
    by_item = [{row["item"]: row["score"] for row in rows} for rows in ranked]
    assert by_item[0] == pytest.approx(by_item[1], abs=1e-5)
    line = ["recommend", f"--run={by_texts['UniSRec']}", "--history=a,twin", *given]
    assert main(line) == 1
    assert "item 'twin' of small was never trained on" in capsys.readouterr().err
    assert main([*line, "--allow_untrained"]) == 0


def test_users_are_recommended_new_items(by_texts, new_items, capsys):
    """Every one of them, among all."""
    rows = csv_rows(
        printed(capsys, f"--run={by_texts['ZESRec']}", "--users=u1,u2", "--k=10", f"--new_items={new_items}")
    )
    assert [sum(row["item"] == "other" for row in rows if row["user"] == user) for user in ("u1", "u2")] == [1, 1]


def test_new_items_that_cannot_be_ranked(by_texts, finished, pop, new_items, tmp_path, capsys):
    """One sentence each: a known item, none, no text, no such column, and models that know items by id."""

    def error(folder, text=None, who="--history=a"):
        file = tmp_path / "bad.item"
        file.write_text(text or new_items.read_text())
        assert main(["recommend", f"--run={folder}", who, f"--new_items={file}"]) in (1, 2)
        return capsys.readouterr().err

    head, model = "item_id:token\ttitle:token_seq\n", by_texts["ZESRec"]
    assert "the new item 'a' is in small, which ranks it already" in error(model, f"{head}a\tToy\n")
    assert "names no item" in error(model, head)
    assert "the new item 'z' has no text in 'title'" in error(model, f"{head}z\t\n")
    assert "has no column 'title'; did you mean 'titel'?" in error(model, "item_id:token\ttitel:token_seq\nz\tToy\n")
    assert "ST2SI scores items by ID and cannot rank one that it was never trained on" in error(finished)
    assert "Pop scores items by ID" in error(pop, who="--user=u1")
