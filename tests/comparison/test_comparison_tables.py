"""The tables say what the JSON holds: every number, what is best, what is missing and why, what papers print."""

import csv
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from recbole_llm.comparison.analysis import analyse
from recbole_llm.comparison.collect import Collected
from recbole_llm.comparison.columns import column_name, metric_name
from recbole_llm.comparison.tables import csv_table, latex, latex_table, markdown_table

DASH = "\N{EN DASH}"
ODD = "a_b & 50% #{x} ~^\\ <|>"
VALUES = {
    ("Games", "Pop"): [(0.01, 0.02), (0.03, 0.02)],
    ("Games", "SASRec"): [(0.04, 0.06), (0.05, 0.06)],
    ("Games", "ST2SI"): [(0.05, 0.04), (0.06, 0.05)],
    ("ml-1m", "Pop"): [(0.3, 0.1), (0.3, 0.1)],
    ("ml-1m", "SASRec"): [None, (0.1, 0.2)],
    ("ml-1m", "ST2SI"): [None, None],
}


def cells():
    for (dataset, label), seeds in VALUES.items():
        for seed, values in enumerate(seeds):
            yield {
                "dataset": dataset, "label": label, "model": label, "seed": seed,
                "status": "done" if values else "failed", "reason": None if values else ODD,
                "test": dict(zip(("ndcg@10", "auc"), values, strict=True)) if values else {}, "counts": {},
            }  # fmt: skip


def collected(entries):
    return [Collected(entry, reads_text=entry["model"] == "ST2SI") for entry in entries]


@pytest.fixture
def comparison():
    entries = list(cells())
    found = analyse(collected(entries), show=["ndcg@10", "auc"], papers=True)
    for entry in found["summary"]:
        if (entry["dataset"], entry["label"], entry["metric"]) == ("Games", "ST2SI", "ndcg@10"):
            entry["mark"] = "**"
    return found


def rows_of(markdown):
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    table = [[field.strip() for field in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return table[0], {tuple(row[: len(row) - len(table[0]) + 1]): row for row in table[2:]}


def test_markdown_by_models(comparison):
    header, rows = rows_of(markdown_table(comparison))
    assert header == ["Model", "Games NDCG@10", "Games AUC", "ml-1m NDCG@10", "ml-1m AUC"]
    assert rows["Pop",][1:] == ["0.0200 ± 0.0141", "0.0200 ± 0.0000", "**0.3000 ± 0.0000**", "<u>0.1000 ± 0.0000</u>"]
    assert rows["SASRec",][1:] == [
        "<u>0.0450 ± 0.0071</u>",
        "**0.0600 ± 0.0000**",
        "<u>0.1000</u> [1]",
        "**0.2000** [1]",
    ]
    assert rows["ST2SI",][1:] == [r"**0.0550 ± 0.0071**\*\*", "<u>0.0450 ± 0.0071</u>", f"{DASH} [2]", f"{DASH} [2]"]
    assert rows["Improvement of ST2SI",][1:] == ["+22.22%", "-25.00%", DASH, DASH]


def test_markdown_by_metrics_holds_the_same(comparison):
    header, _ = rows_of(markdown_table(comparison, "metrics"))
    _, by_model = rows_of(markdown_table(comparison))
    columns = [("Games", "NDCG@10"), ("Games", "AUC"), ("ml-1m", "NDCG@10"), ("ml-1m", "AUC")]
    assert header[:2] == ["Dataset", "Metric"]
    lines = [line for line in markdown_table(comparison, "metrics").splitlines() if line.startswith("|")][2:]
    for line, column in zip(lines, columns, strict=True):
        fields = [field.strip() for field in line.split("|")[1:-1]]
        assert tuple(fields[:2]) == column
        for model, value in zip(header[2:], fields[2:], strict=True):
            assert by_model[model,][1 + columns.index(column)] == value


def test_what_is_missing_is_told_in_footnotes(comparison):
    table = markdown_table(comparison)
    assert f"[1] SASRec on ml-1m, seed 0 failed: {ODD}" in table
    assert f"[2] ST2SI on ml-1m, seed 0, 1 failed: {ODD}" in table
    assert "mean and standard deviation over 1 to 2 seeds" in table
    assert "better than it with p < 0.01" in table


def test_one_data_set_and_seed_need_no_names_of_them():
    entries = [cell for cell in cells() if cell["dataset"] == "Games" and cell["seed"] == 0]
    comparison = analyse(collected(entries), show=["ndcg@10"])
    table = markdown_table(comparison)
    assert table.startswith("Games\n\n| Model | NDCG@10 |")
    assert "| ST2SI | **0.0500** |" in table
    assert "deviation" not in table and "papers" not in table


def test_errors_are_better_when_smaller():
    entries = [
        {**cell, "test": {"rmse": value}, "status": "done"}
        for cell, value in zip(cells(), [0.9, 0.9, 0.8], strict=False)
    ]
    (pop, sasrec) = analyse(collected(entries), ours=["SASRec"])["summary"]
    assert (pop["second"], sasrec["best"]) == (True, True)
    assert sasrec["improvement"] == pytest.approx(100 * 0.1 / 0.9)


def test_equal_values_are_both_best():
    entries = [{**cell, "test": {"mrr": 0.5}, "status": "done"} for cell in cells() if cell["seed"] == 0][:3]
    summary = analyse(collected(entries))["summary"]
    assert [(entry["best"], entry["second"]) for entry in summary] == [(True, False)] * 3


def test_csv_has_a_line_for_everything(comparison):
    rows = list(csv.DictReader(csv_table(comparison).splitlines()))
    own = [row for row in rows if row["source"] == "run"]
    assert len(own) == 2 * 3 * 2
    found = {(row["dataset"], row["model"], row["metric"]): row for row in own}
    assert found["Games", "ST2SI", "ndcg@10"]["mark"] == "**"
    assert float(found["Games", "ST2SI", "ndcg@10"]["mean"]) == pytest.approx(0.055)
    assert found["ml-1m", "ST2SI", "auc"]["missing"].endswith(ODD)
    assert found["ml-1m", "ST2SI", "auc"]["mean"] == ""
    papers = {(r["dataset"], r["model"], r["metric"]): float(r["mean"]) for r in rows if r["source"] == "paper"}
    assert papers["Games", "ST2SI", "mrr"] == 0.0866
    assert papers["ml-1m", "IDLEAdapter", "hit@10"] == 0.2056


# -- the papers' numbers -----------------------------------------------------------------------------------------------


def test_papers_stand_beside_ours_and_say_what_they_are(comparison):
    _, rows = rows_of(markdown_table(comparison))
    assert rows["SASRec, as printed",][1:] == ["0.0547", DASH, "0.0734", DASH]
    assert rows["IDLEAdapter, as printed",][1:] == [DASH, DASH, "0.1116", DASH]
    said = markdown_table(comparison)
    assert "come from other preparations of the data, and cannot be compared directly" in said
    # they take no part in what is best
    assert "**0.1116**" not in said


# -- LaTeX -------------------------------------------------------------------------------------------------------------


def test_latex_holds_the_same_numbers(comparison):
    table = latex_table(comparison)
    assert r" & \multicolumn{2}{c}{Games} & \multicolumn{2}{c}{ml-1m} \\" in table
    assert r"\cmidrule(lr){2-3}\cmidrule(lr){4-5}" in table
    assert r"\textbf{0.0550 $\pm$ 0.0071}$^{**}$ & \underline{0.0450 $\pm$ 0.0071} & --$^{2}$ & --$^{2}$ \\" in table
    numbers = re.findall(r"\d\.\d{4}", markdown_table(comparison))
    assert sorted(re.findall(r"\d\.\d{4}", table)) == sorted(numbers)
    by_metrics = latex_table(comparison, "metrics")
    assert sorted(re.findall(r"\d\.\d{4}", by_metrics)) == sorted(numbers)
    assert by_metrics.count(r"\midrule") == 2  # after the header, and between the datasets


def test_latex_commands_in_names_are_harmless():
    assert latex("a_b & 50% #{x} $ ~^\\") == (
        r"a\_b \& 50\% \#\{x\} \$ \textasciitilde{}\textasciicircum{}\textbackslash{}"
    )
    assert metric_name("recall@5") == "Recall@5"


@pytest.mark.slow
@pytest.mark.parametrize("rows", ["models", "metrics"])
def test_latex_compiles(comparison, tmp_path, rows):
    if shutil.which("pdflatex") is None:
        pytest.skip("needs pdflatex: apt-get install texlive-latex-base texlive-latex-extra")
    document = "\n".join(
        [
            r"\documentclass{article}", r"\usepackage[T1]{fontenc}", r"\usepackage{booktabs}", r"\begin{document}",
            latex_table(comparison, rows), r"\end{document}",
        ]
    )  # fmt: skip
    Path(tmp_path / "table.tex").write_text(document, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "table.pdf").stat().st_size > 1000


@pytest.mark.parametrize(
    ("column", "head"),
    [
        ("ndcg@10", "NDCG@10"),
        ("valid.ndcg@10", "Valid NDCG@10"),
        ("best_epoch", "Best epoch"),
        ("seconds.fit", "Fit, s"),
        ("interval.mrr", "MRR, 95% interval"),
        ("candidates.valid_hit@1.std", "Candidates Valid hit@1 std"),
        ("ilp_accuracy.acc@1", "ILP accuracy Acc@1"),
    ],
)
def test_heads_of_columns(column, head):
    assert column_name(column) == head


@pytest.mark.parametrize("rows", ["models", "metrics"])
def test_other_columns_stand_in_every_form(rows):
    entries = list(cells())
    for number, entry in enumerate(entries):
        entry |= {"seconds": {"fit": 0.5 + number}, "extras": {"probe": {"size": 1000 * number}}, "device": "cpu"}
    show = ["auc", "seconds.fit", "probe.size", "device", "seeds"]
    found = analyse(collected(entries), show=show)
    assert (found["metrics"], found["columns"]) == (["auc"], show)
    header, table = rows_of(markdown_table(found, rows))
    if rows == "models":
        assert header[2:6] == ["Games Fit, s", "Games Probe size", "Games Device", "Games Seeds"]
        assert table["SASRec",][2:6] == ["3.0", "2,500", "cpu", "2"], "runs 2 and 3"
        assert table["ST2SI",][-4:] == [f"{DASH} [2]"] * 4, "no run of it is done"
    else:
        lines = [line.split(" | ") for line in markdown_table(found, rows).splitlines() if line.startswith("| Games")]
        assert [line[3] for line in lines][1:] == ["3.0", "2,500", "cpu", "2"]
    assert latex_table(found, rows).count("2,500") == 1
    lines = {(r["dataset"], r["model"], r["metric"]): r for r in csv.DictReader(csv_table(found).splitlines())}
    assert float(lines["Games", "SASRec", "probe.size"]["deviation"]) == pytest.approx(1000 / 2**0.5)
    assert ("Games", "SASRec", "device") not in lines
