"""Comparisons of finished runs that are given: labels, tables and intervals, and which runs may stand side by side."""

import json
import os
from pathlib import Path

import pytest
import yaml
from atomic_files import quick_settings, write_atomic_files
from kept_runs import KEPT_RUNS, ML_100K, kept_result, unpack

from recbole_llm.cli.main import main
from recbole_llm.comparison import child_runs
from recbole_llm.comparison.compare import Options, compare
from recbole_llm.errors import CheckpointError, SettingError
from recbole_llm.quick_start.run import run
from recbole_llm.report.page import render
from recbole_llm.runs.archive import archived_run, read_archive, write_archive

POP, SASREC = ML_100K / "Pop" / "seed-2020", ML_100K / "SASRec-default" / "seed-2020"


def test_kept_runs_give_their_table_and_start_nothing(workdir, monkeypatch, capsys):
    monkeypatch.setattr(child_runs, "start_run", lambda *_: pytest.fail("a run was started"))
    names = ["Pop", "SASRec", "ST2SI-ILP-8-items", "ST2SI-ILP-50-items"]
    runs = [f"--runs=SASRec:{SASREC},{ML_100K}", f"--models={','.join(names)}"]
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
    kept = archived_run(os.path.normpath(workdir / "here" / cell["run"]))
    assert kept.path == ML_100K / names[-1] / "seed-2020" and kept.result["test"] == cell["test"]
    assert "--backbone=smollm2-135m" in cell["command"] and "--repeatable=True" in cell["command"], (
        "what it was, not the default"
    )


def finished(folder, model, **settings):
    """A run in a folder `<model>/seed-2020`, and its result."""
    place = Path(model) / "seed-2020"
    return run(settings=quick_settings(folder, model=model, **settings), folder=place), place


def means(comparison):
    return {(entry["label"], entry["metric"]): round(entry["mean"], 4) for entry in comparison["summary"]}


def test_both_protocols_are_shown_from_the_same_runs(workdir):
    folder, shown = write_atomic_files(workdir / "tiny"), ["ndcg@10", "mrr"]
    results, places = zip(*(finished(folder, model) for model in ("Pop", "SASRec")), strict=True)
    runs, given = [str(place) for place in places], {"show": shown, "settings": {"data_path": str(workdir)}}
    both = compare(Options(runs=runs, out="both", protocols="both", **given))
    for comparison, key, repeatable in ((both, "test", False), (both["other"], "test_other", True)):
        assert comparison["repeatable"] == {"tiny": repeatable}
        assert means(comparison) == {(r["model"], name): r[key][name] for r in results for name in shown}
        from_ranks = {(e["label"], e["metric"]): e["mean"] for e in comparison["intervals"]}
        assert all(from_ranks[r["model"], "mrr"] == pytest.approx(r[key]["mrr"], abs=1e-4) for r in results)
        assert comparison["groups"] and comparison["significance"]
    assert means(both) != means(both["other"])
    for name in ("comparison.md", "comparison.tex"):
        text = Path("both", name).read_text()
        assert text.index("are left out of the rankings (repeatable: False)") < text.index(
            "are ranked with all others ("
        )
    lines = Path("both", "comparison.csv").read_text().splitlines()
    assert lines[0].endswith(",repeatable") and len(lines) == 9 and lines[-1].endswith(",True")
    assert both["path"] and "repeatable: True" in render(both) and "repeatable: False" in render(both)

    archive = workdir / "tiny.parquet"
    write_archive(places, archive)
    for where in (runs, [str(archive)]):
        own, kept = (compare(Options(runs=where, out=way, protocols=way, **given)) for way in ("own", "kept"))
        assert means(own) == means(both) and means(kept) == means(both["other"]) and "other" not in own
        assert [e["mean"] for e in kept["intervals"]] == [e["mean"] for e in both["other"]["intervals"]]

    result, place = finished(folder, "BPR", repeatable=True)
    with pytest.raises(SettingError, match="repeatable is False in the first and True in the second; give both"):
        compare(Options(runs=[*runs, str(place)], out="mixed", **given))
    mixed = compare(Options(runs=[*runs, str(place)], out="mixed", protocols="left_out", **given))
    assert means(mixed) == means(both) | {("BPR", name): result["test_other"][name] for name in shown}


def test_a_run_that_drew_users_for_validation_stands_beside_others(workdir):
    folder, shown = write_atomic_files(workdir / "tiny"), ["ndcg@10", "valid.ndcg@10"]
    whole, first = finished(folder, "Pop")
    drawn, second = finished(folder, "SASRec", valid_users=5)
    assert drawn["counts"]["valid"] == 5 < whole["counts"]["valid"]
    given = {"runs": [str(first), str(second)], "show": shown, "settings": {"data_path": str(workdir)}}
    comparison = compare(Options(out="both", significance=False, **given))
    assert means(comparison) == {(r["model"], "ndcg@10"): r["test"]["ndcg@10"] for r in (whole, drawn)}
    assert "Validation of SASRec: 5 users, drawn." in Path("both", "comparison.md").read_text()


def test_what_a_run_of_version_0_2_did_not_measure_is_missing(workdir):
    comparison = compare(Options(runs=[str(POP)], out="here", protocols="left_out", show=["mrr"], significance=False))
    cell = comparison["cells"][0]
    assert cell["status"] == "missing" and "was not measured with what users met before left out" in cell["reason"]
    assert comparison["repeatable"] == {"ml-100k": None} and comparison["summary"] == []
    kept = compare(Options(runs=[str(POP)], out="here", protocols="kept", show=["mrr"], significance=False))
    assert kept["repeatable"] == {"ml-100k": True} and len(kept["summary"]) == 1


def test_a_pattern_names_runs_after_what_tells_them_apart(workdir):
    for kept in read_archive(ML_100K):
        unpack(kept.path, workdir / kept.label)
    comparison = compare(Options(runs=[str(workdir / "*")], out="here", show=["mrr"]))
    assert comparison["models"] == [
        "BERT4Rec", "GRU4Rec", "Pop", "SASRec", "ST2SI (MAX_ITEM_LIST_LENGTH=50)",
        "ST2SI (MAX_ITEM_LIST_LENGTH=8, train_window=recent)",
    ]  # fmt: skip


def seeds_of(folder, weights=None, **changed):
    """Three runs of one label in `folder`, with other settings in the last; each has its own path as `weights`."""
    for seed in (1, 2, 3):
        own = {weights: f"saved/run-{seed}"} if weights else {}
        copy = altered(folder, f"seed-{seed}", seed=seed, **own, **(changed if seed == 3 else {}))
        result = json.loads((copy / "result.json").read_text())
        result |= {"seed": seed, "epochs": 10 * seed}
        result["test"]["mrr"] = 0.05 + 0.01 * seed
        result["valid"]["ndcg@10"] = 0.07 + 0.02 * seed
        (copy / "result.json").write_text(json.dumps(result))


@pytest.mark.parametrize("weights", ["id_model_path", "pretrained_backbone", "pretrained_state"])
def test_runs_in_folders_of_seeds_are_named_after_the_folder_above(workdir, monkeypatch, capsys, weights):
    monkeypatch.setattr(child_runs, "start_run", lambda *_: pytest.fail("a run was started"))
    seeds_of(workdir / "runs" / "SASRec-mine", weights=weights)
    arguments = ["--show=epochs,mrr,valid.ndcg@10,seeds", "--significance=false", "--out=here"]
    runs = f"--runs=runs/*/*,{ML_100K}"
    assert main(["compare", runs, "--models=SASRec-mine,GRU4Rec-default", *arguments]) == 0
    own = kept_result("ml-100k", "GRU4Rec-default")
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


def test_what_auto_came_to_is_the_same_setting(workdir):
    folder = write_atomic_files(workdir / "tiny")  # where nobody meets an item twice
    for seed, answer in enumerate(("auto", False, True), start=1):
        run(
            settings=quick_settings(folder, model="Pop", repeatable=answer, seed=seed), folder=Path(f"mine/seed-{seed}")
        )
    given = {"show": ["mrr"], "settings": {"data_path": str(workdir)}}
    comparison = compare(Options(runs=["mine/seed-1", "mine/seed-2"], out="same", **given))
    assert [(entry["label"], entry["seeds"]) for entry in comparison["summary"]] == [("mine", 2)]
    with pytest.raises(SettingError, match="repeatable is False in the first and True in the second"):
        compare(Options(runs=["mine/seed-1", "mine/seed-3"], out="other", **given))


def test_rows_must_be_of_runs_that_are_there(workdir):
    with pytest.raises(SettingError, match=r"models=SASRec is none of the given runs.*did you mean 'SASRec-default'"):
        compare(Options(runs=[f"{ML_100K}"], models="Pop,SASRec", out="here"))
    assert not (workdir / "here").exists()


def test_intervals_of_a_table_are_those_of_the_whole_comparison(workdir, capsys):
    options = {"runs": [f"{ML_100K}"], "models": "SASRec-default,GRU4Rec-default"}
    whole = compare(Options(**options, out="whole", show="mrr,ndcg@10"))
    alone = compare(Options(**options, out="alone", show="mrr,interval.ndcg@10", significance=False))
    assert alone["intervals"] == [entry for entry in whole["intervals"] if entry["metric"] == "ndcg@10"]
    assert not alone["significance"] and whole["significance"]
    low, high = (whole["intervals"][-2][name] for name in ("low", "high"))
    assert f"| {low:.4f} to {high:.4f} |" in (workdir / "alone" / "comparison.md").read_text()


@pytest.mark.parametrize(("given", "shown"), [({}, []), ({"ours": "SASRec-default"}, ["SASRec-default"])])
def test_without_significance_improvements_are_those_that_are_asked_for(workdir, given, shown):
    labels = "SASRec-default,ST2SI-ILP-8-items"
    comparison = compare(Options(runs=[f"{ML_100K}"], models=labels, out="here", significance=False, **given))
    improved = {entry["label"] for entry in comparison["summary"] if entry["improvement"] is not None}
    assert sorted(improved) == comparison["ours"] == shown
    assert "p < 0.01" not in (workdir / "here" / "comparison.md").read_text()


def test_nothing_is_fetched_to_compare_runs(workdir, monkeypatch):
    monkeypatch.setattr("recbole_llm.prepare.ensure", lambda *_: pytest.fail("a dataset was made"))
    runs = KEPT_RUNS / "Scientific.parquet"
    comparison = compare(Options(runs=[str(runs)], models="SASRec,ST2SI-ILP", out="here", show="mrr"))
    assert comparison["notes"] == ["Scientific: metrics by group are left out: its data are not in dataset/"]
    assert not (workdir / "dataset").exists()


def test_runs_fill_their_cells_of_a_plan(workdir, monkeypatch):
    """A given run is not started again; on the dataset where none is given the cell is missing, with the reason."""
    settings = quick_settings(write_atomic_files(workdir / "small"), load_col=None)
    path = Path(run("Pop", settings=settings)["path"])
    started = []
    monkeypatch.setattr(child_runs, "start_run", lambda arguments, *_: started.append(arguments) or 9)
    monkeypatch.setattr(child_runs, "reason", lambda *_: "not really started")
    shared = {k: v for k, v in settings.items() if k != "dataset"}
    options = Options(models="Pop,BPR", dataset="small", runs=[str(path.parent), str(POP)], settings=shared, show="mrr")
    comparison = compare(options)
    cells = {(cell["dataset"], cell["label"]): (cell["status"], cell["reason"]) for cell in comparison["cells"]}
    assert cells == {
        ("small", "Pop"): ("done", None),
        ("small", "BPR"): ("failed", "not really started"),
        ("ml-100k", "Pop"): ("done", None),
        ("ml-100k", "BPR"): ("missing", "no run of it was given"),
    }
    assert [arguments[0] for arguments in started] == ["--model=BPR"]


def altered(tmp_path, name, **settings):
    """A copy of the kept run of SASRec with other settings."""
    folder = unpack(SASREC, tmp_path / name)
    result = json.loads((folder / "result.json").read_text())
    counts = settings.pop("counts", {})
    result["settings"] |= settings
    result["counts"] |= counts
    (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_history": True}, "repeatable is True in the first and False in the second"),
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
        ("saved/half", "saved/half names no finished run"),
        ("saved/*", r"saved/\* names no finished run"),
        (f"SASRec:{SASREC},{altered(workdir, 'same')}", "are both SASRec on ml-100k with seed 2020: leave one out"),
    ):
        with pytest.raises((CheckpointError, SettingError), match=message):
            compare(Options(runs=runs))
    for text, message in (("{", "is not a readable result"), ('{"model": "Pop"}', "lacks 'dataset'")):
        (workdir / "saved" / "half" / "result.json").write_text(text)
        with pytest.raises(CheckpointError, match=message):
            compare(Options(runs="saved/half"))
    for changed, message in (
        ({"settings": []}, "'settings' must be a mapping"),
        ({"counts": {"users": 3}}, "'counts' lacks 'items'"),
        ({"test": {"mrr": "high"}}, "'test.mrr' must be a number, but is 'high'"),
        ({"test": {}}, "has no test metrics"),
    ):
        result = archived_run(SASREC).result | changed
        (workdir / "saved" / "half" / "result.json").write_text(json.dumps(result))
        with pytest.raises(CheckpointError, match=message):
            compare(Options(runs="saved/half"))


# -- broken files ------------------------------------------------------------------------------------------------------


def with_settings(folder, **fields):
    """Write the `config.yaml` of a kept run, which has only its result."""
    settings = archived_run(SASREC).result["settings"]
    (folder / "config.yaml").write_text(yaml.safe_dump({**settings, **fields}))


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is not a readable result of a run"), ({"test": {"mrr": "high"}}, "'test.mrr' must be a number")],
    ids=["cut", "by hand"],
)
def test_one_broken_result_leaves_its_cell_and_the_rest_of_the_table_is_whole(workdir, content, message):
    whole = compare(Options(runs=[f"{ML_100K}"], out="whole", show=["mrr", "epochs"]))
    seeds_of(workdir / "runs" / "SASRec-default")
    path = workdir / "runs" / "SASRec-default" / "seed-2" / "result.json"
    if content == "{":  # else the result itself says which run it is
        with_settings(path.parent, seed=2)
    path.write_text(content if isinstance(content, str) else json.dumps(json.loads(path.read_text()) | content))
    found = compare(
        Options(
            runs=[f"{ML_100K}/Pop/*", "runs/*/*", f"{ML_100K}/GRU4Rec-default/*"], out="here", show=["mrr", "epochs"]
        )
    )
    cells = {(cell["label"], cell["seed"]): cell for cell in found["cells"]}
    broken = cells["SASRec-default", 2]
    assert (broken["status"], broken["run"], broken["test"]) == ("failed", None, {})
    assert message in broken["reason"] and str(path.relative_to(workdir)) in broken["reason"]
    assert {seed: cells["SASRec-default", seed]["status"] for seed in (1, 3)} == {1: "done", 3: "done"}
    entry = next(entry for entry in found["summary"] if entry["label"] == "SASRec-default")
    assert (entry["seeds"], entry["mean"]) == (2, pytest.approx((0.06 + 0.08) / 2))
    for label in ("Pop", "GRU4Rec-default"):
        same = [[e["mean"] for e in part["summary"] if e["label"] == label] for part in (whole, found)]
        assert same[0] == same[1] != []
    table = (workdir / "here" / "comparison.md").read_text()
    assert "SASRec-default on ml-100k, seed 2 failed: " in table and message in table


def test_a_broken_result_without_settings_is_refused(workdir):
    folder = altered(workdir, "broken")
    (folder / "result.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"broken/result\.json is not a readable result of a run"):
        compare(Options(runs=[str(folder)], out="here"))
    beside = compare(Options(runs=[str(POP), str(folder)], out="there"))  # a good one: the table has what there is
    assert {cell["label"]: cell["status"] for cell in beside["cells"]} == {"Pop": "done", "broken": "failed"}


def test_a_broken_run_takes_no_planned_cells_place(workdir, monkeypatch):
    """It is run instead; the result that its process leaves broken is the reason in the cell."""
    folder = altered(workdir, "given")
    with_settings(folder)
    (folder / "result.json").write_text("{")
    (workdir / "made").mkdir()
    (workdir / "made" / "result.json").write_text('{"model": "SASRec"}')

    def start_run(arguments, log, lock, environment):
        log.write_text("made/result.json\n")
        return 0

    monkeypatch.setattr(child_runs, "start_run", start_run)
    found = compare(Options(models="SASRec", dataset="ml-100k", runs=[str(folder)], out="here"))
    (cell,) = found["cells"]
    assert (cell["status"], cell["run"]) == ("failed", None)
    assert cell["reason"].startswith("made/result.json is not the result of a run: it lacks 'dataset'")


def test_broken_ranks_are_noted_and_the_table_is_whole(workdir):
    other = altered(workdir, "SASRec")
    (other / "ranks-test.tsv.gz").write_bytes((other / "ranks-test.tsv.gz").read_bytes()[:100])
    found = compare(Options(runs=[str(POP), str(other)], out="here", show="mrr"))
    assert [cell["status"] for cell in found["cells"]] == ["done", "done"]
    assert len(found["summary"]) == 2 and [entry["label"] for entry in found["intervals"]] == ["Pop"]
    assert any("ranks-test.tsv.gz is not a whole file of ranks" in note for note in found["notes"])


def test_the_environment_of_the_caller_stays(workdir, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    before = dict(os.environ)
    given = []
    monkeypatch.setattr(child_runs, "start_run", lambda *arguments: given.append(arguments[-1]) or 9)
    monkeypatch.setattr(child_runs, "reason", lambda *_: "not really started")
    compare(Options(models="SASRec", dataset="ml-100k", runs=[str(POP)], out="here"))
    assert given == [before], "the run has the environment of the caller"
    assert dict(os.environ) == before
