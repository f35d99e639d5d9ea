"""Whether runs were measured in the same way: only then may they stand in one table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from recbole.utils import ModelType

from recbole_llm.comparison.user_values import ranked_together
from recbole_llm.config import registry
from recbole_llm.errors import RecBoleLLMError, SettingError

# What decides who is tested, on which target and among which items.
_SETTINGS = (
    "eval_args",
    "mask_history",
    "topk",
    "candidates",
    "candidate_seeds",
    "benchmark_filename",
    "items_without_text",
    "user_inter_num_interval",
    "item_inter_num_interval",
    "filter_inter_by_user_or_item",
    "val_interval",
    "rm_dup_inter",
)
_NO_FILTER = "[0,inf)"  # RecBole's default of the intervals, which some files of data sets leave out
_COUNTS = ("users", "items", "valid", "test")


@dataclass
class Measured:
    """One run as this module sees it.

    Attributes:
        name: says in messages which run it is.
        model: the model's name.
        settings: of the run.
        counts: of `result.json`; None before the run.
        ranks: of the test targets; None before the run, or where nothing was ranked.
    """

    name: str
    model: str
    settings: dict[str, Any]
    counts: dict[str, int] | None = None
    ranks: pd.DataFrame | None = None


def require_one_protocol(runs: Sequence[Measured]) -> None:
    """Compare the runs of one data set with the first of them.

    Raises:
        SettingError: naming the first difference.
    """
    for other in runs[1:]:
        for what, mine, theirs in _facts(runs[0], other):
            if mine != theirs:
                raise SettingError(
                    f"{runs[0].name} and {other.name} cannot stand in one table: {what} is {_shown(mine)} in the first "
                    f"and {_shown(theirs)} in the second; give both the same"
                )
        _require_same_targets(runs[0], other)


def _facts(first: Measured, other: Measured) -> list[tuple[str, Any, Any]]:
    facts = []
    for name in _SETTINGS:
        mine, theirs = _value(first.settings, name), _value(other.settings, name)
        if name == "eval_args":
            facts += [(f"{part} of eval_args", mine.get(part), theirs.get(part)) for part in sorted({*mine, *theirs})]
        elif name != "candidate_seeds" or first.settings.get("candidates"):
            facts.append((name, mine, theirs))
    if first.counts is not None and other.counts is not None:
        facts += [(f"the number of {name}", first.counts[name], other.counts[name]) for name in _COUNTS]
    return facts


def _value(settings: dict[str, Any], name: str) -> Any:
    value = settings.get(name)
    if name == "eval_args":
        mode = (value or {}).get("mode")
        # one word for both parts, or one word each
        return {**(value or {}), "mode": mode if isinstance(mode, dict) else {"valid": mode, "test": mode}}
    if name.endswith("_inter_num_interval"):
        return str(value or _NO_FILTER).replace(" ", "")
    return value


def _shown(value: Any) -> str:
    if isinstance(value, dict) and len(set(map(str, value.values()))) == 1 and "test" in value:
        value = value["test"]
    return "not set" if value is None else str(value)


def _require_same_targets(first: Measured, other: Measured) -> None:
    if first.ranks is None or other.ranks is None:
        return
    if _together(first) != _together(other):
        raise SettingError(
            f"{first.name} and {other.name} cannot stand in one table: with this split users have several targets, "
            f"which RecBole ranks in one list for a general model and one after another for a sequential one"
        )
    mine, theirs = (set(zip(ranks["user"], ranks["item"], strict=True)) for ranks in (first.ranks, other.ranks))
    if mine != theirs:
        user, item = min(mine ^ theirs)
        raise SettingError(
            f"{first.name} and {other.name} cannot stand in one table: only one of them was tested on item '{item}' of "
            f"user '{user}'; the data were not the same"
        )


def _together(run: Measured) -> bool:
    return run.ranks is not None and ranked_together(is_general(run.model), run.ranks)


def is_general(model: str) -> bool:
    """Tell whether `model` knows users by id alone; False for a name that is not known here."""
    try:
        return getattr(registry.model_class(model), "type", None) == ModelType.GENERAL
    except RecBoleLLMError:
        return False
