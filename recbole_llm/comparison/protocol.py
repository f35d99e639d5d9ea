"""Whether runs were measured in the same way: only then may they stand in one table."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from recbole_llm.comparison.user_values import ranked_together
from recbole_llm.config.roles import protocol_settings
from recbole_llm.errors import SettingError

_COUNTS = ("users", "items", "valid", "test")

_NO_FILTER = "[0,inf)"  # RecBole's default of the intervals, which some files of datasets leave out


@dataclass(frozen=True)
class Measured:
    """How one run was measured, or will be.

    Attributes:
        name: the run in messages.
        protocol: see `protocol_of`.
        is_sequential: whether the model reads histories.
        counts: of `result.json`; None before the run.
        ranks: of the test targets; None before the run, or if nothing was ranked.
        valid_users: how many users were drawn for validation; None: all of them.
    """

    name: str
    protocol: dict[str, Any]
    is_sequential: bool
    counts: dict[str, int] | None = None
    ranks: pd.DataFrame | None = None
    valid_users: int | None = None


def require_one_protocol(runs: Sequence[Measured]) -> None:
    """Compare the runs of one dataset with the first of them.

    Raises:
        SettingError: naming the first difference.
    """
    for other in runs[1:]:
        first = runs[0]
        for fact, first_value, other_value in _facts(first, other):
            # What `auto` means is known once a run has read the data.
            if first_value != other_value and not (fact == "repeatable" and "auto" in (first_value, other_value)):
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
        drawn = first.valid_users is not None or other.valid_users is not None
        # Fewer rows of validation choose the epoch by less; the test is the same.
        for name in (count for count in _COUNTS if count != "valid" or not drawn):
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
    if all(np.array_equal(first.ranks[column], other.ranks[column]) for column in ("user", "item")):
        return  # in the same order, as runs of one dataset are
    first_targets, other_targets = (
        set(zip(ranks["user"], ranks["item"], strict=True)) for ranks in (first.ranks, other.ranks)
    )
    if first_targets != other_targets:
        user, item = min(first_targets ^ other_targets)
        raise SettingError(
            f"{first.name} and {other.name} cannot stand in one table: only one of them was tested on item '{item}' of "
            f"user '{user}'; the data were not the same"
        )


def protocol_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the protocol by name, equal for settings that say the same in different words.

    The parts of `eval_args` have names of their own, such as ``split of eval_args``.

    Args:
        settings: all settings of a run.
    """
    protocol: dict[str, Any] = {}
    for name in protocol_settings():
        value = settings.get(name)
        if name == "eval_args":
            protocol |= {f"{part} of eval_args": one for part, one in sorted(_eval_args(value).items())}
        elif name.endswith("_num_interval"):
            protocol[name] = str(value or _NO_FILTER).replace(" ", "")
        elif name != "candidate_seeds" or settings.get("candidates"):
            protocol[name] = value
    return protocol


def _eval_args(value: Mapping[str, Any] | None) -> dict[str, Any]:
    given = dict(value or {})
    mode = given.get("mode")
    # one word for both parts, or one word for each
    return {**given, "mode": mode if isinstance(mode, dict) else {"valid": mode, "test": mode}}
