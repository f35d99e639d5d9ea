"""What a comparison plans to run: every cell, and the command that repeats it."""

import shlex

import pytest
from small_data import write_dataset

from recbole_llm.comparison.cells import Cell
from recbole_llm.comparison.plan import plan_cells
from recbole_llm.utils.values import parse_value, write_value


@pytest.mark.parametrize("value", ["a b", "True", "3", "[1,2)", "it's", 5e-5, [1, "x"], {"k": None}, None, False, ""])
def test_a_cells_command_gives_its_settings_back(value):
    assert parse_value(write_value(value)) == value
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
