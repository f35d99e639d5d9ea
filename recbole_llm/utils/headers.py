"""The first line of RecBole's atomic files, ``name:type`` columns, in whatever encoding the files are."""

import codecs
from collections import Counter
from pathlib import Path

from recbole_llm.errors import DataError


def text_encoding(encoding: str | None) -> str:
    """Return the name of an encoding for ``open``; a byte order mark before utf-8 text (the default) is passed over."""
    return "utf-8-sig" if codecs.lookup(encoding or "utf-8").name == "utf-8" else str(encoding)


def not_text(path: Path, encoding: str | None) -> DataError:
    """Return the error for a file that is not in the encoding that the settings say."""
    return DataError(f"{path} is not {(encoding or 'utf-8').upper()} text: convert it, or set encoding to what it is")


def header_line(path: Path, encoding: str | None) -> str:
    """Return the first line of a file without its end.

    Raises:
        DataError: if the file is not text in that encoding.
        FileNotFoundError: if there is none.
    """
    try:
        with path.open(encoding=text_encoding(encoding)) as file:
            line = file.readline()
    except UnicodeError as error:
        raise not_text(path, encoding) from error
    if "\0" in line:  # UTF-16 without a byte order mark is valid UTF-8
        raise not_text(path, encoding)
    return line.rstrip("\r\n")


def column_names(path: Path, header: str, separator: str) -> list[str]:
    """Return the names of the columns of a header, without their types. Raises DataError if two have one name."""
    names = [column.split(":")[0] for column in header.split(separator)]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{path} has {names.count(twice[0])} columns '{twice[0]}': rename or remove all but one")
    return names
