"""A metric against the size of the language model: where points lie, in picture and in file, and what is refused."""

import json
from pathlib import Path

import pytest
from comparison_data import result

from recbole_llm.cli.main import main
from recbole_llm.errors import SettingError
from recbole_llm.plots.records import from_results
from recbole_llm.plots.scaling import scaling, scaling_points
from recbole_llm.runs.result import RunResult


def of(*results):
    return from_results([(f"run {n}", RunResult.from_dict(one, f"run {n}")) for n, one in enumerate(results)])


def sized(backbone, trained, frozen, value, dataset="ml-1m", seed=0, tuning="ilp", **more):
    run = result("ST2SI", dataset, seed, backbone, tuning, mrr=value, **more)
    return {**run, "parameters": {"trained": trained, "frozen": frozen}}


RUNS = [
    sized("qwen2.5-coder-0.5b", 4_000_000, 494_000_000, 0.4, settings={"learning_rate": 1e-4}),
    sized("smollm2-135m", 3_000_000, 135_000_000, 0.2, settings={"learning_rate": 3e-4}),
    sized("models/gemma3-270m", 3_000_000, 268_000_000, 0.1, seed=1),
    sized("models/gemma3-270m", 3_000_000, 268_000_000, 0.3, seed=2),
    sized("models/random-smollm2-135m", 3_000_000, 135_000_000, 0.05),
    result("SASRec", "ml-1m", mrr=0.25),
    result("GRU4Rec", "ml-1m", mrr=0.15),
    sized("smollm2-135m", 3_000_000, 135_000_000, 0.2, "Scientific"),
]


def test_a_line_joins_families_by_size_beside_its_control_and_the_best_id_model():
    (ax,) = scaling(of(*RUNS), "mrr").axes
    assert ax.get_title(loc="left") == "ml-1m", "another dataset with one size is no line"
    assert ax.get_xscale() == "log"
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in ax.get_lines()}
    assert lines["ST2SI, ilp"] == ([138e6, 271e6, 498e6], [0.2, pytest.approx(0.2), 0.4])
    assert lines["ST2SI, ilp, random weights"] == ([138e6], [0.05])
    assert lines["SASRec"][1] == [0.25, 0.25] and "GRU4Rec" not in lines
    (whisker,) = [segment for collection in ax.collections for segment in collection.get_segments()]
    spread = 0.02**0.5  # of .1 and .3, by n - 1
    assert whisker.tolist() == [[271e6, pytest.approx(0.2 - spread)], [271e6, pytest.approx(0.2 + spread)]]
    named = {text.get_text(): text.xy for text in ax.texts}
    assert named["gemma3-270m"] == (271e6, pytest.approx(0.2)) and named["qwen2.5-coder-0.5b"] == (498e6, 0.4)
    ticks = [ax.xaxis.get_major_formatter()(x) for x in ax.xaxis.get_major_locator()()]
    assert ticks == ["138M", "271M", "498M"]


def test_the_points_are_those_of_the_runs():
    points = scaling_points(of(*RUNS), "mrr")
    found = {(p["system"], p["backbone"]): (p["parameters"], p["mean"], p["deviation"], p["runs"]) for p in points}
    assert found == {
        ("ST2SI, ilp", "smollm2-135m"): (138_000_000, 0.2, None, ["run 1"]),
        ("ST2SI, ilp", "gemma3-270m"): (
            271_000_000, pytest.approx(0.2), pytest.approx(0.02**0.5), ["run 2", "run 3"]
        ),
        ("ST2SI, ilp", "qwen2.5-coder-0.5b"): (498_000_000, 0.4, None, ["run 0"]),
        ("ST2SI, ilp, random weights", "random-smollm2-135m"): (138_000_000, 0.05, None, ["run 4"]),
        ("SASRec", None): (None, 0.25, None, ["run 5"]),
    }  # fmt: skip
    assert {(p["dataset"], p["metric"]) for p in points} == {("ml-1m", "mrr")}


def test_kinds_of_tuning_are_lines_of_their_own():
    more = [sized("smollm2-135m", 9, 135, 0.3, tuning="lora"), sized("opt-350m", 9, 331, 0.1, tuning="lora")]
    systems = [p["system"] for p in scaling_points(of(*RUNS[:2], *more), "mrr")]
    assert systems == ["ST2SI, ilp"] * 2 + ["ST2SI, lora"] * 2


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([*RUNS[1:2], *RUNS[4:7]], "no two runs of one model and tuning on one dataset have language models"),
        ([*RUNS[:2], RUNS[1]], "have the same seed"),
        (
            [*RUNS[:2], sized("smollm2-135m", 3, 5, 0.2, seed=1, settings={"learning_rate": 1e-3})],
            "stand at one point of the plot, but differ also in learning_rate",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(runs, message):
    for make in (scaling, scaling_points):
        with pytest.raises(SettingError) as error:
            make(of(*runs), "mrr")
        assert message in str(error.value)


def test_the_command_writes_picture_and_points(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for n, run in enumerate(RUNS):
        (tmp_path / "saved" / str(n)).mkdir(parents=True)
        (tmp_path / "saved" / str(n) / "result.json").write_text(json.dumps(run))
    assert main(["plot", "--kind=scaling", "--runs=saved/*", "--metric=mrr"]) == 0
    assert capsys.readouterr().out.split() == ["plots/scaling.png", "plots/scaling.svg", "plots/scaling.json"]
    points = json.loads(Path("plots/scaling.json").read_text())
    assert [p["mean"] for p in points] == [0.2, pytest.approx(0.2), 0.4, 0.05, 0.25]
    assert Path("plots/scaling.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_two_folders_of_one_name_are_told_apart_by_their_size():
    runs = (sized("a/model", 3_000_000, 135_000_000, 0.2), sized("b/model", 3_000_000, 268_000_000, 0.3, seed=1))
    small = sized("smollm2-135m", 3_000_000, 100_000_000, 0.2)
    with pytest.raises(SettingError, match="have one name, but models of 138,000,000 and 271,000,000 parameters"):
        scaling(of(*runs, small), "mrr")
