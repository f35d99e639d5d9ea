"""Source datasets of a pre-training: read as each says, then laid side by side as one dataset with disjoint items.

Users and items are renamed ``<dataset>/<token>``, so that nothing of two sources is ever the same, even where both
number their items from 1 (or list one product: it then counts twice).

Between a source and the *target* the same item would be a leak of the target's own transitions, and is refused. A token
alone does not tell: prepared datasets often number their items, and Games and Scientific then share thousands of
tokens and not one item. An item is the same if its token **and** its text are.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_llm.data.build import create_dataset
from recbole_llm.errors import DataError
from recbole_llm.utils.files import storage_errors

TEXT = "source_text"  # the union's column of every source's first text field, whatever each calls it


@dataclass(frozen=True)
class Source:
    """What is read of one source, after its own filters.

    Attributes:
        name: the dataset.
        users: str [interactions], user tokens; a user's interactions stand in time order.
        items: str [interactions], item tokens.
        texts: the cleaned text fields, indexed by item token.
    """

    name: str
    users: np.ndarray
    items: np.ndarray
    texts: pd.DataFrame


def read_source(config: Any) -> Source:
    """Read the dataset of `config` with its fields and filters. Raises DataError."""
    dataset = create_dataset(config)
    rows = dataset.inter_feat.sort_values([dataset.uid_field, dataset.time_field], kind="stable")
    users, items = (
        np.asarray(dataset.field2id_token[field])[rows[field].to_numpy()].astype(str)
        for field in (dataset.uid_field, dataset.iid_field)
    )
    texts = dataset.item_texts_by_id(config["item_text_fields"]).iloc[1:]
    return Source(config["dataset"], users, items, texts)


def write_union(sources: Sequence[Source], root: Path, name: str) -> list[str]:
    """Write the dataset `name`, all sources side by side, as atomic files.

    Further text fields of the same name are one column; a source without it has them empty.

    Args:
        sources: the sources, of different names.
        root: gets the folder `name`.
        name: of the union.

    Returns:
        The text columns, for `item_text_fields`.

    Raises:
        StorageError: if the files cannot be written.
    """
    texts = [source.texts.rename(columns={source.texts.columns[0]: TEXT}) for source in sources]
    items = pd.concat([text.set_axis(_named(s.name, text.index)) for s, text in zip(sources, texts, strict=True)])
    items = items.fillna("")
    folder = root / name
    with storage_errors(folder):
        folder.mkdir(parents=True)
        with (folder / f"{name}.item").open("w", encoding="utf-8") as file:
            file.write("\t".join(["item_id:token", *(f"{column}:token_seq" for column in items.columns)]) + "\n")
            file.writelines("\t".join(row) + "\n" for row in items.itertuples(name=None))
        with (folder / f"{name}.inter").open("w", encoding="utf-8") as file:
            file.write("user_id:token\titem_id:token\ttimestamp:float\n")
            for source in sources:
                # The place in the history: RecBole's float32 would make seconds of one minute equal.
                times = pd.Series(source.users).groupby(source.users).cumcount()
                rows = zip(_named(source.name, source.users), _named(source.name, source.items), times, strict=True)
                file.writelines(f"{user}\t{item}\t{time}\n" for user, item, time in rows)
    return list(items.columns)


def _named(name: str, tokens: Any) -> list[str]:
    return [f"{name}/{token}" for token in tokens]


def item_keys(texts: pd.DataFrame) -> np.ndarray:
    """Return int64 [items] that are equal for items of equal token and equal first text field.

    Args:
        texts: indexed by item token.
    """
    keys = [
        hashlib.blake2b(f"{token}\0{text}".encode(), digest_size=8).digest()
        for token, text in zip(texts.index, texts.iloc[:, 0], strict=True)
    ]
    return np.frombuffer(b"".join(keys), dtype="<i8")


def refuse_shared_items(dataset: Any, sources: dict[str, np.ndarray]) -> None:
    """Refuse a target that has an item of a source.

    Args:
        dataset: the target.
        sources: the item keys of each source.

    Raises:
        DataError: naming one such item.
    """
    texts = dataset.item_texts_by_id(dataset.config["item_text_fields"][:1]).iloc[1:]
    keys = item_keys(texts)
    for name, known in sources.items():
        shared = np.flatnonzero(np.isin(keys, known))
        if len(shared):
            token, text = texts.index[shared[0]], texts.iloc[shared[0], 0]
            raise DataError(
                f"{len(shared)} items of the target {dataset.dataset_name} are in the pre-training data {name} too, "
                f"such as '{token}' ('{text[:60]}'): pre-train on other datasets, or remove them from one of the two"
            )
