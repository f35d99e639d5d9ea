"""Lines of JSON, as publishers write them: also Python literals, and lines that are broken."""

import ast
import io
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl

from recbole_llm.prepare.raw import RawFile, Tally, ahead, blocks


def read(raw: RawFile, fields: Sequence[str], tally: Tally, what: str) -> Iterator[pl.DataFrame]:
    """Yield the named `fields` of every line as text columns, block by block, in the file's order.

    Numbers become their digits, lists and mappings their JSON text, a field that a line lacks null. A line that is
    neither JSON nor a Python literal is left out and counted.

    Raises:
        DataError: if the file is missing or cannot be unpacked to its end.
    """
    with raw.open() as stream:
        for block in ahead(blocks(stream)):
            frame, broken = _parse(block, fields)
            tally.count(what, frame.height + broken)
            tally.skip(f"{what}: broken line", broken)
            yield frame


def _parse(block: bytes, fields: Sequence[str]) -> tuple[pl.DataFrame, int]:
    try:
        return _fast(block, fields), 0
    except pl.exceptions.PolarsError:
        return _careful(block.splitlines(), fields)


def _fast(block: bytes, fields: Sequence[str]) -> pl.DataFrame:
    return pl.read_ndjson(io.BytesIO(block), schema=dict.fromkeys(fields, pl.String))


def _careful(lines: list[bytes], fields: Sequence[str]) -> tuple[pl.DataFrame, int]:
    """Parse a block in which at least one line is not JSON: runs of good lines fast, the others one by one."""
    parts: list[pl.DataFrame] = []
    broken = 0
    for plain, run in itertools.groupby(lines, key=_looks_like_json):
        parse = _halves if plain else _singly
        frame, bad = parse(list(run), fields)
        parts.append(frame)
        broken += bad
    return pl.concat(parts), broken


def _looks_like_json(line: bytes) -> bool:
    # Python literals start otherwise, and most broken lines were cut off.
    return line.startswith(b'{"') and line.endswith(b"}")


def _is_literal(line: bytes) -> bool:
    return line.startswith((b"{'", b"{u'"))


def _halves(lines: list[bytes], fields: Sequence[str]) -> tuple[pl.DataFrame, int]:
    # Lines that are broken inside are few: halving finds each in log2(lines) fast passes.
    try:
        return _fast(b"\n".join(lines), fields), 0
    except pl.exceptions.PolarsError:
        if len(lines) <= 8:
            return _singly(lines, fields)
    middle = len(lines) // 2
    first, bad_first = _halves(lines[:middle], fields)
    second, bad_second = _halves(lines[middle:], fields)
    return pl.concat([first, second]), bad_first + bad_second


def _singly(lines: list[bytes], fields: Sequence[str]) -> tuple[pl.DataFrame, int]:
    rows: list[list[str | None]] = []
    broken = 0
    for line in lines:
        if not line.strip():
            continue
        record = _record(line)
        if record is None:
            broken += 1
        else:
            rows.append([_as_text(record.get(name)) for name in fields])
    return pl.DataFrame(rows, schema=dict.fromkeys(fields, pl.String), orient="row"), broken


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        text = line.decode("utf-8")
        value = ast.literal_eval(text) if _is_literal(line) else json.loads(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    return value if isinstance(value, dict) else None


def _as_text(value: Any) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "ignore").decode("utf-8")
