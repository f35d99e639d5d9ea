"""MLP4Rec: A Pure MLP Architecture for Sequential Recommendations (Li et al., IJCAI 2022).

The embeddings of a history are mixed along three axes in turn, by one perceptron with a hidden layer each: along the
sequence, along the channels, and, where items have attributes, across the item's own embedding and its attributes'.
The state of the most recent item is the user vector.
"""

from dataclasses import dataclass
from typing import Any

import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.model.layers import FeatureSeqEmbLayer
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_llm.model.layers.next_item_loss import NextItemLoss


@dataclass(frozen=True)
class MLP4RecSettings:
    """The settings of MLP4Rec, checked; properties/model/MLP4Rec.yaml describes each."""

    n_layers: int
    share_layers: bool
    hidden_size: int
    expansion: int
    hidden_dropout_prob: float
    layer_norm_eps: float
    initializer_range: float
    selected_features: list[str]
    pooling_mode: str
    loss_type: str

    @classmethod
    def from_config(cls, config: Any) -> "MLP4RecSettings":
        """Read the settings of a run."""
        values = {name: config[name] for name in cls.__dataclass_fields__}
        return cls(**{**values, "selected_features": list(config["selected_features"] or ())})


class MLP4Rec(SequentialRecommender):
    """MLP4Rec as a RecBole sequential model.

    A perceptron over the sequence has weights that belong to positions, so histories are laid against the *end*: the
    last position is always the most recent item, the one before it the item before, and so on. (RecBole's rows begin at
    the first position, where the most recent item of a history of n is at position n, a different one in each row.)
    Positions before the first item are zero vectors.

    Args:
        config: the settings of the run.
        dataset: the training part of RecBole's `SequentialDataset`.

    Raises:
        SettingError: for an item column that is not loaded.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.settings = settings = MLP4RecSettings.from_config(config)
        self.item_embedding = nn.Embedding(self.n_items, settings.hidden_size, padding_idx=0)
        self.attribute_embedding: FeatureSeqEmbLayer | None = None
        attributes = 0
        if settings.selected_features:
            self.attribute_embedding = FeatureSeqEmbLayer(
                dataset, settings.hidden_size, settings.selected_features, settings.pooling_mode, self.device
            )
            attributes = self.attribute_embedding.num_feature_field["item"]
        self.input_dropout = nn.Dropout(settings.hidden_dropout_prob)
        self.layers = nn.ModuleList(
            MixerLayer(self.max_seq_length, attributes + 1, settings)
            for _ in range(1 if settings.share_layers else settings.n_layers)
        )
        self.last_norm = nn.LayerNorm(settings.hidden_size, eps=settings.layer_norm_eps)
        self.loss = NextItemLoss(settings.loss_type)
        self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.settings.initializer_range)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    def forward(self, item_seq: Tensor, item_seq_len: Tensor) -> Tensor:
        """Return the user vectors [batch, size] of histories [batch, width] whose first `item_seq_len` items count."""
        place = torch.arange(self.max_seq_length, device=item_seq.device)
        source = item_seq_len[:, None] - self.max_seq_length + place
        real = source >= 0
        items = item_seq.gather(1, source.clamp(min=0)) * real
        states = self.input_dropout(self._embed(items)) * real[:, None, :, None]
        for number in range(self.settings.n_layers):
            states = self.layers[number % len(self.layers)](states)
        return self.last_norm(states[:, 0, -1])

    def _embed(self, items: Tensor) -> Tensor:
        """Return [batch, 1 + attributes, length, size]: the item's own embeddings, then its attributes'."""
        own = self.item_embedding(items)[:, None]
        if self.attribute_embedding is None:
            return own
        sparse, dense = self.attribute_embedding(None, items)
        found = [part["item"].transpose(1, 2) for part in (sparse, dense) if part["item"] is not None]
        return torch.cat([own, *found], dim=1)

    def user_vectors(self, interaction: Interaction) -> Tensor:
        """Return the user vectors [batch, 1, size] of RecBole's rows."""
        return self(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])[:, None]

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """Return the mean loss of the next items."""
        users = self.user_vectors(interaction)[:, 0]
        negatives = interaction[self.NEG_ITEM_ID] if self.settings.loss_type == "BPR" else None
        return self.loss(users, self.item_embedding.weight, interaction[self.POS_ITEM_ID], negatives)

    def predict(self, interaction: Interaction) -> Tensor:
        """Return the scores [batch] of the rows' items."""
        return (self.user_vectors(interaction)[:, 0] * self.item_embedding(interaction[self.ITEM_ID])).sum(dim=1)

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Return the scores [batch, items] of all items."""
        return self.user_vectors(interaction)[:, 0] @ self.item_embedding.weight.T


class MixerLayer(nn.Module):
    """The sequence mixer, the channel mixer and, for more than one field, the feature mixer.

    All fields (the item itself and its attributes) go through the same sequence and channel mixer, as in the authors'
    code.

    Args:
        length: positions of the sequence.
        fields: 1 + attributes; with 1 there is nothing to mix, and no feature mixer.
        settings: sizes and rates.
    """

    def __init__(self, length: int, fields: int, settings: MLP4RecSettings) -> None:
        super().__init__()
        self.sequence = Mixer(length, -2, settings)
        self.channel = Mixer(settings.hidden_size, -1, settings)
        self.feature = Mixer(fields, -3, settings) if fields > 1 else nn.Identity()

    def forward(self, states: Tensor) -> Tensor:
        """Return the mixed states [batch, fields, length, size]."""
        return self.feature(self.channel(self.sequence(states)))


class Mixer(nn.Module):
    """x + W_2 gelu(W_1 LayerNorm(x)) along one axis; the norm is over the channels, whichever axis is mixed.

    Args:
        width: of the axis.
        axis: which one of [batch, fields, length, size], counted from the end.
        settings: sizes and rates.
    """

    def __init__(self, width: int, axis: int, settings: MLP4RecSettings) -> None:
        super().__init__()
        self.axis = axis
        self.norm = nn.LayerNorm(settings.hidden_size, eps=settings.layer_norm_eps)
        self.w1 = nn.Linear(width, settings.expansion * width)
        self.w2 = nn.Linear(settings.expansion * width, width)
        self.dropout = nn.Dropout(settings.hidden_dropout_prob)

    def forward(self, states: Tensor) -> Tensor:
        """Return the mixed states, of the shape they came in."""
        inner = self.norm(states).transpose(self.axis, -1)
        mixed = self.dropout(self.w2(self.dropout(F.gelu(self.w1(inner)))))
        return states + mixed.transpose(self.axis, -1)
