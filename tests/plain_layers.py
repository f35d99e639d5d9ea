"""BERT, OPT and Llama types with virtual tokens, written out in numpy and float64: IDLE-Adapter, eq. 8 to 11.

Weights are a transformers model's own; nothing of its code is called.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import erf

Array = np.ndarray


def softmax(scores: Array) -> Array:
    """Over the last axis; -inf takes no share."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


class PlainModel:
    """A model of type bert, opt or llama, one prompt at a time, without packing.

    The queries of a layer come from the prompt's own rows H (eq. 9), keys and values from [D; H] (eq. 10 and 11). No
    row is ever computed for a virtual token.
    """

    def __init__(self, model: Any) -> None:
        self.weights = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
        self.config = model.config
        self.kind = model.config.model_type

    def states(self, token_ids: Sequence[int], virtual: Sequence[Array] | None = None) -> tuple[list[Array], Array]:
        """Return every layer's output and the last hidden state, [tokens, width] each; `virtual`: D of each layer."""
        hidden = self.embedded(np.asarray(token_ids))
        outputs = []
        for number in range(self.config.num_hidden_layers):
            none = np.zeros((0, hidden.shape[1]))
            hidden = self.layer(number, hidden, none if virtual is None else virtual[number])
            outputs.append(hidden)
        if self.kind == "llama":
            hidden = self.norm("norm", hidden)
        if self.kind == "opt" and self.config.do_layer_norm_before:
            hidden = self.norm("decoder.final_layer_norm", hidden)
        if "decoder.project_out.weight" in self.weights:
            hidden = hidden @ self.weights["decoder.project_out.weight"].T
        return outputs, hidden

    def inputs(self, token_ids: Sequence[int]) -> list[Array]:
        """Return every layer's input in a pass without virtual tokens."""
        return [self.embedded(np.asarray(token_ids)), *self.states(token_ids)[0][:-1]]

    def embedded(self, token_ids: Array) -> Array:
        places, weights = np.arange(len(token_ids)), self.weights
        if self.kind == "bert":
            tables = (f"embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type"))
            words, positions, types = (weights[name] for name in tables)
            return self.norm("embeddings.LayerNorm", words[token_ids] + positions[places] + types[0])
        if self.kind == "opt":
            words = weights["decoder.embed_tokens.weight"][token_ids]
            if "decoder.project_in.weight" in weights:
                words = words @ weights["decoder.project_in.weight"].T
            return words + weights["decoder.embed_positions.weight"][places + 2]  # OPT's first two rows are no position
        return weights["embed_tokens.weight"][token_ids]

    def layer(self, number: int, real: Array, virtual: Array) -> Array:
        """Return the layer's output for H [tokens, width], given D [virtual, width]."""
        if self.kind == "bert":
            own = f"encoder.layer.{number}."
            names = [f"{own}attention.self.{part}" for part in ("query", "key", "value")]
            attended = self.attention(names, real, virtual)
            middle = self.norm(
                f"{own}attention.output.LayerNorm", real + self.linear(f"{own}attention.output.dense", attended)
            )
            inner = self.linear(f"{own}intermediate.dense", middle)
            inner = inner * (1 + erf(inner / np.sqrt(2))) / 2
            return self.norm(f"{own}output.LayerNorm", middle + self.linear(f"{own}output.dense", inner))
        if self.kind == "opt":
            own, first = f"decoder.layers.{number}.", self.config.do_layer_norm_before
            before, after = f"{own}self_attn_layer_norm", f"{own}final_layer_norm"
            names = [f"{own}self_attn.{part}_proj" for part in "qkv"]
            read = [self.norm(before, rows) if first else rows for rows in (real, virtual)]
            middle = real + self.linear(f"{own}self_attn.out_proj", self.attention(names, *read))
            middle = middle if first else self.norm(before, middle)
            inner = self.linear(f"{own}fc1", self.norm(after, middle) if first else middle)
            outcome = middle + self.linear(f"{own}fc2", np.maximum(inner, 0))
            return outcome if first else self.norm(after, outcome)
        own = f"layers.{number}."
        names = [f"{own}self_attn.{part}_proj" for part in "qkv"]
        read = [self.norm(f"{own}input_layernorm", rows) for rows in (real, virtual)]
        middle = real + self.linear(f"{own}self_attn.o_proj", self.attention(names, *read))
        normal = self.norm(f"{own}post_attention_layernorm", middle)
        gate = self.linear(f"{own}mlp.gate_proj", normal)
        gated = gate / (1 + np.exp(-gate)) * self.linear(f"{own}mlp.up_proj", normal)
        return middle + self.linear(f"{own}mlp.down_proj", gated)

    def attention(self, names: list[str], real: Array, virtual: Array) -> Array:
        """Eq. 8 to 11, head by head, on rows that are normalised already."""
        count, before = len(real), len(virtual)
        both = np.concatenate([virtual, real])
        queries, keys, values = (self.linear(name, rows) for name, rows in zip(names, (real, both, both), strict=True))
        heads = self.config.num_attention_heads
        size = queries.shape[1] // heads
        shared = heads // (keys.shape[1] // size)  # query heads that have one key head
        sees = np.ones((count, before + count), dtype=bool)
        if self.kind != "bert":
            sees[:, before:] = np.tril(np.ones((count, count), dtype=bool))
        attended = []
        for head in range(heads):
            q = queries[:, head * size : (head + 1) * size]
            k, v = (rows[:, head // shared * size : (head // shared + 1) * size] for rows in (keys, values))
            if self.kind == "llama":
                q = self.rotated(q, np.arange(count))
                k = self.rotated(k, np.arange(-before, count))
            attended.append(softmax(np.where(sees, q @ k.T / np.sqrt(size), -np.inf)) @ v)
        return np.concatenate(attended, axis=1)

    def rotated(self, rows: Array, positions: Array) -> Array:
        """Rotate every pair (i, i + size / 2) of each row by its position times the pair's frequency."""
        half = rows.shape[1] // 2
        angles = positions[:, None] * self.config.rope_parameters["rope_theta"] ** (-np.arange(half) / half)
        first, second = rows[:, :half], rows[:, half:]
        return np.concatenate(
            [first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)], axis=1
        )

    def norm(self, name: str, rows: Array) -> Array:
        weight = self.weights[f"{name}.weight"]
        if self.kind == "llama":
            return weight * rows / np.sqrt((rows**2).mean(axis=1, keepdims=True) + self.config.rms_norm_eps)
        epsilon = self.config.layer_norm_eps if self.kind == "bert" else 1e-5
        centred = rows - rows.mean(axis=1, keepdims=True)
        scale = np.sqrt((centred**2).mean(axis=1, keepdims=True) + epsilon)
        return weight * centred / scale + self.weights[f"{name}.bias"]

    def linear(self, name: str, rows: Array) -> Array:
        product = rows @ self.weights[f"{name}.weight"].T
        return product + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else product
