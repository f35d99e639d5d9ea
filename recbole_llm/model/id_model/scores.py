"""A trained ID model's scores mixed into another model's: both papers' sources of evidence in one ranking.

The score of item v is ``(1 - w) log p(v) + w log p_id(v)``, a product of experts: p is the softmax of the model's own
scores, p_id that of the ID model's. The weight w is given, or chosen on validation after every epoch. ST2SI and
IDLE-Adapter have it; neither paper does.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import AbstractRecommender, SequentialRecommender
from torch import Tensor, nn

from recbole_llm.config.hooks import hooks_of
from recbole_llm.data.dataset import HISTORY_END
from recbole_llm.errors import SettingError
from recbole_llm.evaluation.ranks import gain_of_rank, read_history, target_ranks
from recbole_llm.model.id_model.histories import resized_histories
from recbole_llm.model.id_model.memory import RowMemory

WEIGHTS = np.linspace(0, 1, 21)  # that are tried on validation


class IdScores(nn.Module):
    """The log-probabilities of a frozen ID model.

    Args:
        config: the settings of the run, with `id_weight`.
        model: the ID model, on the run's device.

    Attributes:
        weight: w, float32 [].

    Raises:
        SettingError: if the ID model does not score all items.
    """

    weight: Tensor

    def __init__(self, config: Any, model: nn.Module) -> None:
        super().__init__()
        given = given_id_weight(config["id_weight"])
        self._gain = None if given is not None else validation_gain(config)
        self.chosen_on_validation = given is None
        self.register_buffer("weight", torch.tensor(0.5 if given is None else given))
        require_scores_of_all_items(type(model))
        self.model = model
        self.item_field = config["ITEM_ID_FIELD"]
        self.fields = (config["ITEM_ID_FIELD"] + config["LIST_SUFFIX"], config["ITEM_LIST_LENGTH_FIELD"])
        self.mask_history = bool(config["mask_history"])
        self._scores = RowMemory()
        self._remembered: dict[bytes, Tensor] = {}

    def train(self, mode: bool = True) -> "IdScores":
        """Set training mode; the frozen ID model stays in eval mode, without dropout."""
        super().train(mode)
        if mode:  # the weights behind what is remembered are about to change
            self._remembered.clear()
        self.model.eval()
        return self

    @torch.no_grad()
    def forward(self, interaction: Interaction) -> Tensor:
        """Return log p_id of all items: [batch, items], float32, -inf for the padding id."""
        return self._scores.get(interaction, lambda: self._computed(interaction))

    def _computed(self, interaction: Interaction) -> Tensor:
        # Where a history ends in this model's dataset says nothing to the other.
        rows = Interaction({name: values for name, values in interaction.interaction.items() if name != HISTORY_END})
        if not hooks_of(self.model).histories_on_host:
            rows = rows.to(self.weight.device)
        # A general model (BPR) reads the user's id alone.
        width = self.model.max_seq_length if isinstance(self.model, SequentialRecommender) else None
        if width is not None and width != rows[self.fields[0]].shape[1]:
            rows.update(resized_histories(rows, *self.fields, width))
        scores = self.model.full_sort_predict(rows)  # type: ignore[operator]
        return log_probabilities(scores.view(len(rows), -1))

    def mix(self, scores: Tensor, interaction: Interaction) -> Tensor:
        """Return the mixed scores [batch, items] of a model's own `scores` [batch, items]."""
        return mixed(log_probabilities(scores), self(interaction), self.weight)

    @torch.no_grad()
    def choose_weight_for(
        self, states_of: Callable[[Interaction], Tensor], head: Callable[[Tensor], Tensor], valid_data: Any
    ) -> None:
        """Take the weight that is best for a model on validation, unless the settings give one.

        The states are remembered until `remembered_states` gives them to the validation that follows, which then reads
        no history again, or the weights are trained further.

        Args:
            states_of: the model's hidden states [batch, width] of a batch of rows.
            head: from states to the model's own scores of all items [batch, items].
            valid_data: RecBole's loader of the validation part.
        """
        if not self.chosen_on_validation:
            return
        self._remembered.clear()

        def batches() -> Iterator[tuple[Interaction, Tensor, tuple[Tensor, Tensor], Any]]:
            for interaction, place, rows, items in valid_data:
                states = states_of(interaction)
                scores = head(states)
                if not isinstance(place, Tensor):  # all items are ranked; candidates have too many lines to keep
                    self._remembered[self._key(interaction)] = states
                    place = read_history(interaction, self.fields[0], rows, items) if self.mask_history else None
                yield interaction, scores, (rows.to(scores.device), items.to(scores.device)), place

        self.choose_weight(batches())

    def remembered_states(self, interaction: Interaction) -> Tensor | None:
        """Return the states of these rows that choosing the weight computed, once; None if there are none."""
        return self._remembered.pop(self._key(interaction), None) if self._remembered else None

    def _key(self, interaction: Interaction) -> bytes:
        return b"".join(interaction[field].cpu().numpy().tobytes() for field in self.fields)

    def choose_weight(self, batches: Iterator[tuple[Interaction, Tensor, tuple[Tensor, Tensor], Any]]) -> None:
        """Take the weight with the best `valid_metric` on validation; of equals, the one nearest to one half.

        Args:
            batches: lines, the model's own scores [lines, items] of them, and where their targets are: ranking and
                item of each; with the ranking and item of what is left out, or None. Where candidates are sampled,
                every line is one of them, and int64 [lines], the ranking that it stands in, takes that place.
        """
        assert self._gain is not None
        gains = torch.zeros(len(WEIGHTS), dtype=torch.float64, device=self.weight.device)
        for interaction, scores, targets, left_out in batches:
            own, of_id_model = log_probabilities(scores), self(interaction)
            if isinstance(left_out, Tensor):
                lines, items = left_out.to(own.device), interaction[self.item_field].to(own.device)
                own, of_id_model = (_of_candidates(each, lines, items) for each in (own, of_id_model))
                left_out = torch.ones_like(own, dtype=torch.bool)
                left_out[lines, items] = False
            for index, weight in enumerate(WEIGHTS):
                ranked = mixed(own, of_id_model, torch.tensor(weight, dtype=own.dtype, device=own.device))
                if left_out is not None:
                    ranked[left_out] = float("-inf")
                gains[index] += self._gain(target_ranks(ranked, *targets)).sum()
        counted = gains.cpu().numpy()
        best = np.flatnonzero(np.isclose(counted, counted.max(), rtol=1e-12))
        self.weight.fill_(WEIGHTS[min(best, key=lambda index: abs(WEIGHTS[index] - 0.5))])


def given_id_weight(value: Any) -> float | None:
    """Return `id_weight`, None if validation chooses it."""
    return None if value is None else float(value)


def validation_gain(config: Any) -> Callable[[Tensor], Tensor]:
    """Return what `valid_metric` makes of the rank of each target.

    Raises:
        SettingError: if it is no metric of ranks.
    """
    metric = str(config["valid_metric"])
    gain = gain_of_rank(metric)
    if gain is None:
        raise SettingError(
            f"id_weight=~ chooses the weight by the ranks of the targets, which valid_metric={metric} does not "
            f"measure: give id_weight, or take a valid_metric such as NDCG@10"
        )
    return gain


def max_items(config: Any) -> int:
    """Return how many items of a history the language model reads at most: `max_items`, or `MAX_ITEM_LIST_LENGTH`.

    The ID model reads `MAX_ITEM_LIST_LENGTH` in any case. Raises SettingError if `max_items` is more than that.
    """
    longest = config["MAX_ITEM_LIST_LENGTH"]
    if config["max_items"] is None:
        return longest
    if config["max_items"] > longest:
        raise SettingError(
            f"max_items={config['max_items']} is more than MAX_ITEM_LIST_LENGTH={longest}, the items of a history that "
            f"is evaluated: lower it, or raise MAX_ITEM_LIST_LENGTH"
        )
    return config["max_items"]


def require_scores_of_all_items(model_class: type) -> None:
    """Refuse an ID model without `full_sort_predict` (NeuMF, DIN, DeepFM). Raises SettingError."""
    if model_class.full_sort_predict is AbstractRecommender.full_sort_predict:  # type: ignore[attr-defined]
        raise SettingError(
            f"id_model={model_class.__name__} does not score all items at once (it has no full_sort_predict): take "
            f"another, such as SASRec, FDSA, FPMC or BPR"
        )


def _of_candidates(scores: Tensor, lines: Tensor, items: Tensor) -> Tensor:
    """Return the score of each line's item, one row per ranking [rankings, items]; 0 for what is no candidate.

    Args:
        scores: [lines, items].
        lines: int64 [lines], the ranking of each line.
        items: int64 [lines], the item of each line.
    """
    found = scores.new_zeros(int(lines.max()) + 1, scores.shape[1])
    return found.index_put((lines, items), scores.gather(1, items[:, None])[:, 0])


def log_probabilities(scores: Tensor) -> Tensor:
    """Return log softmax over the items without the padding id, float32 [rows, items]."""
    padding = torch.zeros(1, dtype=torch.long, device=scores.device)
    return scores.float().index_fill(1, padding, float("-inf")).log_softmax(dim=1)


def mixed(own: Tensor, of_id_model: Tensor, weight: Tensor) -> Tensor:
    """Return ``(1 - weight) own + weight of_id_model`` of two tables of log-probabilities [rows, items].

    Both are -inf for the padding id alone, and a weight of 0 or 1 leaves that as it is.
    """
    scores = torch.lerp(own[:, 1:], of_id_model[:, 1:], weight)
    return torch.cat([own[:, :1], scores], dim=1)
