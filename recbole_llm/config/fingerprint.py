"""Hashes of settings, by which a stored ID model or pre-training is found again.

Only what differs from the declared default is hashed. So a new setting with a default changes no hash: nothing that is
stored has to be trained again. A setting whose default changes keeps the old one as `original` (see `schema.Setting`).
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from recbole_llm.config.declared import reads_text, settings_of
from recbole_llm.config.kinds import INTERVAL, Items, Kind, Maybe
from recbole_llm.config.renamed import OLD
from recbole_llm.config.schema import Role
from recbole_llm.runs.folder import plain

_NO_TRACE = (Role.PLACE, Role.MACHINE)
_EVERYTHING = "[0,inf)"  # an interval that leaves all
# What version 0.1.0 left out of the hash of an ID model, and what more if it read no text.
_FIRST_LEFT_OUT = frozenset(
    ("device_table", "use_gpu", "gpu_id", "show_progress", "state", "checkpoint_dir", "resume_seconds", "data_path")
)
_FIRST_UNREAD = frozenset(("prompt", "prompt_item", "prompt_noun", "precision", "candidates", "candidate_seeds"))


def traces(settings: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Return the settings that shape what `model` learns and differ from their defaults, as plain values.

    Args:
        settings: any of a run's settings; what is missing has its default.
        model: the name of the model.
    """
    declared, text = settings_of(model), reads_text(model)
    found = {}
    for name, value in settings.items():
        setting = declared.get(name)
        if setting is None:
            found[name] = plain(value)
        elif setting.role not in _NO_TRACE and (text or not setting.text):
            value, default = (_form(setting.kind, one) for one in (value, setting.hashed_default))
            if value != default:
                found[name] = value
    nested = found.get("id_model_settings")
    if isinstance(nested, dict):
        found["id_model_settings"] = traces(nested, str(settings.get("id_model")))
        if not found["id_model_settings"]:
            del found["id_model_settings"]
    return found


def digest(settings: Mapping[str, Any], model: str, files: Mapping[str, str] | None = None) -> str:
    """Return the hash that ends the name of a folder, 10 hexadecimal digits.

    Args:
        settings: of the run in the folder.
        model: its model.
        files: the content hash of each file of its data, by name.
    """
    return _hash({"model": model, "settings": traces(settings, model), "files": files or {}})


def first_digest(settings: Mapping[str, Any], model: str, files: Mapping[str, str]) -> str:
    """Return the hash that version 0.1.0 gave to an ID model with these settings, so that a stored one is still found.

    It was that of all settings, defaults included.

    Args:
        settings: all settings of the ID model's run, `Config.merged`.
        model: its model.
        files: the content hash of each file of its data, by name.
    """
    declared = settings_of(model)
    left_out = _FIRST_LEFT_OUT if reads_text(model) else _FIRST_LEFT_OUT | _FIRST_UNREAD
    known = {n: v for n, v in settings.items() if n not in declared or declared[n].since == "0.1.0"}
    for name, old in OLD.items():
        if model in old.models:
            known[name] = known.pop(old.new, None) if old.new is not None else old.without_effect
    return _hash({"settings": {n: v for n, v in known.items() if n not in left_out}, "files": files})


def _hash(shape: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain(shape), sort_keys=True).encode()).hexdigest()[:10]


def _form(kind: Kind, value: Any) -> Any:
    """Return the one form of values that mean the same."""
    inner = kind.kind if isinstance(kind, Maybe) else kind
    if inner is INTERVAL:
        return str(_EVERYTHING if value is None else value).replace(" ", "")
    if isinstance(inner, Items) and inner.single and inner.kind.accepts(value):
        return [plain(value)]
    return plain(value)
