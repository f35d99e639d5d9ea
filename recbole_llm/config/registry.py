"""From a name to the class of a model: this package first, then RecBole."""

import importlib

from recbole.utils import get_model as recbole_model

from recbole_llm.compat import repairs as compat
from recbole_llm.config.names import is_ours, known_models, reads_text, require_model
from recbole_llm.errors import SettingError

__all__ = ["authors_class", "known_models", "model_class", "one_pass_class", "reads_text"]

_AUTHORS_SASREC = "recbole_llm.model.authors_sasrec"
_CAUSAL_MODELS = "recbole_llm.model.one_pass"
_OUR_MODELS = "recbole_llm.model.sequential_recommender"


def model_class(model: str | type) -> type:
    """Return the class of a model name; a class object as it is.

    Raises:
        SettingError: for an unknown name (the nearest is named) and for a model whose own package is not installed.
    """
    if isinstance(model, type):
        return model
    require_model(model)
    if is_ours(model):
        return getattr(importlib.import_module(f"{_OUR_MODELS}.{model.lower()}"), model)
    try:
        with compat.unchanged_anomaly_detection():
            return compat.repair(recbole_model(model))
    except ModuleNotFoundError as error:
        raise compat.missing_package(model, str(error.name)) from error


def one_pass_class(model: type, loss_type: str | None = None) -> type:
    """Return the class that a model has where it is trained at all positions of one pass, see `model.one_pass`.

    Raises:
        SettingError: if its user vectors do not come from one pass, or do not go with the loss.
    """
    found: type = importlib.import_module(_CAUSAL_MODELS).one_pass_class(model, loss_type)
    return found


def authors_class(model: type) -> type:
    """Return the class that RecBole's SASRec has with `sasrec_layers: authors`, see `model.authors_sasrec`.

    Raises:
        SettingError: for another model.
    """
    if model.__name__ != "SASRec" or not model.__module__.startswith("recbole.model."):
        raise SettingError(f"sasrec_layers=authors is for RecBole's SASRec, not for {model.__name__}: leave it out")
    found: type = importlib.import_module(_AUTHORS_SASREC).AuthorsSASRec
    return found
