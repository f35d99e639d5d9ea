"""UniSRec: Towards Universal Sequence Representation Learning for Recommender Systems (Hou et al., KDD 2022).

Frozen text vectors pass a mixture of whitening experts and go through SASRec's transformer; an item's score is the
cosine of its vector and the last state, divided by a temperature. With `item_ids` every item has a learned vector
beside (the paper's transductive setting). A pre-training on other datasets contrasts a history's state with its next
item, and with the state of an augmented history, within a batch of all datasets.
"""

from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from recbole.data.interaction import Interaction
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_llm.errors import DataError
from recbole_llm.model.layers.contrastive_loss import in_batch_loss
from recbole_llm.model.layers.sequence_encoder import (
    EncoderSettings,
    TransformerSequence,
    sequence_encoder,
    without_some_items,
)
from recbole_llm.model.needs import PretrainedState
from recbole_llm.model.pretrained_state import PretrainedWeights
from recbole_llm.model.sequential_recommender.unisrec.adaptor import WhiteningAdaptor
from recbole_llm.model.vector_recommender import VectorRecommender

_IDS = "item_embedding.weight"


@dataclass(frozen=True)
class UniSRecSettings:
    """The settings of UniSRec, checked; properties/model/UniSRec.yaml describes each."""

    item_ids: bool
    num_experts: int
    adaptor_dropout: float
    temperature: float
    tuned_parts: str | None
    contrast_weight: float
    item_drop_batches: float
    item_drop: float
    word_drop: float

    @classmethod
    def from_config(cls, config: Any) -> "UniSRecSettings":
        """Read the settings of a run."""
        return cls(**{name: config[name] for name in cls.__dataclass_fields__})


class UniSRec(VectorRecommender):
    """UniSRec as a RecBole sequential model.

    Args:
        config: the settings of the run.
        dataset: the training part of RecBole's `SequentialDataset`.
        start: pre-trained weights to start from; None for fresh ones.

    Raises:
        CheckpointError: if `start` was trained on other vectors or at another size.
        DataError: if an item has no text, or all have the same.
        SettingError: if the heads do not divide the size.
    """

    stages = (PretrainedState(),)

    def __init__(self, config: Any, dataset: Any, start: PretrainedWeights | None = None) -> None:
        settings = UniSRecSettings.from_config(config)
        encoder = EncoderSettings.from_config(config)
        super().__init__(config, dataset, settings.temperature)
        self.settings = settings
        self.adaptor = WhiteningAdaptor(
            self.text_vectors.shape[1],
            encoder.hidden_size,
            settings.num_experts,
            settings.adaptor_dropout,
            encoder.initializer_range,
        )
        self.encoder = sequence_encoder("sasrec", encoder, self.max_seq_length)
        self.item_embedding: nn.Embedding | None = None
        if settings.item_ids:
            self.item_embedding = nn.Embedding(self.n_items, encoder.hidden_size, padding_idx=0)
            nn.init.normal_(self.item_embedding.weight, std=encoder.initializer_range)
        self.reads_text_only = self.item_embedding is None
        self.pretraining = None if start is None else start.give(self, self.item_texts.origin())
        if (settings.tuned_parts or ("all" if start is None else "adaptor")) == "adaptor":
            self._freeze_encoder()
        self._seed = int(config["seed"])
        self._shortened: Tensor | None = None  # vectors of texts that lack some words, in a pre-training

    def _freeze_encoder(self) -> None:
        """Freeze positions and transformer; the normalisation before it is tuned, as in the authors' code."""
        assert isinstance(self.encoder, TransformerSequence)
        self.encoder.position_embedding.requires_grad_(False)
        self.encoder.transformer.requires_grad_(False)

    def item_table(self) -> Tensor:
        """Return the adaptor's vectors of all items, with their learned ones if `item_ids`: [items, size]."""
        table = self.adaptor(self.text_vectors)
        return table if self.item_embedding is None else table + self.item_embedding.weight

    # -- pre-training --------------------------------------------------------------------------------------------------

    def before_pretraining(self, dataset: Any) -> None:
        """Compute the vectors of all items with some words left out, once, as the authors' code does.

        Raises:
            DataError: if all rows have the same next item: every negative would be the target.
        """
        targets = dataset.inter_feat[dataset.iid_field]
        if bool((targets == targets[0]).all()):
            raise DataError(
                f"every training row of {dataset.dataset_name} has the same next item, so a batch has no negatives: "
                f"pre-train on data with more items"
            )
        found = self.item_texts.of_shortened_items(dataset, self.settings.word_drop, self._seed)
        self._shortened = found.to(self.text_vectors)

    def pretraining_loss(self, interaction: Interaction) -> Tensor:
        """Return L_si + contrast_weight L_ss of a batch (eq. 6 to 8), a scalar.

        Both are contrasts within the batch, see `in_batch_loss`: of a history's state with its next item, and with the
        state of the same history after an augmentation that is drawn for the batch: some items left out, or some items
        read with some of their words left out.
        """
        histories, lengths = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        targets = interaction[self.POS_ITEM_ID]
        # The items of the batch alone: the sources together have many more.
        ids, places = torch.unique(torch.cat([histories.flatten(), targets]), return_inverse=True)
        table = self._vectors_of(ids)
        rows = places[: histories.numel()].view_as(histories)
        users = self.encoder(F.embedding(rows, table), histories, lengths)
        items = F.embedding(places[histories.numel() :], table)
        loss = in_batch_loss(users, items, targets, self.settings.temperature)
        if not self.settings.contrast_weight:
            return loss
        again = self._augmented_users(histories, lengths, F.embedding(rows, table))
        return loss + self.settings.contrast_weight * in_batch_loss(users, again, targets, self.settings.temperature)

    def _vectors_of(self, ids: Tensor) -> Tensor:
        vectors = self.adaptor(self.text_vectors[ids])
        return vectors if self.item_embedding is None else vectors + self.item_embedding(ids)

    def _augmented_users(self, histories: Tensor, lengths: Tensor, vectors: Tensor) -> Tensor:
        if float(torch.rand(())) < self.settings.item_drop_batches:
            kept = torch.rand(histories.shape, device=histories.device) >= self.settings.item_drop
            kept[:, 0] = True
            numbered = torch.arange(1, histories.shape[1] + 1, device=histories.device).expand_as(histories)
            places, lengths = without_some_items(numbered * (histories != 0), kept)
            moved = vectors.gather(1, (places - 1).clamp(min=0)[:, :, None].expand_as(vectors))
            return self.encoder(moved, places, lengths)
        assert self._shortened is not None, "before_pretraining makes them"
        replaced = torch.rand(histories.shape, device=histories.device) < self.settings.word_drop
        other = self.adaptor(self._shortened[histories[replaced]])
        if self.item_embedding is not None:
            other = other + self.item_embedding(histories[replaced])
        return self.encoder(vectors.masked_scatter(replaced[:, :, None], other), histories, lengths)

    # -- what serves other catalogues ----------------------------------------------------------------------------------

    @torch.no_grad()
    def add_items(self, texts: pd.DataFrame) -> None:
        """Add items that have a text, see `ModelHooks`; with `item_ids` their learned vector is 0."""
        self.append_text_vectors(texts)
        if self.item_embedding is not None:
            weight = self.item_embedding.weight
            new = weight.new_zeros(len(texts), weight.shape[1])
            self.item_embedding.weight = nn.Parameter(torch.cat([weight, new]))

    def transferred_state(self) -> dict[str, Tensor]:
        """Return the weights that serve another catalogue: all but the items' learned vectors."""
        return {name: weight for name, weight in self.stored_state().items() if name != _IDS}

    def extra_results(self) -> dict[str, Any]:
        """Return what `result.json` holds beyond what every model's does: what is known of the pre-training."""
        return {} if self.pretraining is None else {"pretraining": self.pretraining}
