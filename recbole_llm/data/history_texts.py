"""Items and histories as texts for an encoder of texts: order, field names, and what each token is.

Every item is tokenised once; a history is its items' rows laid end to end between a begin and an end, so the pieces
of a text are those of the items alone. An item by itself is written in the same form as a history of one item.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from recbole_llm.backbone.padded import padded_lengths
from recbole_llm.backbone.pooling import Segments, segments
from recbole_llm.backbone.preset import Pooling
from recbole_llm.data.item_text import tokenize_items
from recbole_llm.data.prompts import keeps_spaces
from recbole_llm.data.windows import WindowLimits
from recbole_llm.errors import DataError, SettingError
from recbole_llm.packing.batch import PackedBatch
from recbole_llm.packing.ragged import RaggedTable, ranges
from recbole_llm.packing.sequences import Sequences, alike_within_budget, pack, within_budget

NAME, VALUE = 1, 2  # kinds of tokens; 0 is what stands around a history


@dataclass(frozen=True)
class ItemTexts:
    """The tokens of every item, row = item id, row 0 empty, without what stands around a text.

    Attributes:
        table: token ids.
        kinds: int64 [all tokens], `NAME` or `VALUE`, parallel to ``table.values``.
    """

    table: RaggedTable
    kinds: np.ndarray


def plain_texts(texts: pd.DataFrame, tokenizer: Any, limit: int, end: str = "") -> ItemTexts:
    """Return items as their first field and further ones with their names, see `recbole_llm.data.item_text`.

    Args:
        texts: one row per item id, the first column is the title.
        tokenizer: of the backbone. Where it keeps the space before a word, a space precedes every item.
        limit: maximum number of tokens of one field; `end` counts to the last.
        end: the text after every item, such as ``;``.

    Raises:
        SettingError: if `end` leaves no room for a text.
    """
    after = tokenizer(end, add_special_tokens=False)["input_ids"] if end else []
    if len(after) >= limit:
        raise SettingError(f"max_attribute_tokens={limit} leaves no room beside item_end='{end}': raise it")
    if keeps_spaces(tokenizer):
        first = texts.columns[0]
        texts = texts.assign(**{str(first): texts[first].where(texts[first] == "", " " + texts[first])})
    table = tokenize_items(texts, tokenizer, limit - len(after))
    for token in after:
        table = table.with_row_ends(token)
    return ItemTexts(table, np.full(len(table.values), VALUE))


def named_texts(texts: pd.DataFrame, tokenizer: Any, limit: int) -> ItemTexts:
    """Return items as ``name value`` of every field that has a value, as Recformer reads them.

    Args:
        texts: one row per item id.
        tokenizer: of the backbone.
        limit: maximum number of tokens of a field, its name included.
    """

    def encoded(written: list[str]) -> list[list[int]]:
        return tokenizer(
            written, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False
        )["input_ids"]  # fmt: skip

    space = " " if keeps_spaces(tokenizer) else ""
    tokens: list[list[list[int]]] = []
    kinds: list[list[list[int]]] = []
    for field in texts.columns:
        (name,) = encoded([f"{space}{field}"])
        values = encoded([f"{space}{value}" if value else "" for value in texts[field]])
        tokens.append([(name + value)[:limit] if value else [] for value in values])
        marks = [([NAME] * len(name) + [VALUE] * len(value))[:limit] if value else [] for value in values]
        kinds.append(marks)
    # Without its first field an item has no text, as everywhere: see `items_without_text`.
    kept = (texts.iloc[:, 0] != "").to_numpy()
    rows, marked = (
        [list(chain(*parts)) if has_text else [] for has_text, parts in zip(kept, zip(*of, strict=True), strict=True)]
        for of in (tokens, kinds)
    )
    return ItemTexts(RaggedTable.from_rows(rows), RaggedTable.from_rows(marked).values)


@dataclass(frozen=True)
class TextStyle:
    """How a backbone and a model want their texts.

    Attributes:
        causal: whether the backbone is a decoder.
        pooling: how hidden states become one vector.
        first_position: the position of a text's first token (RoBERTa: 2).
        marked: whether batches say of every token its kind and the place of its item.
        multiple: what the tokens of a text are padded to a multiple of when it is read (Longformer), see
            `recbole_llm.backbone.padded`.
    """

    causal: bool
    pooling: Pooling
    first_position: int = 0
    marked: bool = False
    multiple: int = 1


@dataclass(frozen=True)
class PackedTexts:
    """Texts of one pass, laid end to end.

    Attributes:
        packed: the row; it has neither queries nor labels.
        segments: the rows of each text that are pooled: all.
        kinds: int64 [tokens], 0 around the history, else `NAME` or `VALUE`; None where the style asks for no marks.
        places: int64 [tokens], 0 before the history, 1 for the tokens of the first item that is written, ...; or None.
        order: int64 [texts], which of the texts that were laid into passes together these are, on the host; None where
            passes hold them in order.
    """

    packed: PackedBatch
    segments: Segments
    kinds: Tensor | None = None
    places: Tensor | None = None
    order: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.packed.bounds.lengths)

    def to(self, device: torch.device | str) -> "PackedTexts":
        """Return the batch on `device`, without waiting for the copies of pinned memory."""
        kinds, places = (
            None if each is None else each.to(device, non_blocking=True) for each in (self.kinds, self.places)
        )
        return PackedTexts(self.packed.to(device), self.segments.to(device), kinds, places, self.order)

    def pin_memory(self) -> "PackedTexts":
        """Return the batch in page-locked memory."""
        kinds, places = (None if each is None else each.pin_memory() for each in (self.kinds, self.places))
        return PackedTexts(self.packed.pin_memory(), self.segments.pin_memory(), kinds, places, self.order)


def in_order(passes: Sequence[PackedTexts], vectors: Tensor) -> Tensor:
    """Return the vectors [texts, width] of the texts of passes, laid end to end, in the order of the texts."""
    orders = [texts.order for texts in passes if texts.order is not None]
    if not orders:
        return vectors
    return vectors.index_select(0, torch.from_numpy(np.argsort(np.concatenate(orders))).to(vectors.device))


class HistoryTexts:
    """Writes histories and single items as rows of one table of token ids.

    Args:
        items: the items' texts.
        around: token ids before and after a history; one of them is not empty.
        limits: the most that a history may hold, what stands around it included.
        style: how the texts are read.
        newest_first: whether the most recent item is written first.

    Attributes:
        table: row v is item v; then the row before a history, and that after it.
        item_texts: the items' texts.

    Raises:
        SettingError: if the longest item does not fit.
    """

    def __init__(
        self,
        items: ItemTexts,
        around: tuple[list[int], list[int]],
        limits: WindowLimits,
        style: TextStyle,
        newest_first: bool = False,
    ) -> None:
        begin, end = around
        self.items = len(items.table)
        self.item_texts = items
        self.table = items.table.with_row(begin).with_row(end)
        self.limits = limits
        self.style = style
        self.newest_first = newest_first
        self._kinds = RaggedTable(
            np.concatenate([items.kinds, np.zeros(len(begin) + len(end), dtype=np.int64)]), self.table.offsets
        )
        self._lengths = items.table.lengths
        self._room = limits.tokens - len(begin) - len(end)
        longest = int(self._lengths.max(initial=0))
        if longest > self._room:
            raise SettingError(
                f"max_sequence_tokens={limits.tokens} is less than the longest item text ({longest} tokens, and "
                f"{len(begin) + len(end)} around it): raise it, or lower max_attribute_tokens"
            )

    def token_offsets(self, items: np.ndarray) -> np.ndarray:
        """Return int64 [items + 1]: the tokens of the items before each place."""
        return np.concatenate([[0], np.cumsum(self._lengths[items])])

    def histories(
        self, items: np.ndarray, ends: np.ndarray, lengths: np.ndarray, offsets: np.ndarray | None = None
    ) -> Sequences:
        """Return one sequence per history: the most recent whole items within both limits. An empty one has no item.

        Args:
            items: int64, histories laid end to end.
            ends: int64 [histories], where each history ends in `items`, its last item not included.
            lengths: int64 [histories], how many items before that belong to it.
            offsets: `token_offsets` of `items`, where they are at hand.

        Raises:
            DataError: if an item has no text.
        """
        before = self.token_offsets(items) if offsets is None else offsets
        starts = np.maximum(
            np.searchsorted(before, before[ends] - self._room), ends - np.minimum(lengths, self.limits.items)
        )
        counts = ends - starts
        shown = items[ranges(starts, counts)]
        if (self._lengths[shown] == 0).any():
            raise DataError("a history holds an item without text: set items_without_text=drop")
        total = counts + 2
        begins = np.cumsum(total) - total
        rows = np.empty(int(total.sum()), dtype=np.int64)
        rows[begins] = self.items
        rows[begins + total - 1] = self.items + 1
        inside = ranges(begins + 1, counts)
        if self.newest_first:  # from both ends: place k of a history is place counts - 1 - k
            inside = 2 * np.repeat(begins + 1, counts) + np.repeat(counts, counts) - 1 - inside
        rows[inside] = shown
        return _unread(rows, total)

    def singles(self, items: np.ndarray) -> Sequences:
        """Return one sequence per item id of `items`, int64 [items]: histories of that item alone."""
        rows = np.full((len(items), 3), self.items, dtype=np.int64)
        rows[:, 1], rows[:, 2] = items, self.items + 1
        return _unread(rows.ravel(), np.full(len(items), 3))

    def passes(self, sequences: Sequences, budget: int) -> list[PackedTexts]:
        """Return the sequences in passes of at most `budget` tokens each, padding included.

        They are in order, but for a backbone that pads: its passes hold texts of like length.
        """
        tokens = sequences.tokens(self.table)
        if self.style.multiple == 1:
            return [self.packed(sequences.select(group)) for group in within_budget(tokens, budget)]
        groups = alike_within_budget(padded_lengths(tokens, self.style.multiple), budget)
        return [replace(self.packed(sequences.select(group)), order=group) for group in groups]

    def packed(self, sequences: Sequences) -> PackedTexts:
        """Return the sequences as one pass."""
        packed = pack(sequences, self.table, self.style.causal)
        packed = PackedBatch(
            packed.token_ids, packed.positions + self.style.first_position, packed.bounds, packed.query_index
        )
        pooled = segments(self.style.pooling, np.asarray(packed.bounds.lengths))
        if not self.style.marked:
            return PackedTexts(packed, pooled)
        kinds, lengths = self._kinds.gather(sequences.rows)
        places = np.repeat(ranges(np.zeros_like(sequences.counts), sequences.counts), lengths)
        return PackedTexts(packed, pooled, torch.from_numpy(kinds), torch.from_numpy(places))


def _unread(rows: np.ndarray, counts: np.ndarray) -> Sequences:
    """Return sequences of which no row is a query: they are pooled."""
    return Sequences(rows, counts, np.zeros(len(rows), dtype=bool), np.zeros(len(rows), dtype=np.int64))


def around_texts(
    before: list[int], after: list[int], end_token: int | None, causal: bool
) -> tuple[list[int], list[int]]:
    """Return what stands around every text: the tokenizer's own special tokens.

    A decoder is read at a last token that is no item's, so one whose tokenizer ends no text gets `end_token`.

    Args:
        before: the tokenizer's tokens before a text.
        after: those after it.
        end_token: the tokenizer's end-of-text token, if it has one.
        causal: whether the backbone is a decoder.
    """
    if causal and not after and end_token is not None:
        after = [end_token]
    return before, after
