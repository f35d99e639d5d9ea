"""Whether runs were measured in the same way: only then may they stand in one table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from recbole_llm.comparison.user_values import ranked_together
from recbole_llm.errors import SettingError

_COUNTS = ("users", "items", "valid", "test")


@dataclass(frozen=True)
class Measured:
    """How one run was measured, or will be.

    Attributes:
        name: the run in messages.
        protocol: see `runs.protocol.protocol_of`.
        is_sequential: whether the model reads histories.
        counts: of `result.json`; None before the run.
        ranks: of the test targets; None before the run, or if nothing was ranked.
    """

    name: str
    protocol: dict[str, Any]
    is_sequential: bool
    counts: dict[str, int] | None = None
    ranks: pd.DataFrame | None = None


def require_one_protocol(runs: Sequence[Measured]) -> None:
    """Compare the runs of one dataset with the first of them.

    Raises:
        SettingError: naming the first difference.
    """
    for other in runs[1:]:
        first = runs[0]
        for fact, first_value, other_value in _facts(first, other):
            if first_value != other_value:
                raise SettingError(
                    f"{first.name} and {other.name} cannot stand in one table: {fact} is {_shown(first_value)} in the "
                    f"first and {_shown(other_value)} in the second; give both the same"
                )
        _require_same_targets(first, other)


def _facts(first: Measured, other: Measured) -> Iterator[tuple[str, Any, Any]]:
    """Yield the name of each fact with its value in both runs."""
    for name in dict.fromkeys([*first.protocol, *other.protocol]):
        yield name, first.protocol.get(name), other.protocol.get(name)
    if first.counts is not None and other.counts is not None:
        for name in _COUNTS:
            yield f"the number of {name}", first.counts[name], other.counts[name]


def _shown(value: Any) -> str:
    if isinstance(value, dict) and len(set(map(str, value.values()))) == 1 and "test" in value:
        value = value["test"]
    return "not set" if value is None else str(value)


def _require_same_targets(first: Measured, other: Measured) -> None:
    if first.ranks is None or other.ranks is None:
        return
    if ranked_together(first.is_sequential, first.ranks) != ranked_together(other.is_sequential, other.ranks):
        raise SettingError(
            f"{first.name} and {other.name} cannot stand in one table: with this split users have several targets, "
            f"which RecBole ranks in one list for a general model and one after another for a sequential one"
        )
    first_targets, other_targets = (
        set(zip(ranks["user"], ranks["item"], strict=True)) for ranks in (first.ranks, other.ranks)
    )
    if first_targets != other_targets:
        user, item = min(first_targets ^ other_targets)
        raise SettingError(
            f"{first.name} and {other.name} cannot stand in one table: only one of them was tested on item '{item}' of "
            f"user '{user}'; the data were not the same"
        )
