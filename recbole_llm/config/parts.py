"""Settings with parts: what names some parts of one leaves the others as they are.

RecBole replaces such a setting as a whole and fills in what is missing from defaults of its own: with
``eval_args={'mode': 'uni100'}`` alone a run would also be split at random.
"""

from collections.abc import Mapping
from typing import Any

_WITH_PARTS = ("eval_args", "train_neg_sample_args")


def merged(*sources: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of all sources, of which a later one overrides an earlier one: a setting with parts by part.

    Args:
        sources: settings by name; none is changed.
    """
    found: dict[str, Any] = {}
    for source in sources:
        for name, value in source.items():
            found[name] = _of_both(found.get(name), value) if name in _WITH_PARTS else value
    return found


def _of_both(below: Any, above: Any) -> Any:
    if not isinstance(below, Mapping) or not isinstance(above, Mapping):
        return above
    both = {**below, **above}
    if isinstance(above.get("mode"), Mapping) and "mode" in below:
        mode = below["mode"]
        both["mode"] = {**(mode if isinstance(mode, Mapping) else {"valid": mode, "test": mode}), **above["mode"]}
    return both
