"""New items: a table of tokens and texts, in the form of the dataset's own `.item` file."""

from pathlib import Path
from typing import Any

import pandas as pd

from recbole_llm.data.item_text import read_item_fields
from recbole_llm.errors import DataError, SettingError


def read_new_items(parts: Any, path: str | Path) -> pd.DataFrame:
    """Return the texts of items that a model was never trained on, indexed by item token.

    Args:
        parts: of a run, see `quick_start.load`.
        path: a file with a header such as ``item_id:token<TAB>title:token_seq``: the item column and all
            `item_text_fields` of the run; others are passed over.

    Raises:
        DataError: if the file is missing, lacks a column or names no item.
        SettingError: if the run has no text fields.
    """
    fields = list(parts.config["item_text_fields"] or ())
    if not fields:
        raise SettingError("item_text_fields of the run names no column, so new items have no text to be ranked by")
    config, dataset = parts.config, parts.dataset
    texts = read_item_fields(path, dataset.iid_field, fields, config["field_separator"], config["encoding"] or "utf-8")
    if not len(texts):
        raise DataError(f"{path} names no item: it needs one line per new item, with its token and its text")
    return texts
