"""Text models that score by a linear projection of one hidden state per row, perhaps with an ID model's scores."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_llm.config import registry
from recbole_llm.config.hooks import ScoresOfItems, scores_in_blocks
from recbole_llm.errors import SettingError
from recbole_llm.evaluation.blocks import BestItems
from recbole_llm.evaluation.split_blocks import SplitItemBlocks
from recbole_llm.model.id_model.mixed_scores import MixedScores
from recbole_llm.model.id_model.scores import IdScores
from recbole_llm.model.layers.coded_projection import CodedProjection
from recbole_llm.model.layers.item_linear_projection import ItemLinearProjection
from recbole_llm.model.layers.item_projections import DrawnItemsProjection
from recbole_llm.model.layers.split_item_projection import SplitDrawnItems, SplitItemProjection
from recbole_llm.model.layers.text_initialisation import projection_of_texts
from recbole_llm.model.text_recommender import TextRecommender
from recbole_llm.trainer.split_rows import SplitRows
from recbole_llm.utils.collectives import rows_of_all, stacked_of_all
from recbole_llm.utils.processes import part_counts

_BLOCK_BYTES = 512 * 2**20  # of the scores of some items at a time, where no setting says how much


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

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self._starts_from_texts = config["projection_init"] == "texts"

    @classmethod
    def check_processes(cls, config: Any) -> None:
        """Refuse to split compiled layers, beside what other models refuse. See `ModelHooks`."""
        super().check_processes(config)
        if config["compile"] and config["shard"] == "backbone":
            raise SettingError("compile=True and shard=backbone do not go together: leave out one of the two")

    def share_over_processes(self) -> list[SplitRows]:
        """Split the projection by items; one of codes is small and is not."""
        if isinstance(self.projection, CodedProjection):
            return []
        whole = self.projection
        split = SplitRows(whole.weight)
        if isinstance(whole, DrawnItemsProjection):
            self.projection = SplitDrawnItems(whole.weight, split, whole.position_loss, whole.options)
        else:
            self.projection = SplitItemProjection(whole.weight, split)
        return [split]

    @torch.no_grad()
    def before_epoch(self, epoch: int) -> None:
        """With ``projection_init: texts``, start the projection from the states of the items' texts."""
        if epoch or not self._starts_from_texts:
            return
        self.eval()
        states = torch.zeros(self.n_items, self.projection.width, device=self.device)
        for items, found in self.item_states():
            states[torch.from_numpy(items).to(states.device)] = found.float()
        rows, split = projection_of_texts(states), self._split()
        self.projection.weight.copy_(rows if split is None else rows[split.begin : split.end])

    def item_states(self) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield the states of the items' texts, in parts: item ids int64 [n], and [n, width].

        Asked of a model with `projection_init`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no item_states")

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
        scores = self.projection(self._evaluated_states(interaction))
        return scores if self.id_scores is None else self.id_scores.mix(scores, interaction)

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
        states = self._evaluated_states(interaction)
        own = self.projection.in_blocks(states)
        return MixedScores(own, of_id_model, self.id_scores.weight, len(states), self.n_items)

    def scores_of_own_items(
        self, interaction: Interaction, batch: Interaction
    ) -> tuple[ScoresOfItems, list[int]] | None:
        """Return ``W h`` of this process's items for the rows of all, mixed with the ID model's. See `ModelHooks`.

        The states of a row are computed once, by its process; the ID model, which is small, reads all rows in each.
        """
        split = self._split()
        if split is None:
            return None
        states = rows_of_all(self._evaluated_states(interaction, batch), part_counts(len(batch)))
        own = self.projection.in_blocks(states)
        if self.id_scores is None:
            return own, split.bounds
        of_id_model = self.id_scores.scores_of_items(batch)
        assert of_id_model is not None  # else the trainer has joined the projection

        def of_all(log_sums: Tensor) -> Tensor:
            return stacked_of_all(log_sums).logsumexp(dim=0)

        shape = (self.id_scores.weight, len(states), split.end, split.begin)
        return MixedScores(own, of_id_model, *shape, of_all), split.bounds

    def _split(self) -> SplitRows | None:
        """Return how the projection is split now; None while this process has all of it."""
        found = self.projection.split if isinstance(self.projection, SplitItemProjection) else None
        return found if found is not None and found.is_split else None

    def _best_items(self, states: Tensor, k: int) -> Tensor:
        """Return the best items [rows, k] of states [rows, width], which are the same in all processes."""
        split = self._split()
        if split is None:
            return self.projection(states).topk(k, dim=1).indices
        shape = (part_counts(len(states)), split.bounds, _BLOCK_BYTES, states.device)
        blocks = SplitItemBlocks(self.projection.in_blocks(states), *shape)
        best = BestItems(k)
        for begin, scores in blocks:
            best.add(begin, scores)
        return blocks.best(best)

    def _states_of_rows(self, interaction: Interaction) -> Tensor:
        """Return the states of rows, perhaps of none: [batch, width], float32."""
        if not len(interaction) and self.state_cache is None:  # else states are exchanged, perhaps
            return torch.zeros(0, self.projection.width, device=self.device)
        return self.row_states(interaction)

    def _evaluated_states(self, interaction: Interaction, batch: Interaction | None = None) -> Tensor:
        """Return the states of rows, those that choosing the weight of the mix has computed already.

        Args:
            interaction: the rows of this process.
            batch: those of all processes that rank them together.
        """
        asked = interaction if batch is None else batch
        states = None if self.id_scores is None else self.id_scores.remembered_states(asked)
        return self._states_of_rows(interaction) if states is None else states

    def before_validation(self, valid_data: Any) -> None:
        """Choose the weight of the ID model's scores, if ``id_weight: ~`` asks for it. See `PackedTrainer`.

        Args:
            valid_data: RecBole's loader of the validation part.
        """
        if self.id_scores is not None:
            self.eval()
            split = self._split()
            bounds = None if split is None else split.bounds
            self.id_scores.choose_weight_for(
                self._states_of_rows, self.projection, valid_data, self.projection.in_blocks, bounds
            )
