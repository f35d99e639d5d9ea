"""Comparisons: five models from one command, ended and gone on with, failed cells, runs that are handed in."""

import csv
import json
import shlex
import shutil
from pathlib import Path

import forked_compare
import pytest
from atomic_files import quick_settings, write_atomic_files
from small_data import write_dataset

from recbole_llm import compare_cells
from recbole_llm.cli import main
from recbole_llm.compare import Options, compare, parse_options
from recbole_llm.compare_cells import Cell, plan_cells, reason, start_run, written
from recbole_llm.config import has_setting, parse_value
from recbole_llm.errors import CheckpointError, SettingError
from recbole_llm.quick_start import run

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "results" / "runs" / "ml-100k"
POP, SASREC = KEPT / "Pop" / "seed-2020", KEPT / "SASRec-default" / "seed-2020"
MODELS = ["Pop", "BPR", "GRU4Rec", "SASRec", "ST2SI"]


def five_models(tiny, *more):
    """Five models on the 199 users of ml-100k with 20 to 29 ratings, some seconds in all."""
    return [
        f"--models={','.join(MODELS)}", "--dataset=ml-100k", "--user_inter_num_interval=[20,30)", "--epochs=2",
        f"--backbone={tiny['llama']}", "--tuning=full", "--max_sequence_tokens=100", "--MAX_ITEM_LIST_LENGTH=4",
        "--alignment=False", "--embedding_size=8", "--hidden_size=8", "--n_layers=1", "--n_heads=1", "--inner_size=8",
        "--num_layers=1", "--train_batch_size=500", "--use_gpu=False", "--precision=fp32", "--show_progress=False",
        "--state=ERROR", "--resume_seconds=0", *more,
    ]  # fmt: skip


def without_times(comparison):
    """What a comparison found, without what another run of it need not repeat."""
    cells = []
    for cell in comparison["cells"]:
        gone = ("run", "seconds", "peak_memory_bytes", "peak_gpu_memory_bytes")
        cells.append({name: value for name, value in cell.items() if name not in gone})
    return {**{k: v for k, v in comparison.items() if k not in ("created", "command")}, "cells": cells}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny):
    """The folder of a comparison that nothing interrupted, what it printed, and its JSON."""
    folder = tmp_path_factory.mktemp("whole")
    code, out, error = forked_compare.compare(folder, five_models(tiny))
    assert code == 0, error
    path = folder / out.splitlines()[-1]
    assert path.name == "comparison.json"
    return folder, out, json.loads(path.read_text())


def test_five_models_from_one_command(whole):
    _, out, comparison = whole
    assert comparison["models"] == MODELS
    assert comparison["metrics"] == ["ndcg@10", "recall@10", "mrr"]
    assert {cell["status"] for cell in comparison["cells"]} == {"done"}
    assert comparison["counts"]["ml-100k"]["users"] == comparison["counts"]["ml-100k"]["test"] == 199
    assert (comparison["ours"], comparison["baselines"]) == (["ST2SI"], MODELS[:-1])
    assert len(comparison["significance"]) == 3 * 10
    assert {group["by"] for group in comparison["groups"]} == {"popularity", "history_length", "text_length"}
    assert all(model in out for model in MODELS)


def test_the_table_holds_the_runs_own_numbers(whole):
    folder, _, comparison = whole
    json_folder = next((folder / "comparisons").iterdir())
    for cell in comparison["cells"]:
        result = json.loads((json_folder / cell["run"] / "result.json").read_text())
        assert (result["model"], result["seed"]) == (cell["model"], 2020)
        assert result["settings"]["epochs"] == 2
        assert cell["test"] == result["test"]
        for entry in comparison["summary"]:
            if entry["label"] == cell["label"]:
                assert entry["mean"] == result["test"][entry["metric"]]
                assert (entry["deviation"], entry["seeds"]) == (None, 1)
    for metric in comparison["metrics"]:
        means = {e["label"]: e["mean"] for e in comparison["summary"] if e["metric"] == metric}
        ordered = sorted(set(means.values()), reverse=True)
        for entry in comparison["summary"]:
            if entry["metric"] == metric:
                assert entry["best"] == (entry["mean"] == ordered[0])
                assert entry["second"] == (entry["mean"] == ordered[1])
                if entry["label"] == "ST2SI":
                    best = max(means[label] for label in MODELS[:-1])
                    assert entry["improvement"] == pytest.approx(100 * (means["ST2SI"] / best - 1))
                else:
                    assert entry["improvement"] is None


def test_a_setting_goes_to_the_models_that_have_it(whole):
    _, _, comparison = whole
    given = {cell["label"]: cell["settings"] for cell in comparison["cells"]}
    assert "backbone" in given["ST2SI"] and "hidden_size" not in given["ST2SI"]
    assert "hidden_size" in given["SASRec"] and "backbone" not in given["SASRec"]
    assert "embedding_size" in given["BPR"] and "n_layers" not in given["BPR"]
    assert all(settings["epochs"] == 2 for settings in given.values())
    assert [cell["backbone"] is not None for cell in comparison["cells"]] == [False] * 4 + [True]


def test_ended_in_the_middle_and_gone_on_with_is_the_same_table(whole, tiny, tmp_path):
    """Comparison and run are killed in SASRec's second epoch."""
    _, printed, expected = whole
    arguments = five_models(tiny)
    code, _, error = forked_compare.compare(tmp_path, arguments, ("SASRec", "both", 15))
    assert code == -9, error
    (folder,) = (tmp_path / "comparisons").iterdir()
    assert not (folder / "comparison.json").exists()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "saved").glob("*/result.json")}
    assert len(before) == 3

    code, out, error = forked_compare.compare(tmp_path, arguments)
    assert code == 0, error
    assert without_times(json.loads((folder / "comparison.json").read_text())) == without_times(expected)
    assert out == printed
    assert sorted(path.name.split("-")[0] for path in (tmp_path / "saved").iterdir()) == sorted(MODELS)
    assert {path: path.stat().st_mtime_ns for path in before} == before, "a finished run was made again"
    assert "SASRec on ml-100k, seed 2020: going on" in error
    assert "ST2SI on ml-100k, seed 2020: started" in error
    assert error.count(": started") + error.count(": going on") == 2


def test_a_run_that_outlives_its_comparison_is_waited_for(whole, tiny, tmp_path):
    arguments = ["--models=Pop,ST2SI", *[a for a in five_models(tiny) if fits("ST2SI", a)][1:]]
    code, _, error = forked_compare.compare(tmp_path, arguments, ("ST2SI", "comparison", 1))
    assert code == -9, error
    assert not list((tmp_path / "saved").glob("ST2SI-*/result.json"))
    code, out, error = forked_compare.compare(tmp_path, arguments)
    assert code == 0, error
    assert "waiting: another process, or a run that it started, still works on comparisons" in error
    assert ": started" not in error and ": going on" not in error
    assert len(list((tmp_path / "saved").iterdir())) == 2
    found = without_times(json.loads((tmp_path / out.splitlines()[-1]).read_text()))
    expected = [cell for cell in without_times(whole[2])["cells"] if cell["label"] in ("Pop", "ST2SI")]
    assert [cell["test"] for cell in found["cells"]] == [cell["test"] for cell in expected]


def fits(model, argument):
    return has_setting(model, argument[2:].partition("=")[0])


def test_a_run_that_is_ended_leaves_its_reason_and_is_tried_again(tiny, tmp_path):
    arguments = ["--models=Pop,BPR", *[a for a in five_models(tiny) if fits("BPR", a)][1:]]
    code, out, error = forked_compare.compare(tmp_path, arguments, ("BPR", "run", 1))
    assert code == 0, error
    path = tmp_path / out.splitlines()[-1]
    comparison = json.loads(path.read_text())
    cells = {cell["label"]: cell for cell in comparison["cells"]}
    assert (cells["BPR"]["status"], cells["BPR"]["run"], cells["BPR"]["test"]) == ("failed", None, {})
    assert cells["BPR"]["reason"] == "ended by SIGKILL: the system ends a process so when memory is short"
    assert "[1] BPR on ml-100k, seed 2020 failed: ended by SIGKILL" in out
    assert cells["Pop"]["status"] == "done"
    assert [entry["label"] for entry in comparison["summary"]] == ["Pop"] * 3
    code, out, error = forked_compare.compare(tmp_path, arguments)
    assert code == 0, error
    again = json.loads(path.read_text())
    assert [cell["status"] for cell in again["cells"]] == ["done", "done"]
    assert again["cells"][0] == cells["Pop"], "a finished run is not made again"


def test_a_model_that_does_not_fit_leaves_its_cell_with_the_reason(tiny, tmp_path):
    """KSR needs a knowledge graph; the same model stands twice, with settings of its own, over two seeds."""
    file = tmp_path / "models.yaml"
    file.write_text("wide: {model: SASRec, hidden_size: 12}\nnarrow: {model: SASRec, hidden_size: 4, epochs: 5}\n")
    arguments = [
        "--models=Pop,KSR,wide,narrow,Pop2:Pop", f"--model_settings={file}", "--dataset=small", "--data_path=.",
        "--seeds=2", "--seed=7", "--n_heads=1", "--topk=[1,3]", "--valid_metric=NDCG@3", "--use_gpu=False",
        "--state=ERROR", "--show_progress=False", "--epochs=1", "--ours=wide,narrow", "--baselines=Pop", "--papers",
    ]  # fmt: skip
    write_atomic_files(tmp_path / "small")
    code, _, error = forked_compare.compare(tmp_path, arguments)
    assert code == 2
    assert error.splitlines()[-1].startswith("error: Pop and Pop2 ask for the same run of Pop")
    arguments[0] = arguments[0].removesuffix(",Pop2:Pop")
    code, out, error = forked_compare.compare(tmp_path, arguments)
    assert code == 0, error
    comparison = json.loads((tmp_path / out.splitlines()[-1]).read_text())
    assert [(c["label"], c["model"], c["seed"], c["status"]) for c in comparison["cells"]] == [
        ("Pop", "Pop", 7, "done"), ("Pop", "Pop", 8, "done"), ("KSR", "KSR", 7, "failed"), ("KSR", "KSR", 8, "failed"),
        ("wide", "SASRec", 7, "done"), ("wide", "SASRec", 8, "done"), ("narrow", "SASRec", 7, "done"),
        ("narrow", "SASRec", 8, "done"),
    ]  # fmt: skip
    failed = next(cell for cell in comparison["cells"] if cell["label"] == "KSR")
    assert "KSR reads" in failed["reason"] and "small.kg" in failed["reason"]
    assert "KSR on small, seed 7, 8 failed: KSR reads" in out
    values = [cell["test"]["mrr"] for cell in comparison["cells"] if cell["label"] == "wide"]
    entry = next(e for e in comparison["summary"] if (e["label"], e["metric"]) == ("wide", "mrr"))
    assert entry["mean"] == pytest.approx(sum(values) / 2)
    assert entry["deviation"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    # the command line counts most, as in a run: epochs is 1 for all
    assert {c["epochs"] for c in comparison["cells"] if c["status"] == "done"} == {1}
    assert (comparison["ours"], comparison["baselines"], comparison["papers"]) == (["wide", "narrow"], ["Pop"], {})
    narrow = next(cell for cell in comparison["cells"] if cell["label"] == "narrow")
    assert "--hidden_size=4" in shlex.split(narrow["command"])


def test_another_comparison_in_the_same_folder_is_refused(whole, tiny, tmp_path):
    folder, _, _ = whole
    there = next((folder / "comparisons").iterdir())
    before = (there / "comparison.json").read_bytes()
    code, _, error = forked_compare.compare(folder, five_models(tiny, f"--out={there}", "--learning_rate=0.5"))
    assert code == 2
    assert "holds another comparison: choose another folder with --out" in error
    assert (there / "comparison.json").read_bytes() == before
    # how it is shown makes no other comparison of it, and nothing is run again
    code, out, error = forked_compare.compare(folder, five_models(tiny, "--show=hit@5", "--format=csv"))
    assert code == 0, error
    assert ": started" not in error
    rows = list(csv.DictReader(out.splitlines()[:-1]))
    assert [row["model"] for row in rows] == MODELS and {row["metric"] for row in rows} == {"hit@5"}
    (there / "comparison.json").write_bytes(before)


def test_start_run_is_the_command_line_of_this_very_package(workdir, tiny):
    """One run as compare really starts it: a new interpreter, output in the log, the lock kept open."""
    write_dataset(workdir)
    (workdir / "random.py").write_text("raise SystemExit('a file of the working folder was imported')")
    with (workdir / "lock").open("w") as lock:
        arguments = ["--model=Pop", "--dataset=small", "--data_path=.", "--topk=[1]", "--valid_metric=NDCG@9"]
        code = start_run(arguments, workdir / "log.txt", lock.fileno())
    assert code == 2
    assert reason(workdir / "log.txt", code).startswith("valid_metric=NDCG@9 is not computed")


def test_a_library_may_complain_behind_a_run(workdir, monkeypatch, capsys):
    """The path of the result need not be the last line of the log: standard error goes there, too."""

    def start_run(arguments, log, lock):
        log.write_text(f"a table\n{POP / 'result.json'}\n[W] a process group was not destroyed\n")
        return 0

    monkeypatch.setattr(compare_cells, "start_run", start_run)
    assert main(["compare", "--models=Pop", "--dataset=ml-100k", "--out=here"]) == 0, capsys.readouterr().err
    (cell,) = json.loads((workdir / "here" / "comparison.json").read_text())["cells"]
    assert cell["status"] == "done" and cell["test"]["ndcg@10"] == 0.0201


def test_reasons(tmp_path):
    log = tmp_path / "log"
    log.write_text("epoch 1\r\x1b[31mepoch 2\x1b[0m\n\nTraceback\ntorch.OutOfMemoryError: CUDA out of memory\n\n")
    assert reason(log, 1) == "torch.OutOfMemoryError: CUDA out of memory"
    assert reason(log, -15) == "ended by SIGTERM"
    log.write_text("error: no such thing\nmore words\n")
    assert reason(log, 2) == "no such thing"
    log.write_text("")
    assert reason(log, 3) == "exit code 3"


# -- runs that are handed in -------------------------------------------------------------------------------------------


def test_kept_runs_give_their_table_and_start_nothing(workdir, monkeypatch, capsys):
    monkeypatch.setattr(compare_cells, "start_run", lambda *_: pytest.fail("a run was started"))
    names = ["Pop", "SASRec", "ST2SI-ILP-8-items", "ST2SI-ILP-50-items"]
    runs = [f"--runs=SASRec:{SASREC},{KEPT}/*/*", f"--models={','.join(names)}"]
    assert main(["compare", *runs, "--out=here", "--show=ndcg@10,mrr"]) == 0
    printed = capsys.readouterr().out
    comparison = json.loads((workdir / "here" / "comparison.json").read_text())
    assert comparison["models"] == names
    assert printed.splitlines()[-1] == str(Path("here") / "comparison.json")
    assert "| SASRec | **0.0589** | **0.0579** |" in printed
    pairs = {(p["label"], p["against"]) for p in comparison["significance"]}
    assert ("ST2SI-ILP-8-items", "SASRec") in pairs, "a difference is what ours gain"
    groups = [g for g in comparison["groups"] if (g["label"], g["by"]) == ("SASRec", "popularity")]
    assert [(g["group"], g["order"]) for g in groups] == [("head", 0), ("middle", 1), ("tail", 2), ("never", 3)]
    assert sum(g["targets"] for g in groups) == 943
    # the popularity of a target is that of the file
    assert groups[3]["metrics"]["mrr"]["mean"] < groups[0]["metrics"]["mrr"]["mean"]
    assert any("Pop on ml-100k gives many items the same score" in note for note in comparison["notes"])
    cell = comparison["cells"][-1]
    assert (workdir / "here" / cell["run"] / "result.json").samefile(KEPT / names[-1] / "seed-2020" / "result.json")
    assert "--backbone=smollm2-135m" in cell["command"] and "--mask_history" not in cell["command"]


def test_a_pattern_names_runs_after_what_tells_them_apart(workdir):
    for folder in KEPT.iterdir():
        (workdir / folder.name).symlink_to(folder / "seed-2020")
    comparison = compare(Options(runs=[str(workdir / "*")], out="here", show=["mrr"]))
    assert comparison["models"] == [
        "BERT4Rec", "GRU4Rec", "Pop", "SASRec", "ST2SI (MAX_ITEM_LIST_LENGTH=50)",
        "ST2SI (MAX_ITEM_LIST_LENGTH=8, train_window=recent)",
    ]  # fmt: skip


def seeds_of(folder, **changed):
    """Three runs of one label in `folder`, with other settings in the last."""
    for seed in (1, 2, 3):
        copy = altered(folder, f"seed-{seed}", seed=seed, **(changed if seed == 3 else {}))
        result = json.loads((copy / "result.json").read_text())
        result |= {"seed": seed, "epochs": 10 * seed}
        result["test"]["mrr"] = 0.05 + 0.01 * seed
        result["valid"]["ndcg@10"] = 0.07 + 0.02 * seed
        (copy / "result.json").write_text(json.dumps(result))


def test_runs_in_folders_of_seeds_are_named_after_the_folder_above(workdir, monkeypatch, capsys):
    monkeypatch.setattr(compare_cells, "start_run", lambda *_: pytest.fail("a run was started"))
    seeds_of(workdir / "runs" / "SASRec-mine", id_model_path="saved/another")
    arguments = ["--show=epochs,mrr,valid.ndcg@10,seeds", "--significance=false", "--out=here"]
    runs = f"--runs=runs/*/*,{KEPT}/*/*"
    assert main(["compare", runs, "--models=SASRec-mine,GRU4Rec-default", *arguments]) == 0
    own = json.loads((KEPT / "GRU4Rec-default" / "seed-2020" / "result.json").read_text())
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert rows[0] == "| Model | Epochs | MRR | Valid NDCG@10 | Seeds |"
    assert rows[2] == "| SASRec-mine | 20 | **0.0700 ± 0.0100** | 0.1100 ± 0.0200 | 3 |"
    assert rows[3].startswith(f"| GRU4Rec-default | {own['epochs']} | <u>{own['test']['mrr']:.4f}</u> |")
    comparison = json.loads((workdir / "here" / "comparison.json").read_text())
    assert comparison["metrics"] == ["mrr"]
    assert not comparison["significance"] and not comparison["intervals"] and not comparison["groups"]


def test_runs_of_one_label_must_have_one_setting(workdir):
    seeds_of(workdir / "runs" / "mine", learning_rate=0.5)
    message = (
        "seed-1 and .*seed-3 are both mine on ml-100k, but learning_rate is 0.001 in the first and 0.5 in the second"
    )
    with pytest.raises(SettingError, match=message):
        compare(Options(runs="runs/mine/*", out="here"))


def test_rows_must_be_of_runs_that_are_there(workdir):
    with pytest.raises(SettingError, match=r"models=SASRec is none of the runs.*did you mean 'SASRec-default'"):
        compare(Options(runs=[f"{KEPT}/*/*"], models="Pop,SASRec", out="here"))
    assert not (workdir / "here").exists()


def test_intervals_of_a_table_are_those_of_the_whole_comparison(workdir, capsys):
    options = {"runs": [f"{KEPT}/*/*"], "models": "SASRec-default,GRU4Rec-default"}
    whole = compare(Options(**options, out="whole", show="mrr,ndcg@10"))
    alone = compare(Options(**options, out="alone", show="mrr,interval.ndcg@10", significance=False))
    assert alone["intervals"] == [entry for entry in whole["intervals"] if entry["metric"] == "ndcg@10"]
    assert not alone["significance"] and whole["significance"]
    low, high = (whole["intervals"][-2][name] for name in ("low", "high"))
    assert f"| {low:.4f} to {high:.4f} |" in (workdir / "alone" / "comparison.md").read_text()


@pytest.mark.parametrize(("given", "shown"), [({}, []), ({"ours": "SASRec-default"}, ["SASRec-default"])])
def test_without_significance_improvements_are_those_that_are_asked_for(workdir, given, shown):
    labels = "SASRec-default,ST2SI-ILP-8-items"
    comparison = compare(Options(runs=[f"{KEPT}/*/*"], models=labels, out="here", significance=False, **given))
    improved = {entry["label"] for entry in comparison["summary"] if entry["improvement"] is not None}
    assert sorted(improved) == comparison["ours"] == shown
    assert "p < 0.01" not in (workdir / "here" / "comparison.md").read_text()


def test_nothing_is_fetched_to_compare_runs(workdir, monkeypatch):
    monkeypatch.setattr("recbole_llm.data.prepare.ensure", lambda *_: pytest.fail("a data set was made"))
    runs = ROOT / "results" / "runs" / "Scientific"
    comparison = compare(Options(runs=[f"{runs}/*/*"], models="SASRec,ST2SI-ILP", out="here", show="mrr"))
    assert comparison["notes"] == ["Scientific: metrics by group are left out: its data are not in dataset/"]
    assert not (workdir / "dataset").exists()


def test_runs_fill_their_cells_of_a_plan(workdir, monkeypatch):
    """A run that is handed in is not made again; the data set that it lacks is missing, with the reason."""
    settings = quick_settings(write_atomic_files(workdir / "small"), load_col=None)
    path = Path(run("Pop", settings=settings)["path"])
    started = []
    monkeypatch.setattr(compare_cells, "start_run", lambda arguments, *_: started.append(arguments) or 9)
    monkeypatch.setattr(compare_cells, "reason", lambda *_: "not really started")
    shared = {k: v for k, v in settings.items() if k != "dataset"}
    options = Options(models="Pop,BPR", dataset="small", runs=[str(path.parent), str(POP)], settings=shared, show="mrr")
    comparison = compare(options)
    cells = {(cell["dataset"], cell["label"]): (cell["status"], cell["reason"]) for cell in comparison["cells"]}
    assert cells == {
        ("small", "Pop"): ("done", None),
        ("small", "BPR"): ("failed", "not really started"),
        ("ml-100k", "Pop"): ("done", None),
        ("ml-100k", "BPR"): ("missing", "no run of it was handed in"),
    }
    assert [arguments[0] for arguments in started] == ["--model=BPR"]


def altered(tmp_path, name, **settings):
    """A copy of the kept run of SASRec with other settings."""
    folder = tmp_path / name
    shutil.copytree(SASREC, folder)
    result = json.loads((folder / "result.json").read_text())
    counts = settings.pop("counts", {})
    result["settings"] |= settings
    result["counts"] |= counts
    (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_history": True}, "mask_history is False in the first and True in the second"),
        ({"topk": [5, 20]}, r"topk is \[5, 10\] in the first and \[5, 20\]"),
        ({"candidates": 20}, "candidates is not set in the first and 20 in the second"),
        (
            {"eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "uni100"}},
            "mode of eval_args is full in the first and uni100",
        ),
        (
            {"eval_args": {"split": {"RS": [8, 1, 1]}, "order": "TO", "group_by": "user", "mode": "full"}},
            "split of eval_args is .*valid_and_test.* in the first",
        ),
        ({"user_inter_num_interval": "[5,inf)"}, r"user_inter_num_interval is \[0,inf\) in the first and \[5,inf\)"),
        ({"counts": {"items": 1600}}, "the number of items is 1682 in the first and 1600"),
    ],
)
def test_runs_of_different_protocols_are_refused(workdir, settings, message):
    other = altered(workdir, "other", **settings)
    with pytest.raises(SettingError, match=message) as error:
        compare(Options(runs=[str(POP), str(other)], out="here"))
    assert str(POP) in str(error.value) and str(other) in str(error.value)
    assert not (workdir / "here" / "comparison.json").exists()


def test_same_protocol_said_otherwise_is_the_same(workdir):
    modes = {"valid": "full", "test": "full"}
    args = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": modes}
    other = altered(workdir, "o", eval_args=args, user_inter_num_interval="[0, inf)", candidate_seeds=5)
    assert compare(Options(runs=[str(POP), str(other)], out="here"))["models"] == ["Pop", "SASRec"]


def test_runs_tested_on_other_targets_are_refused(workdir):
    import gzip

    other = altered(workdir, "other")
    path = other / "ranks-test.tsv.gz"
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    user, item, rank = lines[1].split("\t")
    path.write_bytes(gzip.compress("\n".join([lines[0], f"{user}\t{item}9\t{rank}", *lines[2:]]).encode()))
    with pytest.raises(SettingError, match=rf"only one of them was tested on item '{item}9?' of user '{user}'"):
        compare(Options(runs=[str(POP), str(other)], out="here"))


def test_runs_that_are_none(workdir):
    (workdir / "saved" / "half").mkdir(parents=True)
    for runs, message in (
        ("saved/half", "saved/half is not a finished run"),
        ("saved/*", "no finished run is at saved/\\*"),
        (f"SASRec:{SASREC},{altered(workdir, 'same')}", "are both SASRec on ml-100k with seed 2020: leave one out"),
    ):
        with pytest.raises((CheckpointError, SettingError), match=message):
            compare(Options(runs=runs))
    for text, message in (("{", "is broken"), ('{"model": "Pop"}', "lacks 'dataset'")):
        (workdir / "saved" / "half" / "result.json").write_text(text)
        with pytest.raises(CheckpointError, match=message):
            compare(Options(runs="saved/half"))
    for changed, message in (
        ({"settings": []}, "its 'settings' is no mapping"),
        ({"counts": {"users": 3}}, "its counts lack the number of 'items'"),
        ({"test": {"mrr": "high"}}, "mrr is 'high', not a number"),
        ({"test": {}}, "has no test metrics"),
    ):
        result = json.loads((SASREC / "result.json").read_text()) | changed
        (workdir / "saved" / "half" / "result.json").write_text(json.dumps(result))
        with pytest.raises(CheckpointError, match=message):
            compare(Options(runs="saved/half"))


# -- what is asked -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing is named to compare"),
        (["--models=Pop"], "no data set is named"),
        (["--models=Pop,SASRek", "--dataset=ml-100k"], "there is no model 'SASRek'; did you mean 'SASRec'?"),
        (["--models=Pop,Pop", "--dataset=ml-100k"], "two models are called Pop"),
        (["--models=Pop", "--dataset=ml-100k", "--seeds=0"], "seeds=0 must be how many"),
        (["--models=Pop", "--dataset=ml-100k", "--seeds=[1,x]"], "must be how many"),
        (["--models=Pop", "--dataset=ml-100k", "--rows=users"], "rows=users is not one of models, metrics"),
        (["--models=Pop", "--dataset=ml-100k", "--format=html"], "format=html is not one of"),
        (["--models=Pop", "--dataset=ml-100k", "--papers=perhaps"], "papers=perhaps must be true or false"),
        (["--runs=saved/*", "--significance=no idea"], "significance=no idea must be true or false"),
        (["--models=Pop", "--dataset=ml-100k", "--epocs=3"], "there is no setting 'epocs'; did you mean 'epochs'?"),
        (["--models=Pop,BPR", "--dataset=ml-100k", "--hidden_size=3"], "no model of the comparison has the setting"),
        (["--models=Pop", "--dataset=no-such"], "there is no data set 'no-such'"),
        (["--models=Pop", "--dataset=ml-100k", "--model=BPR"], "compare takes several: name them with --models"),
        (["--models=Pop", "--dataset=ml-100k", "--config_files=none.yaml"], "the file none.yaml does not exist"),
        (
            ["--models=Pop", "--dataset=ml-100k", "--model_settings=own.yaml"],
            "settings of 'Pip', which is not compared",
        ),
        (["--models=Pip:Pop", "--dataset=ml-100k", "--model_settings=own.yaml"], "gives 'Pip' a seed of its own"),
        (["--models=Pop", "--dataset=ml-100k", "Pop"], "'Pop' is not understood"),
        (["--models=Pop", "--dataset=ml-100k", "--dataset=ml-1m"], "--dataset is given twice, as 'ml-100k' and"),
        (
            ["--runs=saved/*", "--sohw=mrr"],
            "--sohw is no option of a comparison of finished runs; did you mean 'show'",
        ),
        (["--runs=saved/*", "--epochs=3"], "--epochs is no option of a comparison of finished runs"),
        (["--runs=saved/*", "--dataset=ml-100k"], "--dataset is for runs that are started, which --models names"),
    ],
)
def test_mistakes_are_told_before_anything_runs(workdir, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(compare_cells, "start_run", lambda *_: pytest.fail("a run was started"))
    (workdir / "own.yaml").write_text("Pip: {seed: 3}\n")
    assert main(["compare", *arguments]) in (1, 2)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not (workdir / "comparisons").exists()


def test_protocols_of_planned_models_are_compared_before_anything_runs(workdir, monkeypatch):
    monkeypatch.setattr(compare_cells, "start_run", lambda *_: pytest.fail("a run was started"))
    own = {"BPR": {"mask_history": True}}
    with pytest.raises(SettingError, match="Pop on ml-100k and BPR on ml-100k cannot stand in one table: mask_history"):
        compare(Options(models="Pop,BPR", dataset="ml-100k", model_settings=own))


def test_options_of_the_command_line():
    options = parse_options(
        ["--models=a:ST2SI, SASRec", "--dataset=[D,E]", "--seeds=1,2", "--papers", "--epochs=3", "--show=NDCG@10"]
    )
    assert options.models == ["a:ST2SI", "SASRec"]
    assert options.dataset == ["D", "E"]
    assert options.seeds == [1, 2]
    assert options.papers is True
    assert options.settings == {"epochs": 3}
    assert options.show == ["ndcg@10"]


def test_labels_and_metrics_must_be_there(workdir):
    runs = [str(POP), str(SASREC)]
    for options, message in (
        ({"show": ["ndcg@7"]}, "show=ndcg@7 is no metric of the runs"),
        ({"show": ["interval.ndcg@7"]}, "show=ndcg@7 is no metric of the runs"),
        ({"show": ["seconds.fitt"]}, "show=seconds.fitt is nothing that the runs recorded; did you mean 'seconds.fit'"),
        ({"ours": ["SASRek"]}, "ours=SASRek is not compared; did you mean 'SASRec-default'"),
        ({"baselines": ["Popp"]}, "baselines=Popp is not compared"),
    ):
        with pytest.raises(SettingError, match=message):
            compare(Options(runs=runs, out="here", **options))


@pytest.mark.parametrize("value", ["a b", "True", "3", "[1,2)", "it's", 5e-5, [1, "x"], {"k": None}, None, False, ""])
def test_a_cells_command_gives_its_settings_back(value):
    assert parse_value(written(value)) == value
    cell = Cell("D", "label", "Pop", 3, {"name": value})
    (*_, last) = shlex.split(cell.command())
    assert parse_value(last.partition("=")[2]) == value


def test_plans_have_all_seeds_of_all_data_sets(workdir):
    write_dataset(workdir)
    write_dataset(workdir, name="other")
    cells = plan_cells(
        [("a", "Pop"), ("b", "SASRec")], ["small", "other"], [1, 5],
        {"epochs": 9, "hidden_size": 16, "data_path": "."}, {"epochs": 2}, {"b": {"hidden_size": 8, "epochs": 3}},
    )  # fmt: skip
    assert [cell.key for cell in cells] == [
        "small/a/1", "small/a/5", "small/b/1", "small/b/5", "other/a/1", "other/a/5", "other/b/1", "other/b/5"
    ]  # fmt: skip
    assert cells[0].given == {"epochs": 2, "data_path": "."}
    assert cells[2].given == {"epochs": 2, "hidden_size": 8, "data_path": "."}
    assert [cell.merged["seed"] for cell in cells[:2]] == [1, 5]
