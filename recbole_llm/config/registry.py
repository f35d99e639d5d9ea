"""From a name to the class of a model, a data set or a trainer: this package first, then RecBole."""

import functools
import importlib
import inspect
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import recbole.data.dataset as recbole_datasets
import recbole.model as recbole_models
from recbole.utils import ModelType
from recbole.utils import get_model as recbole_model
from recbole.utils import get_trainer as recbole_trainer

from recbole_llm.compat import repairs as compat
from recbole_llm.data.dataset import PrefixDataset
from recbole_llm.errors import SettingError, nearest
from recbole_llm.utils.files import read_yaml
from recbole_llm.utils.paths import shipped

_OUR_MODELS = "recbole_llm.model.sequential_recommender"
_DATASETS = {
    ModelType.SEQUENTIAL: "SequentialDataset",
    ModelType.KNOWLEDGE: "KnowledgeBasedDataset",
}
# Models that look into the padded histories of the whole training part (recbole/model/sequential_recommender/
# fearec.py:218).
_WHOLE_LISTS = ("FEARec",)


@functools.cache
def known_models() -> tuple[str, ...]:
    """Return the names of all models, ours first."""
    ours = [path.stem for path in sorted((shipped("properties") / "model").glob("*.yaml")) if _is_ours(path.stem)]
    folder = Path(inspect.getfile(recbole_models)).parents[1] / "properties" / "model"
    # Random has no settings, and so no file among them.
    return (*ours, *sorted({"Random", *(path.stem for path in folder.glob("*.yaml"))}))


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


def reads_text(model: str) -> bool:
    """Tell whether a model of this package reads item text with a language model: its settings then have `backbone`."""
    path = shipped("properties") / "model" / f"{model}.yaml"
    return path.is_file() and "backbone" in read_yaml(path)


def dataset_class(config: Any) -> type:
    """Return the data set class of a run: the model's `dataset_class`, else the one RecBole would take.

    Where RecBole would take its `SequentialDataset` and `device_table` is on, it is `PrefixDataset`, whose batches are
    the same.
    """
    own = getattr(config.model_class, "dataset_class", None)
    if own is not None:
        return own
    name = config["model"] + "Dataset"
    if not hasattr(recbole_datasets, name):
        name = _DATASETS.get(config["MODEL_TYPE"], "Dataset")
    if name == "SequentialDataset" and _cuts_histories(config):
        return PrefixDataset
    return getattr(recbole_datasets, name)


def _cuts_histories(config: Any) -> bool:
    """Tell whether nothing reads the padded histories of all rows at once, which `PrefixDataset` does not have.

    Somebody's own model class may; and files that give histories (`benchmark_filename`) need no copies.
    """
    known = config["model"] in known_models() and config["model"] not in _WHOLE_LISTS
    return bool(config["device_table"]) and known and config["benchmark_filename"] is None


def trainer_class(config: Any) -> type:
    """Return the trainer class of a run: the model's `trainer_class`, else RecBole's with our checkpoints in front."""
    from recbole_llm.trainer.run_folder_trainer import with_run_folder

    own = getattr(config.model_class, "trainer_class", None)
    base = own if own is not None else recbole_trainer(config["MODEL_TYPE"], config["model"])
    return with_run_folder(base)
