"""The table of one run is made from result.json alone."""

import json
from pathlib import Path

from recbole_llm.runs.table import result_table

ROOT = Path(__file__).parents[2]


def kept(name):
    return json.loads((ROOT / "results/runs/ml-100k" / name / "seed-2020" / "result.json").read_text())


def test_result_table_shows_every_metric_once():
    result = kept("ST2SI-ILP-50-items")
    table = result_table(result)
    for name, value in result["test"].items():
        assert f"{value:.4f}" in next(line for line in table.splitlines() if line.split()[:1] == [name])
    assert "smollm2-135m" in table and "ilp" in table
