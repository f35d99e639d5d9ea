"""AlphaFuse: Learn ID Embeddings for Sequential Recommendation in Null Space of Language Embeddings (SIGIR 2025).

A SASRec whose item vectors are text in some directions and learned in the others: the directions in which the texts of
all items vary least (the null space of their covariance, by its singular value decomposition) get an embedding per
item, the directions in which they vary most keep the standardised text vectors, untouched by training.
"""

from dataclasses import dataclass
from typing import Any

import pandas as pd
from torch import Tensor

from recbole_llm.model.layers.sequence_encoder import EncoderSettings, sequence_encoder
from recbole_llm.model.layers.text_table import FusedTable
from recbole_llm.model.vector_recommender import VectorRecommender


@dataclass(frozen=True)
class AlphaFuseSettings:
    """The settings of AlphaFuse, checked; properties/model/AlphaFuse.yaml describes each."""

    null_size: int
    standardize: bool
    cover_text: bool
    id_deviation: float
    temperature: float | None

    @classmethod
    def from_config(cls, config: Any) -> "AlphaFuseSettings":
        """Read the settings of a run."""
        return cls(**{name: config[name] for name in cls.__dataclass_fields__})


class AlphaFuse(VectorRecommender):
    """AlphaFuse as a RecBole sequential model.

    Args:
        config: the settings of the run.
        dataset: the training part of RecBole's `SequentialDataset`.

    Raises:
        DataError: if an item has no text, or all have the same.
        SettingError: if `null_size` is not below `hidden_size`, or this is more than the width of a text vector.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        settings = AlphaFuseSettings.from_config(config)
        encoder = EncoderSettings.from_config(config)
        super().__init__(config, dataset, settings.temperature)
        self.table = FusedTable(
            self.text_vectors,
            encoder.hidden_size,
            settings.null_size,
            settings.standardize,
            settings.cover_text,
            settings.id_deviation,
        )
        self.encoder = sequence_encoder("sasrec", encoder, self.max_seq_length)

    def item_table(self) -> Tensor:
        """Return the fused vectors of all items: [items, hidden_size]."""
        return self.table()

    def add_items(self, texts: pd.DataFrame) -> None:
        """Add items that have a text, see `ModelHooks`; their learned part is 0."""
        self.table.append(self.item_texts.of_new_items(texts))
