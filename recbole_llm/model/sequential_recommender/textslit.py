"""TextSLIT: linear transitions between items in closed form, and how like the items' texts are.

With s the row of a history (an item weighs `history_decay` for each item that follows it), q the same with
`similarity_decay`, B the transitions of `layers.item_transitions`, and R the cosines of the items' text vectors,
centred and partly whitened, the scores of all items are

    s B + text_similarity q R

Without the second term, which is ours, it is SLIT (Choi et al., WWW 2021) and reads no text. Nothing is learned by
gradients: training solves one system of equations, of as many unknowns per item as there are items. With `rerank` a
small network orders the best items anew, see `layers.reranker`: it is trained on rows whose scores come from the other
users' transitions. With `id_model` the scores of another model are mixed in, see `id_model.scores`.
"""

from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_llm.config.hooks import ModelHooks
from recbole_llm.data.dataset import HISTORY_END, HistoryDataset
from recbole_llm.data.known_histories import count_repeats
from recbole_llm.errors import DataError, SettingError
from recbole_llm.model.id_model.frozen import FrozenIdModel
from recbole_llm.model.id_model.scores import IdScores, check_mixed_id_model
from recbole_llm.model.item_texts import ItemTexts
from recbole_llm.model.layers.item_transitions import decayed_sum, item_transitions
from recbole_llm.model.layers.reranker import LinearScores, Reranker, linear_scores
from recbole_llm.model.layers.text_table import principal_directions
from recbole_llm.model.needs import IdModel
from recbole_llm.trainer.closed_form_trainer import ClosedFormTrainer

_MAX_ITEMS = 50_000  # whose transitions take 10 GB, and the solution some five times that
_NO_VARIANCE = 1e-6  # a share of the first direction's
_RERANKED_ROWS = 200_000  # the most that the network is trained on, drawn from all
_SCORED_ROWS = 1024  # whose scores of all items are held at once


@dataclass(frozen=True)
class TextSLITSettings:
    """The settings of TextSLIT, checked; properties/model/TextSLIT.yaml describes each."""

    history_decay: float
    ridge: float
    text_similarity: float
    similarity_decay: float
    whitening: float
    temperature: float
    rerank: int
    rerank_folds: int
    rerank_hidden_size: int
    rerank_epochs: int
    rerank_learning_rate: float
    seed: int

    @classmethod
    def from_config(cls, config: Any) -> "TextSLITSettings":
        """Read the settings of a run."""
        return cls(**{name: config[name] for name in cls.__dataclass_fields__})

    @property
    def reads_text(self) -> bool:
        """Whether texts take part in the scores."""
        return self.text_similarity > 0


class TextSLIT(ModelHooks, SequentialRecommender):
    """Ranks items by linear transitions and the likeness of texts.

    Args:
        config: the settings of the run.
        dataset: the training part.
        id_model: whose scores are mixed in; None for none.

    Attributes:
        transitions: B, float32 [items, items]; zero until `solve` was called.
        texts: of `unit_vectors`, float32 [items, width], row 0 zero; not stored with the weights.
        reranker: orders the best items anew; None without `rerank`.
        id_scores: the ID model whose scores are mixed in, None without one.

    Raises:
        DataError: if an item has no text, or all have the same.
    """

    input_type = InputType.POINTWISE
    dataset_class = HistoryDataset
    trainer_class = ClosedFormTrainer
    stages = (IdModel(required=False),)
    texts: Tensor

    def __init__(self, config: Any, dataset: HistoryDataset, id_model: FrozenIdModel | None = None) -> None:
        super().__init__(config, dataset)
        self.settings = TextSLITSettings.from_config(config)
        self.transitions = nn.Parameter(torch.zeros(self.n_items, self.n_items))
        texts = torch.zeros(self.n_items, 0)
        if self.settings.reads_text:
            texts = unit_vectors(ItemTexts.from_config(config).of_items(dataset), self.settings.whitening)
        self.register_buffer("texts", texts, persistent=False)
        self.reranker: Reranker | None = None
        if self.settings.rerank:
            self.reranker = Reranker(self.n_items, self.settings.rerank, self.settings.rerank_hidden_size)
        self.id_run = id_model
        self.id_scores = None if id_model is None else IdScores(config, id_model.module)

    @classmethod
    def check_before_stages(cls, config: Any, dataset: Any) -> None:
        """Refuse a catalogue that is too large, and what an ID model would be made in vain for."""
        if dataset.item_num > _MAX_ITEMS:
            raise SettingError(
                f"TextSLIT solves for a table of items by items, and {config['dataset']} has {dataset.item_num - 1} "
                f"items: it takes {_MAX_ITEMS - 1} at most; choose another model, such as TextInitSASRec"
            )
        if config["rerank"] == 1:
            raise SettingError("rerank=1 puts one item into another order, which is none: set 2 or more, or 0")
        if config["rerank"] and config["repeatable"] is not False and (repeats := count_repeats(dataset)):
            raise SettingError(
                f"rerank orders items anew that a history does not hold, and {repeats} interactions of "
                f"{config['dataset']} are with an item that their user met before: set repeatable=False or rerank=0"
            )
        if config["id_model"]:
            check_mixed_id_model(config)

    @torch.no_grad()
    def solve(self, dataset: HistoryDataset) -> float:
        """Set the transitions to those of a training part and return the mean of `calculate_loss` over its rows."""
        rows = dataset.inter_feat
        everyone = np.arange(len(rows))
        found, squares = self._transitions_of(dataset, everyone)
        self.transitions.copy_(found)
        if self.reranker is not None:
            del found
            self.reranker.counts.copy_(self._counts_of(dataset, everyone))
            self._train_reranker(self.reranker, dataset)
        return squares / len(rows)

    def _transitions_of(self, dataset: HistoryDataset, chosen: np.ndarray) -> tuple[Tensor, float]:
        """Return the transitions of some rows, numbers int64 [chosen], and their sum of squares."""
        ends, lengths, targets = (
            dataset.inter_feat[name].numpy()[chosen]
            for name in (HISTORY_END, dataset.item_list_length_field, dataset.iid_field)
        )
        return item_transitions(
            dataset.history_items.numpy(), ends, lengths, targets, self.settings.history_decay, self.settings.ridge,
            self.n_items, self.transitions.device,
        )  # fmt: skip

    def _counts_of(self, dataset: HistoryDataset, chosen: np.ndarray) -> Tensor:
        """Return how often every item is the target of some rows, float32 [items]."""
        targets = dataset.inter_feat[dataset.iid_field][torch.from_numpy(chosen)]
        return torch.bincount(targets, minlength=self.n_items).float().to(self.transitions.device)

    def _train_reranker(self, reranker: Reranker, dataset: HistoryDataset) -> None:
        """Train it on rows whose scores have seen no row of their user: the users are dealt into `rerank_folds`.

        Rows without their target among the candidates teach nothing.

        Raises:
            DataError: if the part has rows of one user alone.
        """
        settings, numbers = self.settings, np.random.default_rng(self.settings.seed)
        users, places = np.unique(dataset.inter_feat[dataset.uid_field].numpy(), return_inverse=True)
        if len(users) < 2:
            raise DataError(f"rerank needs training rows of two users or more, and {dataset.dataset_name} has one's")
        fold = numbers.permutation(np.arange(len(users)) % settings.rerank_folds)[places]
        drawn = np.sort(numbers.permutation(len(places))[:_RERANKED_ROWS])
        features, targets = [], []
        for number in np.unique(fold):
            others = np.flatnonzero(fold != number)
            transitions, _ = self._transitions_of(dataset, others)
            counts = self._counts_of(dataset, others)
            for rows in torch.from_numpy(drawn[fold[drawn] == number]).split(_SCORED_ROWS):
                batch = dataset[rows].to(transitions.device)
                linear = self._linear(batch[self.ITEM_SEQ], transitions, counts)
                candidates = linear.candidates(reranker.candidates)
                is_target = candidates == batch[self.POS_ITEM_ID][:, None]
                inside = is_target.any(dim=1)
                if not inside.any():
                    continue
                features.append(linear.of_rows(inside).features(candidates[inside]))
                targets.append(is_target[inside].int().argmax(dim=1))
        if not targets:
            getLogger().warning(
                "rerank=%d: no training target is among so many candidates, so that none is reordered", settings.rerank
            )
            return
        found = torch.cat(targets)
        loss = reranker.train_on(
            torch.cat(features), found, settings.rerank_epochs, settings.rerank_learning_rate, settings.seed
        )
        getLogger().info("rerank: %d of %d training rows, loss %.4f", len(found), len(drawn), loss)

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """Return the mean over rows of ``||y - s B||^2``, of which the transitions are the ridge regression."""
        rows = interaction.to(self.transitions.device)
        found = decayed_sum(self.transitions, rows[self.ITEM_SEQ], self.settings.history_decay)
        following = F.one_hot(rows[self.POS_ITEM_ID], self.n_items).to(found.dtype)
        return (following - found).square().sum(dim=1).mean()

    def scores_of(self, histories: Tensor) -> Tensor:
        """Return the scores [batch, items] of all items after histories, without an ID model's.

        Args:
            histories: int64 [batch, length], the oldest item first, zeros after the last.
        """
        counts = None if self.reranker is None else self.reranker.counts
        linear = self._linear(histories, self.transitions, counts)
        if self.reranker is None:
            return linear.sum()
        scores: Tensor = self.reranker(linear)
        return scores

    def _linear(self, histories: Tensor, transitions: Tensor, counts: Tensor | None) -> LinearScores:
        settings = self.settings
        decays = settings.history_decay, settings.similarity_decay
        weights = 1 / settings.temperature, settings.text_similarity / settings.temperature
        return linear_scores(histories, transitions, self.texts, counts, decays, weights)

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Return the scores of all items: [batch, items], -inf for the padding id."""
        scores = self.scores_of(interaction[self.ITEM_SEQ].to(self.transitions.device))
        if self.id_scores is not None:
            return self.id_scores.mix(scores, interaction)
        return scores.index_fill(1, torch.zeros(1, dtype=torch.long, device=scores.device), float("-inf"))

    def predict(self, interaction: Interaction) -> Tensor:
        """Return the scores [batch] of the rows' items."""
        items = interaction[self.ITEM_ID].to(self.transitions.device)
        return self.full_sort_predict(interaction).gather(1, items[:, None])[:, 0]

    def before_validation(self, valid_data: Any) -> None:
        """Choose the weight of the ID model's scores, if ``id_weight: ~`` asks for it."""
        if self.id_scores is not None:
            self.eval()

            def histories(rows: Interaction) -> Tensor:
                found: Tensor = rows[self.ITEM_SEQ].to(self.transitions.device)
                return found

            self.id_scores.choose_weight_for(histories, self.scores_of, valid_data)

    def extra_results(self) -> dict[str, Any]:
        """Return the ID model, its weight and its own test metrics, for `result.json`; nothing without one."""
        return {} if self.id_scores is None or self.id_run is None else self.id_scores.result(self.id_run)

    def stored_state(self) -> dict[str, Tensor]:
        """Return the transitions, what orders the best items anew, and the weight of an ID model's scores."""
        weight = {} if self.id_scores is None else {"id_scores.weight": self.id_scores.weight}
        ranker = {} if self.reranker is None else self.reranker.state_dict(prefix="reranker.")
        return {"transitions": self.transitions, **ranker, **weight}

    def save_extras(self, folder: Path, dataset: Any) -> None:
        """Copy the ID model, if there is one, into the folder of the run."""
        if self.id_run is not None:
            self.id_run.copy_into(folder)


def unit_vectors(vectors: Tensor, whitening: float) -> Tensor:
    """Return text vectors [items, width] centred, partly whitened and of length 1; row 0 (padding) is zero.

    Args:
        vectors: float32 [items, width].
        whitening: the power, from 0 to 1, of each principal direction's standard deviation that the vectors are divided
            by there; 0 leaves them as they are, 1 gives every direction the same variance. The first direction's
            deviation counts as 1, and a direction without variance is left out.
    """
    mean, directions, variances = principal_directions(vectors[1:])
    some = variances > _NO_VARIANCE * variances[0]
    scale = torch.where(some, (variances.clamp(min=1e-300) / variances[0]) ** (-whitening / 2), 0.0)
    found = (vectors.double().cpu() - mean) @ directions * scale
    found[0] = 0
    return F.normalize(found, dim=1).float()
