"""Every table in results/ and the README is what the kept runs give."""

import importlib.util
import json
import os
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from kept_runs import ARCHIVES, all_kept, kept_result

from recbole_llm.cli.main import main
from recbole_llm.config import renamed
from recbole_llm.plots.records import read_runs
from recbole_llm.plots.scaling import scaling_points
from recbole_llm.runs.archive import find_archived, split_path
from recbole_llm.runs.finished import read_result

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
RUNS = all_kept()
COMPARISONS = sorted(RESULTS.glob("comparison-*"))
PAGES = [ROOT / "README.md", ROOT / "docs" / "leaderboard.md", *sorted(RESULTS.glob("*.md"))]
MAKERS = ("    recbole-llm compare --runs=", "    table: ", "    leaderboard: ")
PICTURE = re.compile(r'<svg[^>]* aria-label="([^"]*)".*?</svg>', re.DOTALL)
# Tables of words, which nothing computes: the models at the head of the README.
OF_WORDS = {"| model | idea |"}


@pytest.fixture(scope="module")
def tool():
    path = ROOT / "experiments" / "make_results.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path.parent)  # it imports its neighbour
        spec.loader.exec_module(module)
    return module


def of_pages(tool):
    return [ROOT / page for page in tool.pages()]


# -- the pages ---------------------------------------------------------------------------------------------------------


def test_tables_of_all_pages_are_made_from_kept_runs(tool, capsys):
    assert tool.main(["--check"]) == 0, capsys.readouterr().out
    assert of_pages(tool) == PAGES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_table_stands_under_what_makes_it(page):
    lines = page.read_text().splitlines()
    heads = [n for n, line in enumerate(lines) if line.startswith("|") and not lines[n - 1].startswith("|")]
    for n in heads:
        assert lines[n] in OF_WORDS or lines[n - 2].startswith(MAKERS), lines[n]
        assert lines[n] in OF_WORDS or lines[n - 1] == ""


@pytest.mark.parametrize("page", sorted(RESULTS.rglob("*.md")), ids=lambda page: page.stem)
def test_pages_name_only_what_is_there(page):
    words = page.read_text().replace("(", " ").replace(")", " ").replace("`", " ").split()
    named = [word.rstrip(".,;:") for word in words if word.startswith(("results/", "properties/", "plots/"))]
    for name in named:
        there = (ROOT / name).exists() or (page.parent / name).exists()
        # of a run in an archive too
        assert "<" in name or there or (split_path(name) and find_archived(str(ROOT / name))), name


# -- the tool ----------------------------------------------------------------------------------------------------------

COMMAND = "    recbole-llm compare --runs=results/runs/{}.parquet --models={} --show={} --significance=false"


def page_of(folder, *lines):
    page = folder / "page.md"
    page.write_text("\n".join(["Before.", "", *lines, "", "After.", ""]))
    return page


def test_a_table_is_put_under_its_command_and_then_stays(tool, tmp_path, capsys):
    line = COMMAND.format("ml-100k", "SASRec-default,GRU4Rec-default", "mrr,valid.ndcg@10,best_epoch,seconds.fit,seeds")
    page = page_of(tmp_path, line)
    assert tool.main([str(page), "--check"]) == 1
    assert f"{page}:3: the table differs" in capsys.readouterr().out
    assert "|" not in page.read_text()
    assert tool.main([str(page)]) == 0
    results = [kept_result("ml-100k", label) for label in ("SASRec-default", "GRU4Rec-default")]
    rows = [line for line in page.read_text().splitlines() if line.startswith("|")]
    assert rows[0] == "| Model | MRR | Valid NDCG@10 | Best epoch | Fit, s | Seeds |"
    for row, result, style in zip(rows[2:], results, ("**{}**", "<u>{}</u>"), strict=True):
        own = f"{result['valid']['ndcg@10']:.4f} | {result['best_epoch']} | {result['seconds']['fit']:.0f} | 1 |"
        assert row == f"| {result['model']}-default | {style.format(format(result['test']['mrr'], '.4f'))} | {own}"
    assert page.read_text().endswith("\n\nAfter.\n")
    assert tool.main([str(page), "--check"]) == 0


def test_a_digit_and_a_row_that_differ_are_found_and_repaired(tool, tmp_path, capsys):
    page = page_of(tmp_path, COMMAND.format("ml-100k", "Pop,SASRec-default", "mrr"))
    tool.main([str(page)])
    made = page.read_text()
    for wrong in (made.replace("0.0579", "0.0580"), made.replace("| Pop |", "| Top |")):
        assert wrong != made
        page.write_text(wrong)
        assert tool.main([str(page), "--check"]) == 1
        assert tool.main([str(page)]) == 0
        assert page.read_text() == made


def test_labels_without_a_run_are_left_out_and_told(tool, tmp_path, capsys):
    page = page_of(
        tmp_path, COMMAND.format("ml-100k", "NCF,Pop", "mrr"), "", "Else.", "", COMMAND.format("none", "Pop", "mrr")
    )
    assert tool.main([str(page)]) == 0
    assert [row.split(" | ")[0] for row in page.read_text().splitlines() if row.startswith("|")] == [
        "| Model",
        "| :--",
        "| Pop",
    ]
    told = capsys.readouterr().err
    assert f"{page}:3: no run of NCF" in told
    assert "no run is at results/runs/none.parquet" in told


def test_lines_of_json_are_a_table(tool, tmp_path):
    (tmp_path / "probe.jsonl").write_text('{"name": "p", "head": "a|b", "mrr": 0.5}\n{"head": "c", "users": 12345}\n')
    assert tool.table_of_file(tmp_path / "probe.jsonl") == [
        "| head | mrr | users |", "| :-- | --: | --: |", "| a\\|b | 0.5 |  |", "| c |  | 12,345 |",
    ]  # fmt: skip


def test_a_line_without_a_column_has_no_row_unless_the_column_may_be_missing(tool, tmp_path):
    (tmp_path / "probe.jsonl").write_text('{"model": "a", "ndcg": 0.1}\n{"model": "b", "ndcg": 0.2, "weight": 0.5}\n')
    table = tool.table_of_file(tmp_path / "probe.jsonl", columns="model,weight?,ndcg")
    assert table == ["| model | weight | ndcg |", "| :-- | --: | --: |", "| a |  | 0.1 |", "| b | 0.5 | 0.2 |"]
    assert tool.table_of_file(tmp_path / "probe.jsonl", columns="model,weight,ndcg")[2:] == ["| b | 0.5 | 0.2 |"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["    table: none.jsonl"], "page.md:3: none.jsonl cannot be read"),
        (["    table: setup.py"], "page.md:3: setup.py cannot be read"),
        ([COMMAND.format("ml-100k", "Pop", "ndgc@10")], "page.md:3: show=ndgc@10 is no metric of the runs"),
        ([COMMAND.format("ml-100k", "Pop", "valid.x")], "page.md:3: show=valid.x is nothing that the runs recorded"),
        ([COMMAND.format("ml-100k", "Pop", "mrr"), "    and more"], "page.md:3: the line that makes a table must be"),
    ],
)
def test_what_cannot_be_made_is_told_with_its_line(tool, tmp_path, capsys, lines, message):
    page = page_of(tmp_path, *lines)
    before = page.read_text()
    assert tool.main([str(page)]) == 2
    assert message in capsys.readouterr().err
    assert page.read_text() == before


# -- the comparisons that are kept whole -------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=COMPARISONS, ids=lambda folder: folder.name)
def made(request, tmp_path_factory):
    """A kept comparison, and the folder that its own command makes."""
    folder = tmp_path_factory.mktemp("comparison")
    lines = (RESULTS / "README.md").read_text().splitlines()
    line = next(line for line in lines if line.endswith(f"--out=results/{request.param.name}"))
    arguments = [argument for argument in shlex.split(line)[1:] if not argument.startswith("--out=")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert main([*arguments, f"--out={folder}", f"--data_path={folder}"]) == 0
    return request.param, folder


def test_comparisons_are_made_from_kept_runs(made):
    for name in ("comparison.md", "comparison.tex"):
        kept, again = ((folder / name).read_bytes() for folder in made)
        assert kept == again, name
    # All digits stand there: the last of an interval depends on how the machine multiplies matrices.
    kept, again = (pd.read_csv(folder / "comparison.csv") for folder in made)
    pd.testing.assert_frame_equal(again, kept, check_exact=False, rtol=1e-9)


def test_cells_of_comparisons_are_those_of_kept_runs(made):
    kept, again = (json.loads((folder / "comparison.json").read_text()) for folder in made)
    for one, other in zip(kept["cells"], again["cells"], strict=True):
        run = Path(os.path.normpath(made[0] / one.pop("run")))
        assert run == Path(os.path.normpath(made[1] / other.pop("run")))
        result = read_result(run)
        known = renamed.translate(result.settings)
        assert all(known[name] == value for name, value in renamed.translate(one.pop("settings"), result.model).items())
        for name in ("settings", "command"):  # the defaults that they leave out are known where the data are
            other.pop(name)
        one.pop("command")
        assert one == other
        assert all(getattr(result, name) == one[name] for name in ("history", "valid", "test", "seconds", "commit"))
    assert kept["summary"] == again["summary"] and kept["counts"] == again["counts"]
    kept, again = (pd.DataFrame(comparison["significance"]) for comparison in (kept, again))
    pd.testing.assert_frame_equal(again, kept, check_exact=False, rtol=1e-6)  # of a p-value, where a statistic has 1e-9


def test_report_and_pictures_are_made_from_kept_comparisons(made, tmp_path):
    kept = made[0] / "comparison.json"
    assert main(["report", f"--comparison={kept}", f"--out={tmp_path / 'report.html'}"]) == 0
    page = (tmp_path / "report.html").read_text()
    comparison = json.loads(kept.read_text())
    for cell in comparison["cells"]:
        assert f"{cell['test']['ndcg@10']:.4f}" in page and cell["label"] in page
    assert {group["by"] for group in comparison["groups"]} == {"popularity", "history_length", "text_length"}
    drawn = {found[1]: re.sub(r"<[^>]*>|\s", "", found[0]) for found in PICTURE.finditer(page)}
    kinds = {"Test NDCG@10 on": 1, "Learning curves": 1, "Test NDCG@10 by": 3, "Speed against quality": 1}
    for kind, number in kinds.items():
        pictures = [picture for title, picture in drawn.items() if title.startswith(kind)]
        assert len(pictures) == number, kind
        for picture in pictures:  # where long names take several lines
            assert not [label for label in comparison["models"] if label not in picture], kind


# -- the runs ----------------------------------------------------------------------------------------------------------


def test_kept_runs_lie_where_their_results_say():
    assert len(RUNS) >= 355
    assert sorted(path.name for path in (RESULTS / "runs").iterdir()) == [archive.name for archive in ARCHIVES]
    for run in RUNS:
        result = run.result
        assert (run.archive.stem, run.seed) == (result["dataset"], result["seed"])
        assert run.label.startswith(result["model"])
        assert (run.ranks() is not None) == has_ranks(run)


def has_ranks(run):
    """Ranks of ml-1m may not be passed on, and a model that chooses among candidates ranks nothing."""
    return run.archive.stem != "ml-1m" and run.result["test"] is not None


@pytest.mark.parametrize("run", [run for run in RUNS if has_ranks(run)], ids=lambda run: str(run.path))
def test_kept_metrics_are_those_of_the_kept_ranks(run):
    result = run.result
    if result["model"] == "Pop":
        return  # ties: up to 0.2 RecBole broke them arbitrarily, ranks count them against the target
    ranks = run.ranks()["rank"].to_numpy()
    assert len(ranks) == result["counts"]["test"]
    assert result["test"]["mrr"] == pytest.approx(np.mean(1 / ranks), abs=6e-5)
    gains = np.where(ranks <= 10, 1 / np.log2(ranks + 1.0), 0)
    assert result["test"]["ndcg@10"] == pytest.approx(gains.mean(), abs=6e-5)


def test_the_table_of_the_page_on_protocols_is_that_of_the_kept_runs():
    page = (RESULTS.parent / "docs" / "protocols.md").read_text(encoding="utf-8")
    labels = re.search(r"--models=([\w,-]+) --protocols=both", page)[1].split(",")
    shown = re.findall(r"^\| ([\w -]+) \| (\.\d{4}) \| (\.\d{4}) \|$", page, flags=re.MULTILINE)
    assert len(shown) == len(labels) == 7
    kept = {run.label: run.ranks() for run in RUNS if run.archive.stem == "Scientific" and run.seed == 2020}
    for label, (name, with_history, without) in zip(labels, shown, strict=True):
        assert label.startswith(name.split(" ")[0].replace("IDLE-Adapter", "IDLEAdapter"))
        ranks = kept[label]
        for column, value in (("other_rank", with_history), ("rank", without)):
            gains = np.where(ranks[column] <= 10, 1 / np.log2(ranks[column] + 1.0), 0)
            assert gains.mean() == pytest.approx(float(value), abs=6e-5), (name, column)


def test_the_kept_points_of_scaling_are_those_of_the_kept_runs(monkeypatch):
    page = (RESULTS / "st2si.md").read_text(encoding="utf-8")
    patterns = re.search(r"recbole-llm plot --kind=scaling --runs='([^']+)'", page)[1]
    monkeypatch.chdir(ROOT)
    kept = json.loads((RESULTS / "plots" / "scaling-scientific.json").read_text(encoding="utf-8"))
    assert scaling_points(read_runs(patterns), "ndcg@10") == kept
    for name in (point["backbone"] for point in kept if point["backbone"]):
        assert name in page
