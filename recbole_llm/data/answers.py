"""Prompts with answers as packed rows to train on, and prompts alone to be answered."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recbole_llm.packing.batch import PackedBatch, sequence_bounds
from recbole_llm.packing.ragged import RaggedTable, ranges


@dataclass(frozen=True)
class TextRows:
    """Texts as sequences of table rows.

    Attributes:
        rows: int64 [all rows], indices into a table of token ids; the texts laid end to end.
        counts: int64 [texts], rows of each.
    """

    rows: np.ndarray
    counts: np.ndarray

    def __len__(self) -> int:
        return len(self.counts)

    def select(self, indices: np.ndarray) -> "TextRows":
        """Return the texts at `indices`, in that order."""
        begins = np.cumsum(self.counts) - self.counts
        counts = self.counts[indices]
        return TextRows(self.rows[ranges(begins[indices], counts)], counts)

    def followed_by(self, rows: np.ndarray) -> "TextRows":
        """Return every text with one row more, int64 [texts]."""
        return TextRows(np.insert(self.rows, np.cumsum(self.counts), rows), self.counts + 1)

    def tokens(self, table: RaggedTable) -> np.ndarray:
        """Return the number of tokens of each text: int64 [texts]."""
        return np.add.reduceat(table.lengths[self.rows], np.cumsum(self.counts) - self.counts)


@dataclass(frozen=True)
class PackedAnswers:
    """Prompts with answers of one pass, laid end to end.

    Attributes:
        packed: the row; its queries are the places before every answer token, and its labels these tokens.
        words: int64 [tokens], which word of its text each token belongs to, from 1; None where it is not asked for.
    """

    packed: PackedBatch
    words: Tensor | None = None

    def to(self, device: torch.device | str) -> "PackedAnswers":
        """Return the batch on `device`, without waiting for the copies of pinned memory."""
        words = None if self.words is None else self.words.to(device, non_blocking=True)
        return PackedAnswers(self.packed.to(device), words)

    def pin_memory(self) -> "PackedAnswers":
        """Return the batch in page-locked memory."""
        return PackedAnswers(self.packed.pin_memory(), None if self.words is None else self.words.pin_memory())


def word_numbers(starts: RaggedTable, texts: TextRows) -> np.ndarray:
    """Return which word of its text each token belongs to, from 1: int64 [tokens].

    Args:
        starts: parallel to the table of token ids, 1 where a word begins, else 0.
        texts: the texts, none without a token.
    """
    begins, _ = starts.gather(texts.rows)
    lengths = texts.tokens(starts)
    counted = np.cumsum(begins)
    first = np.cumsum(lengths) - lengths
    before = counted[first] - begins[first]
    return counted - np.repeat(before, lengths)


def pack_answers(
    texts: TextRows, table: RaggedTable, starts: RaggedTable | None = None, answer_rows: np.ndarray | None = None
) -> PackedAnswers:
    """Lay prompts and answers in one row.

    Args:
        texts: prompts whose last rows are the answer.
        table: token ids.
        starts: see `word_numbers`; None for no words.
        answer_rows: int64 [texts], how many rows each answer has; None for one.
    """
    token_ids, row_tokens = table.gather(texts.rows)
    lengths = texts.tokens(table)
    of_answer = np.ones_like(texts.counts) if answer_rows is None else answer_rows
    before = np.concatenate([[0], np.cumsum(row_tokens)])
    last = np.cumsum(texts.counts)
    answers = before[last] - before[last - of_answer]
    labelled = ranges(np.cumsum(lengths) - answers, answers)
    packed = PackedBatch(
        token_ids=torch.from_numpy(token_ids),
        positions=torch.from_numpy(ranges(np.zeros_like(lengths), lengths)),
        bounds=sequence_bounds(lengths, causal=True),
        query_index=torch.from_numpy(labelled - 1),
        labels=torch.from_numpy(token_ids[labelled]),
    )
    return PackedAnswers(packed, None if starts is None else torch.from_numpy(word_numbers(starts, texts)))


@dataclass(frozen=True)
class SplitAnswers:
    """Prompts for an encoder and answers for a decoder, of one pass.

    Attributes:
        prompts: int64 [prompt tokens], laid end to end.
        lengths: int64 [rows], tokens of each prompt, on the host.
        words: int64 [prompt tokens], as of `PackedAnswers`; None where it is not asked for.
        fed: int64 [rows, columns], what the decoder reads: a start token, and the answer but for its last token.
        places: int64 [answer tokens], the flat places in `fed` behind which they are predicted.
        labels: int64 [answer tokens].
    """

    prompts: Tensor
    lengths: np.ndarray
    words: Tensor | None
    fed: Tensor
    places: Tensor
    labels: Tensor

    def to(self, device: torch.device | str) -> "SplitAnswers":
        """Return the batch on `device`, without waiting for the copies of pinned memory."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "SplitAnswers":
        """Return the batch in page-locked memory."""
        return self._map(Tensor.pin_memory)

    def _map(self, move: Callable[[Tensor], Tensor]) -> "SplitAnswers":
        words = None if self.words is None else move(self.words)
        others = (move(each) for each in (self.fed, self.places, self.labels))
        return SplitAnswers(move(self.prompts), self.lengths, words, *others)


def split_answers(
    prompts: TextRows, answers: np.ndarray, table: RaggedTable, start: int, words: np.ndarray | None
) -> SplitAnswers:
    """Lay prompts end to end and answers in a padded batch.

    Args:
        prompts: of one pass.
        answers: int64 [prompts], the row of `table` that each is answered with; none is empty.
        table: token ids.
        start: the token that every answer begins behind.
        words: int64 [prompt tokens], see `SplitAnswers`.
    """
    tokens, _ = table.gather(prompts.rows)
    labels, lengths = table.gather(answers)
    columns = int(lengths.max(initial=1))
    places = np.repeat(np.arange(len(answers)) * columns, lengths) + ranges(np.zeros_like(lengths), lengths)
    fed = np.full(len(answers) * columns, start, dtype=np.int64)
    inside = places % columns < np.repeat(lengths, lengths) - 1  # nothing follows the last token
    fed[places[inside] + 1] = labels[inside]
    return SplitAnswers(
        torch.from_numpy(tokens),
        prompts.tokens(table),
        None if words is None else torch.from_numpy(words),
        torch.from_numpy(fed).view(len(answers), columns),
        torch.from_numpy(places),
        torch.from_numpy(labels),
    )
