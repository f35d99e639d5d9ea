"""The notebook: every cell runs, in order, on data that it makes itself."""

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "tutorial.ipynb"


def cells(kind):
    return ["".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == kind]


def test_the_notebook_runs_from_top_to_bottom(workdir, tiny, capsys):
    names: dict[str, object] = {}
    for code in cells("code"):
        # A tiny model in the place of the packaged one; its positions are few.
        code = code.replace("smollm2-135m", str(tiny["llama"])).replace('"max_items": 4', '"max_sequence_tokens": 100')
        code = code.replace("<= 200", "<= 30").replace('"epochs": 3', '"epochs": 1')
        exec(compile(code, "tutorial.ipynb", "exec"), names)
    printed = capsys.readouterr().out
    assert "| SASRec |" in printed and "| ST2SI" in printed, "the table of the comparison"
    assert len(list((workdir / "saved").glob("*-films-*/result.json"))) == 2
    assert names["result"]["counts"]["users"] <= 30
    assert len(names["best"].items) == 3
    assert (workdir / "comparison" / "comparison.json").is_file()


def test_the_notebook_is_kept_without_outputs():
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        assert not cell.get("outputs"), "run it, but do not store what it printed"


@pytest.mark.parametrize("start", ["%", "!"])
def test_the_notebook_needs_nothing_but_python(start):
    assert not any(line.startswith(start) for code in cells("code") for line in code.splitlines())
