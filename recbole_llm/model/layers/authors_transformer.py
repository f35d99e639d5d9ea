"""The transformer of SASRec's authors (Kang & McAuley, ICDM 2018, and their code), which RecBole does not have.

RecBole has BERT's layers, normalised after each residual. Here the input of a layer is normalised, for the queries
alone, and the residual starts from what is normalised. With x [length, size] the input of a layer and LN a layer
normalisation of its own:

    q = LN(x)
    a = q + softmax(q W_q (x W_k)^T / sqrt(size / heads)) x W_v W_o      (per head; later positions are not seen)
    f = LN(a)
    y = f + W_2 act(W_1 f)

with biases everywhere, and dropout of the attention's weights, after act and after W_2.
"""

import torch
from recbole.model.layers import FeedForward
from torch import Tensor, nn


class AuthorsLayer(nn.Module):
    """One layer.

    Args:
        size: of the states.
        heads: of the attention; they divide `size`.
        inner_size: between the feed-forward layers; the authors have `size`.
        hidden_dropout: of the feed-forward layers.
        attention_dropout: of the attention's weights.
        act: the name of the function between the feed-forward layers, as in RecBole; the authors have relu.
        eps: added to the variance in a normalisation.
    """

    def __init__(
        self, size: int, heads: int, inner_size: int, hidden_dropout: float, attention_dropout: float, act: str,
        eps: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.heads = heads
        self.query_norm, self.hidden_norm = nn.LayerNorm(size, eps=eps), nn.LayerNorm(size, eps=eps)
        self.query, self.key_value, self.out = nn.Linear(size, size), nn.Linear(size, 2 * size), nn.Linear(size, size)
        self.inner, self.outer = nn.Linear(size, inner_size), nn.Linear(inner_size, size)
        self.attention_dropout, self.dropout = nn.Dropout(attention_dropout), nn.Dropout(hidden_dropout)
        self.act = FeedForward(1, 1, 0.0, act, eps).intermediate_act_fn

    def initialise(self, deviation: float) -> None:
        """Draw all weights from a normal distribution but those of queries, keys and values.

        Those are uniform as torch.nn.MultiheadAttention draws them, which public implementations use: twice as large
        as with a deviation of 0.02 at size 256, four times at 64.

        Args:
            deviation: standard deviation.
        """
        for layer in (self.out, self.inner, self.outer):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)
        together = torch.empty(3 * len(self.query.weight), self.query.in_features)
        nn.init.xavier_uniform_(together)
        with torch.no_grad():
            self.query.weight.copy_(together[: len(self.query.weight)])
            self.key_value.weight.copy_(together[len(self.query.weight) :])
        nn.init.zeros_(self.query.bias)
        nn.init.zeros_(self.key_value.bias)

    def forward(self, states: Tensor, later: Tensor) -> Tensor:
        """Return the states [batch, length, size] after the layer.

        Args:
            states: [batch, length, size].
            later: bool [length, length], whether the position of a column comes after that of a row.
        """
        queries = self.query_norm(states)
        attended = self.hidden_norm(queries + self.out(self._attend(queries, states, later)))
        inner: Tensor = self.act(self.inner(attended))
        return attended + self.dropout(self.outer(self.dropout(inner)))

    def _attend(self, queries: Tensor, states: Tensor, later: Tensor) -> Tensor:
        def by_head(values: Tensor) -> Tensor:
            return values.unflatten(2, (self.heads, -1)).transpose(1, 2)

        keys, values = (by_head(part) for part in self.key_value(states).chunk(2, dim=2))
        query = by_head(self.query(queries))
        scores = (query @ keys.transpose(2, 3)) / query.shape[3] ** 0.5
        weights = self.attention_dropout(scores.masked_fill(later, float("-inf")).softmax(dim=3))
        return (weights @ values).transpose(1, 2).flatten(2)


class AuthorsTransformer(nn.Module):
    """Item vectors times the square root of their size, learned positions, dropout, layers and a last normalisation.

    With item vectors as small as they start (a deviation of 0.02) and positions as large as they, RecBole's sum is half
    position; here it is one part in the square root of the size.

    Args:
        longest: maximum number of items of a history.
        layers: one or more.
        initial_deviation: see `AuthorsLayer.initialise`.
        dropout: of the sum of items and positions.
    """

    def __init__(self, longest: int, layers: list[AuthorsLayer], initial_deviation: float, dropout: float) -> None:
        super().__init__()
        size, eps = layers[0].query.in_features, layers[0].query_norm.eps
        self.position_embedding = nn.Embedding(longest, size)
        nn.init.normal_(self.position_embedding.weight, std=initial_deviation)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(size, eps=eps)
        for layer in layers:
            layer.initialise(initial_deviation)

    def forward(self, vectors: Tensor) -> Tensor:
        """Return the state [batch, length, size] at every position; it depends on the vectors up to there alone.

        Args:
            vectors: of items, [batch, length, size], the oldest first, padding after the last.
        """
        length, size = vectors.shape[1:]
        positions = self.position_embedding(torch.arange(length, device=vectors.device))
        states = self.dropout(vectors * size**0.5 + positions)
        later = torch.ones(length, length, dtype=torch.bool, device=vectors.device).triu(1)
        for layer in self.layers:
            states = layer(states, later)
        normalised: Tensor = self.norm(states)
        return normalised
