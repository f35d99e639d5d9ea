"""Prompts in which items are IDs, as P5 reads them.

The pieces of a prompt are tokenised once each and laid end to end. A piece that goes on a word is tokenised as it is
behind one: SentencePiece (T5) would put a space before it.
"""

import string
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from recbole_llm.backbone.special_tokens import special_tokens
from recbole_llm.data.answers import TextRows
from recbole_llm.data.prompts import keeps_spaces
from recbole_llm.errors import SettingError, nearest
from recbole_llm.packing.ragged import RaggedTable, ranges

_PLACES = ("user", "history")
_WORD = "a"  # any: what is tokenised behind it is tokenised as behind a word


class IdPrompts:
    """Writes histories of item IDs with one of several templates.

    Args:
        templates: texts with ``{history}`` once and, if wanted, ``{user}`` once, before it.
        ids: the tokens of every item's ID, row = item id, row 0 empty.
        users: number of user ids, the padding id included.
        tokenizer: of the backbone.
        separator: the text between two items; a space at its end belongs to the next item.
        closed: whether a prompt ends with the tokens that the tokenizer puts after a text, as an encoder reads it.

    Attributes:
        table: row v is item v as the first of a history, and as an answer; row ``items + v`` the same after another
            item; then, for each way of writing them, a row per user, and the pieces of the templates.
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
        between, begins = self._following(separator.removesuffix(" "))
        parts = [_parts(template) for template in templates]
        self.reads_users = any("user" in names for _, names in parts)
        self.table = ids.followed_by(_with_row_starts(ids, between))
        self.starts = _first_of(ids).followed_by(_with_row_starts(_first_of(ids), begins))
        named = 0
        first_users: dict[str, int] = {}  # the row of user 0, by what stands before
        for before in sorted({_before_user(literals[0]) for literals, names in parts if "user" in names}):
            first_users[before] = len(self.table)
            rows, words = self._users(users, before)
            self._add(rows, words)
            named = max(named, int(rows.lengths.max(initial=0)))
        self._templates = [self._template(*each, first_users, end) for each in parts]
        longest = [int(self.table.lengths[np.append(each.before, each.after)].sum()) for each in self._templates]
        self._around = max(longest) + named
        self._longest_item = int(ids.lengths.max(initial=0)) + len(between)

    def _add(self, rows: RaggedTable, starts: RaggedTable) -> None:
        self.table, self.starts = self.table.followed_by(rows), self.starts.followed_by(starts)

    def _users(self, users: int, before: str) -> tuple[RaggedTable, RaggedTable]:
        """Return a row per user, and where words begin in them; `before`: see `_before_user`."""
        space = " " if before == "space" and keeps_spaces(self._tokenizer) else ""
        start = _WORD if before == "word" else space
        written = self._tokenizer([f"{start}{user}" for user in range(users)], add_special_tokens=False)["input_ids"]
        if before != "word":
            rows = RaggedTable.from_rows(written)
            return rows, _first_of(rows)
        within = len(self._tokens(_WORD)[0])
        rows = RaggedTable.from_rows([row[within:] for row in written])
        return rows, RaggedTable(np.zeros_like(rows.values), rows.offsets)

    def _template(
        self, literals: list[str], names: list[str], first_users: dict[str, int], end: list[int]
    ) -> "_Template":
        """Add the pieces of a template to the table."""
        rows: list[int] = []
        user, first_user = -1, 0
        for place, literal in enumerate(literals):
            if place and names[place - 1] == "user":
                user, first_user = len(rows), first_users[_before_user(literals[place - 1])]
                rows.append(0)
            last = place == len(literals) - 1
            literal = literal.rstrip() if last else literal.removesuffix(" ")  # a space belongs to what follows
            tokens, begins = self._following(literal) if place else self._first(literal)
            if last:
                tokens, begins = [*tokens, *end], [*begins, *[1] * len(end)]
            rows.append(len(self.table))
            self._add(RaggedTable.from_rows([tokens]), RaggedTable.from_rows([begins]))
        return _Template(np.array(rows[:-1]), np.array(rows[-1:]), user, first_user)

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
        for number, template in enumerate(self._templates):
            before, after = template.before, template.after
            some = np.flatnonzero(templates == number)
            front = np.tile(before, (len(some), 1))
            if template.user >= 0:
                front[:, template.user] = template.first_user + users[some]
            rows += [front.ravel(), shown[ranges(first[some], lengths[some])], np.tile(after, len(some))]
            owners += [np.repeat(some, len(before)), np.repeat(some, lengths[some]), np.repeat(some, len(after))]
        owner = np.concatenate(owners)
        order = np.argsort(owner, kind="stable")
        return TextRows(np.concatenate(rows)[order], np.bincount(owner, minlength=len(ends)))

    def _first(self, literal: str) -> tuple[list[int], list[int]]:
        """Return the tokens that begin a prompt, and where words begin in them."""
        before = special_tokens(self._tokenizer)[0]
        tokens, words = self._tokens(literal)
        return [*before, *tokens], [*[1] * len(before), *_begins([None, *words])]

    def _following(self, text: str) -> tuple[list[int], list[int]]:
        """Return the tokens of a text as they are after a word, and where words begin in them."""
        word, _ = self._tokens(_WORD)
        tokens, words = self._tokens(f"{_WORD}{text}")
        if tokens[: len(word)] != word:  # both are one token
            word, (tokens, words) = [], self._tokens(text)
        return tokens[len(word) :], _begins([None, *words])[len(word) :]

    def _tokens(self, text: str) -> tuple[list[int], list[Any]]:
        encoded = self._tokenizer(text, add_special_tokens=False)
        return list(encoded["input_ids"]), list(encoded.word_ids())


@dataclass(frozen=True)
class _Template:
    """A template as rows of the table.

    Attributes:
        before: int64, the rows before a history.
        after: int64, those after it.
        user: the place of the user in `before`; -1 for none.
        first_user: the row of user 0.
    """

    before: np.ndarray
    after: np.ndarray
    user: int
    first_user: int


def _before_user(literal: str) -> str:
    """Return what stands before the user in a template: nothing, a space, or a word that the user goes on."""
    if not literal:
        return "nothing"
    return "space" if literal.endswith(" ") else "word"


def _begins(words: list[Any]) -> list[int]:
    """Return for each word number but the first whether it differs from that before."""
    return [int(word != before) for before, word in pairwise(words)]


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
