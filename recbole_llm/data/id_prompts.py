"""Prompts in which items are IDs, as P5 reads them."""

import string
from typing import Any

import numpy as np

from recbole_llm.backbone.special_tokens import special_tokens
from recbole_llm.data.answers import TextRows
from recbole_llm.data.prompts import keeps_spaces
from recbole_llm.errors import SettingError, nearest
from recbole_llm.packing.ragged import RaggedTable, ranges

_PLACES = ("user", "history")


class IdPrompts:
    """Writes histories of item IDs with one of several templates.

    Args:
        templates: texts with ``{history}`` once and, if wanted, ``{user}`` once, before it.
        ids: the tokens of every item's ID, row = item id, row 0 empty.
        users: number of user ids, the padding id included.
        tokenizer: of the backbone.
        separator: the text between two items.
        closed: whether a prompt ends with the tokens that the tokenizer puts after a text, as an encoder reads it.

    Attributes:
        table: row v is item v as the first of a history, and as an answer; row ``items + v`` the same after another
            item; then a row per user, and the pieces of the templates.
        starts: parallel to `table`, 1 where a word begins, else 0. An ID is one word.
        reads_users: whether any template has a user in it.

    Raises:
        SettingError: if a template lacks ``{history}`` or has an unknown place.
    """

    def __init__(
        self, templates: list[str], ids: RaggedTable, users: int, tokenizer: Any, separator: str, closed: bool = False
    ) -> None:
        self.items = len(ids)
        self._tokenizer = tokenizer
        end = special_tokens(tokenizer)[1] if closed else []
        between = self._tokens(separator)[0]
        parts = [_parts(template) for template in templates]
        self.reads_users = any("user" in names for _, names in parts)
        table = ids.followed_by(_with_row_starts(ids, between))
        starts = _first_of(ids).followed_by(_with_row_starts(_first_of(ids), [1] + [0] * (len(between) - 1)))
        if not between:
            starts = _first_of(ids).followed_by(_first_of(ids))
        self._first_user = len(table)
        if self.reads_users:
            names = [str(user) for user in range(users)]
            written = tokenizer(names, add_special_tokens=False)["input_ids"]
            table = table.followed_by(RaggedTable.from_rows(written))
            starts = starts.followed_by(RaggedTable.from_rows([[0] * len(row) for row in written]))
        self._templates: list[tuple[np.ndarray, int, np.ndarray]] = []  # rows before, the place of a user there, after
        for literals, names in parts:
            rows: list[int] = []
            user = -1
            for place, literal in enumerate(literals):
                if place and names[place - 1] == "user":
                    user = len(rows)
                    rows.append(0)
                if place == len(literals) - 1:
                    literal = literal.rstrip()
                elif names[place] == "history":
                    literal = literal.removesuffix(" ")
                tokens, begins = self._piece(literal, first=place == 0)
                if place == len(literals) - 1:
                    tokens, begins = [*tokens, *end], [*begins, *[1] * len(end)]
                table, starts = table.with_row(tokens), starts.with_row(begins)
                rows.append(len(table) - 1)
            self._templates.append((np.array(rows[:-1]), user, np.array(rows[-1:])))
        self.table, self.starts = table, starts
        longest = [int(table.lengths[np.append(before, after)].sum()) for before, _, after in self._templates]
        named = int(table.lengths[self._first_user : self._first_user + users].max(initial=0)) * self.reads_users
        self._around = max(longest) + named
        self._longest_item = int(ids.lengths.max(initial=0)) + len(between)

    def longest(self, items: int) -> int:
        """Return the most tokens that a prompt of so many items can take with its answer."""
        return self._around + (items + 1) * self._longest_item

    def texts(
        self, items: np.ndarray, ends: np.ndarray, lengths: np.ndarray, users: np.ndarray, templates: np.ndarray
    ) -> TextRows:
        """Return one prompt per history.

        Args:
            items: int64, histories laid end to end.
            ends: int64 [histories], where each history ends in `items`, its last item not included.
            lengths: int64 [histories], how many items before that belong to it.
            users: int64 [histories], user ids.
            templates: int64 [histories], which template each has.
        """
        rows: list[np.ndarray] = []
        owners: list[np.ndarray] = []
        shown = items[ranges(ends - lengths, lengths)] + self.items  # after another item
        first = np.cumsum(lengths) - lengths
        shown[first[lengths > 0]] -= self.items
        for number, (before, user, after) in enumerate(self._templates):
            some = np.flatnonzero(templates == number)
            front = np.tile(before, (len(some), 1))
            if user >= 0:
                front[:, user] = self._first_user + users[some]
            rows += [front.ravel(), shown[ranges(first[some], lengths[some])], np.tile(after, len(some))]
            owners += [np.repeat(some, len(before)), np.repeat(some, lengths[some]), np.repeat(some, len(after))]
        owner = np.concatenate(owners)
        order = np.argsort(owner, kind="stable")
        return TextRows(np.concatenate(rows)[order], np.bincount(owner, minlength=len(ends)))

    def _piece(self, literal: str, first: bool) -> tuple[list[int], list[int]]:
        """Return the tokens of a piece of a template, and where words begin in it."""
        tokens, words = self._tokens(literal)
        before = special_tokens(self._tokenizer)[0] if first else []
        begins = [int(place == 0 or words[place] != words[place - 1]) for place in range(len(words))]
        return [*before, *tokens], [*[1] * len(before), *begins]

    def _tokens(self, text: str) -> tuple[list[int], list[Any]]:
        encoded = self._tokenizer(text, add_special_tokens=False)
        return list(encoded["input_ids"]), list(encoded.word_ids())


def id_tokens(texts: list[str], tokenizer: Any) -> RaggedTable:
    """Return the tokens of every ID as it is written after a word, row = item id.

    Args:
        texts: IDs, the first empty.
        tokenizer: of the backbone.
    """
    space = " " if keeps_spaces(tokenizer) else ""
    written = [space + text if text else "" for text in texts]
    return RaggedTable.from_rows(tokenizer(written, add_special_tokens=False)["input_ids"])


def _parts(template: str) -> tuple[list[str], list[str]]:
    """Return the text around the places of a template, and their names. Raises SettingError."""
    try:
        parsed = [(literal, name) for literal, name, _, _ in string.Formatter().parse(template)]
    except ValueError as error:
        raise SettingError(f"prompts: '{template}' is not understood ({error}): write a brace itself twice") from error
    literals, names = [""], []
    for literal, name in parsed:
        literals[-1] += literal
        if name is not None:
            if name not in _PLACES:
                raise SettingError(f"prompts: '{template}' has an unknown place {{{name}}}{nearest(name, _PLACES)}")
            names.append(name)
            literals.append("")
    if names not in (["history"], ["user", "history"]):
        raise SettingError(f"prompts: '{template}' must have {{history}} once, and {{user}} at most once, before it")
    return literals, names


def _first_of(table: RaggedTable) -> RaggedTable:
    """Return a table of the same shape, 1 where a row begins, else 0."""
    values = np.zeros(len(table.values), dtype=np.int64)
    values[table.offsets[:-1][table.lengths > 0]] = 1
    return RaggedTable(values, table.offsets)


def _with_row_starts(table: RaggedTable, start: list[int]) -> RaggedTable:
    """Return a table whose every non-empty row begins with `start`."""
    return RaggedTable.from_rows([[*start, *row] if row else [] for row in map(list, _rows(table))])


def _rows(table: RaggedTable) -> list[np.ndarray]:
    return np.split(table.values, table.offsets[1:-1])
