"""RecBole's reading of atomic files as what they are: text with separators, without quotation marks as syntax.

Repairs `recbole/data/dataset/dataset.py:467`, which lets pandas read a quotation mark at the beginning of a cell as the
beginning of a quoted one, that ends at the next such mark, lines later; and `dataset.py:438` and `:467`, which take a
byte order mark for a part of the first column's name, and open the header in the encoding of the machine instead of
utf-8. It holds where `plain_text` is on: RecBole's own data sets read as before.
"""

import builtins
import contextlib
import contextvars
import csv
from collections.abc import Iterator
from typing import Any

import pandas as pd
import recbole.data.dataset.dataset as module

from recbole_llm.compat.overlay import Overlay
from recbole_llm.utils.headers import text_encoding

_plain = contextvars.ContextVar("plain", default=False)


@contextlib.contextmanager
def plain_text() -> Iterator[None]:
    """Let RecBole read files unquoted and without a byte order mark."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def _open(*args: Any, **options: Any) -> Any:
    if _plain.get():
        options["encoding"] = text_encoding(options.get("encoding"))
    return builtins.open(*args, **options)  # noqa: PTH123 (stands in for what RecBole calls)


def _read_csv(*args: Any, **options: Any) -> Any:
    if _plain.get():
        options |= {"encoding": text_encoding(options.get("encoding")), "quoting": csv.QUOTE_NONE}
    return pd.read_csv(*args, **options)


vars(module).update(pd=Overlay(pd, read_csv=_read_csv), open=_open)
