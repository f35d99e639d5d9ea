"""Text from files as it may be shown: titles, labels and tokens can hold anything, a terminal and a table cannot."""

import re

# Control characters (escape sequences begin with one), what ends a line in Unicode, what turns the direction of writing
# around, and halves of characters.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_BLANKS = frozenset("\t\n\v\f\r\x85\u2028\u2029")
_INSTEAD = "\ufffd"
_FORMULA = ("=", "+", "-", "@")
_NUMBER = re.compile(r"[-+]?(\d[\d,]*\.?\d*|\.\d+)([eE][-+]?\d+)?%?")


def one_line(text: object) -> str:
    """Return text for one line of a terminal or one cell of a table: blanks are spaces, control characters marked."""
    return _CONTROL.sub(lambda found: " " if found[0] in _BLANKS else _INSTEAD, str(text))


def printable(text: object) -> str:
    """Return text of several lines for a terminal or a page: of the control characters line ends and tabs stay."""
    return _CONTROL.sub(lambda found: found[0] if found[0] in "\n\t" else one_line(found[0]), str(text))


def csv_cell(value: object) -> object:
    """Return a value for a cell of a CSV file: text that a spreadsheet would compute begins with an apostrophe."""
    if not isinstance(value, str):
        return value
    text = one_line(value)
    formula = text.lstrip().startswith(_FORMULA) and not _NUMBER.fullmatch(text.strip())
    return f"'{text}" if formula else text


def json_line(text: str) -> str:
    """Return JSON with the control characters escaped that it may hold as they are."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
