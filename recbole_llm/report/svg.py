"""Figures inside a page: as SVG whose colours follow the page's, light or dark."""

import re
from xml.etree import ElementTree

from markupsafe import Markup
from matplotlib.figure import Figure

from recbole_llm.plots.style import INK, MUTED, PALETTE, RULE, svg_text

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
# What page.css names, by the colour that it stands for.
_VARIABLES = {
    **{colour: f"var(--series-{number})" for number, colour in enumerate(PALETTE, start=1)},
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    "#ffffff": "none",
}
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


def inline_svg(figure: Figure, title: str, prefix: str) -> Markup:
    """Return a figure as an ``<svg>`` element for a page.

    Args:
        figure: in the style of `recbole_llm.plots.style`.
        title: what a screen reader says.
        prefix: of the element's ids, which are then its own among several figures of a page.
    """
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(svg_text(figure, title))  # noqa: S314 (what matplotlib wrote a line ago)
    for parent in list(root.iter()):
        for child in list(parent):
            # Metadata names addresses of standards; the style sheet would reach the whole page, and page.css has it.
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        for name, value in element.attrib.items():
            element.attrib[name] = _of_the_page(name, value, prefix)
    width = root.get("viewBox", "0 0 400 300").split()[2]
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", title)
    root.set("style", f"--width: {float(width):.0f}")
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # noqa: S704 (the serialiser escapes all text)


def _of_the_page(name: str, value: str, prefix: str) -> str:
    if name == "id":
        return f"{prefix}-{value}"
    if name == f"{{{_XLINK}}}href":
        return value.replace("#", f"#{prefix}-", 1)
    value = _REFERENCE.sub(rf"url(#{prefix}-\1)", value)
    return _COLOUR.sub(lambda match: _VARIABLES.get(match[0], match[0]), value) if name == "style" else value
