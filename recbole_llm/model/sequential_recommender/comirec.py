"""ComiRec: Controllable Multi-Interest Framework for Recommendation (Cen et al., KDD 2020).

K interest vectors are extracted from a history, by self-attention (ComiRec-SA) or by dynamic routing (ComiRec-DR). An
item's score is its best product with an interest, and training uses that interest of the user's which fits the next
item best. Their aggregation module, which trades accuracy for diversity, ranks what is retrieved and is not part of
the model here.
"""

from dataclasses import dataclass
from typing import Any

import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from torch import Tensor, nn

from recbole_llm.config.hooks import ModelHooks, ScoresOfItems
from recbole_llm.model.layers.next_item_loss import NextItemLoss
from recbole_llm.utils.item_products import ItemProducts


@dataclass(frozen=True)
class ComiRecSettings:
    """The settings of ComiRec, checked; properties/model/ComiRec.yaml describes each."""

    extraction: str
    num_interests: int
    embedding_size: int
    attention_size: int
    routing_iterations: int
    dropout_prob: float
    initializer_range: float
    loss_type: str

    @classmethod
    def from_config(cls, config: Any) -> "ComiRecSettings":
        """Read the settings of a run."""
        return cls(**{name: config[name] for name in cls.__dataclass_fields__})


class ComiRec(ModelHooks, SequentialRecommender):
    """ComiRec as a RecBole sequential model.

    Args:
        config: the settings of the run.
        dataset: the training part of RecBole's `SequentialDataset`.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.settings = settings = ComiRecSettings.from_config(config)
        self.item_embedding = nn.Embedding(self.n_items, settings.embedding_size, padding_idx=0)
        self.dropout = nn.Dropout(settings.dropout_prob)
        self.extraction: SelfAttentiveExtraction | DynamicRouting
        if settings.extraction == "SA":
            self.extraction = SelfAttentiveExtraction(
                settings.embedding_size, settings.attention_size, settings.num_interests, self.max_seq_length
            )
        else:
            self.extraction = DynamicRouting(
                settings.embedding_size,
                settings.num_interests,
                self.max_seq_length,
                settings.routing_iterations,
                config["seed"],
            )
        self.loss = NextItemLoss(settings.loss_type)
        self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=self.settings.initializer_range)
        elif isinstance(module, nn.Linear):
            # Not as small as the embeddings: squash makes short vectors shorter still, and they would never grow.
            nn.init.xavier_normal_(module.weight)

    def forward(self, item_seq: Tensor, item_seq_len: Tensor) -> Tensor:
        """Return the interests [batch, K, size] of histories [batch, width] of which the first `item_seq_len` count."""
        history = self.dropout(self.item_embedding(item_seq))
        place = torch.arange(item_seq.shape[1], device=item_seq.device)
        # Counted from the most recent item: 0 is the last one. Neither extraction lets positions see each other, so a
        # position counted from the first item could not tell the last item of a short history from one in the middle
        # of a long one.
        recency = item_seq_len[:, None] - 1 - place
        return self.extraction(history, recency.clamp(min=0), recency >= 0)

    def user_vectors(self, interaction: Interaction) -> Tensor:
        """Return the interests [batch, K, size] of RecBole's rows."""
        return self(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """Return the mean loss of the interests that fit the next items best: argmax_k v_k . e_next."""
        interests = self.user_vectors(interaction)
        positives = interaction[self.POS_ITEM_ID]
        items = self.item_embedding.weight
        best = (interests @ items[positives][:, :, None]).squeeze(2).argmax(dim=1)
        users = interests[torch.arange(len(best), device=best.device), best]
        negatives = interaction[self.NEG_ITEM_ID] if self.settings.loss_type == "BPR" else None
        return self.loss(users, items, positives, negatives)

    def predict(self, interaction: Interaction) -> Tensor:
        """Return the scores [batch] of the rows' items: max_k v_k . e."""
        items = self.item_embedding(interaction[self.ITEM_ID])
        return (self.user_vectors(interaction) @ items[:, :, None]).squeeze(2).max(dim=1).values

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Return the scores [batch, items] of all items: max_k v_k . e."""
        return self.scores_of_items(interaction)(slice(None))

    def scores_of_items(self, interaction: Interaction) -> ScoresOfItems:
        """Return the scores of some items as a function."""
        return ItemProducts(self.user_vectors(interaction), self.item_embedding.weight.__getitem__)


class SelfAttentiveExtraction(nn.Module):
    """A = softmax(W_2^T tanh(W_1 (H + P)^T)) over the positions, V = A H (eq. 5 to 7 of the paper).

    Trained position vectors P enter the attention alone, as in the authors' code: interests are weighted means of item
    vectors. With one interest this is one weighted mean, whose weights see each item by itself: no query stands for the
    last item.

    Args:
        size: of the item vectors.
        attention_size: rows of W_1.
        interests: K, the columns of W_2.
        longest: maximum number of items of a history.
    """

    def __init__(self, size: int, attention_size: int, interests: int, longest: int) -> None:
        super().__init__()
        self.position_embedding = nn.Embedding(longest, size)
        self.w1 = nn.Linear(size, attention_size, bias=False)
        self.w2 = nn.Linear(attention_size, interests, bias=False)

    def forward(self, history: Tensor, recency: Tensor, real: Tensor) -> Tensor:
        """Return the interests [batch, K, size].

        Args:
            history: item vectors H [batch, width, size].
            recency: int64 [batch, width], how many items came after each.
            real: bool [batch, width], False at padding, which gets no attention.
        """
        logits = self.w2(torch.tanh(self.w1(history + self.position_embedding(recency))))
        attention = logits.masked_fill(~real[:, :, None], float("-inf")).softmax(dim=1)
        return attention.transpose(1, 2) @ history


class DynamicRouting(nn.Module):
    """Dynamic routing from items to interest capsules (algorithm 1 of the paper).

    With u_i = S h_i and b the routing logits, each iteration takes c_ki = softmax of b_ki over the interests k,
    v_k = squash(sum_i c_ki u_i) and then b_ki += u_i . v_k. The map S is shared by all interests, which must then start
    from different logits b: they are drawn once from a normal distribution, for every interest and position, and
    neither learned nor drawn again. With one interest c is 1, and v = squash(sum_i u_i).

    Args:
        size: of the item vectors.
        interests: K.
        longest: maximum number of items of a history.
        iterations: how often the logits are used; they are changed between.
        seed: of the first logits.
    """

    first_logits: Tensor

    def __init__(self, size: int, interests: int, longest: int, iterations: int, seed: int) -> None:
        super().__init__()
        self.iterations = iterations
        self.map = nn.Linear(size, size, bias=False)
        drawn = torch.randn(longest, interests, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("first_logits", drawn)

    def forward(self, history: Tensor, recency: Tensor, real: Tensor) -> Tensor:
        """Return the interests [batch, K, size]; for the arguments see `SelfAttentiveExtraction`."""
        capsules = self.map(history)
        # The logits between iterations are an assignment, not a path of the gradient.
        fixed = capsules.detach()
        logits = self.first_logits[recency]
        for _ in range(self.iterations - 1):
            logits = logits + fixed @ self._interests(fixed, logits, real).transpose(1, 2)
        return self._interests(capsules, logits, real)

    @staticmethod
    def _interests(capsules: Tensor, logits: Tensor, real: Tensor) -> Tensor:
        coupling = logits.softmax(dim=2) * real[:, :, None]
        return squash(coupling.transpose(1, 2) @ capsules)


def squash(vectors: Tensor) -> Tensor:
    """Return s |s| / (1 + |s|^2) for each vector s of the last dimension: its direction, and a length below 1."""
    # The root of a zero vector has no gradient: keep it away from zero.
    length = vectors.square().sum(dim=-1, keepdim=True).clamp(min=1e-24).sqrt()
    return vectors * length / (1 + length.square())
