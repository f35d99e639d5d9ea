"""The numbers of the look, the printed table, and the page."""

import datetime
import html.parser
import json
import re
from pathlib import Path

import pytest
from raw_files import INTER, ITEM, REVIEWS, pack

from recbole_llm.cli.main import main
from recbole_llm.prepare import charts, counts
from recbole_llm.prepare.counts import Counts
from recbole_llm.prepare.look import look


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "toy.inter").write_text(INTER)
    (tmp_path / "toy.item").write_text(ITEM)
    return tmp_path


def test_the_numbers_by_hand(folder):
    seen = look(folder, "toy")
    assert (seen.users, seen.items, seen.interactions) == (2, 3, 8)
    assert seen.per_user == [(4, 2)]
    assert seen.per_item == [(2, 1), (3, 2)]  # C twice; A and B three times
    # "5 < 6 and I <3 this line" has 9 words and marks, '"Quoted" "box" bold tab' 8, "Cafe & bar" 3.
    assert seen.title_lengths == [(3, 1), (8, 1), (9, 1)]
    assert seen.title_unit == "words and punctuation marks"
    assert seen.popularity[-1] == (1.0, 1.0)
    assert seen.months == []  # 10 to 300 are no dates
    assert seen.no_text == 0
    assert seen.repeats == 2  # u1 meets A again, u2 B
    # Targets are A and B; training holds B, A (u1) and C, A (u2).
    assert (seen.targets, seen.unseen_targets) == (2, 0)


def test_unseen_targets_missing_texts_and_dates(tmp_path):
    rows = [("u", "a", 1e9), ("u", "b", 1e9 + 1), ("u", "new", 1.1e9), ("v", "a", 1e9), ("v", "b", 1e9)]
    (tmp_path / "x.inter").write_text(
        "user_id:token\titem_id:token\ttimestamp:float\n" + "".join(f"{u}\t{i}\t{t:.0f}\n" for u, i, t in rows)
    )
    (tmp_path / "x.item").write_text("item_id:token\ttitle:token_seq\na\ttext\nb\t\nnew\t \n")
    seen = look(tmp_path, "x", tokenize=lambda texts: [7 for _ in texts], tokenizer="tiny")
    assert (seen.targets, seen.unseen_targets) == (1, 1)  # v is too short to have a target
    assert seen.no_text == 2
    assert seen.title_lengths == [(7, 1)]
    assert seen.title_unit == "tokens of tiny"
    assert seen.months == [(datetime.date(2001, 9, 1), 4), (datetime.date(2004, 11, 1), 1)]


def test_comparison_with_the_paper():
    rows = counts.comparison(Counts(50, 20, 1000), {"paper": {"users": 40, "items": 20}})
    assert rows == [
        ["users", "50", "paper", "40", "+10", "+25.00 %"],
        ["items", "20", "paper", "20", "+0", "+0.00 %"],
    ]
    text = counts.table(Counts(50, 20, 1000), {"paper": {"users": 40}}, ["something"])
    assert "20.00" in text and "1.00e+00" in text and "+25.00 %" in text and "Known: something" in text


def test_bins():
    assert charts.doubling([(1, 5), (2, 4), (3, 3), (4, 2), (9, 1)]) == [
        ("1", 5),
        ("2", 4),
        ("3-4", 5),
        ("5-8", 0),
        ("9-16", 1),
    ]
    assert charts.even([(1, 1), (4, 1), (5, 1), (1000, 2)], width=4, bins=3) == [("1-4", 2), ("5-8", 1), (">8", 2)]


class Page(html.parser.HTMLParser):
    """Checks that every element is closed, and gathers what the page refers to."""

    VOID = frozenset({"meta"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.elements: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_command_prints_the_counts_and_writes_a_page(settings_file, amazon, tmp_path, capsys):
    settings = settings_file(
        paper_counts={"st2si": {"users": 3, "items": 3, "interactions": 8}}, notes=["a <note> with & signs"]
    )
    later = [review | {"unixReviewTime": review["unixReviewTime"] * 1_000_000 + 10**9} for review in REVIEWS]
    pack(amazon / "reviews_5.json.gz", [json.dumps(review) for review in later])
    out = tmp_path / "out"
    assert main(["prepare", f"--dataset={settings}", f"--raw={amazon}", f"--out={out}", "--report"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"users\s+2\s+st2si\s+3\s+-1\s+-33.33 %", printed)
    assert "Known: a <note> with & signs" in printed
    assert "left out: 2 (items: broken line)" in printed
    assert printed.rstrip().endswith(str(out / "toy"))

    text = (out / "toy-report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    # One page that asks for nothing: no script, no style sheet, image or font from elsewhere.
    assert page.references == []
    assert not {"script", "link", "img", "iframe"} & set(page.elements)
    assert "url(" not in text and "@import" not in text
    assert page.elements.count("svg") == 5
    for what in (
        "prefers-color-scheme: dark",
        "width=device-width",
        "test targets never in training",
        "a &lt;note&gt;",
    ):
        assert what in text
    for what in (
        "Interactions per user",
        "Interactions per item",
        "Title lengths",
        "Popularity",
        "Interactions over time",
    ):
        assert what in text


def test_a_named_report_file(settings_file, amazon, tmp_path):
    report = tmp_path / "pages" / "look.html"
    argv = [f"--dataset={settings_file()}", f"--raw={amazon}", f"--out={tmp_path / 'out'}", f"--report={report}"]
    assert main(["prepare", *argv]) == 0
    assert report.read_text().startswith("<!doctype html>")
