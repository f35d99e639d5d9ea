"""TwinBERT (Lu et al., CIKM 2020, "TwinBERT: Distilling Knowledge to Twin-Structured BERT Models"), as a recommender.

Two BERT towers, here of the history as text (the query) and of an item's text (the document), meet in a light crossing:
the cosine of both vectors, or a residual layer on their larger coordinates with a logistic regression on top. The paper
distils a larger BERT's judgements of query and document; here are none, so the next item is the positive, among the
targets of the other rows or random items. What is not in it: the distillation, tri-letter tokens, and the pooling by
learned weights.
"""

import copy
from typing import Any

from torch import Tensor

from recbole_llm.backbone.loading import Backbone
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.history_texts import PackedTexts
from recbole_llm.errors import BackboneError, SettingError
from recbole_llm.model.layers.table_loss import ResidualCrossing, Similarity
from recbole_llm.model.text_tower import TextTower
from recbole_llm.model.tower_recommender import TowerRecommender


class TwinBERT(TowerRecommender):
    """TwinBERT as a RecBole sequential model.

    Args:
        config: the settings of the run.
        dataset: the training part of a `HistoryDataset`.

    Attributes:
        similarity: the crossing.

    Raises:
        BackboneError: if the backbone cannot be had, or is a decoder.
        DataError: if items have no text, or all the same.
        SettingError: for values that do not go together.
    """

    unmet_negatives = True

    def __init__(self, config: Any, dataset: HistoryDataset) -> None:
        residual = config["crossing"] == "residual"
        if residual and config["item_loss"] == "table":
            raise SettingError(
                "crossing=residual has no product with a table of items: take item_loss=in-batch, sampled, bce or full"
            )
        super().__init__(config, dataset)
        if not config["shared_towers"]:
            self.item_tower = copy.deepcopy(self.tower)
        self.similarity: Similarity | ResidualCrossing = (
            ResidualCrossing(self.tower.width)
            if residual
            else Similarity("cosine", self.settings.temperature, learned=config["learned_temperature"])
        )

    def check_backbone(self, loaded: Backbone) -> None:
        """Refuse a decoder. Raises BackboneError."""
        super().check_backbone(loaded)
        if loaded.preset.kind == "decoder":
            raise BackboneError(
                f"TwinBERT has towers of a BERT type, but {self.settings.backbone} is a decoder: choose an encoder "
                f"such as sbert-minilm or bge-small, or take LLMRec, which reads decoders"
            )

    def tower_of_items(self) -> TextTower:
        """Return the tower that encodes items: that of the histories where they share their weights."""
        return getattr(self, "item_tower", self.tower)

    def item_vectors(self, passes: list[PackedTexts]) -> Tensor:
        """Return the vectors of items given as texts: [items, size], float32."""
        return self.tower_of_items().encode(passes)
