"""Which items of a history a model reads: the most recent ones within a limit of items and of tokens.

Every history is a slice of one flat array that holds all users' items in time order, so a window is a pair
(start, end) of indices into it, and all windows are found at once.
"""

from dataclasses import dataclass

import numpy as np

from recbole_llm.errors import SettingError
from recbole_llm.packing.ragged import ranges


@dataclass(frozen=True)
class WindowLimits:
    """The most that a model reads at once.

    Attributes:
        items: items of the history (`MAX_ITEM_LIST_LENGTH`).
        tokens: tokens, the query tokens included (`max_sequence_tokens`).
    """

    items: int
    tokens: int


class Histories:
    """All users' items in time order, with what is needed to cut windows.

    Args:
        items: int64 [interactions], item ids; a user's items are neighbours, in time order.
        user_start: int64 [interactions], the index where the history of the interaction's user begins.
        item_tokens: int64 [item ids], the tokens that an item takes, its query token included.
        limits: the limits of a window.

    Raises:
        SettingError: if the longest item alone exceeds ``limits.tokens``.
    """

    def __init__(self, items: np.ndarray, user_start: np.ndarray, item_tokens: np.ndarray, limits: WindowLimits):
        longest = int(item_tokens.max(initial=0))
        if longest > limits.tokens:
            raise SettingError(
                f"max_sequence_tokens={limits.tokens} is less than the longest item text ({longest} tokens with its "
                f"query token): raise it, or lower max_attribute_tokens"
            )
        self.items = items
        self.user_start = user_start
        self.limits = limits
        self._tokens_before = np.concatenate([[0], np.cumsum(item_tokens[items])])

    def window_starts(self, first: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Return where the windows that end before `ends` start: the most recent items within both limits.

        Args:
            first: int64 [windows], the earliest index allowed (the user's first item).
            ends: int64 [windows], exclusive.
        """
        by_tokens = np.searchsorted(self._tokens_before, self._tokens_before[ends] - self.limits.tokens, side="left")
        return np.maximum(np.maximum(first, ends - self.limits.items), by_tokens)


@dataclass(frozen=True)
class Windows:
    """Slices ``[start, end)`` of the flat histories."""

    starts: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    def positions(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the flat index of every item of every window, and how many each window has."""
        lengths = self.ends - self.starts
        return ranges(self.starts, lengths), lengths


def recent_windows(histories: Histories, last_target: np.ndarray) -> Windows:
    """Return every user's most recent training window.

    It starts where the window of the *next* prediction starts, the first that is held out. So one causal pass over that
    window serves both, and training sees there what evaluation sees.

    Args:
        histories: the histories.
        last_target: int64 [users], the flat index of every user's last training target; the training inputs are the
            items before it.
    """
    first = histories.user_start[last_target]
    starts = histories.window_starts(first, last_target + 1)
    return _not_empty(starts, last_target)


def full_windows(histories: Histories, last_target: np.ndarray) -> Windows:
    """Cover every user's whole training history by consecutive windows, counted back from `recent_windows`.

    Every training position is read exactly once.
    """
    first = histories.user_start[last_target]
    start = histories.window_starts(first, last_target + 1)
    parts = [_not_empty(start, last_target)]
    while (more := start > first).any():
        first, end = first[more], start[more]
        start = histories.window_starts(first, end)
        parts.append(Windows(start, end))
    return Windows(np.concatenate([p.starts for p in parts]), np.concatenate([p.ends for p in parts]))


def _not_empty(starts: np.ndarray, ends: np.ndarray) -> Windows:
    # A window may be empty where its last item alone fills the limit of tokens.
    kept = starts < ends
    return Windows(starts[kept], ends[kept])


def random_windows(histories: Histories, last_target: np.ndarray, rng: np.random.Generator) -> Windows:
    """Draw one sub-window a user, as the authors' code does each epoch.

    A start is drawn from all training items but the last, then a target from those after it; the window reads from the
    start up to the target, and of these the most recent within the limits.
    """
    first = histories.user_start[last_target]
    start = rng.integers(first, last_target)
    target = rng.integers(start + 1, last_target + 1)
    return Windows(histories.window_starts(start, target), target)
