"""RecBole's batches, put together on the device where the model is.

RecBole's loader indexes its table on the CPU with Python lists, copies every batch to the device, and waits for it.
Here the table is moved to the device once, and a batch is a few gathers there: the order of an epoch, too, is moved in
one piece, so that nothing waits for the device between two steps.

What is moved is small: one line per row (user, target, where its history ends, how long it is) and the flat arrays of
`PrefixDataset`, from which histories are cut as they are needed; the padded histories of all rows, which RecBole makes
in a Python loop, would take `MAX_ITEM_LIST_LENGTH` times as much. Datasets that hold padded histories (of files, of
models with a dataset of their own) are moved as they are.

Batches and their order are RecBole's own for the same seed, and the state of the loader's generator after an epoch is,
too. Where a batch is changed at random before the model sees it (BERT4Rec's masks, negative samples), that is done on
the CPU, as in RecBole; the table then stays in the CPU's memory.
"""

from collections.abc import Iterator
from logging import getLogger
from typing import Any

import torch
from recbole.data.dataloader import FullSortEvalDataLoader, TrainDataLoader
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.evaluator.register import Register
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.utils import ModelType
from torch import Tensor
from torch.utils.data import RandomSampler

from recbole_llm.config.hooks import hooks_of_class, scores_in_blocks
from recbole_llm.data.dataset import HISTORY_END, HistoryDataset, cut_histories
from recbole_llm.data.padding import may_be_cut

# The share of the device's free memory that the table may take: model, gradients and activations come after it.
_SHARE = 0.5
# How many numbers an item has in an evaluation at once: two models' scores, their log-probabilities, and room.
_TENSORS_OF_SCORES = 4
_LEAST_ITEMS = 512  # that are scored at a time


class InteractionTable:
    """One part of a dataset on a device; its rows are what ``dataset[index]`` gives.

    Args:
        dataset: a part of a built sequential dataset of RecBole that `is_plain`.
        device: where the rows will be.
        moved: tensors that are on the device already, by the id of the tensor that they are copies of; parts of one
            dataset share flat arrays and features. What this part moves is added.
        cuts_padding: whether histories are padded to the longest of a batch, see `data.padding`.
    """

    def __init__(
        self, dataset: Any, device: torch.device, moved: dict[int, Tensor], cuts_padding: bool = False
    ) -> None:
        def on_device(tensors: Any) -> dict[str, Tensor]:
            for tensor in (tensors[name] for name in tensors):
                if id(tensor) not in moved:
                    moved[id(tensor)] = tensor.to(device)
            return {name: moved[id(tensors[name])] for name in tensors}

        self.device = device
        self._rows = on_device(dataset.inter_feat)
        self._flat = on_device(getattr(dataset, "flat", {}))
        self._length_field = dataset.item_list_length_field
        self._width = dataset.max_item_list_len
        self._cuts_padding = cuts_padding
        self._features = [
            (key, on_device(features))
            for key, features in ((dataset.uid_field, dataset.user_feat), (dataset.iid_field, dataset.item_feat))
            if features is not None
        ]

    def rows(self, index: Tensor) -> Interaction:
        """Return the rows `index` (int64 [batch], on the table's device) with their histories and features."""
        rows = {name: values.index_select(0, index) for name, values in self._rows.items()}
        for key, features in self._features:
            rows.update({name: values.index_select(0, rows[key]) for name, values in features.items()})
        if self._flat:
            lengths = rows[self._length_field]
            width = int(lengths.max()) if self._cuts_padding else self._width
            rows.update(cut_histories(self._flat, rows[HISTORY_END], lengths, width))
        return Interaction(rows)


class TableLoader(AbstractDataLoader):
    """Stands in front of a loader of RecBole and takes its rows from `table`; without one, it is RecBole's loader."""

    table: InteractionTable | None = None

    def __iter__(self) -> Iterator[Any]:
        return super().__iter__() if self.table is None else self._batches(self.table)

    def _batches(self, table: InteractionTable) -> Iterator[Any]:
        # torch's loader draws a seed for its workers from the generator before its sampler shuffles.
        torch.empty((), dtype=torch.int64).random_(generator=self.generator)
        rows, shuffled = self.sample_size, isinstance(self.sampler, RandomSampler)
        order = torch.randperm(rows, generator=self.generator) if shuffled else torch.arange(rows)
        for index in order.to(table.device).split(self.batch_size):
            yield self._batch(table.rows(index))
        if shuffled:
            # torch's sampler ends with a second permutation, of which it takes `num_samples % rows` = 0 rows.
            torch.randperm(rows, generator=self.generator)

    def _batch(self, rows: Interaction) -> Any:
        raise NotImplementedError


class TrainTableLoader(TableLoader, TrainDataLoader):
    """RecBole's training loader; see its `collate_fn`."""

    def _batch(self, rows: Interaction) -> Interaction:
        return self._neg_sampling(self.transform(self._dataset, rows))


class BoundedFullSortLoader(FullSortEvalDataLoader):
    """RecBole's full-sort loader, whose batches have no more rows than `eval_memory` has room for their scores.

    A row of a general model (BPR) is a user, and `eval_batch_size` counts rows there, too.

    Attributes:
        in_blocks: whether that is room for the scores of some items at a time, see `ModelHooks.scores_of_items`.
    """

    step: int  # rows of a batch
    in_blocks: bool = False

    def _init_batch_size_and_step(self) -> None:
        super()._init_batch_size_and_step()
        if not self.is_sequential:
            # RecBole counts pairs of a user and an item there: with more items than that it has users one by one.
            self.step = max(self.step, int(self.config["eval_batch_size"]))
        rows = rows_within(self.config, int(self._dataset.item_num), self._dataset)
        asked = min(self.step, len(self._dataset))
        self.in_blocks = asked > rows and self.is_sequential and ranks_in_blocks(self.config)
        if self.in_blocks:
            rows = rows_within(self.config, min(_LEAST_ITEMS, int(self._dataset.item_num)), self._dataset)
        self.step = min(self.step, rows)
        self.set_batch_size(self.step if self.is_sequential else self.step * self._dataset.item_num)


def rows_within(config: Any, items: int, dataset: Any) -> int:
    """Return how many rows can be scored at once within `eval_memory`, at least one.

    Args:
        config: the settings.
        items: that are scored at once.
        dataset: which they are of.
    """
    each = 4 * _TENSORS_OF_SCORES
    if config.model_class.full_sort_predict is AbstractRecommender.full_sort_predict:
        # RecBole makes a line for every pair of row and item, with all that the row has.
        lists = sum(1 for field in dataset.inter_feat if field.endswith(config["LIST_SUFFIX"]))
        each += 8 * (len(dataset.inter_feat.columns) + lists * config["MAX_ITEM_LIST_LENGTH"])
    return max(config["eval_memory"] * 2**20 // (each * items), 1)


def ranks_in_blocks(config: Any) -> bool:
    """Tell whether a run's model scores some items at a time, and its metrics need no table of all scores."""
    register = Register(config)
    whole = any(map(register.need, ("rec.meanrank", "rec.score", "data.label")))
    return not whole and scores_in_blocks(config.model_class, config)


class FullSortTableLoader(TableLoader, BoundedFullSortLoader):
    """RecBole's full-sort loader of sequential models; see its `collate_fn`."""

    def _batch(self, rows: Interaction) -> tuple[Interaction, None, Tensor, Tensor]:
        rows = self.transform(self._dataset, rows)
        targets = rows[self.iid_field]
        return rows, None, torch.arange(len(targets), device=targets.device), targets


_LOADERS = {TrainDataLoader: TrainTableLoader, FullSortEvalDataLoader: FullSortTableLoader}


def loader_class(config: Any, recboles: type) -> type:
    """Return the class of a loader: `recboles`, or the one here that takes its place.

    RecBole's own stays for models that are not sequential or have a trainer that makes its own batches, for evaluation
    with sampled items, for several processes, and for `worker` processes that make batches.
    """
    wanted = config["device_table"] and config["MODEL_TYPE"] == ModelType.SEQUENTIAL
    own_trainer = hooks_of_class(config.model_class).trainer_class is not None
    alone = config["single_spec"] and not config["worker"] and not own_trainer
    otherwise = BoundedFullSortLoader if recboles is FullSortEvalDataLoader else recboles
    return _LOADERS.get(recboles, recboles) if wanted and alone else otherwise


def is_plain(dataset: Any) -> bool:
    """Tell whether the rows of a dataset are its columns, histories and features, and nothing else."""
    return type(dataset).__getitem__ in (Dataset.__getitem__, HistoryDataset.__getitem__)


def give_tables(config: Any, loaders: list[Any]) -> None:
    """Give each `TableLoader` among `loaders` its table: on the run's device where they all fit, or on the CPU."""
    taken = [loader for loader in loaders if isinstance(loader, TableLoader) and is_plain(loader._dataset)]
    device = torch.device(config["device"])
    if device.type == "cuda" and not all(_unchanged(loader) for loader in taken):
        getLogger().info("batches of %s are changed on the CPU: its data stays there", config["model"])
        device = torch.device("cpu")
    try:
        if device.type == "cuda":
            _check_room(device, [loader._dataset for loader in taken])
        _place(taken, device)
    except torch.cuda.OutOfMemoryError as error:
        _place(taken, torch.device("cpu"))
        getLogger().warning("batches of %s are put together on the CPU: %s", config["model"], error)


def _place(loaders: list[Any], device: torch.device) -> None:
    moved: dict[int, Tensor] = {}
    for loader in loaders:
        # On a GPU the longest would have to be waited for, and batches of one width are captured as graphs.
        cuts = device.type == "cpu" and may_be_cut(loader.config, isinstance(loader, TrainTableLoader))
        loader.table = InteractionTable(loader._dataset, device, moved, cuts)


def _unchanged(loader: Any) -> bool:
    """Tell whether the model sees a loader's rows as they are, without a transform and without negative samples."""
    sampled = getattr(loader, "neg_sample_args", {"distribution": "none"})["distribution"] != "none"
    return loader.config["transform"] is None and not sampled


def _check_room(device: torch.device, parts: list[Any]) -> None:
    need, free = needed_bytes(parts), free_bytes(device)
    if need > _SHARE * free:
        raise torch.cuda.OutOfMemoryError(
            f"its interactions take {need / 2**20:.0f} MiB, and {device} has {free / 2**20:.0f} MiB free"
        )


def needed_bytes(parts: list[Any]) -> int:
    """Return the bytes that the tables of all parts of a dataset take together."""
    tensors = {}
    for part in parts:
        for columns in (part.inter_feat, getattr(part, "flat", {}), part.user_feat, part.item_feat):
            tensors.update({id(columns[name]): columns[name] for name in columns or ()})
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def free_bytes(device: torch.device) -> int:
    """Return how much memory of a CUDA device is free."""
    return torch.cuda.mem_get_info(device)[0]
