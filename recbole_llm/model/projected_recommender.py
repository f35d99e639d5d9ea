"""Text models that score by a linear projection of one hidden state per row, perhaps with an ID model's scores."""

from typing import Any

import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_llm.config import registry
from recbole_llm.config.hooks import ScoresOfItems, scores_in_blocks
from recbole_llm.model.id_model.mixed_scores import MixedScores
from recbole_llm.model.id_model.scores import IdScores
from recbole_llm.model.layers.item_linear_projection import ItemLinearProjection
from recbole_llm.model.layers.split_item_projection import SplitItemProjection
from recbole_llm.model.text_recommender import TextRecommender
from recbole_llm.trainer.split_rows import SplitRows


class ProjectedRecommender(TextRecommender):
    """Ranks items by ``W h``; with an ID model by the mix of both log-probabilities, see `IdScores`.

    Attributes:
        precision: of the projection's matrix products.
        projection: W, from hidden states [rows, width] to scores [rows, items].
        id_scores: the ID model whose scores are mixed in; None without one.
    """

    projection: ItemLinearProjection
    precision: torch.dtype
    id_scores: IdScores | None

    def share_over_processes(self) -> list[SplitRows]:
        """Split the projection by items."""
        split = SplitRows(self.projection.weight)
        self.projection = SplitItemProjection(self.projection.weight, split)
        return [split]

    def empty_pass_loss(self) -> Tensor:
        """Return 0: this process has no queries, but its items are those of the others' softmax, too."""
        none = torch.zeros(0, self.projection.width, device=self.device)
        if self.backbone_is_sharded:
            none = self.states_of_least()[:0]
        labels = torch.zeros(0, dtype=torch.long, device=self.device)
        return self.projection.loss(none, labels, self.precision)

    def states_of_least(self) -> Tensor:
        """Return the states [queries, width] of a pass of the fewest tokens, for a process that has none of its own.

        Asked of a model with `layers_to_shard`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no states_of_least")

    def row_states(self, interaction: Interaction) -> Tensor:
        """Return the hidden state from which the next item of each row is predicted: [batch, width], float32."""
        raise NotImplementedError(f"{type(self).__name__} has no row_states")

    def predict(self, interaction: Interaction) -> Tensor:
        """Return the score of each row's `item_id`: [batch], float32."""
        items = interaction[self.ITEM_ID].to(self.device)
        if self.id_scores is not None:
            return self.full_sort_predict(interaction).gather(1, items[:, None])[:, 0]
        return self.projection.of_pairs(self.row_states(interaction), items)

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Return the scores of all items: [batch, items], float32, -inf for the padding id."""
        if self.id_scores is None:
            return self.projection(self.row_states(interaction))
        states = self.id_scores.remembered_states(interaction)
        states = self.row_states(interaction) if states is None else states
        return self.id_scores.mix(self.projection(states), interaction)

    @classmethod
    def scores_in_blocks(cls, config: Any) -> bool:
        """Tell whether `scores_of_items` will answer: with an ID model, if that scores some items at a time, too."""
        if not config["id_model"]:
            return not config["id_model_path"]  # which model lies there is not known here
        id_model = registry.model_class(config["id_model"])
        # The settings of another text model inside this one are not known here.
        return not issubclass(id_model, ProjectedRecommender) and scores_in_blocks(id_model, config)

    def scores_of_items(self, interaction: Interaction) -> ScoresOfItems | None:
        """Return ``W h`` of some items as a function, mixed with the ID model's; None if that scores all at once."""
        if self.id_scores is None:
            return self.projection.in_blocks(self.row_states(interaction))
        of_id_model = self.id_scores.scores_of_items(interaction)
        if of_id_model is None:
            return None
        states = self.id_scores.remembered_states(interaction)
        states = self.row_states(interaction) if states is None else states
        own = self.projection.in_blocks(states)
        return MixedScores(own, of_id_model, self.id_scores.weight, len(states), self.n_items)

    def before_validation(self, valid_data: Any) -> None:
        """Choose the weight of the ID model's scores, if ``id_weight: ~`` asks for it. See `PackedTrainer`.

        Args:
            valid_data: RecBole's loader of the validation part.
        """
        if self.id_scores is not None:
            self.eval()
            self.id_scores.choose_weight_for(self.row_states, self.projection, valid_data, self.projection.in_blocks)
