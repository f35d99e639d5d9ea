"""From a Config to a dataset and its loaders, with RecBole's own samplers and loaders.

RecBole's `create_dataset` and `data_preparation` unpickle whatever lies under a fixed name in `checkpoint_dir`; these
two do the same work without that.
"""

import warnings
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
from recbole.data import create_samplers
from recbole.data.dataset import KnowledgeBasedDataset
from recbole.data.utils import get_dataloader
from recbole.sampler import KGSampler
from recbole.utils import ModelType

from recbole_llm.config import attributes
from recbole_llm.data import choose
from recbole_llm.data.dataset import with_protocol
from recbole_llm.data.device_table import give_tables, loader_class
from recbole_llm.data.folder import ensure_files
from recbole_llm.data.known_histories import choose_protocol
from recbole_llm.errors import DataError, SettingError
from recbole_llm.utils.hashing import content_hash


def file_hashes(config: Any) -> dict[str, str]:
    """Return the content hash of each atomic file of a dataset by its name, those of `benchmark_filename` included."""
    files = sorted(ensure_files(config).glob(f"{config['dataset']}.*"))
    return {file.name: content_hash(file) for file in files if file.is_file()}


def create_dataset(config: Any, dataset_class: type | None = None) -> Any:
    """Return the dataset of a run: RecBole's class for the model, or the model's own `dataset_class`.

    Args:
        config: the settings.
        dataset_class: takes the place of that class.

    Raises:
        DataError: if the files cannot be made, one is missing, empty or lacks a column, or nothing is left after
            filtering.
    """
    ensure_files(config)
    _check_side_files(config)
    attributes.check_file(config)
    dataset_class = with_protocol(dataset_class or choose.dataset_class(config))
    try:
        with warnings.catch_warnings():
            # `recbole/data/dataset/dataset.py:648` fills chained columns in place: right on pandas 2, with a page of
            # warnings.
            warnings.simplefilter("ignore", FutureWarning)
            dataset = dataset_class(config)
    except ValueError as error:
        raise DataError(f"the dataset {config['dataset']} cannot be read: {error}") from error
    return dataset


def _check_side_files(config: Any) -> None:
    """Refuse a knowledge graph or vectors that a model (KSR, GRU4RecKG) reads and that are missing or not loaded.

    RecBole has a TypeError for it (`recbole/data/dataset/kg_dataset.py:249`).
    """
    suffixes = list(config["additional_feat_suffix"] or ())
    if issubclass(choose.dataset_class(config), KnowledgeBasedDataset):
        suffixes = ["kg", "link", *suffixes]
    for suffix in suffixes:
        path = Path(config["data_path"]) / f"{config['dataset']}.{suffix}"
        if not path.is_file():
            raise DataError(
                f"{config['model']} reads {path}, which does not exist: it needs a knowledge graph and vectors"
            )
        if config["load_col"] is not None and suffix not in config["load_col"]:
            raise SettingError(f"{config['model']} reads {path}: name the columns to load in load_col['{suffix}']")


def _share(config: Any, part: Any) -> Any:
    """Return the training part with `train_share` of its rows, drawn once by the run's seed."""
    share = config["train_share"]
    size = max(round(share * len(part)), 1)
    rows = np.random.default_rng(config["seed"]).permutation(len(part))[:size]
    return part.copy(part.inter_feat[np.sort(rows)])


def _of_some_users(config: Any, part: Any) -> Any:
    """Return the validation part with the rows of `valid_users` users, drawn once by the run's seed."""
    users = np.unique(part.inter_feat[part.uid_field].numpy())
    count = config["valid_users"]
    if count >= len(users):
        return part
    # A generator of its own: what else is drawn by the seed does not depend on it.
    drawn = np.random.default_rng([config["seed"], 2]).choice(users, count, replace=False)
    rows = np.flatnonzero(np.isin(part.inter_feat[part.uid_field].numpy(), drawn))
    return part.copy(part.inter_feat[rows])


def _samplers(config: Any, dataset: Any, built: list[Any]) -> list[Any]:
    """Return RecBole's samplers of negative items for training, validation and test.

    RecBole draws among all items but the target (its `RepeatableSampler`) for sequential models, and among the items
    that the user never met (its `Sampler`) for all others: training does so here, too. Candidates of an evaluation with
    sampled items (uni100) are drawn in the way that the run's own protocol asks for, whatever the model.
    """
    of_training = config["MODEL_TYPE"] == ModelType.SEQUENTIAL
    sampled = any(
        config[f"{phase}_neg_sample_args"]["sample_num"] != "none"
        for phase in ("valid", "test")
        if config[f"{phase}_neg_sample_args"]["distribution"] != "none"
    )
    of_evaluation = dataset.item_protocol.repeatable if sampled else of_training
    read = {name: config[name] for name in ("train_neg_sample_args", "valid_neg_sample_args", "test_neg_sample_args")}
    samplers = list(create_samplers({**read, "repeatable": of_training}, dataset, built))
    if of_evaluation != of_training:
        read["train_neg_sample_args"] = {**read["train_neg_sample_args"], "distribution": "none"}
        samplers[1:] = create_samplers({**read, "repeatable": of_evaluation}, dataset, built)[1:]
    return samplers


def give_protocol(config: Any, dataset: Any, parts: list[Any]) -> None:
    """Give a dataset and its parts their `item_protocol`, and the evaluated parts the `known_histories` of their rows.

    Args:
        config: the settings.
        dataset: all interactions.
        parts: training, validation and test.
    """
    protocol, known = choose_protocol(config, dataset, parts)
    for part in (dataset, *parts):
        part.item_protocol = protocol
    for part, histories in zip(parts[1:], known, strict=True):
        part.known_histories = histories


def data_preparation(
    config: Any, dataset: Any, test: bool = True, parts: list[Any] | None = None
) -> tuple[Any, Any, Any]:
    """Split `dataset` by `eval_args` and return RecBole's training, validation and test loaders.

    With `device_table`, those of a sequential model take their rows from tables on the device, see `device_table`.

    Args:
        config: the settings.
        dataset: all interactions.
        test: False leaves the test part alone: nothing reads it, it may be missing, and its loader is None.
        parts: what `dataset.build` gave, where that was asked for already.
    """
    built = dataset.build() if parts is None else parts
    if not test:
        # RecBole's samplers want three parts; an empty one stands for the third.
        built = [*built[:2], built[1].copy(built[1].inter_feat[:0])]
    elif len(built) < 3:
        raise DataError(
            f"{config['dataset']} is split into {len(built)} parts: a run needs three, the last for the test"
        )
    if len(built[0]) == 0:
        raise DataError(f"no training interaction of {config['dataset']} is left after the split")
    give_protocol(config, dataset, built)
    if config["train_share"] is not None:
        built[0] = _share(config, built[0])
    try:
        train_sampler, valid_sampler, test_sampler = _samplers(config, dataset, built)
    except ValueError as error:  # a user who knows all items leaves nothing to sample
        raise DataError(f"no negative samples can be drawn from {config['dataset']}: {error}") from error
    if config["valid_users"] is not None:  # all of them are known to the samplers of the test
        built[1] = _of_some_users(config, built[1])
    train_class = loader_class(config, get_dataloader(config, "train"))
    if config["MODEL_TYPE"] == ModelType.KNOWLEDGE:
        args = config["train_neg_sample_args"]
        kg_sampler = KGSampler(dataset, args["distribution"], args["alpha"])
        train = train_class(config, built[0], train_sampler, kg_sampler, shuffle=True)
    else:
        train = train_class(config, built[0], train_sampler, shuffle=config["shuffle"])
    evaluation = []
    for phase, part, sampler in zip(("valid", "test"), built[1:], (valid_sampler, test_sampler), strict=True):
        if len(part) == 0 and (test or phase == "valid"):
            getLogger().warning("the %s part of %s is empty", phase, config["dataset"])
        eval_class = loader_class(config, get_dataloader(config, phase))
        evaluation.append(eval_class(config, part, sampler, shuffle=False) if len(part) else None)
    give_tables(config, [train, *evaluation])
    return train, evaluation[0], evaluation[1]
