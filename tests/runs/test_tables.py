"""The table of one run is made from result.json alone."""

from kept_runs import kept_result

from recbole_llm.runs.table import result_table


def test_result_table_shows_every_metric_once():
    result = kept_result("ml-100k", "ST2SI-ILP-50-items")
    table = result_table(result)
    for name, value in result["test"].items():
        assert f"{value:.4f}" in next(line for line in table.splitlines() if line.split()[:1] == [name])
    assert "smollm2-135m" in table and "ilp" in table
