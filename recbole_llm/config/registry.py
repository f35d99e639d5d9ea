"""From a name to the class of a model: this package first, then RecBole."""

import functools
import importlib
import inspect
from importlib.util import find_spec
from pathlib import Path

import recbole.model as recbole_models
from recbole.utils import get_model as recbole_model

from recbole_llm.compat import repairs as compat
from recbole_llm.config.declared import reads_text
from recbole_llm.errors import SettingError, nearest
from recbole_llm.utils.paths import shipped

__all__ = ["known_models", "model_class", "reads_text"]

_OUR_MODELS = "recbole_llm.model.sequential_recommender"


@functools.cache
def known_models() -> tuple[str, ...]:
    """Return the names of all models, ours first."""
    ours = [path.stem for path in sorted((shipped("properties") / "model").glob("*.yaml")) if _is_ours(path.stem)]
    folder = Path(inspect.getfile(recbole_models)).parents[1] / "properties" / "model"
    # Random has no settings, and so no file among them.
    return (*ours, *sorted({"Random", *(path.stem for path in folder.glob("*.yaml"))} - set(ours)))


def _is_ours(name: str) -> bool:
    return find_spec(f"{_OUR_MODELS}.{name.lower()}") is not None


def model_class(model: str | type) -> type:
    """Return the class of a model name; a class object as it is.

    Raises:
        SettingError: for an unknown name (the nearest is named) and for a model whose own package is not installed.
    """
    if isinstance(model, type):
        return model
    if not isinstance(model, str) or model not in known_models():
        raise SettingError(f"there is no model '{model}'{nearest(str(model), known_models())}")
    if _is_ours(model):
        return getattr(importlib.import_module(f"{_OUR_MODELS}.{model.lower()}"), model)
    try:
        with compat.unchanged_anomaly_detection():
            return compat.repair(recbole_model(model))
    except ModuleNotFoundError as error:
        raise compat.missing_package(model, str(error.name)) from error
