"""S3Rec (Zhou et al., CIKM 2020): RecBole's, with both of its stages in one run and a quick way to its data."""

import copy
from typing import Any, ClassVar

import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_llm.compat import repairs as compat
from recbole_llm.config.hooks import ModelHooks
from recbole_llm.model.needs import OwnPretraining

with compat.unchanged_anomaly_detection():
    from recbole.model.sequential_recommender.s3rec import S3Rec as RecBolesS3Rec


class S3Rec(ModelHooks, compat.repair(RecBolesS3Rec)):  # type: ignore[misc]
    """RecBole's S3Rec, which a run pre-trains first unless that was done before.

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
