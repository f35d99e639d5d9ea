"""The settings that are hashed, so that a stored ID model or pre-training is found again by whoever asks for the same.

A setting that version 0.1.0 had is hashed with its value, as then: what that version stored is still found, and a
default that changes leads to other weights. A newer one is hashed only where its value differs from its default: a new
setting changes no hash, and nothing that is stored is trained again. Place and machine leave no trace.
"""

from collections.abc import Mapping
from typing import Any

from recbole.utils.argument_list import dataset_arguments

from recbole_llm.config.declared import general, reads_text, settings_of
from recbole_llm.config.renamed import OLD
from recbole_llm.config.schema import FIRST_VERSION, Role
from recbole_llm.runs.result import is_sequential

# What version 0.1.0 left out of the hash of an ID model, and what more if it read no text. Other settings of place and
# machine are hashed with their default, as they were for almost everybody.
_LEFT_OUT = frozenset(
    ("device_table", "use_gpu", "gpu_id", "show_progress", "state", "checkpoint_dir", "resume_seconds", "data_path")
)
_UNREAD = frozenset(("prompt", "prompt_item", "prompt_noun", "precision", "candidates", "candidate_seeds"))


def hashed(settings: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Return what is hashed of settings of `model`, by name.

    Args:
        settings: those that can have an influence.
        model: the name of the model.
    """
    declared, found = settings_of(model), {}
    for name, value in settings.items():
        setting = declared.get(name)
        if setting is None:
            found[name] = value
        elif setting.since == FIRST_VERSION:
            found[name] = setting.default if setting.role in (Role.PLACE, Role.MACHINE) else value
        elif setting.role not in (Role.PLACE, Role.MACHINE) and value != setting.default:
            found[name] = value
    return found


def of_id_model(merged: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Return what is hashed of all settings of an ID model's run, under the names of version 0.1.0.

    Args:
        merged: `Config.merged` of its run.
        model: its model.
    """
    left_out = _LEFT_OUT if reads_text(model) else _LEFT_OUT | _UNREAD
    found = {name: value for name, value in hashed(merged, model).items() if name not in left_out}
    if found.get("repeatable") is True:  # as every run was measured then, whatever RecBole's own setting said
        found |= {"mask_history": False, "repeatable": is_sequential(model)}
    for name, old in OLD.items():
        if model in old.models:
            found[name] = old.without_effect if old.new is None else found.pop(old.new, old.without_effect)
    return found


def data_settings() -> tuple[str, ...]:
    """Return the names of the settings that decide which interactions, items and texts a pre-training reads."""
    newer = (s.name for s in general().values() if s.since != FIRST_VERSION and s.role in (Role.FORMAT, Role.DATA))
    return (*dataset_arguments, "item_text_fields", "items_without_text", "encoding", *newer)
