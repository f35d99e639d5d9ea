"""What RecBole 1.2.1 needs on today's numpy, scipy and torch. Each repair names the line of RecBole that it repairs.

What a module of RecBole reads from numpy, scipy or torch is replaced in that module alone; numpy, scipy and torch
themselves stay as they are. The modules that every run reads are repaired when this one is imported (see
`numpy_names`), that of a model when its class is looked up.
"""

import contextlib
import contextvars
import dataclasses
import functools
import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from recbole.utils import InputType

from recbole_llm.compat import (
    attribute_columns,
    knowledge_links,  # noqa: F401 (repair)
    masked_items,
    number_columns,  # noqa: F401 (repair)
    numpy_names,
)
from recbole_llm.compat.overlay import Overlay as _Overlay
from recbole_llm.errors import CheckpointError, DataError, SettingError
from recbole_llm.runs import checkpoint

# Models that build their graph with a method which scipy no longer has, see `_DokMatrix`.
_ADJACENCY_MODELS = ("GCMC", "LightGCN", "NCL", "NGCF", "SpectralCF", "KGIN", "MCCLK")
# Models that start from the weights of an earlier run, see `_read_run`.
_STAGED_MODELS = ("ConvNCF", "NAIS", "NeuMF", "RaCT", "S3Rec")
# Packages that RecBole imports in the middle of a run, without which a model never works.
_NEEDED = {"NCL": "faiss"}  # recbole/model/general_recommender/ncl.py:87
# Where the name to install is not the name to import.
_DISTRIBUTIONS = {"faiss": "faiss-cpu", "community": "python-louvain", "kmeans_pytorch": "kmeans-pytorch"}


@dataclasses.dataclass
class _Start:
    """What the model under construction starts from: its catalogue, and the files it has read."""

    catalogue: str
    files: list[Path] = dataclasses.field(default_factory=list)


_start: contextvars.ContextVar[_Start] = contextvars.ContextVar("start")


def missing_package(model: str, package: str) -> SettingError:
    """Return the error for a model of RecBole whose own optional package is not installed."""
    return SettingError(
        f"the model {model} needs the package '{package}', which is not installed: "
        f"pip install {_DISTRIBUTIONS.get(package, package)}"
    )


def hyper_tuning() -> Any:
    """Return RecBole's module `recbole/trainer/hyper_tuning.py`, whose exhaustive search works with today's hyperopt.

    Repairs `recbole/trainer/hyper_tuning.py:117` (`exhaustive_search`): hyperopt draws with ``integers``, which numpy's
    old ``RandomState`` does not have.
    """
    from recbole.trainer import hyper_tuning as module

    if not isinstance(module.np, _Overlay):
        generator = _Overlay(np.random, RandomState=np.random.default_rng)
        module.np = _Overlay(np, **numpy_names.ALIASES, random=generator)
    return module


@contextlib.contextmanager
def unchanged_anomaly_detection() -> Iterator[None]:
    """Keep autograd's anomaly detection as it is while a model of RecBole is imported.

    Repairs `recbole/model/sequential_recommender/sine.py:25`, which switches it on for the whole process as soon as any
    sequential model is imported: every operation then records where it was called, and every gradient is searched for
    NaN.
    """
    enabled, checks_nan = torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()
    try:
        yield
    finally:
        torch.autograd.set_detect_anomaly(enabled, checks_nan)


def repair(model_class: type) -> type:
    """Repair a model class of RecBole, and what its module reads from scipy and torch; return the class.

    Raises:
        SettingError: if the model can never work because a package is not installed.
    """
    name = model_class.__name__
    if name in _NEEDED and find_spec(_NEEDED[name]) is None:
        raise missing_package(name, _NEEDED[name])
    return _repair_once(model_class)


@functools.cache
def _repair_once(model_class: type) -> type:
    name = model_class.__name__
    module: Any = sys.modules[model_class.__module__]
    numpy_names.repair(module)
    if name in _ADJACENCY_MODELS:
        module.sp = _Overlay(sp, dok_matrix=_DokMatrix)
    if name in _STAGED_MODELS:
        module.torch = _Overlay(torch, load=_read_run)
    if name == "RaCT":
        model_class.logger = property(lambda self: _JoiningLogger(logging.getLogger()), _ignore)  # type: ignore[attr-defined]
    if name == "Pop":
        model_class.__init__ = _with_label_field(model_class.__init__)  # type: ignore[misc]
        model_class.calculate_loss = _count_items  # type: ignore[attr-defined]
    if name == "BERT4Rec":
        masked_items.repair(model_class)
    if name == "KSR":
        model_class.__init__ = _single_precision(model_class.__init__)  # type: ignore[misc]
    model_class.__init__ = _checked(model_class.__init__)  # type: ignore[misc]
    return model_class


class _DokMatrix(sp.dok_matrix):
    """scipy's dictionary of keys with the method `_update`, which scipy 1.13 no longer has.

    Repairs `recbole/model/general_recommender/lightgcn.py:111`, `gcmc.py:174`, `ncl.py:131`, `ngcf.py:110` and
    `spectralcf.py:123`, `recbole/model/knowledge_aware_recommender/kgin.py:356` and `mcclk.py:425`.
    """

    def _update(self, values: dict[tuple[int, int], float]) -> None:
        for key, value in values.items():  # `update` refuses; the matrix is empty, so this sets every value
            self.setdefault(key, value)


def _read_run(path: str | Path, map_location: Any = None) -> dict[str, Any]:
    """Return the weights of an earlier run in the form of RecBole's checkpoints; stands in for ``torch.load``.

    Repairs `recbole/model/sequential_recommender/s3rec.py:120`, `recbole/model/general_recommender/convncf.py:82`,
    `nais.py:127`, `neumf.py:84`, `ract.py:75` and `ract.py:84`: ``torch.load`` of a checkpoint that pickles the Config,
    which torch 2.6 refuses.

    Args:
        path: the folder of a run of this package, or a file in it.
        map_location: not used; the weights are copied to where the model is.

    Raises:
        CheckpointError: if there are no weights, or they belong to another catalogue.
    """
    if not path or not Path(path).exists():
        raise CheckpointError(
            f"there is no run '{path}' to start from: set pre_model_path (of NAIS pretrain_path, of NeuMF "
            f"mf_pretrain_path and mlp_pretrain_path) to the folder of a run, such as saved/<run>"
        )
    file = Path(path)
    if file.is_dir() or file.suffix == ".json":
        file = (file if file.is_dir() else file.parent) / checkpoint.WEIGHTS
    if file.suffix != ".safetensors":
        raise CheckpointError(
            f"{path} is no run of this package, and RecBole's own checkpoints are pickles, which are not safe to load: "
            f"train that model again here and name the folder of its run"
        )
    header, tensors = checkpoint.read_weights(file)
    start = _start.get()
    start.files.append(file)
    if header.get("catalogue") != start.catalogue:
        raise CheckpointError(
            f"the weights {file} belong to the item catalogue of {header.get('dataset', '?')}, not to that of this run"
        )
    return {"state_dict": checkpoint.parameters_only(tensors)}


class _JoiningLogger(logging.LoggerAdapter):
    """Logs its arguments as `print` shows them.

    Repairs `recbole/model/general_recommender/ract.py:76` and `:85`, which hand the logger an argument without a place
    for it in the message, so that a traceback is printed instead.
    """

    def info(self, msg: object, *args: object, **kwargs: Any) -> None:
        self.logger.info(" ".join(str(part) for part in (msg, *args)), **kwargs)


def _ignore(model: Any, value: Any) -> None:
    """Set nothing: RecBole's base class assigns the logger (`recbole/model/abstract_recommender.py:29`)."""


def _with_label_field(build: Callable[..., None]) -> Callable[..., None]:
    """Return an ``__init__`` after which `_count_items` knows where labels are."""

    @functools.wraps(build)
    def built(self: Any, config: Any, dataset: Any) -> None:
        build(self, config, dataset)
        self.label_field = config["LABEL_FIELD"]

    return built


def _count_items(self: Any, interaction: Any) -> torch.Tensor:
    """Count the items of a batch as Pop's ``calculate_loss``, which learns nothing.

    Repairs `recbole/model/general_recommender/pop.py:47`, which counts an item once a batch, however many of its rows
    hold it, and counts the negative samples (label 0) that RecBole's default draws for it, too.
    """
    items = interaction[self.ITEM_ID]
    if self.label_field in interaction:
        items = items[interaction[self.label_field] > 0]
    self.item_cnt.index_add_(0, items, self.item_cnt.new_ones(len(items), 1))
    self.max_cnt = torch.max(self.item_cnt, dim=0)[0]
    return torch.nn.Parameter(torch.zeros(1)).to(self.device)


def _single_precision(build: Callable[..., None]) -> Callable[..., None]:
    """Return KSR's ``__init__`` with relation vectors in the precision of all others.

    Repairs `recbole/model/sequential_recommender/ksr.py:92`, whose double precision meets single at `ksr.py:153`.
    """

    @functools.wraps(build)
    def built(self: Any, config: Any, dataset: Any) -> None:
        build(self, config, dataset)
        self.relation_Matrix = self.relation_Matrix.float()

    return built


def _checked(build: Callable[..., None]) -> Callable[..., None]:
    """Return a model's ``__init__`` that says in one sentence what RecBole fails on later, or in no clear words.

    Repairs bare assertions and late imports of constructors (`recbole/model/general_recommender/convncf.py:81`,
    `ract.py:68`, `nncf.py:221`, `ldiffrec.py:70`, `ldiffrec.py:232`), and
    what `_check_item_columns` and `_check_sizes` name.
    """

    @functools.wraps(build)
    def checked(self: Any, config: Any, dataset: Any) -> None:
        name = config["model"]
        _check_item_columns(config, dataset)
        _check_sizes(config, dataset)
        start = _Start(checkpoint.catalogue_hash(dataset))
        token = _start.set(start)
        try:
            build(self, config, dataset)
            _check_labels(self, config, dataset)
        except ModuleNotFoundError as error:
            raise missing_package(name, str(error.name)) from error
        except (KeyError, RuntimeError) as error:
            if not start.files or isinstance(error, NotImplementedError):
                raise
            reason = " ".join(str(error).split("\n")[:2])  # one line a weight follows
            raise CheckpointError(f"{name} cannot start from the weights {start.files[-1]}: {reason}") from error
        except AssertionError as error:
            broken = traceback.extract_tb(error.__traceback__)[-1].line
            raise SettingError(f"RecBole's {name} refuses its settings: '{broken}' fails") from error
        except FileNotFoundError as error:
            raise DataError(f"{name} reads {error.filename}, which does not exist") from error
        except ValueError as error:
            raise SettingError(f"RecBole's {name} refuses its settings: {error}") from error
        finally:
            _start.reset(token)

    return checked


def _check_item_columns(config: Any, dataset: Any) -> None:
    """Refuse item columns that are not loaded, on which `recbole/model/layers.py:905` and `s3rec.py:71` fail.

    Raises:
        SettingError: if a column is not loaded.
    """
    setting = attribute_columns.SETTINGS.get(config["model"])
    if setting is None:
        return
    loaded = (
        [] if dataset.item_feat is None else [name for name in dataset.item_feat.columns if name != dataset.iid_field]
    )
    for column in attribute_columns.columns_of(config):
        if column not in loaded:
            raise SettingError(
                f"{config['model']} reads the item column '{column}' ({setting}), but the item columns that are loaded "
                f"are: {', '.join(loaded) or 'none'}; name another, or add it to the item columns of load_col"
            )


def _check_labels(model: Any, config: Any, dataset: Any) -> None:
    """Refuse to train on labels that neither the data nor negative samples have.

    Repairs a KeyError in the first step of models that read labels, such as
    `recbole/model/general_recommender/neumf.py:141` and all context-aware ones.

    Raises:
        SettingError: if there are none.
    """
    label = getattr(model, "LABEL", getattr(model, "LABEL_FIELD", None))
    if label is not None and config["MODEL_INPUT_TYPE"] == InputType.POINTWISE and label not in dataset.field2type:
        raise SettingError(
            f"{config['model']} learns from labels, and there is no column '{label}': make one of another column with "
            f"threshold={{'rating': 3}}, or draw items with label 0 with "
            f"train_neg_sample_args={{'distribution': 'uniform', 'sample_num': 1}}"
        )


def _check_sizes(config: Any, dataset: Any) -> None:
    """Refuse sizes beyond those of the data, on which RecBole's models have index errors in the middle of a run.

    Repairs `recbole/model/sequential_recommender/gru4reccpr.py:310` and `sasreccpr.py:329`,
    `recbole/model/general_recommender/ncl.py:90` and `ract.py:183`.

    Raises:
        SettingError: if the dataset is too small for the model's candidates or clusters.
    """
    items, users = dataset.item_num, dataset.user_num
    limits = {
        "GRU4RecCPR": ("reranker_CAN_NUM", items),
        "SASRecCPR": ("reranker_CAN_NUM", items),
        "NCL": ("num_clusters", min(users, items)),
        "RaCT": ("metrics_k", items),
    }
    if config["model"] not in limits:
        return
    setting, limit = limits[config["model"]]
    most = max(int(number) for number in str(config[setting]).split(","))
    if most > limit:
        raise SettingError(
            f"{setting}={most} of {config['model']} is too large for {config['dataset']}: {limit} is the most it can be"
        )
