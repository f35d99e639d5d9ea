"""The page holds every number of the comparison, escapes every text, and is made of nothing but itself."""

import base64
import hashlib
import json
import re
from collections import Counter
from html.parser import HTMLParser

import pytest
from comparison_data import REASON, comparison

from recbole_llm.cli.main import main
from recbole_llm.report.page import render

VOID = {"meta", "link", "br", "wbr", "img", "hr"}


class Page(HTMLParser):
    """Elements with their attributes, and the text of each; fails where tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.source = [], [], text
        self.feed(text)
        self.close()
        assert not self.open, f"<{self.open[-1]['tag']}> is not closed"

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "attrs": dict(attrs), "text": "", "path": [e["tag"] for e in self.open]}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag):
        return [element for element in self.elements if element["tag"] == tag]

    def tables(self):
        """Each table as its caption and its rows of texts; a cell's parts are separated by |."""
        found = []
        for table in re.findall(r"<table>.*?</table>", self.source, re.DOTALL):
            rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
            cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
            plain = [[re.sub(r"<wbr>", "", cell) for cell in row] for row in cells]
            caption = re.search(r"<caption>(.*?)</caption>", table)[1]
            found.append((caption, [[re.sub(r"(<[^>]+>)+", "|", cell).strip("|") for cell in row] for row in plain]))
        return found


@pytest.fixture(scope="module")
def whole():
    return comparison()


@pytest.fixture(scope="module")
def text(whole):
    return render(whole)


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def table(page, caption, first_column):
    return next(rows for name, rows in page.tables() if name == caption and rows[0][0] == first_column)


def signed(value, digits=4):
    return f"{value:+.{digits}f}".replace("-", "\u2212")


def test_the_table_has_means_deviations_improvements_and_marks(page, whole):
    for dataset in whole["datasets"]:
        rows = {row[0].split("|")[0]: row[1:] for row in table(page, dataset, "Model")}
        for entry in (entry for entry in whole["summary"] if entry["dataset"] == dataset):
            cell = rows[entry["label"]][whole["metrics"].index(entry["metric"])].split("|")
            expected = [f"{entry['mean']:.4f}", *([entry["mark"]] if entry["mark"] else [])]
            expected += [f"± {entry['deviation']:.4f}"] if entry["deviation"] is not None else []
            expected += [f"{signed(entry['improvement'], 2)} %"] if entry["improvement"] is not None else []
            assert cell == expected
    failed = [row for row in table(page, "ml-100k", "Model") if row[0].startswith("IDLEAdapter")]
    assert failed == [[f"IDLEAdapter|failed: {REASON}", "\u2013", "\u2013"]], (
        "a failed model leaves its row, with the reason"
    )
    partly = [row for row in table(page, "Scientific", "Model") if row[0].startswith("IDLEAdapter")]
    assert partly[0][0] == "IDLEAdapter|1 of 2 seeds finished|missing"


def test_best_is_bold_and_second_underlined(page, whole):
    for kind, tag in (("best", "b"), ("second", "u")):
        cells = [element["text"] for element in page.all(tag) if element["path"][-1] == "td"]
        assert cells == [f"{e['mean']:.4f}" for e in in_order(whole) if e[kind]]


def in_order(whole):
    """The summary, as the page goes through it: by dataset, label, metric."""
    places = (("datasets", "dataset"), ("models", "label"), ("metrics", "metric"))
    return sorted(whole["summary"], key=lambda entry: [whole[many].index(entry[one]) for many, one in places])


def test_every_number_of_tests_intervals_groups_and_counts_is_there(page, whole):
    names = {"ndcg@10": "NDCG@10", "mrr": "MRR"}
    for entry in whole["significance"]:
        rows = table(page, f"{entry['dataset']}: {names[entry['metric']]}", "Model")
        assert [
            entry["label"], entry["against"],
            f"{signed(entry['difference'])}|{signed(entry['low'])} to {signed(entry['high'])}",
            f"{entry['p_t']:.2g}", f"{entry['p_t_holm']:.2g}", f"{entry['p_wilcoxon']:.2g}", "&lt; 0.0001", "943", "*",
        ] in rows  # fmt: skip

    def interval(value):
        return f"{value['mean']:.4f}|{value['low']:.4f} to {value['high']:.4f}"

    everything = [cell for _, rows in page.tables() for row in rows for cell in row]
    assert {interval(entry) for entry in whole["intervals"]} <= set(everything)
    ways = {"popularity": "popularity of the target", "history_length": "length of the history"}
    for entry in whole["groups"]:
        name = ways[entry["by"]]
        rows = table(page, f"{entry['dataset']}: {name}", name.capitalize())
        values = [interval(entry["metrics"][metric]) for metric in whole["metrics"]]
        assert [entry["group"], str(entry["targets"]), entry["label"], *values] in rows
    rows = table(page, "Datasets", "Dataset")
    for dataset, counts in whole["counts"].items():
        assert [dataset, *(f"{count:,}" for count in counts.values())] in rows


def test_every_run_has_its_cost_its_metrics_and_its_command(page, whole):
    cost, test, valid = (
        table(page, caption, "Model")[1:]
        for caption in ("Cost", "Test metrics", "Validation metrics of the best epoch")
    )
    commands = [element["text"] for element in page.all("pre")]
    assert commands == [whole["command"], *(cell["command"] for cell in whole["cells"])]
    for cell, row, of_test, of_valid in zip(whole["cells"], cost, test, valid, strict=True):
        which = [cell["label"], cell["dataset"], str(cell["seed"]), cell["status"]]
        if cell["status"] == "done":
            expected = [str(cell["epochs"]), str(cell["best_epoch"])]
            expected += [f"{cell['seconds'][stage]:,.2f}" for stage in ("prepare", "fit", "evaluate")]
            expected += [f"{cell['parameters'][kind]:,}" for kind in ("trained", "frozen")]
            expected += [f"{cell['peak_memory_bytes'] / 2**30:.2f}", "\u2013", "cpu"]
        else:
            expected = ["\u2013"] * 10
        assert row == [*which, *expected]
        for shown, part in ((of_test, "test"), (of_valid, "valid")):
            numbers = [f"{cell[part][m]:.4f}" if cell[part] else "\u2013" for m in whole["metrics"]]
            assert shown == [*which, *numbers]


def test_papers_settings_versions_and_notes_are_there(page, whole):
    rows = next(rows for name, rows in page.tables() if rows[0][:3] == ["Model", "Metric", "Paper"])
    mean = next(
        e["mean"]
        for e in whole["summary"]
        if (e["dataset"], e["label"], e["metric"]) == ("Scientific", "SASRec", "ndcg@10")
    )
    assert rows[1] == ["SASRec", "NDCG@10", "0.0797", f"{mean:.4f}", f"{signed(100 * (mean / 0.0797 - 1), 1)} %"]
    assert rows[2] == ["UniSRec", "NDCG@10", "0.0862", "\u2013", "\u2013"]
    terms = Counter((dt["text"], dd["text"]) for dt, dd in zip(page.all("dt"), page.all("dd"), strict=True))
    assert terms["loss_type", '"CE"'] == len(whole["cells"]) and terms["torch", "2.13.0"] == 1
    assert [p["text"] for p in page.all("p") if p["attrs"].get("class") == "note"] == whole["notes"]


def test_figures_are_inline_with_ids_of_their_own_and_the_page_s_colours(page, text):
    # Two datasets, each: bars of two metrics, two ways to group, speed, curves.
    assert len(page.all("svg")) == 12 and not page.all("img")
    assert all(svg["attrs"]["role"] == "img" and svg["attrs"]["aria-label"] for svg in page.all("svg"))
    ids = [element["attrs"]["id"] for element in page.elements if "id" in element["attrs"]]
    assert len(ids) == len(set(ids))
    used = re.findall(r"url\(#([^)]+)\)", text) + re.findall(r'href="#([^"]+)"', text)
    assert used and set(used) <= set(ids)
    drawn = text[text.index("<main") :]
    assert not re.search(r"(fill|stroke): #[0-9a-f]{6}", drawn), "a colour that dark mode does not know"
    assert "var(--series-1)" in drawn


def test_the_page_needs_no_other_file_and_runs_no_other_script(page, text):
    for element in page.elements:
        for name in ("src", "href", "action", "srcset", "data", "poster"):
            assert element["attrs"].get(name, "#").startswith(("#", "data:,")), element
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    policy = next(m for m in page.all("meta") if m["attrs"].get("http-equiv"))["attrs"]["content"]
    (script,) = page.all("script")
    digest = base64.b64encode(hashlib.sha256(script["text"].encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy


def test_hostile_text_is_shown_and_does_nothing():
    hostile = "<script>alert(1)</script>\"'&{{7*7}}</svg><img src=x onerror=alert(2)>"
    whole = json.loads(
        json.dumps(comparison(["Scientific"])).replace("IDLEAdapter", "MARK").replace("Scientific", "DATA")
    )
    whole = json.loads(
        json.dumps(whole).replace("MARK", json.dumps(hostile)[1:-1]).replace("DATA", json.dumps("D" + hostile)[1:-1])
    )
    whole["notes"] = whole["cells"][0]["settings"]["epochs"] = [hostile]
    whole["packages"][hostile] = whole["cells"][0]["device"] = whole["command"] = hostile
    for cell in whole["cells"]:
        cell["reason"] = hostile if cell["status"] != "done" else None
    page = Page(render(whole))
    clean = Page(render(comparison(["Scientific"])))
    assert len(page.all("script")) == 1 and not page.all("img")
    assert not [element for element in page.elements if any(name.startswith("on") for name in element["attrs"])]
    count = Counter(element["tag"] for element in page.elements if element["tag"] not in ("tspan", "text", "wbr"))
    assert {tag: count[tag] for tag in ("table", "tr", "td", "figure", "details", "button")} == {
        tag: len(clean.all(tag)) for tag in ("table", "tr", "td", "figure", "details", "button")
    }
    assert hostile in [p["text"] for p in page.all("pre")] and "49" not in page.all("h1")[0]["text"]


def test_a_comparison_without_any_finished_run_still_tells_why(whole):
    text = render(unfinished(whole))
    assert "0 of 12 runs finished" in text and text.count(REASON) > 12 and "<svg" not in text


def unfinished(whole):
    nothing = {**whole, "summary": [], "significance": [], "intervals": [], "groups": [], "papers": None}
    nothing["cells"] = [{**c, "status": "failed", "reason": REASON, "test": {}, "valid": {}} for c in whole["cells"]]
    return nothing


def test_the_verb_writes_the_page_beside_the_comparison_or_where_it_is_told(tmp_path, monkeypatch, capsys, whole):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "comparison.json").write_text(json.dumps(unfinished(whole)))
    assert main(["report", "--comparison=kept/comparison.json"]) == 0
    assert main(["report", "--comparison=kept/comparison.json", "--out=pages/mine.html"]) == 0
    assert capsys.readouterr().out.split() == ["kept/report.html", "pages/mine.html"]
    assert (tmp_path / "kept/report.html").read_bytes() == (tmp_path / "pages/mine.html").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("summary"), "has no list 'summary'"),
        (lambda c: c.update(cells=[]), "a comparison without cells"),
        (lambda c: c["cells"][1].pop("command"), "cell 2 of comparison.json lacks 'command'"),
        (lambda c: c["cells"][0].update(status="odd"), "cell 1 of comparison.json has the status 'odd'"),
        (lambda c: c["cells"].append(3), "lacks 'dataset': make the comparison again with `recbole-llm compare`"),
        (lambda c: c["cells"][0].update(settings="none"), "'settings' of cell 1 of comparison.json is no mapping"),
        (lambda c: c.pop("created"), "comparison.json lacks 'created'"),
        (lambda c: c["cells"][0]["test"].update(mrr="high"), "'test.mrr' must be a number, but is 'high'"),
        (lambda c: c["cells"][0]["history"][1].pop("epoch"), "'history[1]' lacks 'epoch'"),
        (lambda c: c["summary"][1].pop("best"), "entry of 'summary' 2 of comparison.json lacks 'best'"),
        (lambda c: c["significance"][0].pop("p_t"), "entry of 'significance' 1 of comparison.json lacks 'p_t'"),
        (lambda c: c["intervals"][0].update(low=None), "'low' of entry of 'intervals' 1 of comparison.json is not a"),
        (
            lambda c: c.update(version="99.0", groups=[{"kind": "popularity"}]),
            "lacks 'dataset': make the comparison again with `recbole-llm compare` (it was made by version 99.0",
        ),
    ],
)
def test_a_broken_comparison_is_refused_and_nothing_is_written(tmp_path, monkeypatch, capsys, change, message):
    monkeypatch.chdir(tmp_path)
    broken = comparison()
    change(broken)
    (tmp_path / "comparison.json").write_text(json.dumps(broken))
    assert main(["report", "--comparison=comparison.json"]) == 1
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["comparison.json"]


def test_report_asks_for_a_comparison(capsys):
    assert main(["report"]) == 2
    assert "report needs a comparison: --comparison=" in capsys.readouterr().err
