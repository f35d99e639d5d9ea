"""No control character of a title, a label or a token reaches a terminal, and none breaks a table."""

import csv
import io
import json
import re
import unicodedata

import pytest
from comparison_data import LABELS, comparison, result
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.cli.main import main
from recbole_llm.comparison.tables import csv_table, latex_table, markdown_table
from recbole_llm.runs.table import result_table
from recbole_llm.utils.plain_text import csv_cell, json_line, one_line, printable

NASTY = [
    "\x1b[31mred\x1b[0m",
    "two\nlines",
    "a\tb",
    "\x9b2J",
    "\x07bell",
    "\u202egnal",
    "\u2028",
    "a\r\nb",
    "\x00",
    "|",
]
FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-1+1", "@SUM(A1)", " =1", "\t=1", '=HYPERLINK("x")']
NUMBERS = ["-5", "+3.5", "-1e-3", "12", "-0.5%", ""]


def is_harmless(text, allowed=""):
    return not any(
        unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in "\u202e\u2066" for c in text if c not in allowed
    )


@given(st.text())
def test_of_any_text(text):
    assert is_harmless(one_line(text))
    assert is_harmless(printable(text), "\n\t")
    assert len(one_line(text)) == len(text)
    assert json.loads(json_line(json.dumps([text], ensure_ascii=False))) == [text]
    assert is_harmless(json_line(json.dumps([text], ensure_ascii=False)))
    cell = csv_cell(text)
    assert re.match(r"\s*[=@]", cell) is None
    assert cell.lstrip("'") == one_line(text).lstrip("'")


def test_ordinary_text_stays():
    for text in ("Pokémon: Édition, 日本語 👩‍👩‍👧 – “x”", "", "a - b", "5 = 3"):  # noqa: RUF001
        assert one_line(text) == printable(text) == csv_cell(text) == text
    assert [csv_cell(value) for value in (1, 2.5, None, True)] == [1, 2.5, None, True]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_is_text(text):
    assert csv_cell(text) == "'" + one_line(text)


@pytest.mark.parametrize("text", NUMBERS)
def test_a_number_is_none(text):
    assert csv_cell(text) == text


def labelled(names):
    """A comparison whose models are called otherwise."""
    text = json.dumps(comparison())
    for label, name in zip(LABELS, names, strict=True):
        text = text.replace(f'"{label}"', json.dumps(name))
    return {**json.loads(text), "papers": None, "baselines": list(names), "columns": ["ndcg@10", "mrr"]}


@pytest.mark.parametrize("nasty", [*NASTY, *FORMULAS], ids=ascii)
def test_tables_keep_their_shape(nasty):
    plain, odd = labelled(["A", "B", "C"]), labelled([f"{nasty}A", f"{nasty}B", f"{nasty}C"])
    for rows in ("models", "metrics"):
        for table in (markdown_table, latex_table):
            text = table(odd, rows)
            assert is_harmless(text, "\n")
            assert text.count("\n") == table(plain, rows).count("\n")
            cells = re.compile(r"(?<!\\)[|&]")
            assert [len(cells.findall(line)) for line in text.splitlines() if "$" not in line] == [
                len(cells.findall(line)) for line in table(plain, rows).splitlines() if "$" not in line
            ] or "|" in nasty
    lines = list(csv.reader(io.StringIO(csv_table(odd))))
    assert [len(line) for line in lines] == [len(line) for line in csv.reader(io.StringIO(csv_table(plain)))]
    assert all(is_harmless(cell) and not re.match(r"\s*[=@]|[-+](?![\d.])", cell) for line in lines for cell in line)


@pytest.mark.parametrize("nasty", NASTY, ids=ascii)
def test_the_table_of_a_run(nasty):
    found = {**result(model=f"SASRec{nasty}"), "device": nasty}
    assert is_harmless(result_table(found), "\n")
    assert result_table(found).count("\n") == result_table(result()).count("\n")


@pytest.mark.parametrize("nasty", [text for text in NASTY if "\x00" not in text], ids=ascii)
def test_errors(nasty, workdir, capsys):
    (workdir / "bad.json").write_text(json.dumps({"version": nasty}))
    assert main(["run", f"--model={nasty}", "--dataset=ml-100k"]) == 2
    assert main(["report", f"--comparison={nasty}.json"]) == 1
    assert main(["report", "--comparison=bad.json"]) == 1
    errors = capsys.readouterr().err
    assert is_harmless(errors, "\n")
    assert len(errors.splitlines()) == 3


def test_the_page_of_a_report(workdir):
    (workdir / "good.json").write_text(json.dumps(labelled(["".join(NASTY) + "A", "B", "C"])))
    assert main(["report", "--comparison=good.json", "--out=page.html"]) == 0
    assert is_harmless((workdir / "page.html").read_text(), "\n\t")


def test_doctor_and_names_of_files(workdir, capsys):
    folder = workdir / "data" / "\x1b[31mred"
    folder.mkdir(parents=True)
    (folder / "\x1b[31mred.inter").write_text("")
    assert main(["doctor", "--data_path=data"]) == 0
    text = capsys.readouterr().out
    assert "\ufffd[31mred" in text
    assert is_harmless(text, "\n")
