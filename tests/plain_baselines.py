"""The layers of RecBole's baselines in plain numpy, one history at a time and without padding.

Weights are a model's own, in float64; nothing of its code is called.
"""

import numpy as np
import torch

from recbole_llm.config.config import Config
from recbole_llm.quick_start.run import build


def weights_of(model):
    return {name: tensor.detach().double().numpy() for name, tensor in model.state_dict().items()}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def recurrent(w, inputs, prefix, layers, bias):
    """The hidden states [items, size] of gated recurrent units (torch's order of gates: reset, update, new)."""
    for layer in range(layers):
        wi, wh = w[f"{prefix}.weight_ih_l{layer}"], w[f"{prefix}.weight_hh_l{layer}"]
        bi, bh = (w[f"{prefix}.bias_{k}_l{layer}"] if bias else np.zeros(len(wi)) for k in ("ih", "hh"))
        h, states = np.zeros(wh.shape[1]), []
        for x in inputs:
            (ri, zi, ni), (rh, zh, nh) = np.split(wi @ x + bi, 3), np.split(wh @ h + bh, 3)
            z = sigmoid(zi + zh)
            h = (1 - z) * np.tanh(ni + sigmoid(ri + rh) * nh) + z * h
            states.append(h)
        inputs = np.array(states)
    return inputs


def normed(w, name, x):
    x = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-12)
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu(x):
    return x * torch.special.ndtr(torch.from_numpy(x)).numpy()


def linear(w, name, x):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def transformer(w, x, name="trm_encoder", layers=2, heads=2, causal=True):
    """The last layer's states [items, size] of inputs [items, size]."""
    n, size = x.shape
    for layer in range(layers):
        attention, feed = (f"{name}.layer.{layer}.{part}" for part in ("multi_head_attention", "feed_forward"))
        q, k, v = (linear(w, f"{attention}.{part}", x).reshape(n, heads, -1) for part in ("query", "key", "value"))
        scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(size // heads)
        if causal:
            scores[:, np.triu(np.ones((n, n), dtype=bool), 1)] = -np.inf
        mixed = np.einsum("hij,jhd->ihd", softmax(scores), v).reshape(n, size)
        x = normed(w, f"{attention}.LayerNorm", linear(w, f"{attention}.dense", mixed) + x)
        x = normed(w, f"{feed}.LayerNorm", linear(w, f"{feed}.dense_2", gelu(linear(w, f"{feed}.dense_1", x))) + x)
    return x


def rows_of(interaction):
    """User, history and target of each row."""
    names = ("user_id", "item_id_list", "item_length", "item_id")
    for user, items, length, target in zip(*(interaction[name].numpy() for name in names), strict=True):
        yield user, items[:length], target


def log_loss(scores, target):
    return np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[target]


def rough_parts(settings):
    """The parts of a run whose model has weights far from zero, where all that a fault adds is small."""
    parts = build(Config(config_dict=settings))
    torch.manual_seed(3)
    for parameter in parts.model.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return parts
