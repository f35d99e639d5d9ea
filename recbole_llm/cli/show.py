"""What every verb prints by: no control character of a title, a label or a file's name reaches the terminal."""

import sys
from typing import TextIO

from recbole_llm.utils.plain_text import printable


def show(*values: object, sep: str = " ", end: str = "\n", file: TextIO | None = None) -> None:
    """Print values as `print` does, through `printable`; standard output where no file is named."""
    print(*map(printable, values), sep=sep, end=end, file=sys.stdout if file is None else file)


def show_error(*values: object) -> None:
    """Show values on standard error."""
    show(*values, file=sys.stderr)
