"""The protocol of a run: the settings that decide who is tested, on which target and among which items."""

from collections.abc import Mapping
from typing import Any

PROTOCOL_SETTINGS = (
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
_NO_FILTER = "[0,inf)"  # RecBole's default of the intervals, which some files of datasets leave out


def protocol_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the protocol by name, equal for settings that say the same in different words.

    The parts of `eval_args` have names of their own, such as ``split of eval_args``.

    Args:
        settings: all settings of a run.
    """
    protocol: dict[str, Any] = {}
    for name in PROTOCOL_SETTINGS:
        value = settings.get(name)
        if name == "eval_args":
            protocol |= {f"{part} of eval_args": one for part, one in sorted(_eval_args(value).items())}
        elif name.endswith("_inter_num_interval"):
            protocol[name] = str(value or _NO_FILTER).replace(" ", "")
        elif name != "candidate_seeds" or settings.get("candidates"):
            protocol[name] = value
    return protocol


def _eval_args(value: Mapping[str, Any] | None) -> dict[str, Any]:
    given = dict(value or {})
    mode = given.get("mode")
    # one word for both parts, or one word for each
    return {**given, "mode": mode if isinstance(mode, dict) else {"valid": mode, "test": mode}}
