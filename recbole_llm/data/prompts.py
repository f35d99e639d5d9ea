"""Hard prompts: an instruction and the titles of a history as token ids (IDLE-Adapter, 4.1).

The pieces of a prompt are tokenised once each and laid end to end: for WordPiece that gives the tokens of the whole
text, for byte-level BPE it may differ where a title ends in a punctuation mark before the comma.
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


@dataclass(frozen=True)
class PromptTemplate:
    """The text around a history, and that of an item in it.

    Attributes:
        text: the instruction, with ``{history}`` once and, if wanted, ``{noun}``.
        item: how an item is written, with its columns of the `.item` file in braces, such as ``{title}``.
        noun: what the domain's items are called.
        separator: the text between two items; white space after it belongs to the next item.

    Raises:
        SettingError: if a placeholder is unknown, or ``{history}`` is missing or there twice.
    """

    text: str
    item: str
    noun: str
    separator: str = ","

    def __post_init__(self) -> None:
        found = _placeholders("prompt", self.text)
        for name in found:
            if name not in _OF_TEMPLATE:
                raise SettingError(
                    f"prompt has an unknown place {{{name}}}{nearest(name, _OF_TEMPLATE)} It may have {{history}} and "
                    f"{{noun}}; columns of the .item file belong in prompt_item"
                )
        if found.count("history") != 1:
            raise SettingError(f"prompt must have {{history}} once, but has it {found.count('history')} times")
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
        """Return the text before and after the history; white space next to it stays only in what follows."""
        parts = [""]
        for literal, name, _, _ in string.Formatter().parse(self.text):
            parts[-1] += literal + (self.noun if name == "noun" else "")
            if name == "history":
                parts.append("")
        before, after = parts
        return before.rstrip(), after.rstrip()


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

    Attributes:
        table: row v is item v as the first of a history, row ``items + v`` the same after another item; then the
            placeholders, the text before the history, and the text after it, each with the tokenizer's special tokens.

    Raises:
        SettingError: if the limits leave no room for the instruction and the longest item.
    """

    def __init__(
        self, template: PromptTemplate, texts: pd.DataFrame, tokenizer: Any, limits: PromptLimits, virtual: int
    ) -> None:
        def encode(text: str) -> list[int]:
            return tokenizer(text, add_special_tokens=False)["input_ids"]

        written = template.items(texts)
        before, after = template.around()
        if keeps_spaces(tokenizer):
            written["item"] = written["item"].where(written["item"] == "", " " + written["item"])
        else:
            after = after.lstrip()
        item = tokenize_items(written, tokenizer, limits.item_tokens)
        first, last = special_tokens(tokenizer)
        begin, end = [*first, *encode(before)], [*encode(after), *last]
        separator = encode(template.separator)
        if limits.positions is not None and limits.tokens > limits.positions:
            raise SettingError(
                f"max_prompt_tokens={limits.tokens} is more than the {limits.positions} positions of the backbone: "
                f"lower it"
            )
        needed = len(begin) + int(item.lengths.max(initial=0)) + len(end)
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
        self._room = limits.tokens - len(begin) - len(end) + len(separator)  # the first item has no separator
        padding = tokenizer.pad_token_id or 0
        self.table = (
            item.followed_by(_with_row_starts(item, separator))
            .with_row([padding] * virtual)
            .with_row(begin)
            .with_row(end)
        )

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


def keeps_spaces(tokenizer: Any) -> bool:
    """Tell whether a piece after another must start with its space, as in byte-level BPE, to be tokenised as there."""
    whole, before, spaced = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("x: a", "x:", " a"))
    return before + spaced == whole


def _with_row_starts(table: RaggedTable, start: list[int]) -> RaggedTable:
    """Return a table whose every non-empty row begins with `start`."""
    filled = table.lengths > 0
    values = np.insert(table.values, np.repeat(table.offsets[:-1][filled], len(start)), start * int(filled.sum()))
    return RaggedTable(values, table.offsets + np.concatenate([[0], np.cumsum(filled * len(start))]))
