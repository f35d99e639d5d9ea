"""Padded batches for a language model whose attention has no packed form: Longformer.

Beltagy et al. 2020, "Longformer: The Long-Document Transformer". transformers' LongformerModel computes its windows of
attention itself, and takes no other attention. So the sequences of a packed batch are padded to a multiple of the
window, those of the same padded length are read as one batch, and what comes back is laid end to end again.

The first token of every sequence has global attention, as in Recformer: it sees all tokens and all see it, by
projections of its own. The others see half a window to either side.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from recbole_llm.errors import BackboneError, SettingError
from recbole_llm.packing.batch import PackedBatch

_PADDED_TYPES = ("longformer",)


def reads_padded(config: PretrainedConfig) -> bool:
    """Tell whether a model of this configuration reads padded batches, since its attention has no packed form."""
    return config.model_type in _PADDED_TYPES


def padded_multiple(config: PretrainedConfig) -> int:
    """Return the number of tokens that the length of a sequence is padded to a multiple of; 1 without padding."""
    return math.lcm(*attention_windows(config)) if reads_padded(config) else 1


def attention_windows(config: PretrainedConfig) -> list[int]:
    """Return the windows of a Longformer's attention, in tokens: one for all layers, or one per layer."""
    windows = config.attention_window
    return [windows] if isinstance(windows, int) else list(windows)


def set_attention_window(config: PretrainedConfig, window: int, backbone: str) -> None:
    """Give all layers of a Longformer the same window, before the model is built. No weight depends on it.

    Args:
        config: of the model, changed in place.
        window: tokens, an even number.
        backbone: its name, for the message.

    Raises:
        SettingError: if it is no Longformer.
    """
    if not reads_padded(config):
        raise SettingError(
            f"attention_window={window} is of a Longformer, but {backbone} is of type '{config.model_type}', which "
            f"attends to a whole text: leave it out"
        )
    config.attention_window = [window] * config.num_hidden_layers


def require_packed(config: PretrainedConfig, backbone: str, model: str) -> None:
    """Refuse a Longformer for a model that reaches into the layers of packed batches. Raises BackboneError."""
    if reads_padded(config):
        raise BackboneError(
            f"{backbone} is a Longformer, whose attention has no packed form, so {model} cannot reach into its layers: "
            f"choose an encoder of a BERT or RoBERTa type, such as sbert-minilm, or a decoder"
        )


def padded_lengths(lengths: np.ndarray, multiple: int) -> np.ndarray:
    """Return lengths rounded up to a multiple."""
    return -(-lengths // multiple) * multiple


def padded_hidden_states(model: nn.Module, batch: PackedBatch, inputs_embeds: Tensor | None = None) -> Tensor:
    """Return the last-layer hidden states [tokens, width] of a packed batch, computed in padded ones.

    Args:
        model: transformers' LongformerModel. It adds its positions and the first row of its token types itself.
        batch: the tokens; `positions` begin behind the row of the padding token, see `loading.first_position`.
        inputs_embeds: [tokens, width], in place of the tokens' word embeddings.
    """
    lengths = np.asarray(batch.bounds.lengths)
    begins = np.cumsum(lengths) - lengths
    multiple = padded_multiple(model.config)
    padded = padded_lengths(lengths, multiple)
    states, places = [], []
    for columns in np.unique(padded).tolist():
        rows = np.flatnonzero(padded == columns)
        filled = np.arange(columns) < lengths[rows, None]
        inside = (begins[rows, None] + np.arange(columns))[filled]
        states.append(_read(model, batch, inputs_embeds, inside, filled))
        places.append(inside)
    if len(states) == 1:  # in order already
        return states[0]
    order = np.argsort(np.concatenate(places))
    return torch.cat(states).index_select(0, torch.from_numpy(order).to(batch.token_ids.device))


def _read(
    model: Any, batch: PackedBatch, inputs_embeds: Tensor | None, inside: np.ndarray, filled: np.ndarray
) -> Tensor:
    """Return the states [tokens of some sequences, width].

    Args:
        model: as of `padded_hidden_states`, like the next two.
        batch: the tokens.
        inputs_embeds: their embeddings, or None.
        inside: int64, where the tokens of the sequences are in the packed row.
        filled: bool [sequences, columns], where they are in the padded batch.
    """
    device = batch.token_ids.device
    index = torch.from_numpy(inside).to(device)
    places = torch.from_numpy(np.flatnonzero(filled)).to(device)

    def laid(values: Tensor, padding: int) -> Tensor:
        """Return [sequences, columns, ...] of [tokens of the pass, ...]."""
        empty = values.new_full((filled.size, *values.shape[1:]), padding)
        return empty.index_copy(0, places, values.index_select(0, index)).view(*filled.shape, *values.shape[1:])

    padding = int(model.config.pad_token_id)
    attended = torch.from_numpy(filled.astype(np.int64)).to(device)
    everywhere = torch.zeros_like(attended)
    everywhere[:, 0] = 1
    if inputs_embeds is None:
        tokens = {"input_ids": laid(batch.token_ids, padding)}
    else:
        tokens = {"inputs_embeds": laid(inputs_embeds, 0)}
    output = model(
        **tokens,
        position_ids=laid(batch.positions, padding),
        attention_mask=attended,
        global_attention_mask=everywhere,
    )
    return output.last_hidden_state.flatten(0, 1).index_select(0, places)
