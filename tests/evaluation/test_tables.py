"""Tables are made from result.json alone; the README's is the one that the kept files give."""

import json
from pathlib import Path

from recbole_llm.evaluation.tables import result_table, runs_table

ROOT = Path(__file__).parents[2]
ROWS = ["Pop", "GRU4Rec", "SASRec", "BERT4Rec", "ST2SI-ilp-8-items", "ST2SI-ilp-50-items"]


def kept(name):
    return json.loads((ROOT / "results" / "ml-100k" / name / "result.json").read_text())


def test_readme_table_is_made_from_the_kept_results():
    assert runs_table([kept(name) for name in ROWS]) in (ROOT / "README.md").read_text()


def test_best_model_of_a_table_is_read_off_the_files():
    table = runs_table([kept("Pop"), kept("SASRec")], metrics=("ndcg@10",))
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert lines[0] == ["model", "ndcg@10", "epochs", "time", "on"]
    assert lines[2][:3] == ["Pop", f"{kept('Pop')['test']['ndcg@10']:.4f}", "1"]
    assert lines[3][:3] == ["SASRec", "0.0589", "33"]


def test_result_table_shows_every_metric_once():
    result = kept("ST2SI-ilp-50-items")
    table = result_table(result)
    for name, value in result["test"].items():
        assert f"{value:.4f}" in next(line for line in table.splitlines() if line.split()[:1] == [name])
    assert "smollm2-135m" in table and "ilp" in table
