"""The verb plot: files of every kind, and one clear sentence for what cannot be drawn."""

import json
from pathlib import Path

import pytest
from comparison_data import comparison, result
from kept_runs import ML_100K

from recbole_llm.cli.main import main


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "comparison.json").write_text(json.dumps(comparison()))
    return tmp_path


def runs(folder, **by_name):
    for name, one in by_name.items():
        (folder / "saved" / name).mkdir(parents=True, exist_ok=True)
        (folder / "saved" / name / "result.json").write_text(json.dumps(one))


def pictures(out):
    for line in out.split():
        head = Path(line).read_bytes()[:60]
        assert head.startswith(b"\x89PNG\r\n") if line.endswith(".png") else b"<?xml" in head
    return out.split()


@pytest.mark.parametrize("kind", ["curves", "bars", "groups", "trade_off"])
def test_a_comparison_is_drawn(folder, capsys, kind):
    assert main(["plot", f"--kind={kind}", "--comparison=comparison.json", "--metric=MRR", "--out=pictures"]) == 0
    assert pictures(capsys.readouterr().out) == [f"pictures/{kind}.png", f"pictures/{kind}.svg"]
    assert "MRR" in Path(f"pictures/{kind}.svg").read_text()


def test_runs_are_drawn_against_a_setting_by_size_and_by_pretraining(folder, capsys):
    made = {
        "a": result("ST2SI", backbone="opt-125m", tuning="full", settings={"warmup_steps": 10}),
        "b": result("ST2SI", backbone="opt-350m", tuning="full", settings={"warmup_steps": 10}),
        "c": result("ST2SI", backbone="opt-125m", tuning="full", settings={"warmup_steps": 90}),
        "d": result(
            "ST2SI", backbone="opt-125m", tuning="full", settings={"warmup_steps": 10, "pretrain_datasets": ["Food"]}
        ),
    }
    made["b"]["parameters"]["frozen"] = 5000
    runs(folder, **made)
    (folder / "saved" / "unfinished").mkdir()
    assert main(["plot", "--kind=sensitivity", "--setting=warmup_steps", "--runs=saved/a,saved/c/result.json"]) == 0
    assert main(["plot", "--kind=backbones", "--runs=saved/a saved/b"]) == 0
    assert main(["plot", "--kind=pretraining", "--runs=saved/[ad]"]) == 0
    names = ["sensitivity-warmup_steps", "backbones", "pretraining-sets"]
    assert pictures(capsys.readouterr().out) == [f"plots/{name}.{end}" for name in names for end in ("png", "svg")]
    assert main(["plot", "--kind=bars", "--runs=saved/*"]) == 0, "what is unfinished is left out of a pattern"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--comparison=comparison.json"], "plot needs --kind, one of curves, bars, groups"),
        (["--kind=bar", "--comparison=comparison.json"], "there is no plot 'bar'; did you mean 'bars'?"),
        (["--kind=bars"], "plot needs either --runs="),
        (["--kind=bars", "--runs=", "--metric=mrr"], "no run is named"),
        (["--kind=bars", "--runs=nothing/*"], "nothing/* names no finished run"),
        (["--kind=bars", "--runs=nothing"], "nothing names no finished run"),
        (["--kind=bars", "--runs=nothing.parquet"], "no archive of runs is at nothing.parquet"),
        (["--kind=bars", f"--runs={ML_100K}/Popp"], "no finished run is at"),
        (["--kind=bars", "--comparison=none.json"], "the comparison none.json does not exist"),
        (["--kind=bars", "--comparison=cut.json"], "cut.json is not a readable comparison"),
        (["--kind=bars", "--comparison=list.json"], "list.json is not a comparison: it holds a list"),
        (["--kind=bars", "--comparison=nan.json"], "it holds NaN, which is not a number"),
        (["--kind=bars", "--comparison=other.json"], "other.json is not a comparison: it has no list 'datasets'"),
        (["--kind=bars", "--comparison=comparison.json", "--metric=ndgc@10"], "'ndgc@10'; did you mean 'ndcg@10'?"),
        (["--kind=sensitivity", "--comparison=comparison.json"], "needs the setting to draw against"),
        (["--kind=bars", "--setting=epochs", "--comparison=comparison.json"], "bars has no use for setting=epochs"),
        (["--kind=sensitivity", "--setting=epochs", "--comparison=comparison.json"], "epochs has no two values"),
        (["--kind=backbones", "--comparison=comparison.json"], "no two runs on one dataset have language models"),
        (["--kind=pretraining", "--comparison=comparison.json"], "differ in pretrain_datasets"),
        (["--kind=groups", f"--runs={ML_100K}"], "there are no groups of targets with ndcg@10"),
        (["--kind=bars", "--rnus=x"], "plot has no setting 'rnus'; did you mean 'runs'?"),
        (["--kind=bars", "--kind=curves"], "--kind is given twice"),
        (["bars"], "'bars' is not understood"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_said_in_one_sentence(folder, capsys, arguments, message):
    (folder / "cut.json").write_text('{"cells": [')
    (folder / "list.json").write_text("[]")
    (folder / "nan.json").write_text('{"cells": NaN}')
    (folder / "other.json").write_text('{"cells": []}')
    assert main(["plot", *arguments]) in (1, 2)
    printed = capsys.readouterr()
    assert message in printed.err and printed.out == ""
    assert len(printed.err.strip().splitlines()) == 1
    assert not Path("plots").exists()


def test_a_broken_result_is_named(folder, capsys):
    broken = result()
    del broken["seconds"]
    runs(folder, broken=broken)
    assert main(["plot", "--kind=bars", "--runs=saved/broken"]) == 1
    message = "saved/broken/result.json is not the result of a run: it lacks 'seconds'; run it again"
    assert message in capsys.readouterr().err
    for changed, message in (
        ({"test": {}}, "no run has test metrics: there is nothing to draw"),
        ({"test": {"ndcg@10": "high"}}, "'test.ndcg@10' must be a number, but is 'high'"),
        ({"settings": []}, "'settings' must be a mapping of names to values, but is []"),
    ):
        runs(folder, broken={**result(), **changed})
        assert main(["plot", "--kind=bars", "--runs=saved/broken"]) == 1
        assert message in capsys.readouterr().err


def test_how_often_a_state_is_stored_makes_no_other_setting(folder, capsys):
    made = {
        name: result(settings={"hidden_size": size, "resume_seconds": size}) for name, size in (("one", 8), ("two", 16))
    }
    runs(folder, **made)
    assert main(["plot", "--kind=sensitivity", "--setting=hidden_size", "--runs=saved/one,saved/two"]) == 0
    assert len(pictures(capsys.readouterr().out)) == 2
