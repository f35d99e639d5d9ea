"""Colours that everyone can tell apart, labels that do not touch, files that are the same bytes each time."""

import itertools
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from comparison_data import comparison, result
from PIL import Image

from recbole_llm.errors import StorageError
from recbole_llm.plots.bars import bars
from recbole_llm.plots.curves import curves
from recbole_llm.plots.records import from_comparison, from_results
from recbole_llm.plots.style import DARK_PALETTE, PALETTE, grid, label_ends, looks, plain_number, save
from recbole_llm.plots.trade_off import trade_off
from recbole_llm.runs.result import RunResult

# Machado, Oliveira, Fernandes 2009, severity 1, for linear sRGB.
SIGHT = {
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def linear(colour):
    values = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    xyz = XYZ @ np.clip(rgb, 0, 1) / np.array([0.95047, 1, 1.08883])
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(first, second):
    dark, light = sorted(float(XYZ[1] @ linear(colour)) for colour in (first, second))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize(("palette", "background"), [(PALETTE, "#ffffff"), (DARK_PALETTE, "#16191f")])
def test_colours_are_told_apart_by_any_sight_and_seen_on_their_background(palette, background):
    css = (Path(__file__).parents[2] / "recbole_llm/report/page.css").read_text()
    assert f"--paper: {background}" in css
    for name, matrix in SIGHT.items():
        seen = [lab(np.array(matrix) @ linear(colour)) for colour in palette]
        nearest = min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2))
        assert nearest > 13, f"{name}: two colours are {nearest:.1f} apart"
    assert min(contrast(colour, background) for colour in palette) >= 3  # WCAG 2, 1.4.11


def test_a_label_looks_the_same_in_every_plot_of_a_comparison():
    whole = from_comparison(comparison())
    assert looks(whole.labels) == looks(whole.only("ml-100k").labels)
    for figure in (curves(whole, "mrr"), trade_off(whole.only("ml-100k"), "mrr")):
        colours = {line.get_label(): line.get_color() for ax in figure.axes for line in ax.get_lines()}
        assert colours["SASRec"] == PALETTE[0] and colours["ST2SI"] == PALETTE[1]
    many = looks([f"model {number}" for number in range(24)])
    assert len({(look.colour, look.dashes) for look in many.values()}) == 24
    assert len({(look.colour, look.marker) for look in many.values()}) == 24


@pytest.mark.parametrize("heights", [[0.5] * 8, [0.0, 0.01, 0.02, 0.5, 0.99, 1.0], [0.0, 0.0, 0.0], [0.3]])
def test_labels_do_not_touch_and_stay_beside_the_axes(heights):
    figure, (ax,) = grid(1, 4.8, 3.0)
    ax.plot([0] * len(heights), heights)
    ax.set_ylim(0, 1)
    label_ends(ax, [(0, y, f"model number {n}", "#000000") for n, y in enumerate(heights)], 3.0 * 0.8)
    figure.canvas.draw()
    boxes = [mpl.text.Text.get_window_extent(text, figure.canvas.get_renderer()) for text in ax.texts]
    spans = sorted((box.y0, box.y1) for box in boxes)
    assert len(spans) == len(heights)
    for (_, top), (bottom, _) in itertools.pairwise(spans):
        assert bottom >= top - 0.5, "two labels overlap"
    inside = ax.get_window_extent()
    assert inside.y0 - 12 <= spans[0][0] and spans[-1][1] <= inside.y1 + 12


def test_numbers_of_an_axis_are_plain():
    shown = [plain_number(x) for x in (0, 0.025, 500, 9000, 20_000, 135_000_000, 1.3e9, 0.1 + 0.2)]
    assert shown == ["0", "0.025", "500", "9000", "20k", "135M", "1.3B", "0.3"]


def test_files_have_the_same_bytes_in_another_process(tmp_path):
    code = (
        "import sys; from pathlib import Path; from comparison_data import comparison;"
        "from recbole_llm.plots import records, style, curves;"
        "figure = curves.curves(records.from_comparison(comparison()).only('ml-100k'), 'mrr');"
        "style.save(figure, Path(sys.argv[1]), 'curves', 'learning curves')"
    )
    paths = os.pathsep.join(str(Path(__file__).parents[level]) for level in (2, 1))
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "there")],
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": "7"},
    )
    before = dict(mpl.rcParams)
    here = save(
        curves(from_comparison(comparison()).only("ml-100k"), "mrr"), tmp_path / "here", "curves", "learning curves"
    )
    assert dict(mpl.rcParams) == before, "matplotlib's own settings are left alone"
    for path in here:
        assert path.read_bytes() == (tmp_path / "there" / path.name).read_bytes()
    with Image.open(here[0]) as picture:
        assert picture.format == "PNG" and picture.info["Title"] == "learning curves" and "Software" not in picture.info
    assert "<dc:date>" not in here[1].read_text()


def test_labels_are_text_and_cannot_break_out_of_the_picture(tmp_path):
    hostile = '</svg><script>alert(1)</script> $\\frac{$ "a" & b\x00\x1b'
    figure = bars(from_results([("run", RunResult.from_dict(result(hostile), "run"))]), ["mrr"])
    _, svg = save(figure, tmp_path, "bars", hostile.replace("\x00", "").replace("\x1b", ""))
    root = ElementTree.parse(svg).getroot()
    assert not [element for element in root.iter() if element.tag.endswith("script")]
    words = " ".join(element.text or "" for element in root.iter() if element.tag.endswith("}text"))
    assert "<script>alert(1)</script>" in words and "$\\frac{$" in words


def test_nothing_half_written_stays_where_a_file_cannot_be(tmp_path):
    (tmp_path / "plots").write_text("a file")
    with pytest.raises(StorageError, match="plots"):
        one = from_results([("run", RunResult.from_dict(result(), "run"))])
        save(bars(one, ["mrr"]), tmp_path / "plots", "bars", "bars")
    assert [path.name for path in tmp_path.iterdir()] == ["plots"]
