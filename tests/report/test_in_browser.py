"""The page in a real headless Chromium (Debian's package `chromium`): it works, on any screen, and asks for nothing."""

import json

import pytest
from browser import Browser, chromium
from comparison_data import LABELS, comparison

from recbole_llm.plots.style import DARK_PALETTE, PALETTE
from recbole_llm.report.page import render

pytestmark = pytest.mark.skipif(chromium() is None, reason="needs Chromium: apt-get install chromium")

HOSTILE = "<img src=http://127.0.0.1:9/x onerror=document.title='taken'><script>document.title='taken'</script>"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    whole = comparison(["Scientific"])
    # Labels of a length that real ones have, and one that tries to run.
    text = json.dumps(whole).replace("IDLEAdapter", "IDLEAdapter, sbert-minilm, MAX_ITEM_LIST_LENGTH=20")
    whole = json.loads(text.replace('"ST2SI"', json.dumps(HOSTILE)))
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render(whole), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    started = Browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


def silent(browser, page):
    """No error of a script, and no request but that for the page itself."""
    return browser.errors == [] and browser.requests == [page.as_uri()]


def column(browser, table, number):
    rows = f"[...document.querySelectorAll('table')[{table}].tBodies[0].rows]"
    return browser.evaluate(f"{rows}.map(row => row.cells[{number}].firstChild.textContent)")


def test_it_renders_runs_nothing_foreign_and_asks_for_nothing(browser, page):
    browser.open(page)
    assert browser.evaluate("document.title") == "3 models on Scientific"
    shown = "[...document.querySelectorAll('svg')].every(svg => svg.getBoundingClientRect().height > 150)"
    assert browser.evaluate("document.querySelectorAll('svg').length") == 6 and browser.evaluate(shown)
    assert HOSTILE in browser.evaluate("document.body.innerText"), "the label is shown as it is"
    browser.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    assert silent(browser, page)
    # The page's own policy also stops what an injected element would do.
    browser.evaluate("document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:9/y'}))")
    browser.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {text: 'window.taken = 1'}))"
    )
    assert browser.evaluate("window.taken === undefined")
    assert browser.errors and all("Content Security Policy" in error for error in browser.errors)


def test_columns_sort_by_click_and_by_key(browser, page):
    browser.open(page)
    whole = comparison(["Scientific"])
    means = {e["label"]: e["mean"] for e in whole["summary"] if e["metric"] == "mrr"}
    shown = [f"{means[label]:.4f}" for label in LABELS]
    assert column(browser, 0, 2) == shown, "first the order of the comparison"

    browser.click("table:first-of-type th button", 2)
    assert column(browser, 0, 2) == sorted(shown, reverse=True), "numbers: the largest first"
    head = "document.querySelectorAll('table')[0].tHead.rows[0]"
    orders = f"[...{head}.cells].map(cell => cell.getAttribute('aria-sort'))"
    assert browser.evaluate(orders) == [None, None, "descending"]
    browser.click("table:first-of-type th button", 2)
    assert column(browser, 0, 2) == sorted(shown)
    assert browser.evaluate(orders) == [None, None, "ascending"]

    browser.evaluate(f"{head}.cells[0].querySelector('button').focus()")
    browser.press("Enter", 13)
    labels = [label.split("<")[0] for label in column(browser, 0, 0)]
    assert browser.evaluate(orders) == ["ascending", None, None]
    assert labels == ["", "IDLEAdapter, sbert-minilm, MAX_", "SASRec"], "text from A on"
    assert silent(browser, page)


def test_numbers_sort_as_numbers_and_what_is_missing_stays_last(browser, page):
    browser.open(page)
    browser.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    captions = browser.evaluate("[...document.querySelectorAll('caption')].map(caption => caption.textContent)")
    cost = captions.index("Cost")
    names = browser.evaluate(
        f"[...document.querySelectorAll('table')[{cost}].tHead.rows[0].cells].map(cell => cell.textContent)"
    )
    place = names.index("Fit, s")
    for order in (True, False):
        browser.evaluate(
            f"document.querySelectorAll('table')[{cost}].tHead.rows[0].cells[{place}].querySelector('button').click()"
        )
        values = column(browser, cost, place)
        seconds = [c["seconds"]["fit"] for c in comparison(["Scientific"])["cells"] if c["seconds"]]
        assert values == [f"{value:,.2f}" for value in sorted(seconds, reverse=order)] + ["\u2013"]
    assert silent(browser, page)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_no_screen_scrolls_sideways_and_text_stays_readable(browser, page, width, dark):
    browser.open(page, width=width, height=844, touch=width < 500, dark=dark)
    browser.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("innerWidth") == width, "a phone zooms out of a page that is too wide"
    # Wide tables scroll inside their own box, and none is cut off.
    boxes = "[...document.querySelectorAll('.box')]"
    assert browser.evaluate(f"{boxes}.every(box => box.getBoundingClientRect().right <= {width})")
    assert browser.evaluate(f"{boxes}.every(box => getComputedStyle(box).overflowX === 'auto')")
    scale = "svg.getBoundingClientRect().width / svg.viewBox.baseVal.width"
    assert browser.evaluate(f"Math.min(...[...document.querySelectorAll('svg')].map(svg => {scale}))") >= 1, (
        "text of a figure is 9 pixels or more"
    )


# WCAG's contrast of every text with what is behind it, on the page and in the figures.
CONTRAST = """(() => {
  const light = (text) => {
    const parts = text.match(/[\\d.]+/g).slice(0, 3).map((value) => value / 255);
    const [r, g, b] = parts.map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (!/, 0\\)$|transparent/.test(colour)) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const found = [];
  const all = "p, a, th, td, b, u, small, button, h1, h2, dt, dd, code, svg text";
  for (const element of document.querySelectorAll(all)) {
    if (!element.textContent.trim()) continue;
    const style = getComputedStyle(element);
    const figure = element.closest("svg");
    const [a, b] = [light(figure ? style.fill : style.color), light(behind(element))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), figure ? "svg" : element.tagName, element.textContent.slice(0, 30)]);
  }
  return found.sort((x, y) => x[0] - y[0]);
})()"""


@pytest.mark.parametrize("dark", [False, True])
def test_text_has_contrast_in_light_and_dark(browser, page, dark):
    browser.open(page, dark=dark)
    paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(22, 25, 31)" if dark else "rgb(255, 255, 255)")
    names = [f"--series-{number}" for number in range(1, len(PALETTE) + 1)]
    colours = f"{names}.map(name => getComputedStyle(document.querySelector('svg')).getPropertyValue(name).trim())"
    assert browser.evaluate(colours) == list(DARK_PALETTE if dark else PALETTE)
    found = browser.evaluate(CONTRAST)
    assert len(found) > 200
    words = [entry for entry in found if entry[1] != "svg"]
    figures = [entry for entry in found if entry[1] == "svg"]
    assert words[0][0] >= 4.5, f"{words[0]} (WCAG 2, AA)"
    assert figures[0][0] >= 3, f"{figures[0]}: names at lines have the lines' colours"


def test_paper_is_light_has_everything_open_and_nothing_cut(browser, page, tmp_path):
    browser.open(page, width=700, dark=True, media="print")
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    browser.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert browser.evaluate("[...document.querySelectorAll('details')].every(part => part.open)")
    assert browser.evaluate(
        "[...document.querySelectorAll('.box')].every(b => getComputedStyle(b).overflowX === 'visible')"
    )
    assert browser.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    browser.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert not browser.evaluate("[...document.querySelectorAll('details')].every(part => part.open)")
    browser.print_pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF-")
