"""Which dataset class a run has."""

from typing import Any

import recbole.data.dataset as recbole_datasets
from recbole.utils import ModelType

from recbole_llm.config import registry
from recbole_llm.config.hooks import hooks_of_class
from recbole_llm.data.dataset import PrefixDataset

_DATASETS = {
    ModelType.SEQUENTIAL: "SequentialDataset",
    ModelType.KNOWLEDGE: "KnowledgeBasedDataset",
}
# Models that look into the padded histories of the whole training part (recbole/model/sequential_recommender/
# fearec.py:218).
_WHOLE_LISTS = ("FEARec",)


def dataset_class(config: Any) -> type:
    """Return the dataset class of a run: the model's `dataset_class`, else the one that RecBole would take.

    Where RecBole would take its `SequentialDataset` and `device_table` is on, it is `PrefixDataset`, whose batches are
    the same; so it is with `train_positions` other than last, whose windows are cut from its flat histories.
    """
    own = hooks_of_class(config.model_class).dataset_class
    if own is not None:
        return own
    name = config["model"] + "Dataset"
    if not hasattr(recbole_datasets, name):
        name = _DATASETS.get(config["MODEL_TYPE"], "Dataset")
    if name == "SequentialDataset" and (_cuts_histories(config) or config["train_positions"] != "last"):
        return PrefixDataset
    return getattr(recbole_datasets, name)


def _cuts_histories(config: Any) -> bool:
    """Tell whether nothing reads the padded histories of all rows at once, which `PrefixDataset` does not have.

    Somebody's own model class may; and files that give histories (`benchmark_filename`) need no copies.
    """
    known = config["model"] in registry.known_models() and config["model"] not in _WHOLE_LISTS
    return bool(config["device_table"]) and known and config["benchmark_filename"] is None
