"""What every plot draws is what it was given: the data of the figure's own artists against the inputs."""

import itertools
import json
import statistics

import matplotlib as mpl
import numpy as np
import pytest
from comparison_data import DATASETS, LABELS, comparison, result
from kept_runs import KEPT_RUNS, ML_100K, kept_result
from matplotlib.colors import to_hex

from recbole_llm.comparison.file import read_comparison
from recbole_llm.errors import SettingError
from recbole_llm.plots.backbones import backbones, family_of
from recbole_llm.plots.bars import bars
from recbole_llm.plots.curves import curves
from recbole_llm.plots.groups import groups
from recbole_llm.plots.pretraining import pretraining
from recbole_llm.plots.records import from_comparison, from_results, read_runs
from recbole_llm.plots.sensitivity import sensitivity
from recbole_llm.plots.style import PALETTE, looks
from recbole_llm.plots.trade_off import trade_off
from recbole_llm.runs.result import RunResult


def lines(ax):
    """The named lines of a panel: label to (x, y)."""
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in ax.get_lines()
        if not line.get_label().startswith("_")
    }


def texts(ax):
    return [text.get_text().replace("\n", " ") for text in ax.texts]


def of(*results):
    return from_results([(f"run {n}", RunResult.from_dict(one, f"run {n}")) for n, one in enumerate(results)])


def segments(ax):
    """Ends of all vertical whiskers, by their place."""
    found = {}
    for collection in ax.collections:
        for (x0, low), (x1, high) in collection.get_segments():
            assert x0 == x1
            found[round(x0, 6)] = (low, high)
    return found


def test_curves_are_the_histories_of_the_kept_runs():
    results = read_runs(str(ML_100K))
    figure = curves(results, "ndcg@10")
    left, right = figure.axes
    for name in ("BERT4Rec", "GRU4Rec", "SASRec"):
        stored = kept_result("ml-100k", f"{name}-default")
        epochs = [entry["epoch"] for entry in stored["history"]]
        assert lines(left)[name] == (epochs, [entry["valid"]["ndcg@10"] for entry in stored["history"]])
        assert lines(right)[name] == (epochs, [entry["train_loss"] for entry in stored["history"]])
        # The marked point is the best epoch that the file names.
        marks = [line for line in left.get_lines() if line.get_color() == looks(results.labels)[name].colour]
        best = next(line for line in marks if line.get_label() == "_best")
        assert list(best.get_xdata()) == [stored["best_epoch"]]
        assert list(best.get_ydata()) == [stored["valid"]["ndcg@10"]]
    assert "Pop" in texts(left) and "Pop" not in texts(right), "Pop learns nothing: it has no loss to draw"
    assert set(results.labels) == set(texts(left)), "every run is named at its line"
    assert left.get_ylabel() == "validation NDCG@10" and right.get_ylabel() == "training loss"


def test_runs_of_one_model_are_told_apart_by_the_setting_that_differs():
    labels = read_runs(f"{ML_100K}/ST2SI-ILP-8-items/* {ML_100K}/ST2SI-ILP-50-items/seed-2020/result.json").labels
    assert labels == [f"ST2SI, smollm2-135m, ilp, MAX_ITEM_LIST_LENGTH={number}" for number in (8, 50)]


def test_bars_are_means_over_seeds_with_the_intervals_of_the_comparison():
    whole = comparison()
    results = from_comparison(whole)
    figure = bars(results, ["ndcg@10", "mrr"])
    assert len(figure.axes) == 4
    for ax, (dataset, metric) in zip(figure.axes, [(d, m) for d in DATASETS for m in ("ndcg@10", "mrr")], strict=True):
        drawn = {round(bar.get_y() + bar.get_height() / 2): bar for bar in ax.patches}
        whiskers = {line.get_ydata()[0]: tuple(line.get_xdata()) for line in ax.get_lines()}
        names = [tick.get_text() for tick in ax.get_yticklabels()]
        for place, label in enumerate(LABELS):
            cells = [c for c in whole["cells"] if (c["dataset"], c["label"]) == (dataset, label) and c["test"]]
            assert metric != "ndcg@10" or names[place] == label, "the first column writes the names"
            if not cells:
                assert place not in drawn and "no finished run" in texts(ax)
                continue
            mean = statistics.fmean(cell["test"][metric] for cell in cells)
            assert drawn[place].get_width() == pytest.approx(mean, rel=1e-12)
            assert to_hex(drawn[place].get_facecolor()) == PALETTE[place]
            interval = next(
                e for e in whole["intervals"] if (e["dataset"], e["label"], e["metric"]) == (dataset, label, metric)
            )
            assert whiskers[place] == (interval["low"], interval["high"])
            assert f"{mean:.4f}" in texts(ax)
        assert ax.get_xlim()[0] == 0, "bars begin at zero"


def test_bars_of_runs_have_the_deviation_over_seeds():
    (ax,) = bars(of(*(result(seed=seed, mrr=value) for seed, value in enumerate((0.1, 0.2, 0.4)))), ["mrr"]).axes
    assert ax.patches[0].get_width() == pytest.approx(0.7 / 3)
    deviation = np.std([0.1, 0.2, 0.4], ddof=1)
    assert list(ax.get_lines()[0].get_xdata()) == pytest.approx([0.7 / 3 - deviation, 0.7 / 3 + deviation])


def test_groups_are_in_order_with_their_intervals_and_counts():
    whole = comparison()
    figure = groups(from_comparison(whole), "mrr")
    assert len(figure.axes) == 4
    parts = [(dataset, by) for dataset in DATASETS for by in ("popularity", "history_length")]
    for ax, (dataset, by) in zip(figure.axes, parts, strict=True):
        assert [tick.get_text() for tick in ax.get_xticklabels()] == ["head\n(100)", "tail\n(101)", "never\n(102)"]
        ends = segments(ax)
        for label, (xs, ys) in lines(ax).items():
            entries = [e for e in whole["groups"] if (e["dataset"], e["by"], e["label"]) == (dataset, by, label)]
            values = [entry["metrics"]["mrr"] for entry in sorted(entries, key=lambda entry: entry["order"])]
            assert ys == [value["mean"] for value in values]
            assert [round(x) for x in xs] == [0, 1, 2]
            assert [ends[round(x, 6)] for x in xs] == [(value["low"], value["high"]) for value in values]
        assert set(texts(ax)) == set(lines(ax)), "every line is named"


def test_sensitivity_is_one_line_a_data_set_with_the_mean_over_seeds():
    values = {
        ("Clothing", 1): (0.1, 0.3),
        ("Clothing", 2): (0.25,),
        ("Clothing", 4): (0.2,),
        ("ml-1m", 1): (0.5,),
        ("ml-1m", 4): (0.4,),
    }
    runs = [
        result("IDLEAdapter", name, seed, "sbert-minilm", settings={"num_virtual_tokens": length}, **{"hit@10": value})
        for (name, length), by_seed in values.items()
        for seed, value in enumerate(by_seed)
    ]
    figure = sensitivity(of(*reversed(runs)), "num_virtual_tokens", "hit@10")
    (ax,) = figure.axes
    assert lines(ax) == {"ml-1m": ([1, 4], [0.5, 0.4]), "Clothing": ([1, 2, 4], [pytest.approx(0.2), 0.25, 0.2])}
    assert segments(ax) == {1: pytest.approx((0.2 - 0.02**0.5, 0.2 + 0.02**0.5))}, "one point has two seeds"
    assert list(ax.get_xticks()) == [1, 2, 4] and ax.get_xlabel() == "num_virtual_tokens"


def test_sensitivity_takes_a_default_where_a_cell_names_no_value():
    whole = comparison()
    whole["cells"] = [cell for cell in whole["cells"] if cell["label"] == "SASRec"]
    for cell in whole["cells"]:
        cell["settings"] = {"hidden_size": 128} if cell["seed"] == 1 else {}
    (ax,) = sensitivity(from_comparison(whole), "hidden_size", "mrr").axes
    assert {name: line[0] for name, line in lines(ax).items()} == {name: [64, 128] for name in DATASETS}, (
        "64 is RecBole's"
    )


def test_sensitivity_says_what_else_differs():
    runs = [result(settings={"n_layers": n, "learning_rate": n / 1000}, seed=n) for n in (1, 2)]
    (ax,) = sensitivity(of(*runs), "n_layers", "mrr").axes
    assert ax.get_title(loc="left") == "these runs differ also in learning_rate"


@pytest.mark.parametrize(
    ("runs", "setting", "message"),
    [
        ([{}], "num_virtual_tokns", "no run has the setting 'num_virtual_tokns'; did you mean 'num_virtual_tokens'?"),
        ([{}], "num_virtual_tokens", "has no two values on one line of the plot (found: 2)"),
        ([{"loss_type": "CE"}], "loss_type", "loss_type=CE of run 0 is not a number"),
        ([{"multi_query": True}], "multi_query", "multi_query=True of run 0 is not a number"),
        (
            [{}, {"n_layers": 3}],
            "num_virtual_tokens",
            "run 0 and run 1 stand at one point of the plot, but differ also in n_layers",
        ),
        ([{}, {}], "num_virtual_tokens", "stand at one point of the plot, but have the same seed"),
    ],
)
def test_sensitivity_refuses_what_it_cannot_draw(runs, setting, message):
    with pytest.raises(SettingError, match="^" + ".*") as error:
        sensitivity(of(*(result("X", settings={"num_virtual_tokens": 2, **more}) for more in runs)), setting, "mrr")
    assert message in str(error.value)


def sized(backbone, trained, frozen, value, dataset="ml-1m", seed=0, **more):
    return {
        **result("IDLEAdapter", dataset, seed, backbone, mrr=value, **more),
        "parameters": {"trained": trained, "frozen": frozen},
    }


def test_backbones_are_one_line_a_family_over_all_parameters_with_the_best_id_model():
    runs = [
        sized("facebook/opt-350m", 10, 350, 0.4), sized("opt-125m", 10, 125, 0.2), sized("bge-small", 5, 33, 0.3),
        sized("bge-large", 5, 335, 0.5, settings={"weights": "bf16"}), result("SASRec", "ml-1m", mrr=0.15),
        result("GRU4Rec", "ml-1m", mrr=0.1), sized("opt-125m", 10, 125, 0.2, "other"),
    ]  # fmt: skip
    figure = backbones(of(*runs), "mrr")
    (ax,) = figure.axes
    assert ax.get_title(loc="left") == "ml-1m", "another dataset with one size is no line"
    found = lines(ax)
    assert found["opt"] == ([135, 360], [0.2, 0.4]) and found["bge"] == ([38, 340], [0.3, 0.5])
    assert found["SASRec"][1] == [0.15, 0.15] and "SASRec" in texts(ax) and "GRU4Rec" not in found
    assert family_of("/models/SmolLM2-135M") == "smollm2"
    with pytest.raises(SettingError, match="no two runs on one dataset have language models of one family"):
        backbones(of(*runs[1:3]), "mrr")


def pretrained(value, dataset="Scientific", sources=None, epochs=15, saved=None, tuning="ilp", seed=0):
    own = {"pretrain_datasets": sources, "pretrain_epochs": epochs, "pretrain_save_epochs": saved}
    return result("ST2SI", dataset, seed, "opt-125m", tuning, own if sources else {}, mrr=value)


def test_pretraining_sets_are_bars_by_target_and_epochs_are_lines():
    runs = [
        pretrained(0.1), pretrained(0.2, sources=["Food"]), pretrained(0.15, sources="Cell"),
        pretrained(0.4, sources=["Food", "Cell"]), pretrained(0.3, "Arts"), pretrained(0.5, "Arts", ["Food"]),
        pretrained(0.12, sources=["Food"], epochs=30, saved=[5]),
        pretrained(0.18, sources=["Food"], epochs=30, saved=[5, 10]), pretrained(0.17, sources=["Food"], epochs=30),
    ]  # fmt: skip
    figures = pretraining(of(*runs), "mrr")
    (ax,) = figures["sets"].axes
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["Scientific", "Arts"]
    heights = {bars.get_label(): [bar.get_height() for bar in bars] for bars in ax.containers}
    nan = pytest.approx(float("nan"), nan_ok=True)
    assert heights == {"none": [0.1, 0.3], "Cell": [0.15, nan], "Food": [0.2, 0.5], "Food + Cell": [0.4, nan]}
    assert [text.get_text() for text in figures["sets"].legends[0].get_texts()] == [
        "none",
        "Cell",
        "Food",
        "Food + Cell",
    ]
    (ax,) = figures["epochs"].axes
    assert lines(ax) == {"Scientific": ([5, 10, 15, 30], [0.12, 0.18, 0.2, 0.17])}
    with pytest.raises(SettingError, match="no two runs on one dataset differ in pretrain_datasets"):
        pretraining(of(runs[0], runs[4]), "mrr")


def test_trade_off_is_training_seconds_against_quality():
    slow = [result(seed=seed, mrr=value) for seed, value in ((1, 0.2), (2, 0.4))]
    slow[0]["seconds"]["fit"], slow[1]["seconds"]["fit"] = 100.0, 300.0
    quick = result("ST2SI", backbone="opt-125m", tuning="ilp", mrr=0.1)
    quick["seconds"] = {"pretrain": 4.0, "prepare": 50.0, "fit": 3.0, "evaluate": 9.0}
    (ax,) = trade_off(of(*slow, quick), "mrr").axes
    assert lines(ax) == {"SASRec": ([200.0], [pytest.approx(0.3)]), "ST2SI, opt-125m, ilp": ([7.0], [0.1])}
    assert ax.get_xlabel() == "training, seconds on cpu"
    quick["device"] = "NVIDIA H200"
    (ax,) = trade_off(of(*slow, quick), "mrr").axes
    assert "ST2SI, opt-125m, ilp (NVIDIA H200)" in texts(ax) and "SASRec (cpu)" in texts(ax)


@pytest.mark.parametrize("kept", ["comparison-scientific", "comparison-games"])
def test_no_names_of_a_trade_off_of_many_models_touch(kept):
    results = from_comparison(json.loads((KEPT_RUNS.parent / kept / "comparison.json").read_text()))
    figure = trade_off(results, "ndcg@10")
    figure.canvas.draw()
    (ax,) = figure.axes
    boxes = [mpl.text.Text.get_window_extent(text, figure.canvas.get_renderer()) for text in ax.texts]
    assert len(boxes) == len(results.labels) > 10
    for one, other in itertools.combinations(boxes, 2):
        assert not one.shrunk(0.95, 0.9).overlaps(other.shrunk(0.95, 0.9))


@pytest.mark.parametrize("draw", [groups, curves])
def test_panels_have_room_for_the_names_of_many_models(draw):
    """Of 18 models on Scientific: no name touches another, and none reaches into the next panel."""
    kept = from_comparison(read_comparison(KEPT_RUNS.parent / "comparison-scientific-left-out" / "comparison.json"))
    figure = draw(kept, "ndcg@10")
    figure.canvas.draw()
    named = [ax for ax in figure.axes if ax.texts]
    assert named
    for ax in named:
        boxes = [mpl.text.Text.get_window_extent(text, figure.canvas.get_renderer()) for text in ax.texts]
        spans = sorted((box.y0, box.y1) for box in boxes)
        assert len(spans) >= 15
        assert all(bottom >= top - 0.5 for (_, top), (bottom, _) in itertools.pairwise(spans))
        inside = ax.get_window_extent()
        assert inside.y0 - 20 <= spans[0][0] and spans[-1][1] <= inside.y1 + 20  # half a name of two lines
