"""RecBole's SASRec with the transformer of the authors (`sasrec_layers: authors`)."""

from typing import Any

from recbole.model.sequential_recommender.sasrec import SASRec
from torch import Tensor

from recbole_llm.errors import SettingError
from recbole_llm.model.layers.authors_transformer import AuthorsLayer, AuthorsTransformer


class AuthorsSASRec(SASRec):
    """Table, losses and predictions are RecBole's; positions, layers and normalisations `AuthorsTransformer`'s.

    Args:
        config: the settings of the run.
        dataset: the training part of its data.

    Raises:
        SettingError: if the heads do not divide the size.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        if config["hidden_size"] % config["n_heads"]:
            raise SettingError(f"n_heads={config['n_heads']} must divide hidden_size={config['hidden_size']}")
        super().__init__(config, dataset)
        layers = [
            AuthorsLayer(
                self.hidden_size, self.n_heads, self.inner_size, self.hidden_dropout_prob, self.attn_dropout_prob,
                self.hidden_act, self.layer_norm_eps,
            )
            for _ in range(self.n_layers)
        ]  # fmt: skip
        self.trm_encoder = AuthorsTransformer(
            self.max_seq_length, layers, self.initializer_range, self.hidden_dropout_prob
        )
        # Its own are in the transformer.
        del self.position_embedding, self.LayerNorm, self.dropout

    def forward(self, item_seq: Tensor, item_seq_len: Tensor) -> Tensor:
        """Return the user vectors [batch, size] after the last item of histories.

        Args:
            item_seq: int64 [batch, length], the oldest item first, zeros after the last.
            item_seq_len: int64 [batch].
        """
        states = self.trm_encoder(self.item_embedding(item_seq))
        last: Tensor = self.gather_indexes(states, item_seq_len - 1)
        return last


# Whoever asks which model this is gets the answer that holds for its table, its losses and its user vectors.
AuthorsSASRec.__name__ = SASRec.__name__
AuthorsSASRec.__qualname__ = SASRec.__qualname__
AuthorsSASRec.__module__ = SASRec.__module__
