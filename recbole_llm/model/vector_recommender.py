"""Sequential models whose items are vectors made from frozen text vectors: one table, one encoder, one similarity."""

from typing import Any

import pandas as pd
import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor
from torch.nn import functional as F

from recbole_llm.config.hooks import ModelHooks
from recbole_llm.model.item_texts import ItemTexts
from recbole_llm.model.layers.sequence_encoder import SequenceEncoder


class VectorRecommender(ModelHooks, SequentialRecommender):
    """Scores an item by its vector and the encoder's state after a history of such vectors.

    The same table [items, size] serves the history and the ranking, as in SASRec. The score is the dot product, or the
    cosine divided by a temperature. The loss is the cross-entropy over all items; the padding id is none of them.

    Args:
        config: the settings of the run.
        dataset: the training part of RecBole's `SequentialDataset`.
        temperature: of the cosine; None takes the dot product.

    Attributes:
        encoder: from item vectors to a state per position.
        item_texts: how item texts become vectors.
        text_vectors: of all items, float32 [items, width], row 0 zero; not stored with the weights.
    """

    input_type = InputType.POINTWISE
    encoder: SequenceEncoder
    text_vectors: Tensor

    def __init__(self, config: Any, dataset: Any, temperature: float | None) -> None:
        super().__init__(config, dataset)
        self.temperature = temperature
        self.item_texts = ItemTexts.from_config(config)
        self.register_buffer("text_vectors", self.item_texts.of_items(dataset), persistent=False)

    def item_table(self) -> Tensor:
        """Return the vectors of all items: [items, size]; row 0 is padding and is never read."""
        raise NotImplementedError(f"{type(self).__name__} has no item_table")

    def users_of(self, table: Tensor, interaction: Interaction) -> Tensor:
        """Return the user vectors [batch, size] of RecBole's rows, whose items have the vectors `table`."""
        histories = interaction[self.ITEM_SEQ]
        return self.encoder(F.embedding(histories, table), histories, interaction[self.ITEM_SEQ_LEN])

    def user_vectors(self, interaction: Interaction) -> Tensor:
        """Return the user vectors [batch, 1, size] of RecBole's rows."""
        return self.users_of(self.item_table(), interaction)[:, None]

    def similarity(self, users: Tensor, items: Tensor) -> Tensor:
        """Return the scores [batch, items] of user vectors [batch, size] and item vectors [items, size]."""
        if self.temperature is None:
            return users @ items.T
        return F.normalize(users, dim=1) @ F.normalize(items, dim=1).T / self.temperature

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """Return the mean cross-entropy of the next items among all items."""
        table = self.item_table()
        scores = self.similarity(self.users_of(table, interaction), table[1:])
        return F.cross_entropy(scores, interaction[self.POS_ITEM_ID] - 1)

    def predict(self, interaction: Interaction) -> Tensor:
        """Return the scores [batch] of the rows' items."""
        items = interaction[self.ITEM_ID].to(self.device)
        return self.full_sort_predict(interaction).gather(1, items[:, None])[:, 0]

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Return the scores of all items: [batch, items], -inf for the padding id."""
        table = self.item_table()
        scores = self.similarity(self.users_of(table, interaction), table)
        return scores.index_fill(1, torch.zeros(1, dtype=torch.long, device=scores.device), float("-inf"))

    def append_text_vectors(self, texts: pd.DataFrame) -> None:
        """Put the vectors of new items behind those of the catalogue: what `add_items` of a model begins with."""
        new = self.item_texts.of_new_items(texts).to(self.text_vectors)
        self.text_vectors = torch.cat([self.text_vectors, new])
