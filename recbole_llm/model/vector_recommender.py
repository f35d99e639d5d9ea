"""Sequential models whose items are vectors made from frozen text vectors: one table, one encoder, one similarity."""

from typing import Any

import pandas as pd
import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor
from torch.nn import functional as F

from recbole_llm.config.hooks import ScoresOfItems
from recbole_llm.model.item_texts import ItemTexts
from recbole_llm.model.layers.item_linear_projection import cross_entropy_sum
from recbole_llm.model.layers.sequence_encoder import SequenceEncoder
from recbole_llm.model.one_pass import OnePass
from recbole_llm.utils.item_products import ItemProducts


class VectorRecommender(OnePass, SequentialRecommender):
    """Scores an item by its vector and the encoder's state after a history of such vectors.

    The same table [items, size] serves the history and the ranking, as in SASRec. The score is the dot product, or the
    cosine divided by a temperature. The loss is the cross-entropy over all items; the padding id is none of them. It is
    taken of RecBole's rows, or of all positions of a pass (`train_positions`).

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
    capturable = True
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

    def catalogue_loss(self, states: Tensor, table: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of the next items among all items; nothing in it waits for a GPU.

        Args:
            states: user vectors [queries, size].
            table: of `item_table`.
            labels: int64 [queries], the next items; a query with label 0 is left out.
        """
        if self.temperature is not None:
            states, table = F.normalize(states, dim=1) / self.temperature, F.normalize(table, dim=1)
        return cross_entropy_sum(states, table, labels) / (labels > 0).sum().clamp(min=1)

    def penalty(self) -> Tensor | float:
        """Return what is added to the loss of every step; by default nothing."""
        return 0.0

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """Return the mean cross-entropy of the rows' next items among all items, and the penalty."""
        table = self.item_table()
        users = self.users_of(table, interaction)
        return self.catalogue_loss(users, table, interaction[self.POS_ITEM_ID]) + self.penalty()

    def states_at_all_positions(self, item_seq: Tensor) -> Tensor:
        """Return the user vectors [batch, length, size] after every item of histories, see `OnePass`."""
        return self.encoder.states(F.embedding(item_seq, self.item_table()), item_seq)

    def positions_loss(self, item_seq: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy over the labelled positions, and the penalty, see `OnePass`."""
        table = self.item_table()
        states = self.encoder.states(F.embedding(item_seq, table), item_seq).flatten(0, 1)
        following = labels.flatten()
        if following.device.type == "cpu":  # a GPU would wait to know how many there are
            labelled = following.nonzero().squeeze(1)
            states, following = states[labelled], following[labelled]
        return self.catalogue_loss(states, table, following) + self.penalty()

    def predict(self, interaction: Interaction) -> Tensor:
        """Return the scores [batch] of the rows' items."""
        table = self.item_table()
        users, items = self.users_of(table, interaction), table[interaction[self.ITEM_ID].to(self.device)]
        if self.temperature is None:
            return (users * items).sum(dim=1)
        return F.cosine_similarity(users, items, eps=1e-12) / self.temperature

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Return the scores of all items: [batch, items], -inf for the padding id."""
        table = self.item_table()
        scores = self.similarity(self.users_of(table, interaction), table)
        return scores.index_fill(1, torch.zeros(1, dtype=torch.long, device=scores.device), float("-inf"))

    def scores_of_items(self, interaction: Interaction) -> ScoresOfItems:
        """Return the scores of some items as a function."""
        table = self.item_table()
        users = self.users_of(table, interaction)
        if self.temperature is None:
            return ItemProducts(users[:, None], table.__getitem__)

        def scores(items: slice | Tensor) -> Tensor:
            return self.similarity(users, table[items])

        directions = F.normalize(users, dim=1)[:, None] / self.temperature
        return ItemProducts(directions, lambda items: F.normalize(table[items], dim=1), scores=scores)

    def append_text_vectors(self, texts: pd.DataFrame) -> None:
        """Put the vectors of new items behind those of the catalogue: what `add_items` of a model begins with."""
        new = self.item_texts.of_new_items(texts).to(self.text_vectors)
        self.text_vectors = torch.cat([self.text_vectors, new])
