"""Comparisons: five models from one command, ended and gone on with, failed cells, what is asked."""

import csv
import json
import os
import shlex

import forked_compare
import pytest
from atomic_files import write_atomic_files
from kept_runs import ML_100K
from small_data import write_dataset

from recbole_llm.cli.compare import parse_options
from recbole_llm.cli.main import main
from recbole_llm.comparison import child_runs
from recbole_llm.comparison.child_runs import reason, start_run
from recbole_llm.comparison.compare import Options, compare
from recbole_llm.config.names import has_setting
from recbole_llm.errors import SettingError

POP, SASREC = ML_100K / "Pop" / "seed-2020", ML_100K / "SASRec-default" / "seed-2020"
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
    assert "SASRec on ml-100k, seed 2020: resumed" in error
    assert "ST2SI on ml-100k, seed 2020: started" in error
    assert error.count(": started") + error.count(": resumed") == 2


def test_a_run_that_outlives_its_comparison_is_waited_for(whole, tiny, tmp_path):
    arguments = ["--models=Pop,ST2SI", *[a for a in five_models(tiny) if fits("ST2SI", a)][1:]]
    code, _, error = forked_compare.compare(tmp_path, arguments, ("ST2SI", "comparison", 1))
    assert code == -9, error
    assert not list((tmp_path / "saved").glob("ST2SI-*/result.json"))
    code, out, error = forked_compare.compare(tmp_path, arguments)
    assert code == 0, error
    assert "waiting: another process, or a run that it started, still works on comparisons" in error
    assert ": started" not in error and ": resumed" not in error
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


def test_a_changed_setting_of_one_model_trains_that_model_alone(whole, tiny):
    """The other four are taken from the finished comparison, as they are by one elsewhere that is only shown apart."""
    folder, _, expected = whole
    runs = {cell["label"]: cell["test"] for cell in expected["cells"]}
    before = {path: path.stat().st_mtime_ns for path in (folder / "saved").glob("*/result.json")}
    (folder / "own.yaml").write_text("SASRec: {attn_dropout_prob: 0.1}\n")
    quickly = "--significance=false"
    code, out, error = forked_compare.compare(folder, five_models(tiny, "--model_settings=own.yaml", quickly))
    assert code == 0, error
    comparison = json.loads((folder / out.splitlines()[-1]).read_text())
    found = {cell["label"]: cell["test"] for cell in comparison["cells"]}
    assert all(found.values())
    assert error.count(": taken from") == 4 and error.count(": started") == 1
    assert "SASRec on ml-100k, seed 2020: started" in error
    assert {label: test for label, test in found.items() if label != "SASRec"} == {
        label: test for label, test in runs.items() if label != "SASRec"
    }
    shown = [a for a in five_models(tiny, quickly) if a != "--state=ERROR"]
    code, out, error = forked_compare.compare(folder, [*shown, "--out=elsewhere", "--state=WARNING", "--rows=metrics"])
    assert code == 0, error
    assert error.count(": taken from") == 5 and ": started" not in error and ": resumed" not in error
    again = json.loads((folder / "elsewhere" / "comparison.json").read_text())
    assert {cell["label"]: cell["test"] for cell in again["cells"]} == runs
    assert {path: path.stat().st_mtime_ns for path in before} == before
    # in the same folder, too: what shapes no result makes no other comparison
    code, _, error = forked_compare.compare(folder, [*shown, "--out=elsewhere", "--state=CRITICAL"])
    assert code == 0, error
    assert ": started" not in error


def test_a_run_on_other_data_or_with_another_seed_is_made_again(tmp_path):
    arguments = [
        "--models=SASRec", "--dataset=small", "--data_path=.", "--topk=[1]", "--valid_metric=NDCG@1", "--epochs=1",
        "--use_gpu=False", "--show_progress=False", "--state=ERROR", "--hidden_size=8", "--n_layers=1",
    ]  # fmt: skip
    write_dataset(tmp_path)
    outcomes = []
    for more in ([], ["--out=other"], ["--seed=3"], []):
        if len(outcomes) == 3:
            (inter,) = tmp_path.glob("**/small.inter")
            inter.write_text("\n".join(inter.read_text().splitlines()[:-1]) + "\n")
        code, _, error = forked_compare.compare(tmp_path, [*arguments, *more])
        assert code == 0, error
        outcomes.append(error.count(": started"))
    assert outcomes == [1, 0, 1, 1]


def test_start_run_is_the_command_line_of_this_very_package(workdir, tiny):
    """One run as compare really starts it: a new interpreter, output in the log, the lock kept open."""
    write_dataset(workdir)
    (workdir / "random.py").write_text("raise SystemExit('a file of the working folder was imported')")
    with (workdir / "lock").open("w") as lock:
        arguments = ["--model=Pop", "--dataset=small", "--data_path=.", "--topk=[1]", "--valid_metric=NDCG@9"]
        code = start_run(arguments, workdir / "log.txt", lock.fileno(), os.environ)
    assert code == 2
    assert reason(workdir / "log.txt", code).startswith("valid_metric=NDCG@9 is not computed")


def test_a_library_may_complain_behind_a_run(workdir, monkeypatch, capsys):
    """The path of the result need not be the last line of the log: standard error goes there, too."""

    def start_run(arguments, log, lock, environment):
        log.write_text(f"a table\n{POP / 'result.json'}\n[W] a process group was not destroyed\n")
        return 0

    monkeypatch.setattr(child_runs, "start_run", start_run)
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


# -- what is asked -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing is named to compare"),
        (["--models=Pop"], "no dataset is named"),
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
        (["--models=Pop", "--dataset=no-such"], "there is no dataset 'no-such'"),
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
            "there is no setting 'sohw'; did you mean 'show'?",
        ),
        (["--runs=saved/*", "--epochs=3"], "--epochs is no option of a comparison of finished runs"),
        (["--runs=saved/*", "--dataset=ml-100k"], "--dataset is for runs that are started, which --models names"),
    ],
)
def test_mistakes_are_told_before_anything_runs(workdir, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(child_runs, "start_run", lambda *_: pytest.fail("a run was started"))
    (workdir / "own.yaml").write_text("Pip: {seed: 3}\n")
    assert main(["compare", *arguments]) in (1, 2)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not (workdir / "comparisons").exists()


def test_protocols_of_planned_models_are_compared_before_anything_runs(workdir, monkeypatch):
    monkeypatch.setattr(child_runs, "start_run", lambda *_: pytest.fail("a run was started"))
    own = {"Pop": {"repeatable": False}, "BPR": {"repeatable": True}}
    with pytest.raises(SettingError, match="Pop on ml-100k and BPR on ml-100k cannot stand in one table: repeatable"):
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
