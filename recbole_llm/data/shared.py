"""The files of a run are read once, however many runs are nested in it."""

import copy
import json
from typing import Any

from recbole.data.dataset import Dataset, SequentialDataset
from recbole.utils.argument_list import dataset_arguments

from recbole_llm.config import attributes
from recbole_llm.data.build import create_dataset
from recbole_llm.data.choose import dataset_class
from recbole_llm.data.dataset import HistoryDataset, PrefixDataset, with_protocol
from recbole_llm.data.folder import ensure_files

# Classes that load the same: they differ in what `build` makes of it.
_LOADING_ALIKE = (Dataset, SequentialDataset, HistoryDataset, PrefixDataset)
# What loading depends on. The length of histories is not among it: they are cut when a dataset is built.
_LOADING = (
    *(name for name in dataset_arguments if name not in ("MAX_ITEM_LIST_LENGTH", "ITEM_LIST_LENGTH_FIELD")),
    *("dataset", "data_path", "encoding", "item_text_fields", "items_without_text", "numerical_features"),
    *("discretization",),
)
_SPLITTING = ("MAX_ITEM_LIST_LENGTH", "ITEM_LIST_LENGTH_FIELD", "eval_args", "seed")


class SharedData:
    """Datasets of a run and of the runs nested in it.

    A nested run that loads the same columns of the same files with the same filters is given a copy of what is loaded;
    one that also splits it and cuts its histories in the same way is given the same parts. Files are read again for a
    model with a dataset class of its own (a knowledge graph, DIEN), for files that give the split
    (`benchmark_filename`: their histories are loaded at one width), and where the nested run loads other columns, such
    as the attributes of FDSA.

    Args:
        keeps: False for a run in which none is nested: nothing is kept beside what it is given.
    """

    def __init__(self, keeps: bool = True) -> None:
        self._keeps = keeps
        self._loaded: dict[str, Any] = {}
        self._built: dict[str, tuple[Any, list[Any]]] = {}

    def dataset(self, config: Any) -> Any:
        """Return the dataset of a run, see `create_dataset`; it may be built already, which `build` knows."""
        ensure_files(config)
        attributes.check_file(config)
        key = _loading_key(config)
        if key is None or not self._keeps:
            return create_dataset(config)
        if (built := self._built.get(_building_key(config, key))) is not None:
            return _copy(built[0], config)
        if key not in self._loaded:
            self._loaded[key] = create_dataset(config)
        return _copy(self._loaded[key], config)

    def build(self, config: Any, dataset: Any, test: bool = True) -> list[Any]:
        """Return the parts of a dataset that `dataset` gave: training, validation and, if `test`, test."""
        loading = _loading_key(config)
        if loading is None or not self._keeps:
            return dataset.build()
        key = _building_key(config, loading)
        if key not in self._built:
            self._built[key] = (dataset, dataset.build())
            return list(self._built[key][1])
        parts = self._built[key][1]
        return [_copy(part, config) for part in (parts if test else parts[:2])]


def _loading_key(config: Any) -> str | None:
    if dataset_class(config) not in _LOADING_ALIKE or config["benchmark_filename"] is not None:
        return None
    return json.dumps({name: config[name] for name in _LOADING}, sort_keys=True, default=str)


def _building_key(config: Any, loading: str) -> str:
    settings = {name: config[name] for name in _SPLITTING}
    return json.dumps([loading, dataset_class(config).__name__, settings], sort_keys=True, default=str)


def _copy(dataset: Any, config: Any) -> Any:
    """Return a dataset of the class that `config` asks for, which can be built and used without changing `dataset`."""
    found = copy.copy(dataset)
    for name, value in vars(dataset).items():
        if isinstance(value, dict | list):  # fields are added to these when a dataset is built and loaded from
            setattr(found, name, copy.copy(value))
    found.__class__ = with_protocol(dataset_class(config))
    found.config = config
    if isinstance(found, SequentialDataset):
        found.max_item_list_len = config["MAX_ITEM_LIST_LENGTH"]
        found.item_list_length_field = config["ITEM_LIST_LENGTH_FIELD"]
    return found
