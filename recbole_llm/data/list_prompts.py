"""Prompts with lists of items in them: a history, candidates, or liked and disliked items, in text and in tokens.

A template is text with places in braces. Each list is its items with a separator between. In tokens a prompt is laid
from pieces: every item is tokenised once, and its tokens are the same in a history, among candidates, as an answer, and
where an answer is judged. A space before a word belongs to the word, for byte-level BPE and for SentencePiece.
"""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from recbole_llm.backbone.special_tokens import special_tokens
from recbole_llm.data.item_text import tokenize_items
from recbole_llm.data.prompts import following_tokens, keeps_spaces, plain_tokens
from recbole_llm.errors import BackboneError, DataError, SettingError, nearest
from recbole_llm.packing.ragged import RaggedTable

Items = Sequence[int] | np.ndarray  # item ids
_WORDS = ("noun", "count")
_MARK = "\x00"  # stands for the text in a chat template


@dataclass(frozen=True)
class ListTemplate:
    """A text with places for lists of items.

    Attributes:
        setting: its name, for messages.
        text: with each of `lists` once in braces, and ``{noun}`` and ``{count}`` where they are wanted.
        lists: the places that it must have.
        noun: what the items are called.
        item: how an item is written around its title, with ``{title}`` once.
        separator: between two items of a list; white space at its end belongs to the next item.

    Raises:
        SettingError: if a place is unknown, missing, or there twice.
    """

    setting: str
    text: str
    lists: tuple[str, ...]
    noun: str
    item: str = "{title}"
    separator: str = ", "

    def __post_init__(self) -> None:
        found = [name for _, name in self._parsed()]
        for name in found:
            if name is not None and name not in (*self.lists, *_WORDS):
                raise SettingError(
                    f"{self.setting} has an unknown place {{{name}}}{nearest(name, self.lists)} It has "
                    f"{', '.join(f'{{{place}}}' for place in (*self.lists, *_WORDS))}"
                )
        for name in self.lists:
            if found.count(name) != 1:
                raise SettingError(f"{self.setting} must have {{{name}}} once, but has it {found.count(name)} times")
        if self.item.count("{title}") != 1:
            raise SettingError(f"{self.setting} writes an item as '{self.item}', which must have {{title}} once")

    def _parsed(self) -> list[tuple[str, str | None]]:
        try:
            return [(literal, name) for literal, name, _, _ in string.Formatter().parse(self.text)]
        except ValueError as error:
            raise SettingError(
                f"{self.setting}='{self.text}' is not understood ({error}): write a brace itself twice"
            ) from error

    def pieces(self, count: int) -> tuple[list[str], list[str]]:
        """Return the texts before, between and after the lists, and the names of the lists in their order."""
        words = {"noun": self.noun, "count": str(count)}
        texts, names = [""], []
        for literal, name in self._parsed():
            texts[-1] += literal + words.get(name or "", "")
            if name in self.lists:
                names.append(str(name))
                texts.append("")
        return texts, names

    def written(self, lists: Mapping[str, Sequence[str]], count: int) -> str:
        """Return the prompt in words.

        Args:
            lists: the titles of every list.
            count: of the candidates.
        """
        texts, names = self.pieces(count)
        whole = texts[0]
        for name, after in zip(names, texts[1:], strict=True):
            whole += self.separator.join(self.item.replace("{title}", title) for title in lists[name]) + after
        return whole


def tidy_titles(titles: pd.Series) -> pd.Series:
    """Return titles as LLaRA writes MovieLens': without a year at the end, an article moved to the front.

    ``Godfather, The (1972)`` becomes ``The Godfather``.
    """
    without_year = titles.str.replace(r"\s*\((?:19|20)\d\d\)\s*$", "", regex=True)
    return without_year.str.replace(r"^(.*), (The|A|An|Il|La|Le|Les|El|Das|Der|Die|L')$", r"\2 \1", regex=True)


class ListPrompts:
    """Lays prompts of one template as rows of one table of token ids.

    Args:
        template: the text.
        titles: of the items, in the order of RecBole's item ids; row 0, the padding item, is empty.
        tokenizer: of the backbone.
        item_tokens: the most tokens of a title.
        max_tokens: the most tokens of a prompt, its answer included; the oldest items of a history are left out.
        count: candidates of a list, for ``{count}``.
        chat: whether the prompt stands in the tokenizer's chat template, if it has one.
        ending: the text that ends an answer; where the tokenizer drops it, its end-of-text token does.
        titles_answer: whether answers are titles, which must then differ.

    Attributes:
        table: token ids, one row per piece.
        items: item ids; row ``r`` below three times as many is item ``r % items`` in a list.
        end: token ids that end an answer, `end_row` their row.
        marker_row: the row of the placeholder.
        answer_spaced: whether an answer begins with a space.
        answer_titles: object [items], titles as an answer has them.

    Raises:
        DataError: if an item has no title.
        BackboneError: if two different titles have the same tokens.
    """

    def __init__(
        self,
        template: ListTemplate,
        titles: pd.Series,
        tokenizer: Any,
        *,
        item_tokens: int,
        max_tokens: int,
        count: int = 0,
        chat: bool = False,
        ending: str = "\n",
        titles_answer: bool = True,
    ) -> None:
        _require_titles(titles)
        self.template, self.titles = template, titles.to_numpy(dtype=object)
        self.items = len(titles)
        self.max_tokens = max_tokens
        texts, self.lists = template.pieces(count)
        around = _around(tokenizer, texts[0], texts[-1], chat)
        texts[0], texts[-1] = around.before, around.after
        bare, spaced = (_rows(titles, tokenizer, item_tokens, space, template.item) for space in ("", " "))
        separator = following_tokens(tokenizer, template.separator.rstrip(" "))
        joined = spaced if template.separator.endswith(" ") else bare
        # Three forms of an item: at the start of a line, after a space, and after another item.
        self.table = bare.followed_by(spaced).followed_by(_after(joined, separator))
        self._starts = [self.items if text.endswith(" ") else 0 for text in texts[:-1]]
        self._literals = [self.add_row(_literal(tokenizer, text, around.first, n)) for n, text in enumerate(texts)]
        self.answer_spaced = around.answer_spaced and keeps_spaces(tokenizer)
        answers = _rows(titles, tokenizer, item_tokens, " " if self.answer_spaced else "")
        if titles_answer:
            _require_different(answers, self.titles)
        self._answers = len(self.table)
        self.table = self.table.followed_by(answers)
        self.end = following_tokens(tokenizer, ending) or [tokenizer.eos_token_id]
        self.end_row = self.add_row(self.end)
        self.marker_row = self.add_row([tokenizer.pad_token_id or 0])
        # As they are read in an answer: a title that was cut is known by what is left of it.
        self.answer_titles = np.array(
            [tokenizer.decode(answers.row(item), skip_special_tokens=True).strip() for item in range(self.items)],
            dtype=object,
        )

    def add_row(self, tokens: list[int]) -> int:
        """Add a row to the table and return its number."""
        self.table = self.table.with_row(tokens)
        return len(self.table) - 1

    def rows(self, lists: Mapping[str, Items], marked: bool = False) -> list[int]:
        """Return the rows of one prompt, without an answer.

        Args:
            lists: item ids of every list, by name.
            marked: whether `marker_row` follows every item.

        Raises:
            DataError: if the prompt is longer than `max_tokens` without any history.
        """
        kept = {name: list(items) for name, items in lists.items()}
        while True:
            rows = self._laid(kept, marked)
            tokens = int(self.table.lengths[rows].sum())
            if tokens <= self.max_tokens:
                return rows
            longest = max((name for name in kept if name in _SHORTENED), key=lambda name: len(kept[name]), default="")
            if not longest or not kept[longest]:
                raise DataError(
                    f"a prompt takes {tokens} tokens without any history, more than the {self.max_tokens} of "
                    f"max_sequence_tokens: raise it, or lower max_attribute_tokens or candidates"
                )
            kept[longest] = kept[longest][1:]

    def _laid(self, lists: Mapping[str, Sequence[int]], marked: bool) -> list[int]:
        rows = [self._literals[0]]
        for name, start, literal in zip(self.lists, self._starts, self._literals[1:], strict=True):
            for place, item in enumerate(lists[name]):
                rows.append((2 * self.items if place else start) + int(item))
                if marked:
                    rows.append(self.marker_row)
            rows.append(literal)
        return rows

    def answer_rows(self, item: int) -> list[int]:
        """Return the rows of an answer with its end."""
        return [self._answers + int(item), self.end_row]


_SHORTENED = ("history", "liked", "disliked")  # lists from which the oldest items are left out


@dataclass(frozen=True)
class _Around:
    """The outermost texts, the tokens before everything, and whether an answer begins with a space."""

    before: str
    after: str
    first: list[int]
    answer_spaced: bool


def _around(tokenizer: Any, before: str, after: str, chat: bool) -> _Around:
    if chat and getattr(tokenizer, "chat_template", None):
        message = [{"role": "user", "content": _MARK}]
        whole = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        if whole.count(_MARK) == 1:
            opened, closed = whole.split(_MARK)
            # What the template begins with is all that stands before a text.
            return _Around(opened + before, after.rstrip() + closed, [], answer_spaced=False)
    first, _ = special_tokens(tokenizer)
    stripped = after.rstrip(" ")
    spaced = not stripped.endswith(("\n", "\t"))
    return _Around(before, stripped, first, answer_spaced=spaced)


def _literal(tokenizer: Any, text: str, first: list[int], number: int) -> list[int]:
    """Return the tokens of a text around the lists; a space at its end belongs to what follows."""
    stripped = text.removesuffix(" ")
    if number:
        return following_tokens(tokenizer, stripped)
    return [*first, *(plain_tokens(tokenizer, stripped) if stripped else [])]


def _rows(titles: pd.Series, tokenizer: Any, limit: int, space: str, item: str = "{title}") -> RaggedTable:
    """Return the tokens of items after a space, or as the first of a line; a tokenizer that adds one has one form.

    Args:
        titles: by item id, empty for the padding item.
        tokenizer: of the backbone.
        limit: the most tokens of a title; what is written around it is never cut.
        space: before an item, or an empty text.
        item: how it is written around its title.
    """
    before, _, after = item.partition("{title}")
    start = (space if keeps_spaces(tokenizer) else "") + before
    around = len(plain_tokens(tokenizer, before)) if before else 0
    texts = titles.where(titles == "", start + titles)
    table = tokenize_items(pd.DataFrame({"item": texts}), tokenizer, limit + around)
    for token in following_tokens(tokenizer, after):
        table = table.with_row_ends(token)
    return table


def _after(table: RaggedTable, start: list[int]) -> RaggedTable:
    """Return a table whose non-empty rows begin with `start`."""
    filled = table.lengths > 0
    values = np.insert(table.values, np.repeat(table.offsets[:-1][filled], len(start)), start * int(filled.sum()))
    return RaggedTable(values, table.offsets + np.concatenate([[0], np.cumsum(filled * len(start))]))


def _require_titles(titles: pd.Series) -> None:
    without = int((titles.iloc[1:] == "").sum())
    if without:
        raise DataError(
            f"{without} items have no title, and a prompt names items by their titles: set items_without_text=drop"
        )


def _require_different(table: RaggedTable, titles: np.ndarray) -> None:
    """Refuse a tokenizer that gives two different titles the same tokens. Raises BackboneError."""
    known: dict[bytes, int] = {}
    for item in range(1, len(table)):
        other = known.setdefault(table.row(item).tobytes(), item)
        if titles[other] != titles[item]:
            raise BackboneError(
                f"the tokenizer gives '{titles[other]}' and '{titles[item]}' the same tokens, so that no answer tells "
                f"them apart: raise max_attribute_tokens, or choose another backbone"
            )
