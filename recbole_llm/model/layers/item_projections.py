"""Which projection from hidden states to items a run has, by its `loss_type` and `item_codes`."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from recbole_llm.config.settings.one_pass import TWO_LEVEL
from recbole_llm.errors import SettingError
from recbole_llm.model.layers.coded_projection import CodedProjection, parse_codes
from recbole_llm.model.layers.item_linear_projection import ItemLinearProjection
from recbole_llm.model.layers.position_loss import PositionLoss
from recbole_llm.model.layers.two_level_softmax import TwoLevelSoftmax
from recbole_llm.trainer.row_sparse import row_options


class DrawnItemsProjection(ItemLinearProjection):
    """An item linear projection that is trained on drawn items, by a loss of `PositionLoss`.

    Scores, ranking and weights are those of the projection that is trained by the full softmax.

    Args:
        width: size of the hidden states.
        position_loss: its loss.
        options: what the optimiser's group of W has of its own, see `row_options`.
    """

    def __init__(self, width: int, position_loss: PositionLoss, options: Mapping[str, Any]) -> None:
        super().__init__(width, position_loss.items + 1)
        self.position_loss = position_loss
        self.options = options

    def loss(self, states: Tensor, labels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the sum of the losses of all queries, float32, in products of float32 whatever `dtype` is.

        Args:
            states: [queries, width].
            labels: int64 [queries], item ids from 1; a query with label 0 is left out.
            dtype: of the full softmax; drawn items are too few to gain by it.
        """
        return self.position_loss.summed(states, self.weight, labels)


class TwoLevelProjection(ItemLinearProjection):
    """An item projection with a `TwoLevelSoftmax`: its scores are log-probabilities.

    Args:
        width: size of the hidden states.
        items: number of item ids, the padding id included.
        options: what the optimiser's group of W has of its own, see `row_options`.
    """

    linear: ClassVar[bool] = False

    def __init__(self, width: int, items: int, options: Mapping[str, Any]) -> None:
        super().__init__(width, items)
        self.options = options
        self.softmax = TwoLevelSoftmax(width, items, sparse=bool(options))

    @property
    def to_choose(self) -> bool:
        """Whether the clusters are still to be chosen."""
        return not self.softmax.chosen

    def choose(self, states: Iterable[tuple[np.ndarray, Tensor]], seed: int) -> None:
        """Choose the clusters. See `ItemLinearProjection`."""
        vectors = np.zeros(tuple(self.weight.shape), dtype=np.float32)
        for items, found in states:
            vectors[items] = found.float().cpu().numpy()
        self.softmax.choose_clusters(vectors[1:], seed)

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Return the groups of W and of the clusters' weights."""
        clusters = {"params": [self.softmax.cluster_weight], "lr": learning_rate}
        return [{"params": [self.weight], "lr": learning_rate, **self.options}, clusters]

    def forward(self, states: Tensor) -> Tensor:
        """Return log p of all items [queries, items], float32, for hidden states [queries, width]."""
        return self.softmax.scores(states, self.weight)

    def in_blocks(self, states: Tensor) -> Callable[[slice | Tensor], Tensor]:
        """Return what gives log p of some item ids; all items are read once before."""
        return self.softmax.in_blocks(states, self.weight)

    def of_items(self, states: Tensor, items: slice | Tensor) -> Tensor:
        """Return log p [queries, n] of some item ids, a slice or int64 [n]; of several parts see above."""
        return self.in_blocks(states)(items)

    def of_pairs(self, states: Tensor, items: Tensor) -> Tensor:
        """Return log p [queries] of one item [queries] for each state."""
        return self.softmax.of_pairs(states, self.weight, items)

    def loss(self, states: Tensor, labels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the sum over queries of -log p(label), float32. See `ItemLinearProjection.loss`."""
        return self.softmax.summed(states, self.weight, labels, dtype)


def item_projection(config: Any, width: int, popularity: Tensor) -> ItemLinearProjection:
    """Return the projection that a run trains.

    Args:
        config: the settings of the run.
        width: size of the hidden states.
        popularity: int64 [items], how often each item is a label in an epoch; the padding id's is 0.

    Raises:
        SettingError: if a loss shall draw more items than there are, or for codes that do not fit.
    """
    if config["item_codes"] is not None:
        return _coded(config["item_codes"], width, len(popularity))
    if config["loss_type"] == "CE":
        return ItemLinearProjection(width, len(popularity))
    options = row_options(config)
    if config["loss_type"] == TWO_LEVEL:
        return TwoLevelProjection(width, len(popularity), options)
    return DrawnItemsProjection(width, PositionLoss.from_config(config, popularity), options)


def _coded(item_codes: str, width: int, items: int) -> CodedProjection:
    parts, values = parse_codes(item_codes)
    if width % parts:
        raise SettingError(
            f"item_codes={item_codes} cuts states into {parts} parts, but theirs have {width} numbers: take a divisor"
        )
    if values >= items:
        raise SettingError(
            f"item_codes={item_codes} has {values} values of a code for {items - 1} items: take fewer, such as 256"
        )
    return CodedProjection(width, items, parts, values)
