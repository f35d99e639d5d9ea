"""The tables in results/ and the README are made from the kept runs."""

import json
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recbole_llm.cli import main
from recbole_llm.evaluation.ranks import read_ranks

ROOT = Path(__file__).resolve().parents[1]
SCIENTIFIC = ROOT / "results" / "comparison-scientific"


@pytest.fixture(scope="module")
def regenerated(tmp_path_factory):
    """The folder that the comparison's own command makes."""
    folder = tmp_path_factory.mktemp("comparison")
    readme = (ROOT / "README.md").read_text()
    line = next(line for line in readme.splitlines() if line.strip().startswith("recbole-llm compare --runs"))
    arguments = [argument for argument in shlex.split(line)[1:] if not argument.startswith("--out=")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert main([*arguments, f"--out={folder}", "--data_path=nowhere"]) == 0
    return folder


@pytest.mark.parametrize("name", ["comparison.md", "comparison.tex"])
def test_comparison_on_scientific_is_made_from_kept_runs(regenerated, name):
    assert (regenerated / name).read_bytes() == (SCIENTIFIC / name).read_bytes()


def test_comparison_on_scientific_as_csv_is_made_from_kept_runs(regenerated):
    """All digits stand there: the last of an interval depends on how the machine multiplies matrices."""
    made, kept = (pd.read_csv(folder / "comparison.csv") for folder in (regenerated, SCIENTIFIC))
    pd.testing.assert_frame_equal(made, kept, check_exact=False, rtol=1e-9)


def test_readme_has_the_rows_of_the_comparison():
    readme = (ROOT / "README.md").read_text()
    rows = [row for row in (SCIENTIFIC / "comparison.md").read_text().splitlines() if row.startswith("|")]
    assert "\n".join(row for row in rows if "as printed" not in row) in readme


def test_report_and_pictures_are_of_this_comparison():
    comparison = json.loads((SCIENTIFIC / "comparison.json").read_text())
    page = (SCIENTIFIC / "report.html").read_text()
    for cell in comparison["cells"]:
        assert f"{cell['test']['ndcg@10']:.4f}" in page
    assert {path.stem for path in (SCIENTIFIC / "plots").glob("*.png")} == {"bars", "curves", "groups", "trade_off"}


@pytest.mark.parametrize("folder", sorted(p.parent for p in (ROOT / "results").rglob("ranks-test.tsv.gz")), ids=str)
def test_kept_metrics_are_those_of_the_kept_ranks(folder):
    result = json.loads((folder / "result.json").read_text())
    if result["model"] == "Pop":
        return  # ties: RecBole breaks them arbitrarily, ranks count them against the target
    ranks = read_ranks(folder / "ranks-test.tsv.gz")["rank"].to_numpy()
    assert result["test"]["mrr"] == pytest.approx(np.mean(1 / ranks), abs=6e-5)
    gains = np.where(ranks <= 10, 1 / np.log2(ranks + 1.0), 0)
    assert result["test"]["ndcg@10"] == pytest.approx(gains.mean(), abs=6e-5)


@pytest.mark.parametrize("page", sorted((ROOT / "results").rglob("*.md")), ids=lambda page: page.stem)
def test_pages_name_only_what_is_there(page):
    words = page.read_text().replace("(", " ").replace(")", " ").replace("`", " ").split()
    named = [word.rstrip(".,;:") for word in words if word.startswith(("results/", "properties/", "plots/"))]
    for name in named:
        assert (ROOT / name).exists() or (page.parent / name).exists(), name


@pytest.mark.parametrize("data", ["scientific", "ml-1m"])
def test_pages_of_idle_adapter_hold_the_kept_metrics(data):
    page = (ROOT / "results" / "idle_adapter" / f"{data}.md").read_text()
    kept = sorted((ROOT / "results" / "idle_adapter" / data).glob("*/result.json"))
    assert len(kept) >= 2
    for file in kept:
        if file.parent.name in ("GRU4Rec", "BERT4Rec"):
            continue  # of the comparison alone
        test = json.loads(file.read_text())["test"]
        row = [f"{test[name]:.4f}".lstrip("0") for name in ("hit@5", "hit@10", "ndcg@5", "ndcg@10")]
        assert any(all(f" {value} " in line for value in row) for line in page.splitlines()), file.parent.name
