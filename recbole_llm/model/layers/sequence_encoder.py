"""Sequence encoders over given item vectors: from [batch, items, size] to a state per position, each seeing the past.

`TransformerSequence` is what RecBole's SASRec does with its item embeddings, `RecurrentSequence` what its GRU4Rec does:
with the same weights and vectors they give the same states.
"""

from dataclasses import dataclass
from typing import Any

import torch
from recbole.model.layers import TransformerEncoder
from torch import Tensor, nn

from recbole_llm.errors import SettingError
from recbole_llm.trainer.device_steps import attention_mask


class SequenceEncoder(nn.Module):
    """A causal encoder: the state at a position depends on the vectors up to it."""

    def states(self, vectors: Tensor, present: Tensor) -> Tensor:
        """Return the state at every position.

        Args:
            vectors: float32 [batch, items, size], the oldest first, padding on the right.
            present: int64 or bool [batch, items], not 0 where an item is.

        Returns:
            [batch, items, size]; what stands at padding means nothing.
        """
        raise NotImplementedError

    def forward(self, vectors: Tensor, present: Tensor, lengths: Tensor) -> Tensor:
        """Return the state at each row's last item: [batch, size]; `lengths` is int64 [batch], at least 1."""
        states = self.states(vectors, present)
        last = (lengths - 1)[:, None, None].expand(-1, 1, states.shape[2])
        return states.gather(1, last)[:, 0]


@dataclass(frozen=True)
class EncoderSettings:
    """The settings of an encoder, with the names that RecBole's SASRec has.

    Attributes:
        hidden_size: of the vectors and the states.
        inner_size: of the feed-forward layers; of a GRU's state.
        n_layers: of the transformer or the GRU.
        n_heads: of the attention.
        hidden_dropout_prob: dropout of inputs and hidden states.
        attn_dropout_prob: dropout of the attention's weights.
        hidden_act: the function between the feed-forward layers.
        layer_norm_eps: added to the denominator of a normalisation.
        initializer_range: standard deviation of a transformer's initial weights.
    """

    hidden_size: int
    inner_size: int
    n_layers: int
    n_heads: int
    hidden_dropout_prob: float
    attn_dropout_prob: float
    hidden_act: str
    layer_norm_eps: float
    initializer_range: float

    @classmethod
    def from_config(cls, config: Any) -> "EncoderSettings":
        """Read the settings of a run."""
        return cls(**{name: config[name] for name in cls.__dataclass_fields__})


class TransformerSequence(SequenceEncoder):
    """Learned positions, layer normalisation, dropout and RecBole's transformer: SASRec without its item table.

    Args:
        settings: sizes and dropout.
        longest: maximum number of items of a history.
    """

    def __init__(self, settings: EncoderSettings, longest: int) -> None:
        super().__init__()
        size = settings.hidden_size
        self.position_embedding = nn.Embedding(longest, size)
        self.norm = nn.LayerNorm(size, eps=settings.layer_norm_eps)
        self.dropout = nn.Dropout(settings.hidden_dropout_prob)
        self.transformer = TransformerEncoder(
            n_layers=settings.n_layers,
            n_heads=settings.n_heads,
            hidden_size=size,
            inner_size=settings.inner_size,
            hidden_dropout_prob=settings.hidden_dropout_prob,
            attn_dropout_prob=settings.attn_dropout_prob,
            hidden_act=settings.hidden_act,
            layer_norm_eps=settings.layer_norm_eps,
        )
        self._deviation = settings.initializer_range
        self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self._deviation)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    def states(self, vectors: Tensor, present: Tensor) -> Tensor:
        """Return the state at every position, see `SequenceEncoder`."""
        positions = self.position_embedding(torch.arange(vectors.shape[1], device=vectors.device))
        inputs = self.dropout(self.norm(vectors + positions))
        outputs: list[Tensor] = self.transformer(inputs, attention_mask(present), output_all_encoded_layers=False)
        return outputs[-1]


class RecurrentSequence(SequenceEncoder):
    """Dropout, a GRU without biases and a linear layer back to the vectors' size: GRU4Rec without its item table.

    Args:
        settings: `hidden_size` is that of the vectors, `inner_size` that of the GRU's state; `n_layers` and
            `hidden_dropout_prob` are its own.
    """

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        self.dropout = nn.Dropout(settings.hidden_dropout_prob)
        self.gru = nn.GRU(settings.hidden_size, settings.inner_size, settings.n_layers, bias=False, batch_first=True)
        for name, weight in self.gru.named_parameters():
            if name.startswith("weight"):
                nn.init.xavier_uniform_(weight)
        self.dense = nn.Linear(settings.inner_size, settings.hidden_size)

    def states(self, vectors: Tensor, present: Tensor) -> Tensor:
        """Return the state at every position, see `SequenceEncoder`; padding comes after all items and is not seen."""
        states, _ = self.gru(self.dropout(vectors))
        return self.dense(states)


def sequence_encoder(kind: str, settings: EncoderSettings, longest: int) -> SequenceEncoder:
    """Return a new encoder.

    Args:
        kind: sasrec or gru.
        settings: its sizes.
        longest: maximum number of items of a history.

    Raises:
        SettingError: if the heads do not divide the size.
    """
    if kind == "gru":
        return RecurrentSequence(settings)
    if settings.hidden_size % settings.n_heads:
        raise SettingError(f"n_heads={settings.n_heads} must divide hidden_size={settings.hidden_size}")
    return TransformerSequence(settings, longest)


def without_some_items(histories: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Return histories without the items that are not `kept`, moved together, and their lengths.

    Args:
        histories: int64 [batch, items], padding on the right.
        kept: bool [batch, items].

    Returns:
        int64 [batch, items], padded with 0 on the right, and int64 [batch].
    """
    kept = kept & (histories != 0)
    order = torch.argsort((~kept).to(torch.int8), dim=1, stable=True)
    return (histories * kept).gather(1, order), kept.sum(dim=1)
