"""How a model with text towers writes the items and histories of a dataset, and items that are new to it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from recbole_llm.backbone.loading import Backbone, fingerprint, first_position
from recbole_llm.backbone.padded import attention_windows, padded_multiple, reads_padded
from recbole_llm.backbone.special_tokens import special_tokens
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.history_texts import (
    HistoryTexts,
    ItemTexts,
    TextStyle,
    around_texts,
    named_texts,
    plain_texts,
)
from recbole_llm.data.windows import WindowLimits
from recbole_llm.errors import BackboneError, DataError
from recbole_llm.model.tower_settings import TowerSettings
from recbole_llm.packing.ragged import RaggedTable


@dataclass(frozen=True)
class TextForm:
    """What a model wants of its texts.

    Attributes:
        named: whether every value follows the name of its field, and tokens say of which kind and item they are.
        newest_first: whether the most recent item of a history is written first.
        closed: whether something stands after a text, too.
    """

    named: bool = False
    newest_first: bool = False
    closed: bool = True


class TowerTexts:
    """Writes texts for one backbone.

    Args:
        settings: of the model.
        loaded: the backbone.
        form: what the model wants.
        model: its name.

    Attributes:
        tokenizer: the backbone's.

    Raises:
        BackboneError: if nothing would stand before a text that is not closed.
    """

    def __init__(self, settings: TowerSettings, loaded: Backbone, form: TextForm, model: str) -> None:
        self._settings = settings
        self._form = form
        self._model = model
        self.tokenizer = loaded.tokenizer
        self._loaded_from = loaded.folder
        self._tokens = settings.max_sequence_tokens or loaded.max_positions or 1 << 20
        causal = loaded.preset.kind == "decoder"
        config = loaded.model.config
        self._style = TextStyle(
            causal,
            settings.item_pooling or loaded.preset.pooling,
            first_position(loaded.model),
            form.named,
            padded_multiple(config),
        )
        self._windows = attention_windows(config) if reads_padded(config) else None
        before, after = special_tokens(loaded.tokenizer)
        self._around = around_texts(before, after, loaded.tokenizer.eos_token_id, causal)
        if not form.closed:
            self._around = before, []
        if not any(self._around):
            raise BackboneError(
                f"the tokenizer of {settings.backbone} puts no token around a text, so {model} could not read an "
                f"empty history: choose another backbone"
            )

    def of_items(self, dataset: HistoryDataset) -> HistoryTexts:
        """Return the texts of a dataset's items.

        Raises:
            DataError: if an item has no text, or all have the same.
            SettingError: if a text is longer than a history may be.
        """
        items = self._written(dataset.item_texts_by_id(self._settings.item_text_fields))
        self._check(items.table, dataset.dataset_name)
        return self._history_texts(items)

    def with_new(self, texts: HistoryTexts, new: pd.DataFrame) -> HistoryTexts:
        """Return the texts of a catalogue and, behind it, of new items.

        Args:
            texts: of the catalogue.
            new: indexed by item token, with the columns `item_text_fields`.

        Raises:
            DataError: if a new item has no text.
        """
        fields = self._settings.item_text_fields
        empty = np.flatnonzero(new[fields[0]].to_numpy() == "")
        if len(empty):
            raise DataError(
                f"the new item '{new.index[empty[0]]}' has no text in '{fields[0]}': give it one or leave it out"
            )
        more, old = self._written(new[fields]), texts.item_texts
        return self._history_texts(
            ItemTexts(old.table.followed_by(more.table), np.concatenate([old.kinds, more.kinds]))
        )

    def origin(self) -> dict[str, Any]:
        """Return what the vectors of texts depend on beside weights and texts: a pre-trained state is bound to it."""
        return {
            "weights": fingerprint(self._loaded_from),
            "pooling": self._style.pooling,
            "further_fields": list(self._settings.item_text_fields[1:]),  # the first is each dataset's own
            **({} if self._windows is None else {"windows": self._windows}),
        }

    def _written(self, texts: pd.DataFrame) -> ItemTexts:
        settings = self._settings
        if self._form.named:
            return named_texts(texts, self.tokenizer, settings.max_attribute_tokens)
        return plain_texts(texts, self.tokenizer, settings.max_attribute_tokens, settings.item_end)

    def _history_texts(self, items: ItemTexts) -> HistoryTexts:
        limits = WindowLimits(self._settings.max_items, self._tokens)
        return HistoryTexts(items, self._around, limits, self._style, self._form.newest_first)

    def _check(self, table: RaggedTable, dataset: str) -> None:
        field, items = self._settings.item_text_fields[0], len(table) - 1
        without = int((table.lengths[1:] == 0).sum())
        if without == items:
            raise DataError(f"no item of {dataset} has a text in '{field}'")
        if without:
            raise DataError(
                f"{without} items of {dataset} have no text in '{field}', and {self._model} reads nothing but text: "
                f"set items_without_text=drop"
            )
        if items > 1 and _all_equal(table):
            raise DataError(
                f"all {items} items of {dataset} have the same text in '{field}', so nothing tells them apart: set "
                f"item_text_fields to columns that do, or raise max_attribute_tokens"
            )


def _all_equal(table: RaggedTable) -> bool:
    """Tell whether all rows but row 0, which is empty, are the same."""
    lengths = table.lengths[1:]
    if (lengths != lengths[0]).any():
        return False
    return bool((table.values.reshape(-1, int(lengths[0])) == table.values[: int(lengths[0])]).all())
