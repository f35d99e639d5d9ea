"""S3Rec (Zhou et al., CIKM 2020): RecBole's, with both of its stages in one run and a quick way to its data."""

import copy
import random
from collections.abc import Collection
from typing import Any, ClassVar

import torch
from recbole.data.interaction import Interaction
from torch import Tensor
from torch.nn import functional as F

from recbole_llm.compat import repairs as compat
from recbole_llm.compat.masked_items import append
from recbole_llm.config.hooks import ModelHooks
from recbole_llm.model.needs import OwnPretraining

with compat.unchanged_anomaly_detection():
    from recbole.model.sequential_recommender.s3rec import S3Rec as RecBolesS3Rec


class S3Rec(ModelHooks, compat.repair(RecBolesS3Rec)):  # type: ignore[misc]
    """RecBole's S3Rec, which a run pre-trains first unless that was done before.

    Repairs in `recbole/model/sequential_recommender/s3rec.py`, beside that of `reconstruct_pretrain_data`:

    * `:330` pads the histories of the pre-training at the left and `:170` counts positions from there, while
      fine-tuning pads at the right: the two stages have different positions for the same item. Both count from the
      first item here.
    * `:417` pre-trains on the histories of the rows without their targets: a user's last training item is never read.
    * `:267` draws the mask token as a negative item, and `:443` has it as a class of the cross-entropy.

    Args:
        config: the settings of the run.
        dataset: the training part of its data.
        start: the folder of the run whose weights the fine-tuning starts from; None for the pre-training itself.
    """

    stages: ClassVar[tuple[Any, ...]] = (OwnPretraining(),)
    item_feat: Any
    n_features: int

    def __init__(self, config: Any, dataset: Any, start: str | None = None) -> None:
        # RecBole's constructor takes both from the settings; those of the run stay as they are.
        own = copy.copy(config)
        stage = {"train_stage": "pretrain"} if start is None else {"train_stage": "finetune", "pre_model_path": start}
        own.final_config_dict = {**config.final_config_dict, **stage}
        super().__init__(own, dataset)

    def user_vectors(self, interaction: Interaction) -> Tensor:
        """Return the user vectors [batch, 1, size] of RecBole's rows."""
        states = self(interaction[self.ITEM_SEQ], bidirectional=False)
        return self.gather_indexes(states, interaction[self.ITEM_SEQ_LEN] - 1)[:, None]

    def forward(self, item_seq: Tensor, bidirectional: bool = True) -> Tensor:
        """Return the states [batch, length, size] of histories that are padded at the left or at the right.

        Args:
            item_seq: int64 [batch, length], 0 where no item is.
            bidirectional: whether an item reads those after it, too.
        """
        width = item_seq.shape[1]
        places = torch.arange(width, device=item_seq.device)
        empty = (item_seq != 0).int().argmax(dim=1, keepdim=True)  # places before the first item
        states: Tensor = super().forward(item_seq.gather(1, (places + empty) % width), bidirectional)
        return states.gather(1, ((places - empty) % width)[:, :, None].expand_as(states))

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """Return the loss of a batch of RecBole's rows in either stage, a scalar."""
        targets = interaction[self.POS_ITEM_ID]
        if self.train_stage == "pretrain":
            whole, last = append(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN], targets)
            interaction = Interaction({self.ITEM_SEQ: whole, self.ITEM_SEQ_LEN: last + 1, self.POS_ITEM_ID: targets})
        elif self.loss_type == "CE":
            table = self.item_embedding.weight[: self.mask_token]
            return F.cross_entropy(self.user_vectors(interaction)[:, 0] @ table.T, targets)
        loss: Tensor = super().calculate_loss(interaction)
        return loss

    def _neg_sample(self, item_set: Collection[int]) -> int:
        """Return an item that is not in `item_set`."""
        item = random.randint(1, self.mask_token - 1)
        while item in item_set:
            item = random.randint(1, self.mask_token - 1)
        return item

    def reconstruct_pretrain_data(self, item_seq: Tensor, item_seq_len: Tensor) -> tuple[Tensor, ...]:
        """Return what RecBole's does, with the attributes of all items in one table.

        Repairs `recbole/model/sequential_recommender/s3rec.py:295`, which writes a Python list with an entry for every
        attribute value of the catalogue at every position of every row: 95 million numbers per batch where items have
        900 categories. Its random draws stay what they are.

        Args:
            item_seq: int64 [batch, items], histories.
            item_seq_len: int64 [batch], how many items of each count.
        """
        features, number = self.item_feat, self.n_features
        # RecBole's own code does the rest, for a catalogue with one attribute that no item has.
        self.item_feat, self.n_features = {self.FEATURE_FIELD: torch.zeros(self.n_items, 1, dtype=torch.long)}, 1
        try:
            _, *others = super().reconstruct_pretrain_data(item_seq, item_seq_len)
        finally:
            self.item_feat, self.n_features = features, number
        # Its rows end at the last position.
        width = self.max_seq_length
        source = item_seq_len[:, None] - width + torch.arange(width, device=item_seq.device)
        items = item_seq.gather(1, source.clamp(min=0)) * (source >= 0)
        table = attribute_table(features[self.FEATURE_FIELD], number)
        return table.to(item_seq.device)[items], *others


def attribute_table(values: Tensor, number: int) -> Tensor:
    """Return a table, bool [items, number]: whether an item has an attribute.

    Args:
        values: ids of each item's attributes, int64 [items] or [items, maximum number], 0 for none.
        number: of attributes, without the padding id; attribute id n is column n - 1.
    """
    values = values if values.dim() == 2 else values[:, None]
    table = torch.zeros(len(values), number + 1, dtype=torch.bool)
    return table.scatter_(1, values.cpu(), True)[:, 1:]
