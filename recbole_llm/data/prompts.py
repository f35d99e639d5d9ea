"""Hard prompts: an instruction and the titles of a history as token ids (IDLE-Adapter, 4.1).

The pieces of a prompt are tokenised once each and laid end to end: for WordPiece that gives the tokens of the whole
text, for byte-level BPE it may differ where a title begins or ends in a punctuation mark beside the text around it.
"""

import string
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from recbole_llm.backbone.special_tokens import special_tokens
from recbole_llm.data.item_text import tokenize_items
from recbole_llm.errors import DataError, SettingError, nearest
from recbole_llm.packing.ragged import RaggedTable, ranges
from recbole_llm.packing.sequences import Sequences

_OF_TEMPLATE = ("history", "noun")
_LINE = "\n"  # after it a word is tokenised as after any text that does not end in a space


@dataclass(frozen=True)
class PromptTemplate:
    """The text around a history, and that of an item in it.

    Attributes:
        text: the instruction, with ``{history}`` once and, if wanted, ``{noun}``.
        item: how an item is written, with its columns of the `.item` file in braces, such as ``{title}``.
        noun: what the domain's items are called.
        separator: the text between two items; white space after it belongs to the next item.
        setting: what the setting is called that holds `text`.

    Raises:
        SettingError: if a placeholder is unknown, or ``{history}`` is missing or there twice.
    """

    text: str
    item: str
    noun: str
    separator: str = ","
    setting: str = "prompt"

    def __post_init__(self) -> None:
        found = _placeholders(self.setting, self.text)
        for name in found:
            if name not in _OF_TEMPLATE:
                raise SettingError(
                    f"{self.setting} has an unknown place {{{name}}}{nearest(name, _OF_TEMPLATE)} It may have "
                    f"{{history}} and {{noun}}; columns of the .item file belong in prompt_item"
                )
        if found.count("history") != 1:
            raise SettingError(f"{self.setting} must have {{history}} once, but has it {found.count('history')} times")
        if not _placeholders("prompt_item", self.item):
            raise SettingError(f"prompt_item='{self.item}' names no column of the .item file, such as {{title}}")

    @property
    def fields(self) -> list[str]:
        """The columns of the `.item` file that `item` names, in order."""
        return list(dict.fromkeys(_placeholders("prompt_item", self.item)))

    def items(self, texts: pd.DataFrame) -> pd.DataFrame:
        """Return how every item is written, one column; empty where its first field is. `texts` has `fields`."""
        written = [
            self.item.format(**{str(field): value for field, value in row.items()}) if row[self.fields[0]] else ""
            for row in texts.to_dict("records")
        ]
        return pd.DataFrame({"item": written}, index=texts.index)

    def around(self) -> tuple[str, str]:
        """Return the text before and after the history; white space at the very end is left out."""
        parts = [""]
        for literal, name, _, _ in string.Formatter().parse(self.text):
            parts[-1] += literal + (self.noun if name == "noun" else "")
            if name == "history":
                parts.append("")
        before, after = parts
        return before, after.rstrip()


def _placeholders(setting: str, text: str) -> list[str]:
    try:
        return [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]
    except ValueError as error:
        raise SettingError(f"{setting}='{text}' is not understood ({error}): write a brace itself twice") from error


@dataclass(frozen=True)
class PromptLimits:
    """The most that a prompt may hold.

    Attributes:
        items: items, the most recent kept.
        tokens: tokens, virtual ones not counted.
        item_tokens: tokens of an item's text.
        positions: what the backbone has positions for, None without a bound.
    """

    items: int
    tokens: int
    item_tokens: int
    positions: int | None


class Prompts:
    """Cuts histories into prompts, as sequences of rows of one table of token ids.

    Args:
        template: the text.
        texts: the columns that the template names, in the order of RecBole's item ids (row 0 is the padding item).
        tokenizer: of the backbone.
        limits: what a prompt may hold.
        virtual: placeholder tokens before every prompt.
        closed: whether the tokenizer's special tokens stand after a prompt, too; not where an answer follows it.

    Attributes:
        table: row v is item v as the first of a history, row ``items + v`` the same after another item; then the
            placeholders, the text before the history, and the text after it, each with the tokenizer's special tokens.

    Raises:
        SettingError: if the limits leave no room for the instruction and the longest item.
    """

    def __init__(
        self,
        template: PromptTemplate,
        texts: pd.DataFrame,
        tokenizer: Any,
        limits: PromptLimits,
        virtual: int,
        closed: bool = True,
    ) -> None:
        before, after = template.around()
        item, first_item, before = _items(template.items(texts), tokenizer, limits.item_tokens, before)
        first, last = special_tokens(tokenizer)
        begin = [*first, *plain_tokens(tokenizer, before)]
        end = [*following_tokens(tokenizer, after), *(last if closed else [])]
        separator = following_tokens(tokenizer, template.separator)
        if limits.positions is not None and limits.tokens > limits.positions:
            raise SettingError(
                f"max_prompt_tokens={limits.tokens} is more than the {limits.positions} positions of the backbone: "
                f"lower it"
            )
        needed = len(begin) + int(max(item.lengths.max(initial=0), first_item.lengths.max(initial=0))) + len(end)
        if needed > limits.tokens:
            raise SettingError(
                f"the instruction and the longest item take {needed} tokens, more than max_prompt_tokens="
                f"{limits.tokens}: shorten prompt, or lower max_attribute_tokens"
            )
        self.limits = limits
        self.virtual = virtual
        self.items = len(item)
        self._first_field = template.fields[0]
        self._without_text = item.lengths == 0
        self._item_tokens = item.lengths + len(separator)
        self._first_tokens = first_item.lengths + len(separator)
        self._room = limits.tokens - len(begin) - len(end) + len(separator)  # the first item has no separator
        padding = tokenizer.pad_token_id or 0
        self.table = (
            first_item.followed_by(_with_row_starts(item, separator))
            .with_row([padding] * virtual)
            .with_row(begin)
            .with_row(end)
        )

    def items_with_text(self) -> np.ndarray:
        """Return the ids of the items that have a text, int64 [n]."""
        return 1 + np.flatnonzero(~self._without_text[1:])

    def token_offsets(self, items: np.ndarray) -> np.ndarray:
        """Return int64 [items + 1]: the tokens of the items before each place, separators included."""
        return np.concatenate([[0], np.cumsum(self._item_tokens[items])])

    def sequences(
        self,
        items: np.ndarray,
        ends: np.ndarray,
        lengths: np.ndarray,
        labels: np.ndarray,
        virtual: bool = True,
        offsets: np.ndarray | None = None,
    ) -> Sequences:
        """Return one sequence per history, whose last row has the label.

        Args:
            items: int64, histories laid end to end.
            ends: int64 [histories], where each history ends in `items`, its last item not included.
            lengths: int64 [histories], how many items before that belong to it.
            labels: int64 [histories], the next item, 0 where it is not known.
            virtual: whether placeholders come first.
            offsets: `token_offsets` of `items`, where they are at hand.

        Raises:
            DataError: if a history is empty, or its items have no text.
        """
        if (lengths < 1).any():
            raise DataError("a history is empty: there is nothing to predict from")
        before = self.token_offsets(items) if offsets is None else offsets
        starts = np.maximum(
            np.searchsorted(before, before[ends] - self._room), ends - np.minimum(lengths, self.limits.items)
        )
        self._make_room(items, starts, ends, before)
        counts = ends - starts
        shown = items[ranges(starts, counts)]
        if self._without_text[shown].any():
            raise DataError(
                f"a history holds an item without text in '{self._first_field}': set items_without_text=drop, which "
                f"drops items by the first of item_text_fields, and name '{self._first_field}' first there"
            )
        first = np.cumsum(counts) - counts
        shown = shown + self.items  # after another item
        shown[first] -= self.items
        front = 2 if virtual else 1
        total = counts + front + 1
        begins = np.cumsum(total) - total
        rows = np.empty(int(total.sum()), dtype=np.int64)
        if virtual:
            rows[begins] = 2 * self.items
        rows[begins + front - 1] = 2 * self.items + 1
        rows[ranges(begins + front, counts)] = shown
        rows[begins + total - 1] = 2 * self.items + 2
        query_mask = np.zeros(len(rows), dtype=bool)
        query_mask[begins + total - 1] = True
        all_labels = np.zeros(len(rows), dtype=np.int64)
        all_labels[begins + total - 1] = labels
        return Sequences(rows, total, query_mask, all_labels)

    def _make_room(self, items: np.ndarray, starts: np.ndarray, ends: np.ndarray, offsets: np.ndarray) -> None:
        """Move starts on, in place, where the first item takes more tokens than the same item after another."""
        longer = self._first_tokens - self._item_tokens
        while longer.any():
            over = offsets[ends] - offsets[starts] + longer[items[starts]] > self._room
            if not over.any():
                return
            starts[over] += 1


def _items(written: pd.DataFrame, tokenizer: Any, limit: int, before: str) -> tuple[RaggedTable, RaggedTable, str]:
    """Return the tokens of the items after another one and as the first, and the text before the first without them.

    A space before a word belongs to the word's first token, for byte-level BPE and for SentencePiece; other white space
    belongs to the text before.

    Args:
        written: the items, one column.
        tokenizer: of the backbone.
        limit: the most tokens of an item.
        before: the text before the first item.
    """

    def tokens(start: str, longest: int = limit) -> RaggedTable:
        texts = written["item"].where(written["item"] == "", start + written["item"])
        return tokenize_items(pd.DataFrame({"item": texts}), tokenizer, longest)

    # What puts a space before every text, as SentencePiece does, must not be given another.
    after_another = tokens(" " if keeps_spaces(tokenizer) else "")
    if before.endswith(" "):
        return after_another, after_another, before[:-1]
    if not before:
        return after_another, tokens(""), before
    line = plain_tokens(tokenizer, _LINE)  # none where white space is dropped, as by WordPiece
    if plain_tokens(tokenizer, f"{_LINE}a")[: len(line)] != line:
        return after_another, tokens(""), before  # a line's end is a space to it, and starts every text anyway
    return after_another, _without_starts(tokens(_LINE, limit + len(line)), len(line)), before


def plain_tokens(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a text without special ones around it."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def following_tokens(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a text as they are after a word, without the space that some tokenizers put before all."""
    word, whole = plain_tokens(tokenizer, "a"), plain_tokens(tokenizer, f"a{text}")
    return whole[len(word) :] if whole[: len(word)] == word else plain_tokens(tokenizer, text)


def keeps_spaces(tokenizer: Any) -> bool:
    """Tell whether a piece after another must start with its space, as in byte-level BPE, to be tokenised as there."""
    whole, before, spaced = (plain_tokens(tokenizer, text) for text in ("x: a", "x:", " a"))
    return before + spaced == whole


def _without_starts(table: RaggedTable, count: int) -> RaggedTable:
    """Return a table whose non-empty rows lack their first `count` values."""
    lengths = np.maximum(table.lengths - count, 0)
    starts = table.offsets[:-1] + np.minimum(table.lengths, count)
    return RaggedTable(table.values[ranges(starts, lengths)], np.concatenate([[0], np.cumsum(lengths)]))


def _with_row_starts(table: RaggedTable, start: list[int]) -> RaggedTable:
    """Return a table whose every non-empty row begins with `start`."""
    filled = table.lengths > 0
    values = np.insert(table.values, np.repeat(table.offsets[:-1][filled], len(start)), start * int(filled.sum()))
    return RaggedTable(values, table.offsets + np.concatenate([[0], np.cumsum(filled * len(start))]))
