"""What a model that reads items as text vectors asks of its dataset: texts in, one frozen vector per item out."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from recbole_llm.backbone.item_vectors import item_vectors
from recbole_llm.backbone.loading import fingerprint, load_tokenizer
from recbole_llm.backbone.precision import resolve_precision
from recbole_llm.backbone.preset import Pooling
from recbole_llm.backbone.resolve import resolve
from recbole_llm.data.item_text import tokenize_items, without_words
from recbole_llm.errors import DataError, SettingError


@dataclass(frozen=True)
class ItemTexts:
    """How item texts become vectors.

    Attributes:
        backbone: a preset, a folder or a hub ID.
        pooling: how the states of a text become one vector; None for the backbone's own way.
        fields: columns of the `.item` file, the first is the text.
        max_attribute_tokens: maximum number of tokens of one field.
        precision: of the backbone.
        budget: maximum number of tokens of one packed pass.
        device: where vectors are computed.
    """

    backbone: str
    pooling: Pooling | None
    fields: tuple[str, ...]
    max_attribute_tokens: int
    precision: torch.dtype
    budget: int
    device: torch.device

    @classmethod
    def from_config(cls, config: Any) -> "ItemTexts":
        """Read the settings of a run. Raises SettingError if no text field is named."""
        if not config["item_text_fields"]:
            raise SettingError(f"item_text_fields names no column of the .item file, and {config['model']} reads texts")
        device = torch.device(config["device"])
        return cls(
            backbone=str(config["backbone"]),
            pooling=config["item_pooling"],
            fields=tuple(config["item_text_fields"]),
            max_attribute_tokens=config["max_attribute_tokens"],
            precision=resolve_precision(config["precision"], device),
            budget=config["eval_batch_tokens"],
            device=device,
        )

    def of_items(self, dataset: Any) -> Tensor:
        """Return the vectors of a dataset's items: float32 [items, width], row 0 (padding) zero.

        Raises:
            DataError: if an item has no text, or all items have the same.
            SettingError: if a text is longer than the backbone can read.
        """
        texts = dataset.item_texts_by_id(list(self.fields))
        self._check(texts, dataset.dataset_name)
        return self.of_texts(texts)

    def of_shortened_items(self, dataset: Any, share: float, seed: int) -> Tensor:
        """Return the vectors of items of whose texts a share of the words is left out, as `of_items`."""
        return self.of_texts(without_words(dataset.item_texts_by_id(list(self.fields)), share, seed))

    def of_texts(self, texts: pd.DataFrame) -> Tensor:
        """Return the vector of each row of `texts`: float32 [rows, width], zero where the first field is empty."""
        tokenizer = load_tokenizer(self.backbone)
        table = tokenize_items(texts, tokenizer, self.max_attribute_tokens)
        return item_vectors(
            self.backbone,
            tokenizer,
            table,
            device=self.device,
            precision=self.precision,
            budget=self.budget,
            pooling=self.pooling,
        )

    def of_new_items(self, texts: pd.DataFrame) -> Tensor:
        """Return the vectors of items that are not in the dataset: float32 [rows, width].

        Args:
            texts: indexed by item token, with the columns `fields`.

        Raises:
            DataError: if an item has no text.
        """
        texts = texts[list(self.fields)]
        empty = np.flatnonzero(texts.iloc[:, 0].to_numpy() == "")
        if len(empty):
            raise DataError(
                f"the new item '{texts.index[empty[0]]}' has no text in '{self.fields[0]}': give it one or leave it out"
            )
        return self.of_texts(texts)

    def origin(self) -> dict[str, Any]:
        """Return what the vectors depend on beside the texts, as plain values; another origin is another space."""
        found = resolve(self.backbone)
        return {
            "weights": fingerprint(found.folder),
            "pooling": self.pooling or found.preset.pooling,
            "further_fields": list(self.fields[1:]),  # what the first is called is each dataset's own
        }

    def _check(self, texts: pd.DataFrame, name: str) -> None:
        first = texts.iloc[1:, 0]
        empty = np.flatnonzero(first.to_numpy() == "")
        if len(empty):
            raise DataError(
                f"{len(empty)} items of {name} have no text in '{self.fields[0]}', and a model of text vectors knows "
                f"items by their texts: set items_without_text=drop"
            )
        if len(texts) > 2 and (texts.iloc[1:] == texts.iloc[1]).all(axis=None):
            raise DataError(
                f"all {len(texts) - 1} items of {name} have the same text in {', '.join(self.fields)}, which tells "
                f"nothing apart: name other item_text_fields"
            )
