"""Which projection from hidden states to items a run has, by its `loss_type`."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from recbole_llm.model.layers.item_linear_projection import ItemLinearProjection
from recbole_llm.model.layers.position_loss import PositionLoss
from recbole_llm.trainer.row_sparse import row_options


class DrawnItemsProjection(ItemLinearProjection):
    """An item linear projection that is trained on drawn items, by a loss of `PositionLoss`.

    Scores, ranking and weights are those of the projection that is trained by the full softmax.

    Args:
        width: size of the hidden states.
        position_loss: its loss.
        group_options: see `ItemLinearProjection`.
    """

    def __init__(self, width: int, position_loss: PositionLoss, group_options: Mapping[str, Any]) -> None:
        super().__init__(width, position_loss.items + 1)
        self.position_loss = position_loss
        self.group_options = group_options

    def loss(self, states: Tensor, labels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the sum of the losses of all queries, float32, in products of float32 whatever `dtype` is.

        Args:
            states: [queries, width].
            labels: int64 [queries], item ids from 1; a query with label 0 is left out.
            dtype: of the full softmax; drawn items are too few to gain by it.
        """
        return self.position_loss.summed(states, self.weight, labels)


def item_projection(config: Any, width: int, popularity: Tensor) -> ItemLinearProjection:
    """Return the projection that a run trains.

    Args:
        config: the settings of the run.
        width: size of the hidden states.
        popularity: int64 [items], how often each item is a label in an epoch; the padding id's is 0.

    Raises:
        SettingError: if a loss shall draw more items than there are.
    """
    if config["loss_type"] == "CE":
        return ItemLinearProjection(width, len(popularity))
    return DrawnItemsProjection(width, PositionLoss.from_config(config, popularity), row_options(config))
