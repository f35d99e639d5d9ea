"""Prompts and their answers in one packed row, for the loss on answer tokens; and prompts alone, to be answered."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recbole_llm.data.answers import TextRows, pack_answers
from recbole_llm.data.list_prompts import ListPrompts
from recbole_llm.packing.batch import PackedBatch
from recbole_llm.packing.sequences import within_budget


@dataclass(frozen=True)
class AnsweredPrompts:
    """Prompts of one pass, laid end to end, each with its answer where it has one.

    Attributes:
        packed: the row; `query_index` is where each answer token is predicted, `labels` are these tokens.
        markers: int64 [markers], the places of placeholders.
        marked_items: int64 [markers], the item that each follows.
    """

    packed: PackedBatch
    markers: Tensor
    marked_items: Tensor

    def to(self, device: torch.device | str) -> "AnsweredPrompts":
        """Return the batch on `device`, without waiting for the copies of pinned memory."""
        return AnsweredPrompts(
            self.packed.to(device),
            self.markers.to(device, non_blocking=True),
            self.marked_items.to(device, non_blocking=True),
        )

    def pin_memory(self) -> "AnsweredPrompts":
        """Return the batch in page-locked memory."""
        return AnsweredPrompts(self.packed.pin_memory(), self.markers.pin_memory(), self.marked_items.pin_memory())

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each prompt with its answer: int64 [prompts]."""
        return np.asarray(self.packed.bounds.lengths, dtype=np.int64)


def answered(
    prompts: ListPrompts, rows: Sequence[Sequence[int]], answers: Sequence[Sequence[int]] | None = None
) -> AnsweredPrompts:
    """Lay prompts in one row.

    Args:
        prompts: whose `table` the rows are of.
        rows: of each prompt.
        answers: rows of each answer, which are learned; None for prompts alone.
    """
    of_each = answers if answers is not None else [()] * len(rows)
    whole = [[*prompt, *answer] for prompt, answer in zip(rows, of_each, strict=True)]
    flat = np.fromiter((row for sequence in whole for row in sequence), dtype=np.int64)
    texts = TextRows(flat, np.array([len(sequence) for sequence in whole]))
    packed = pack_answers(texts, prompts.table, answer_rows=np.array([len(answer) for answer in of_each])).packed
    marked = flat == prompts.marker_row
    lengths = prompts.table.lengths[flat]
    first = np.cumsum(lengths) - lengths
    return AnsweredPrompts(
        packed,
        torch.from_numpy(first[marked]),
        torch.from_numpy(flat[np.flatnonzero(marked) - 1] % prompts.items),
    )


def in_passes(
    prompts: ListPrompts, rows: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], budget: int
) -> list[AnsweredPrompts]:
    """Return prompts with answers in order, in passes of at most `budget` tokens each."""
    lengths = prompts.table.lengths
    whole = ([*prompt, *answer] for prompt, answer in zip(rows, answers, strict=True))
    tokens = np.array([lengths[of_one].sum() for of_one in whole])
    groups = within_budget(tokens, budget)
    return [answered(prompts, [rows[i] for i in group], [answers[i] for i in group]) for group in groups]


def padded_groups(prompts: ListPrompts, rows: Sequence[Sequence[int]], budget: int, following: int) -> list[np.ndarray]:
    """Group prompts of like length for padded batches, each of at most `budget` tokens with its padding.

    Args:
        prompts: whose `table` the rows are of.
        rows: of each prompt.
        budget: tokens of a batch.
        following: tokens that follow each prompt and count to it.

    Returns:
        The indices of each group, int64; every prompt is in one.
    """
    tokens = np.array([prompts.table.lengths[list(prompt)].sum() for prompt in rows], dtype=np.int64)
    order = np.argsort(tokens, kind="stable")
    groups, begin = [], 0
    while begin < len(order):
        count = 1
        while begin + count < len(order) and (count + 1) * (tokens[order[begin + count]] + following) <= budget:
            count += 1
        groups.append(order[begin : begin + count])
        begin += count
    return groups
