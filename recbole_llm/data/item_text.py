"""Item text: from the `.item` file to one ragged table of token ids, row = RecBole's internal item id.

Rules, in this order:

* A duplicated item row: the first counts, as in RecBole.
* HTML entities (``&amp;``) are decoded, runs of white space become one space; any script is kept as it is.
* The text of an item is its first field, cut to `max_attribute_tokens` tokens; further fields follow as
  `` name: value``, each cut to the same length (ST2SI, section A.3). A further field without a value is left out.
* An item whose first field is empty has no text; `items_without_text` decides (see `recbole_llm.data.dataset`).
"""

import csv
import hashlib
import html
import json
import logging
import zipfile
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_llm.errors import DataError, nearest
from recbole_llm.packing.ragged import RaggedTable
from recbole_llm.utils.files import replacing
from recbole_llm.utils.headers import column_names, header_line, not_text, text_encoding
from recbole_llm.utils.paths import cache_folder

_FORMAT = 1  # part of every cache key: raise it when the rules above change


def read_item_fields(
    path: str | Path,
    item_field: str,
    fields: Sequence[str],
    separator: str = "\t",
    encoding: str | None = None,
    setting: str = "item_text_fields",
) -> pd.DataFrame:
    """Return the cleaned text `fields` of a RecBole `.item` file, indexed by item token.

    Quotation marks are text, not syntax: RecBole's atomic files are separated by tabs and never quoted. `setting` is
    the one that names the fields, for the message of an error.

    Returns:
        One row an item (the first of duplicates), columns `fields`, str, empty where the file has nothing.

    Raises:
        DataError: if the file is missing or empty, lacks the item column or one of `fields`, or cannot be read.
    """
    path = Path(path)
    try:
        header = header_line(path, encoding)
    except FileNotFoundError:
        raise DataError(
            f"item text is needed, but {path} does not exist: add it with the columns "
            f"'{item_field}:token' and '{fields[0]}:token_seq'"
        ) from None
    if not header:
        raise DataError(f"{path} is empty: it needs a header line with '{item_field}:token' and the text columns")
    columns = column_names(path, header, separator)
    for field in [item_field, *fields]:
        if field not in columns:
            raise DataError(
                f"{path} has no column '{field}'{nearest(field, columns)} Its columns are {', '.join(columns)}; "
                f"set {setting} to those that hold text"
            )
    try:
        frame = pd.read_csv(
            path, sep=separator, quoting=csv.QUOTE_NONE, dtype=str, keep_default_na=False, names=columns, header=0,
            usecols=[item_field, *fields], encoding=text_encoding(encoding),
        ).fillna("").set_index(item_field)  # fmt: skip
    except UnicodeError as error:
        raise not_text(path, encoding) from error
    except pd.errors.ParserError as error:
        raise DataError(f"{path} is not a table: {' '.join(str(error).split())}") from error
    frame = frame[~frame.index.duplicated(keep="first")]
    return frame.map(clean)[list(fields)]


def clean(text: str) -> str:
    """Decode HTML entities and collapse white space."""
    return " ".join(html.unescape(text).split())


def tokenize_items(texts: pd.DataFrame, tokenizer: Any, max_attribute_tokens: int) -> RaggedTable:
    """Return the token ids of every item, without special tokens; results are cached by content.

    Args:
        texts: one row an item in the order of RecBole's ids (row 0 is the padding item, empty), from
            `read_item_fields`; the first column is the title.
        tokenizer: a fast transformers tokenizer.
        max_attribute_tokens: maximum number of tokens of one field, its name included.
    """
    path = cache_folder("item_text") / f"{_content_hash(texts, tokenizer, max_attribute_tokens)}.npz"
    if path.exists():
        try:
            with np.load(path, allow_pickle=False) as stored:
                return RaggedTable(stored["values"], stored["offsets"])
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
            logging.getLogger().warning("the item text cache %s is broken and is made again", path)
    table = _tokenize(texts, tokenizer, max_attribute_tokens)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, values=table.values, offsets=table.offsets)
    return table


def without_words(texts: pd.DataFrame, share: float, seed: int) -> pd.DataFrame:
    """Return item texts of which words were left out at random (UniSRec's word drop), at least one left per value.

    Args:
        texts: as for `tokenize_items`.
        share: the probability with which a word, a piece between spaces, is left out.
        seed: of the draws; the same texts, share and seed give the same words.
    """
    rng = np.random.default_rng(seed)

    def shortened(text: str) -> str:
        words = text.split(" ")
        kept = rng.random(len(words)) >= share
        if not kept.any():
            kept[rng.integers(len(words))] = True
        return " ".join(word for word, stays in zip(words, kept, strict=True) if stays)

    return texts.apply(lambda column: column.map(shortened))


def _tokenize(texts: pd.DataFrame, tokenizer: Any, max_attribute_tokens: int) -> RaggedTable:
    has_title = texts.iloc[:, 0].to_numpy() != ""
    pieces: list[list[list[int]]] = []
    for number, field in enumerate(texts.columns):
        values = texts[field].tolist()
        written = values if number == 0 else [f" {field}: {value}" if value else "" for value in values]
        encoded = tokenizer(
            written, add_special_tokens=False, truncation=True, max_length=max_attribute_tokens,
            return_attention_mask=False, return_token_type_ids=False,
        )["input_ids"]  # fmt: skip
        pieces.append(encoded)
    parts_of_items = zip(*pieces, strict=True)
    rows = [list(chain(*parts)) if kept else [] for kept, parts in zip(has_title, parts_of_items, strict=True)]
    return RaggedTable.from_rows(rows)


def _content_hash(texts: pd.DataFrame, tokenizer: Any, max_attribute_tokens: int) -> str:
    # A tokenizer remembers how it last cut and padded; that is no part of the content.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    digest = hashlib.sha256()
    digest.update(json.dumps([_FORMAT, max_attribute_tokens, list(texts.columns)]).encode())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    for field in texts.columns:
        digest.update(json.dumps(texts[field].tolist()).encode())
    return digest.hexdigest()[:32]
