"""ZESRec: Zero-Shot Recommender Systems (Ding et al. 2021, arXiv 2105.08318).

An item is a frozen text vector x put through a learned linear map, and, in training, a free offset: v_j = W x_j + b +
e_j with e_j ~ N(0, 1 / offset_weight). A history of such vectors goes through a GRU (or SASRec's transformer), and an
item's score is its product with the last state. The offsets take what the texts cannot tell, so that the map stays
free of it; an item of another catalogue has none. The paper's offset of each user is left out.
"""

from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from recbole_llm.model.layers.sequence_encoder import EncoderSettings, sequence_encoder
from recbole_llm.model.needs import PretrainedState
from recbole_llm.model.pretrained_state import PretrainedWeights
from recbole_llm.model.vector_recommender import VectorRecommender

_OFFSETS = "offsets.weight"


@dataclass(frozen=True)
class ZESRecSettings:
    """The settings of ZESRec, checked; properties/model/ZESRec.yaml describes each."""

    sequence_encoder: str
    offset_weight: float | None
    offsets_in_ranking: bool

    @classmethod
    def from_config(cls, config: Any) -> "ZESRecSettings":
        """Read the settings of a run."""
        return cls(**{name: config[name] for name in cls.__dataclass_fields__})


class ZESRec(VectorRecommender):
    """ZESRec as a RecBole sequential model.

    Args:
        config: the settings of the run.
        dataset: the training part of RecBole's `SequentialDataset`.
        start: pre-trained weights to start from; None for fresh ones.

    Raises:
        CheckpointError: if `start` was trained on other vectors or at another size.
        DataError: if an item has no text, or all have the same.
    """

    stages = (PretrainedState(),)

    def __init__(self, config: Any, dataset: Any, start: PretrainedWeights | None = None) -> None:
        super().__init__(config, dataset, temperature=None)
        self.settings = settings = ZESRecSettings.from_config(config)
        encoder = EncoderSettings.from_config(config)
        self.item_map = nn.Linear(self.text_vectors.shape[1], encoder.hidden_size)
        self.encoder = sequence_encoder(settings.sequence_encoder, encoder, self.max_seq_length)
        self.offsets: nn.Embedding | None = None
        if settings.offset_weight is not None:
            self.offsets = nn.Embedding(self.n_items, encoder.hidden_size, padding_idx=0)
            nn.init.zeros_(self.offsets.weight)  # the mean of their prior
        self.reads_text_only = self.offsets is None or not settings.offsets_in_ranking
        self.pretraining = None if start is None else start.give(self, self.item_texts.origin())

    def item_table(self) -> Tensor:
        """Return W x + b of all items, with their offsets in training or if `offsets_in_ranking`: [items, size]."""
        table = self.item_map(self.text_vectors)
        if self.offsets is not None and (self.training or self.settings.offsets_in_ranking):
            table = table + self.offsets.weight
        return table

    def penalty(self) -> Tensor | float:
        """Return the prior's part of the loss: offset_weight / 2 times the sum of |e_j|^2."""
        if self.offsets is None or not self.settings.offset_weight:
            return 0.0
        return self.settings.offset_weight / 2 * self.offsets.weight.square().sum()

    @torch.no_grad()
    def add_items(self, texts: pd.DataFrame) -> None:
        """Add items that have a text, see `ModelHooks`; their offset is the prior's mean, 0."""
        self.append_text_vectors(texts)
        if self.offsets is not None:
            weight = self.offsets.weight
            self.offsets.weight = nn.Parameter(torch.cat([weight, weight.new_zeros(len(texts), weight.shape[1])]))

    def transferred_state(self) -> dict[str, Tensor]:
        """Return the weights that serve another catalogue: all but the offsets."""
        return {name: weight for name, weight in self.stored_state().items() if name != _OFFSETS}

    def extra_results(self) -> dict[str, Any]:
        """Return what `result.json` holds beyond what every model's does: what is known of the pre-training."""
        return {} if self.pretraining is None else {"pretraining": self.pretraining}
