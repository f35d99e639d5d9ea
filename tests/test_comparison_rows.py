"""experiments/comparison_rows.py says of users what their ranks say."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kept_runs import KEPT_RUNS

from recbole_llm.runs.archive import read_archive

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "results" / "comparison-games-left-out" / "comparison.json"


def rows(tmp_path, *options):
    out = tmp_path / "rows.json"
    program = [sys.executable, str(ROOT / "experiments" / "comparison_rows.py"), f"--out={out}", *options]
    done = subprocess.run(program, capture_output=True, text=True)
    return done, json.loads(out.read_text()) if out.exists() else None


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    done, kept = rows(tmp_path_factory.mktemp("rows"), f"--comparison={KEPT}")
    assert done.returncode == 0, done.stderr
    return kept


def mean_of_seeds(label):
    runs = [run.result for run in read_archive(KEPT_RUNS / "Games.parquet") if run.label == label]
    return np.mean([result["test"]["ndcg@10"] for result in runs])


def test_differences_are_those_of_the_runs_metrics(made):
    tests = [row for row in made if "against" in row]
    comparison = json.loads(KEPT.read_text())
    pairs = {(row["model"], row["against"]) for row in tests}
    assert pairs == {(one, other) for one in comparison["ours"] for other in comparison["baselines"]}
    of_metric = [test for test in comparison["significance"] if test["metric"] == "ndcg@10"]
    kept = {(test["label"], test["against"]): test for test in of_metric}
    for row in tests:
        test = kept[row["model"], row["against"]]
        assert (row["p_t"], row["p_wilcoxon"]) == (test["p_t_holm"], test["p_wilcoxon_holm"])
        difference = mean_of_seeds(row["model"]) - mean_of_seeds(row["against"])
        assert row["difference"] == pytest.approx(difference, abs=1e-4)  # result.json rounds to four digits
        assert row["low"] < row["difference"] < row["high"]
        assert row["users"] == 50546 and 0 <= row["p_t"] <= 1 and 0 <= row["p_wilcoxon"] <= 1
        if row["p_t"] < 0.01:
            assert row["low"] > 0 or row["high"] < 0


def test_groups_have_all_targets_and_the_mean_of_all(made):
    for label in ("TextSLIT-rerank", "ComiRec-20-trials"):
        of_label = [row for row in made if row["model"] == label and row.get("by") == "popularity"]
        assert {row["group"] for row in of_label} == {"head", "middle", "tail", "never"}
        targets = np.array([row["targets"] for row in of_label])
        assert targets.sum() == 50546
        mean = np.average([row["mean"] for row in of_label], weights=targets)
        assert mean == pytest.approx(mean_of_seeds(label), abs=1e-4)


def test_rows_of_two_datasets_keep_their_names(made, tmp_path):
    comparison = json.loads(KEPT.read_text())
    for name in ("significance", "groups"):
        comparison[name] += [{**entry, "dataset": "Toys"} for entry in comparison[name]]
    (tmp_path / "two.json").write_text(json.dumps({**comparison, "datasets": ["Games", "Toys"]}))
    done, both = rows(tmp_path, f"--comparison={tmp_path / 'two.json'}")
    assert done.returncode == 0, done.stderr
    assert [row for row in both if row["dataset"] == "Games"] == made
    assert len(both) == 2 * len(made)


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [({"ours": []}, "--ours and --baselines"), ({"significance": []}, "no tests of ndcg@10")],
    ids=["sides", "tests"],
)
def test_a_comparison_without_tests_between_two_sides_is_told(missing, sentence, tmp_path):
    (tmp_path / "lacking.json").write_text(json.dumps({**json.loads(KEPT.read_text()), **missing}))
    done, kept = rows(tmp_path, f"--comparison={tmp_path / 'lacking.json'}")
    assert done.returncode and kept is None
    assert sentence in done.stderr and "Traceback" not in done.stderr


def test_what_is_no_comparison_and_an_unknown_metric_are_told(tmp_path):
    (tmp_path / "other.json").write_text("{}")
    done, kept = rows(tmp_path, f"--comparison={tmp_path / 'other.json'}")
    assert done.returncode and kept is None
    assert "is not a comparison" in done.stderr and "Traceback" not in done.stderr
    done, kept = rows(tmp_path, f"--comparison={KEPT}", "--metric=auc")
    assert done.returncode and kept is None
    assert "no metric 'auc'" in done.stderr and "hit@5" in done.stderr
