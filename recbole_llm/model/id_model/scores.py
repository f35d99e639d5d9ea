"""A trained ID model's scores mixed into another model's: both papers' sources of evidence in one ranking.

The score of item v is ``(1 - w) log p(v) + w log p_id(v)``, a product of experts: p is the softmax of the model's own
scores, p_id that of the ID model's. The weight w is given, or chosen on validation after every epoch. ST2SI and
IDLE-Adapter have it; neither paper does.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import AbstractRecommender, SequentialRecommender
from torch import Tensor, nn

from recbole_llm.config import registry
from recbole_llm.config.hooks import ScoresOfItems, hooks_of
from recbole_llm.data.dataset import HISTORY_END
from recbole_llm.errors import SettingError
from recbole_llm.evaluation.blocks import ItemBlocks
from recbole_llm.evaluation.counting import leave_out
from recbole_llm.evaluation.ranks import gain_of_rank
from recbole_llm.evaluation.split_blocks import SplitItemBlocks
from recbole_llm.model.id_model.frozen import FrozenIdModel
from recbole_llm.model.id_model.histories import resized_histories
from recbole_llm.model.id_model.memory import RowMemory
from recbole_llm.model.id_model.mixed_ranks import mixed_ranks, mixed_ranks_in_blocks
from recbole_llm.utils.collectives import rows_of_all, sum_
from recbole_llm.utils.processes import own_part, part_counts, world

WEIGHTS = np.linspace(0, 1, 21)  # that are tried on validation
TwoBlocks = tuple[ItemBlocks, ItemBlocks]  # the model's own scores and the ID model's
# Rows of a batch, the model's own scores [rows, items] of them, or both models' in blocks, ranking and item of each
# target; the ranking that each row is a candidate in, where candidates are sampled; and what is left out of the
# rankings (`KnownHistories.keys`).
Scored = tuple[Interaction, Tensor | TwoBlocks, tuple[Tensor, Tensor], Tensor | None, Tensor | None]


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

    @torch.no_grad()
    def scores_of_items(self, interaction: Interaction) -> ScoresOfItems | None:
        """Return what gives the ID model's own scores of some items, see `ModelHooks.scores_of_items`."""
        return hooks_of(self.model).scores_of_items(self._rows(interaction))

    def _computed(self, interaction: Interaction) -> Tensor:
        rows = self._rows(interaction)
        scores = self.model.full_sort_predict(rows)  # type: ignore[operator]
        return log_probabilities(scores.view(len(rows), -1))

    def _rows(self, interaction: Interaction) -> Interaction:
        # Where a history ends in this model's dataset says nothing to the other.
        rows = Interaction({name: values for name, values in interaction.interaction.items() if name != HISTORY_END})
        if not hooks_of(self.model).histories_on_host:
            rows = rows.to(self.weight.device)
        # A general model (BPR) reads the user's id alone.
        width = self.model.max_seq_length if isinstance(self.model, SequentialRecommender) else None
        if width is not None and width != rows[self.fields[0]].shape[1]:
            rows.update(resized_histories(rows, *self.fields, width))
        return rows

    def result(self, run: FrozenIdModel) -> dict[str, Any]:
        """Return what `result.json` says of an ID model: its name, its weight and its own test metrics.

        Args:
            run: that it came from.
        """
        weight = round(float(self.weight), 4)
        return {"id_model": {"model": type(self.model).__name__, "weight": weight, "test": run.test_metrics()}}

    def mix(self, scores: Tensor, interaction: Interaction) -> Tensor:
        """Return the mixed scores [batch, items] of a model's own `scores` [batch, items]."""
        return mixed(log_probabilities(scores), self(interaction), self.weight)

    @torch.no_grad()
    def choose_weight_for(
        self,
        states_of: Callable[[Interaction], Tensor],
        head: Callable[[Tensor], Tensor],
        valid_data: Any,
        in_blocks: Callable[[Tensor], ScoresOfItems] | None = None,
        bounds: Sequence[int] | None = None,
    ) -> None:
        """Take the weight that is best for a model on validation, unless the settings give one.

        The states are remembered until `remembered_states` gives them to the validation that follows, which then reads
        no history again, or the weights are trained further.

        Args:
            states_of: the model's hidden states [batch, width] of a batch of rows.
            head: from states to the model's own scores of all items [batch, items].
            valid_data: RecBole's loader of the validation part.
            in_blocks: from states to what gives those of some items; None where `head` alone tells them.
            bounds: the first item id of each process and how many ids there are, where each gives the scores of its own
                items alone, for the rows of all; `states_of` and `in_blocks` then serve no rows, too.
        """
        if not self.chosen_on_validation:
            return
        self._remembered.clear()

        part = getattr(valid_data, "_dataset", None)
        known = None if part is None or part.item_protocol.repeatable else part.known_histories

        def batches() -> Iterator[Scored]:
            for batch in valid_data:
                interaction, place, rows, items = _own_rows(batch)
                if not len(interaction) and bounds is None:  # other processes have the rows of a small batch
                    continue
                states = states_of(interaction)
                lines = place if isinstance(place, Tensor) else None
                if lines is None:  # all items are ranked; candidates have too many lines to keep
                    # Of rows that processes rank together, each remembers its own by all of them: then none reads
                    # its rows again while others, whose rows are not those of another batch, do not.
                    self._remembered[self._key(interaction if bounds is None else batch[0])] = states
                left_out = None if known is None else known.keys(interaction, lines, states.device)
                targets = (rows.to(states.device), items.to(states.device))
                blocks = None
                if in_blocks is not None and bounds is not None:
                    blocks = self._split_blocks(in_blocks, states, batch[0], bounds, valid_data)
                elif in_blocks is not None and getattr(valid_data, "in_blocks", False):
                    blocks = self._blocks(in_blocks(states), interaction, valid_data)
                yield interaction, head(states) if blocks is None else blocks, targets, lines, left_out

        self.choose_weight(batches())

    def _blocks(self, own: ScoresOfItems, interaction: Interaction, valid_data: Any) -> TwoBlocks | None:
        of_id_model = self.scores_of_items(interaction)
        if of_id_model is None:
            return None
        items, memory = int(valid_data._dataset.item_num), valid_data.config["eval_memory"] * 2**20
        shape = (len(interaction), items, memory, self.weight.device)
        return ItemBlocks(own, *shape), ItemBlocks(of_id_model, *shape)

    def _split_blocks(
        self,
        in_blocks: Callable[[Tensor], ScoresOfItems],
        states: Tensor,
        batch: Interaction,
        bounds: Sequence[int],
        valid_data: Any,
    ) -> TwoBlocks:
        of_id_model = self.scores_of_items(batch)
        assert of_id_model is not None
        counts, memory = part_counts(len(batch)), valid_data.config["eval_memory"] * 2**20
        shape = (counts, bounds, memory, self.weight.device)
        return SplitItemBlocks(in_blocks(rows_of_all(states, counts)), *shape), SplitItemBlocks(of_id_model, *shape)

    def remembered_states(self, interaction: Interaction) -> Tensor | None:
        """Return the states of these rows that choosing the weight computed, once; None if there are none.

        Those of rows that processes rank together are this process's part.
        """
        return self._remembered.pop(self._key(interaction), None) if self._remembered else None

    def _key(self, interaction: Interaction) -> bytes:
        return b"".join(interaction[field].cpu().numpy().tobytes() for field in self.fields)

    def choose_weight(self, batches: Iterator[Scored]) -> None:
        """Take the weight with the best `valid_metric` on validation; of equals, the one nearest to one half.

        Args:
            batches: of the validation part.
        """
        assert self._gain is not None
        gains = torch.zeros(len(WEIGHTS), dtype=torch.float64, device=self.weight.device)
        weights = torch.tensor(WEIGHTS, dtype=torch.float32, device=self.weight.device)
        for interaction, scores, targets, lines, left_out in batches:
            if isinstance(scores, tuple):
                ranks = mixed_ranks_in_blocks(*scores, targets[1], weights, left_out)
            else:
                own, of_id_model = log_probabilities(scores), self(interaction)
                if lines is not None:
                    lines, items = lines.to(own.device), interaction[self.item_field].to(own.device)
                    own, of_id_model = (_of_candidates(each, lines, items) for each in (own, of_id_model))
                if left_out is not None:
                    leave_out(own, left_out, *targets)
                ranks = mixed_ranks(own, of_id_model, *targets, weights)
            gains += self._gain(ranks).sum(dim=1)
        counted = sum_(gains).cpu().numpy()
        best = np.flatnonzero(np.isclose(counted, counted.max(), rtol=1e-12))
        self.weight.fill_(WEIGHTS[min(best, key=lambda index: abs(WEIGHTS[index] - 0.5))])


def _own_rows(batch: Any) -> Any:
    """Return the rows of a batch that this process ranks, as `evaluation.shared_ranks` cuts them."""
    if not world().is_shared:
        return batch
    interaction, place, _, items = batch
    own = own_part(len(interaction))
    return interaction[own], place, torch.arange(own.stop - own.start), items[own]


def check_mixed_id_model(config: Any) -> None:
    """Refuse, before an ID model is made in vain, settings under which its scores cannot be mixed in.

    Raises:
        SettingError: if `valid_metric` cannot choose the weight, or the model does not score all items.
    """
    if config["id_weight"] is None:
        validation_gain(config)
    if not config["id_model_path"]:
        require_scores_of_all_items(registry.model_class(config["id_model"]))


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
    """Return the score of each line's item, one row per ranking [rankings, items]; -inf for what is none.

    Args:
        scores: [lines, items].
        lines: int64 [lines], the ranking of each line.
        items: int64 [lines], the item of each line.
    """
    found = scores.new_full((int(lines.max()) + 1, scores.shape[1]), -torch.inf)
    return found.index_put((lines, items), scores.gather(1, items[:, None])[:, 0])


def log_probabilities(scores: Tensor) -> Tensor:
    """Return log softmax over the items without the padding id, float32 [rows, items].

    That of float32 `scores` is set to -inf in place, as RecBole's trainer does.
    """
    padding = torch.zeros(1, dtype=torch.long, device=scores.device)
    return scores.float().index_fill_(1, padding, float("-inf")).log_softmax(dim=1)


def mixed(own: Tensor, of_id_model: Tensor, weight: Tensor) -> Tensor:
    """Return ``(1 - weight) own + weight of_id_model`` of two tables of log-probabilities [rows, items].

    Both are -inf for the padding id alone, and a weight of 0 or 1 leaves that as it is. `own` is overwritten: nothing
    else needs it, and tables of all items are large.
    """
    own[:, 1:].lerp_(of_id_model[:, 1:], weight)
    return own
