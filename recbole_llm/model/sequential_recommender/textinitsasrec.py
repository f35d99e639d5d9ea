"""TextInitSASRec: a SASRec whose item embeddings start from the items' text vectors and are then trained as any.

The plain control beside models that keep the text: what is left of its lead when the texts are only where training
begins. The vectors are put onto their first principal directions and scaled to SASRec's own initial size.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recbole_llm.model.layers.sequence_encoder import EncoderSettings, sequence_encoder
from recbole_llm.model.layers.text_table import projection_to
from recbole_llm.model.vector_recommender import VectorRecommender


@dataclass(frozen=True)
class TextInitSASRecSettings:
    """The settings of TextInitSASRec, checked; properties/model/TextInitSASRec.yaml describes each."""

    standardize: bool
    temperature: float | None

    @classmethod
    def from_config(cls, config: Any) -> "TextInitSASRecSettings":
        """Read the settings of a run."""
        return cls(**{name: config[name] for name in cls.__dataclass_fields__})


class TextInitSASRec(VectorRecommender):
    """SASRec with an item table that starts from text vectors.

    Args:
        config: the settings of the run.
        dataset: the training part of RecBole's `SequentialDataset`.

    Raises:
        DataError: if an item has no text, or all have the same.
        SettingError: if `hidden_size` is more than the width of a text vector.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        settings = TextInitSASRecSettings.from_config(config)
        encoder = EncoderSettings.from_config(config)
        super().__init__(config, dataset, settings.temperature)
        mean, projection = projection_to(self.text_vectors[1:], encoder.hidden_size, settings.standardize)
        start = (self.text_vectors - mean) @ projection
        start = start * (encoder.initializer_range / start[1:].std())
        start[0] = 0
        self.item_embedding = nn.Parameter(start)
        self.encoder = sequence_encoder("sasrec", encoder, self.max_seq_length)
        self.text_vectors = torch.empty(0)  # nothing reads them any more

    def item_table(self) -> Tensor:
        """Return the embeddings of all items: [items, hidden_size]."""
        return self.item_embedding
