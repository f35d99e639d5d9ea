"""Files that were changed by hand, cut, or are no files: one sentence that names the file, never a traceback."""

import gzip
import json
import os
import shutil

import pytest
from comparison_data import comparison
from small_data import small_settings, write_dataset

from recbole_llm.cli.main import main
from recbole_llm.comparison.child_runs import CellRunner
from recbole_llm.comparison.file import read_comparison
from recbole_llm.errors import DataError, RecBoleLLMError
from recbole_llm.hyper_search.space import read_space
from recbole_llm.hyper_search.study import Record, Study
from recbole_llm.quick_start.run import run
from recbole_llm.report import page
from recbole_llm.runs.ranks import read_ranks
from recbole_llm.utils.files import read_json_object, read_text, read_yaml
from recbole_llm.utils.values import parse_value

SHORT = {"u1": "abcd", "u2": "bcde", "u3": "dbac"}  # nobody knows all eight items
BAD = [None, "x", -1, True, [], {}, [[]], {"a": {}}, 1e308, "\x1b[31m"]


def sentence(capsys, code, *arguments):
    """The one line that a command ends with."""
    assert main(list(arguments)) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


# -- what is no file ---------------------------------------------------------------------------------------------------


@pytest.fixture
def no_files(workdir):
    """Names of what is no file, with what is said of each."""
    (workdir / "folder").mkdir()
    os.mkfifo(workdir / "pipe")
    (workdir / "circle").symlink_to("circle")
    (workdir / "dangling").symlink_to("nowhere")
    (workdir / "latin").write_bytes(b"learning_rate: \xe9\xff")
    return {
        "folder": "folder is a folder, but a",
        "pipe": "pipe is no file but a pipe or a device: write the",
        "circle": "circle cannot be read: its links lead in a circle",
        "dangling": "dangling does not exist",
        "nosuch": "nosuch does not exist",
        "latin": "latin is not UTF-8 text",
        "x" * 300: f"{'x' * 300} cannot be read: File name too long",
        "folder/nosuch/deeper": "folder/nosuch/deeper does not exist",
        "latin/inside": "latin/inside cannot be read: Not a directory",
        "zero\0byte": r"'zero\x00byte' cannot be read: embedded null byte",
    }


@pytest.mark.parametrize("read", [read_text, read_yaml, read_space, lambda path: read_json_object(path, "table")])
def test_what_is_no_file(no_files, read):
    for name, message in no_files.items():
        with pytest.raises(DataError) as error:
            read(name)
        assert message in str(error.value)


COMMANDS = [
    ["run", "--model=SASRec", "--dataset=ml-100k", "--config_files={}"],
    ["tune", "--model=SASRec", "--dataset=ml-100k", "--params_file={}"],
    ["compare", "--models=SASRec", "--dataset=ml-100k", "--model_settings={}"],
    ["compare", "--models=SASRec", "--dataset=ml-100k", "--config_files={}"],
    ["pretrain", "--pretrain_datasets=ml-100k", "--config_files={}"],
    ["report", "--comparison={}"],
    ["plot", "--kind=curves", "--comparison={}"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_says_so(no_files, capsys, command):
    for name, message in no_files.items():
        if "\0" not in name:  # no command line can hold it
            assert message in sentence(capsys, 1, *(word.format(name) for word in command))


@pytest.mark.parametrize("number", [2, 13, 20, 21, 28, 40])
@pytest.mark.parametrize("names", [(), ("a.txt",), ("a.txt", None, "b.txt")])
def test_an_error_of_the_system_names_its_file(monkeypatch, capsys, number, names):
    def fail(_):
        raise OSError(number, os.strerror(number), *names)

    monkeypatch.setattr("recbole_llm.cli.main._run_verb", fail)
    line = sentence(capsys, 1, "run")
    assert "Errno" not in line
    assert all(name in line for name in names if name)


# -- YAML --------------------------------------------------------------------------------------------------------------

TWICE = ["a: 1\na: 1", "a: 1\nb: 2\n'a': 3", "a: {b: 1, b: 2}", "a:\n- {c: 1, c: 1}", "? a\n: 1\n? a\n: 2"]
WITHIN = ["a: &x [*x]", "a: &x {b: *x}", "&x a: [1]\nb: &y {c: [*y]}", "&top\na: {b: [*top]}"]
MANY = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((text, "is given twice") for text in TWICE),
        *((text, "a value contains itself") for text in WITHIN),
        (MANY, "its references stand for more than 1,000,000 values"),
        ("a: " + "[" * 900 + "]" * 900, "its lists and mappings are too deep"),
        ("a: 2024-13-45", "is not valid YAML: month must be in 1..12"),
        ("- a", "must hold settings as 'name: value' lines"),
    ],
)
def test_yaml_that_no_settings_are(workdir, text, message):
    (workdir / "bad.yaml").write_text(text)
    with pytest.raises(DataError, match=r"bad\.yaml") as error:
        read_yaml("bad.yaml")
    assert message in str(error.value)


def test_yaml_that_is_fine(workdir):
    (workdir / "good.yaml").write_text("\ufeffa: &x {c: 1}\nb: {<<: *x, d: 2}\ne: [*x, *x]\n1: one\n'1': text\n")
    assert read_yaml("good.yaml") == {"a": {"c": 1}, "b": {"c": 1, "d": 2}, "e": [{"c": 1}] * 2, 1: "one", "1": "text"}


@pytest.mark.parametrize("text", ["{a: 1, a: 2}", "{'a': 1, 'a': 2}", "[{b: 1, b: 1}]", "&x [*x]", "{a: {b: 1, b: 2}}"])
def test_values_of_the_command_line(text, capsys):
    if text.startswith("&"):
        assert parse_value(text) == text
        return
    assert "is given twice" in sentence(capsys, 2, "run", "--model=SASRec", "--dataset=ml-100k", f"--eval_args={text}")


# -- comparisons and runs ----------------------------------------------------------------------------------------------


def places(value, path=()):
    """The place of every kind of value: of a list, the first entry alone."""
    yield path
    inside = value.items() if isinstance(value, dict) else list(enumerate(value))[:1] if isinstance(value, list) else ()
    for key, one in inside:
        yield from places(one, (*path, key))


def replaced(value, path, new):
    copy = json.loads(json.dumps(value))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return copy


def test_a_comparison_changed_by_hand(workdir, capsys, monkeypatch):
    pictures = ("bar_pictures", "group_pictures", "other_pictures")
    monkeypatch.setattr(page, "_pictures", lambda results: {name: [] for name in pictures})
    whole = {**comparison(), "papers": None}
    refused = 0
    for number, path in enumerate(list(places(whole))[1:]):
        new = BAD[number % len(BAD)]
        (workdir / "c.json").write_text(json.dumps(replaced(whole, path, new)))
        code = main(["report", "--comparison=c.json", "--out=page.html"])
        error = capsys.readouterr().err.strip()
        assert code in (0, 1)
        assert code == 0 or (error.startswith("error: ") and "c.json" in error and "\n" not in error), (path, new)
        refused += code
    assert refused > 20


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of two runs."""
    root = write_dataset(tmp_path_factory.mktemp("runs"), SHORT)
    return [
        run(settings=small_settings(root, model=model, epochs=1))["path"].rpartition("/")[0] for model in ("Pop", "BPR")
    ]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("result.json", b"{"),
        ("result.json", b"[]"),
        ("result.json", b'{"model": 3}'),
        ("result.json", b"\xff\xfe"),
        ("ranks-test.tsv.gz", b""),
        ("ranks-test.tsv.gz", b"no gzip"),
        ("ranks-test.tsv.gz", gzip.compress(b"user\titem\trank\nu1\ta\t0\n", mtime=0)),
        ("ranks-test.tsv.gz", gzip.compress(b"user\titem\trank\nu1\ta\t-3\n", mtime=0)),
        ("ranks-test.tsv.gz", gzip.compress(b"user\titem\trank\nu1\ta\t99999999999999999999\n", mtime=0)),
        ("ranks-test.tsv.gz", gzip.compress(b"user\titem\trank\nu1\ta\tx\n", mtime=0)),
        ("ranks-test.tsv.gz", gzip.compress(b"user\titem\n", mtime=0)),
        ("ranks-test.tsv.gz", gzip.compress(b"", mtime=0)[:-4]),
        ("ranks-test.tsv.gz", None),
        ("both", b"{"),
    ],
)
def test_one_bad_run_leaves_the_rest_of_the_table(runs, workdir, capsys, file, content):
    good, bad = workdir / "good", workdir / "bad"
    shutil.copytree(runs[0], good)
    shutil.copytree(runs[1], bad)
    for name in ("result.json", "config.yaml") if file == "both" else (file,):
        (bad / name).unlink()
        (bad / name).mkdir() if content is None else (bad / name).write_bytes(content)
    assert main(["compare", "--runs=good,bad", "--out=out"]) == 0
    table = capsys.readouterr().out
    found = json.loads((workdir / "out/comparison.json").read_text())
    by_label = {cell["label"]: cell for cell in found["cells"]}
    assert by_label["Pop"]["status"] == "done"
    assert "| Pop |" in table
    other = by_label["bad" if file == "both" else "BPR"]
    told = other["reason"] if file != "ranks-test.tsv.gz" else " ".join(found["notes"])
    assert ("result.json" if file == "both" else file) in told
    assert "\n" not in told
    assert (other["status"] == "failed") == (file != "ranks-test.tsv.gz")


@pytest.mark.parametrize(
    "state", ["{}", "[]", '{"asked": {}}', '{"asked": {}, "cells": {"a": 3}}', '{"cells": {"a": {}}}', "x"]
)
def test_the_state_of_a_comparison(workdir, state):
    (workdir / "state.json").write_text(state)
    with pytest.raises(DataError, match=r"state\.json"):
        CellRunner(workdir, {}, {}, print)


# -- studies -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def study(workdir):
    found = object.__new__(Study)
    found.folder, found.bigger = workdir / "study", True
    found.store(Record(0, "complete", {"learning_rate": 0.1}, 0.5, {"ndcg@10": 0.5}, 1, [{"epoch": 0, "score": 0.5}]))
    return found


def test_records_of_trials(study):
    path = study.trial_folder(0) / "trial.json"
    whole = json.loads(path.read_text())
    assert study.all_stored() == [Record(**whole)]
    (study.folder / "trials/notes").mkdir()
    (study.folder / "trials/notes/trial.json").write_text("{}")
    changed = [
        {},
        {**whole, "more": 1},
        *({k: v for k, v in whole.items() if k != name} for name in ("number", "state")),
    ]
    refused = 0
    for content in [*changed, *(replaced(whole, (name,), new) for name in whole for new in BAD)]:
        path.write_text(json.dumps(content))
        try:
            (record,) = study.all_stored()
            assert study.best([record]) in (record, None)
        except RecBoleLLMError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 60
    for text in ("", "{", "[]", "null"):
        path.write_text(text)
        with pytest.raises(DataError, match=r"trial\.json"):
            study.all_stored()


def test_an_empty_folder_takes_a_study(workdir, capsys):
    write_dataset(workdir / "data", SHORT)
    (workdir / "space.txt").write_text("learning_rate choice [0.01]\n")
    settings = small_settings(workdir / "data", model="BPR", epochs=1)
    line = [f"--{name}={value}" for name, value in settings.items() if name != "checkpoint_dir"]
    command = ["tune", *line, "--params_file=space.txt", "--out=study"]
    (workdir / "study").mkdir()
    assert main(command) == 0
    assert main(command) == 0, "the same command resumes it"
    capsys.readouterr()
    (workdir / "other").mkdir()
    (workdir / "other/notes.txt").write_text("mine")
    assert "other is not the folder of this study" in sentence(capsys, 2, *command[:-1], "--out=other")


def test_ranks_of_a_pipe(workdir):
    os.mkfifo(workdir / "ranks.tsv.gz")
    with pytest.raises(DataError, match=r"ranks\.tsv\.gz is no file of ranks"):
        read_ranks(workdir / "ranks.tsv.gz")


def test_read_comparison_of_a_whole_one(workdir):
    (workdir / "c.json").write_text(json.dumps(comparison()))
    assert read_comparison("c.json") == comparison()
