"""Text as it goes into atomic files: HTML undone, white space collapsed, safe for both readers.

Two readers load a `.item` file. Ours takes every character as it is (no quoting). RecBole's is pandas' `read_csv` with
its defaults: a field that *starts* with a double quote swallows everything up to the next quote, tabs and line ends
included, and a field that reads as a whole ``NA``, ``None``, ``null``, ... becomes empty. `shield` writes one space
before such a field: both readers then see the field as it is, and the space is lost when text is cut into words.
"""

import html
import json
import re
from typing import Any

import polars as pl

_BLANK = r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff]+"
_SCRIPT = r"(?is)<(script|style)\b.*?</(script|style)\s*>"
_COMMENT = r"(?s)<!--.*?-->"
_TAG = r"</?[A-Za-z][^<>]*>"

# pandas._libs.parsers.STR_NA_VALUES, written out so that files do not change with the pandas version.
_READ_AS_MISSING = (
    "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA", "NULL",
    "NaN", "None", "n/a", "nan", "null",
)  # fmt: skip


def _unescape(text: str) -> str:
    # Twice: publishers have stored text that was escaped already ("&amp;quot;").
    return html.unescape(html.unescape(text))


def from_html(column: pl.Series) -> pl.Series:
    """Return the text without tags, scripts and comments, entities replaced by their characters; null stays null.

    ``<`` that does not start a tag (``size < 5``, ``I <3 this``) is kept.
    """
    escaped = column.str.contains("&", literal=True).fill_null(False)
    if escaped.any():
        column = column.zip_with(~escaped, column.map_elements(_unescape, return_dtype=pl.String))
    tagged = column.str.contains("<", literal=True).fill_null(False)
    if not tagged.any():
        return column
    bare = column.str.replace_all(_SCRIPT, " ").str.replace_all(_COMMENT, " ").str.replace_all(_TAG, " ")
    return column.zip_with(~tagged, bare)


def one_line(column: pl.Expr) -> pl.Expr:
    """Return the text with every run of white space and control characters as one space; null becomes ''."""
    return column.str.replace_all(_BLANK, " ").str.strip_chars(" ").fill_null("")


def from_list(value: str | None) -> str | None:
    """Return a JSON list as its flattened texts joined with ', '; any other text as it is.

    Publishers write categories as a list, a list of lists, or a plain text, and descriptions as a list of paragraphs.
    """
    if value is None or not value.startswith("["):
        return value
    try:
        parsed = json.loads(value)
    except ValueError:
        return value
    return ", ".join(_leaves(parsed))


def _leaves(value: Any) -> list[str]:
    if isinstance(value, list):
        return [leaf for part in value for leaf in _leaves(part)]
    return [str(value)] if value not in (None, "") else []


def shield(column: pl.Expr) -> pl.Expr:
    """Return the text with a space before it where RecBole's reader would damage it (see the module's text)."""
    endangered = column.str.starts_with('"') | column.is_in(_READ_AS_MISSING)
    return pl.when(endangered).then(pl.lit(" ") + column).otherwise(column)


def words(text: str) -> int:
    """Return how many words and punctuation marks `text` has: a stand-in for tokens where no tokenizer is at hand."""
    return len(re.findall(r"\w+|[^\w\s]", text))
