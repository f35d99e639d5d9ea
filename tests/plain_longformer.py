"""A Longformer written out in numpy and float64, one sequence at a time, token by token: no chunks and no padding.

Weights are a transformers model's own; nothing of its code is called.
"""

from typing import Any

import numpy as np
from plain_layers import Array, softmax
from scipy.special import erf


class PlainLongformer:
    """Layers in which the first token sees all and is seen by all, the others see half a window to either side."""

    def __init__(self, model: Any) -> None:
        self.weights = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
        self.config = model.config

    def states(self, words: Array, windows: list[int]) -> Array:
        """Return the last states [tokens, width] of word embeddings, to which positions and the type are added."""
        positions = self.weights["embeddings.position_embeddings.weight"][self.config.pad_token_id + 1 :]
        kind = self.weights["embeddings.token_type_embeddings.weight"][0]
        hidden = self.norm("embeddings.LayerNorm", np.asarray(words) + positions[: len(words)] + kind)
        for number, window in enumerate(windows):
            layer = f"encoder.layer.{number}"
            mixed = self.attention(f"{layer}.attention.self", hidden, window)
            mixed = self.linear(f"{layer}.attention.output.dense", mixed)
            hidden = self.norm(f"{layer}.attention.output.LayerNorm", hidden + mixed)
            inner = self.linear(f"{layer}.intermediate.dense", hidden)
            inner = inner * (1 + erf(inner / np.sqrt(2))) / 2  # GELU
            hidden = self.norm(f"{layer}.output.LayerNorm", hidden + self.linear(f"{layer}.output.dense", inner))
        return hidden

    def attention(self, name: str, hidden: Array, window: int) -> Array:
        """Return [tokens, width]."""
        tokens, width = hidden.shape
        heads = self.config.num_attention_heads
        sizes = (tokens, heads, width // heads)
        queries, keys, values = (
            self.linear(f"{name}.{part}", hidden).reshape(sizes) for part in ("query", "key", "value")
        )
        output = np.empty(sizes)
        for place in range(1, tokens):
            near = range(max(1, place - window // 2), min(tokens, place + window // 2 + 1))
            output[place] = _attended(queries[place], keys[[0, *near]], values[[0, *near]])
        queries, keys, values = (
            self.linear(f"{name}.{part}_global", hidden).reshape(sizes) for part in ("query", "key", "value")
        )
        output[0] = _attended(queries[0], keys, values)
        return output.reshape(tokens, width)

    def linear(self, name: str, hidden: Array) -> Array:
        return hidden @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, name: str, hidden: Array) -> Array:
        centred = hidden - hidden.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + self.config.layer_norm_eps)
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]


def _attended(query: Array, keys: Array, values: Array) -> Array:
    """Return [heads, size] of one query [heads, size] and the tokens that it sees [tokens, heads, size]."""
    scores = np.einsum("hs,ths->ht", query, keys) / np.sqrt(query.shape[-1])
    return np.einsum("ht,ths->hs", softmax(scores), values)
