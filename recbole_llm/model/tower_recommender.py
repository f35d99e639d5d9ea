"""The base class of models that encode histories and items by text towers and compare their vectors."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from recbole.data.interaction import Interaction
from torch import Tensor, nn

from recbole_llm.backbone.loading import Backbone, load_backbone
from recbole_llm.backbone.precision import resolve_precision
from recbole_llm.config.hooks import ScoresOfItems
from recbole_llm.data.dataset import HistoryDataset, row_ends
from recbole_llm.data.history_texts import PackedTexts
from recbole_llm.data.targets import Targets, TrainingHistories
from recbole_llm.errors import DataError, SettingError
from recbole_llm.model.layers.table_loss import Candidates, Similarity, loss_among_items, table_cross_entropy
from recbole_llm.model.pretrained_state import PretrainedWeights
from recbole_llm.model.text_recommender import TextRecommender
from recbole_llm.model.text_tower import TextTower
from recbole_llm.model.tower_settings import TowerSettings
from recbole_llm.model.tower_texts import TextForm, TowerTexts
from recbole_llm.packing.ragged import ranges
from recbole_llm.packing.sequences import Sequences
from recbole_llm.runs.checkpoint import trained_state
from recbole_llm.trainer.staged_trainer import StagedTrainer
from recbole_llm.utils.item_products import ItemProducts

_OF_STAGES = ("stage", "frozen_table")  # what belongs to one catalogue's training in two stages


@dataclass(frozen=True)
class TowerStep:
    """One pass of training, a whole optimiser step where items are encoded with it.

    Attributes:
        users: the histories, in passes.
        items: the distinct items of the step, in passes; empty where they are looked up in a table.
        candidates: where each row's target and negatives are.
    """

    users: Any
    items: list[PackedTexts]
    candidates: Candidates

    def pin_memory(self) -> "TowerStep":
        """Return the step in page-locked memory."""
        return TowerStep(
            [part.pin_memory() for part in self.users],
            [part.pin_memory() for part in self.items],
            self.candidates.pin_memory(),
        )


class TowerRecommender(TextRecommender):
    """Scores an item by the similarity of its text's vector and the vector of the history's text.

    A step encodes every distinct item in it once, with gradients; what ranks is a table of all items' vectors, made
    without gradients in eval mode whenever the weights have changed.

    Args:
        config: the settings of the run.
        dataset: the training part of a `HistoryDataset`.
        start: pre-trained weights to start from; None for the backbone's.

    Attributes:
        tower: encodes texts.
        item_texts: how texts are written.
        texts: those of this catalogue.
        histories: what is trained on.
        similarity: the score.
        unmet_negatives: whether drawn negatives are none of the user's own items.
        form: what the model wants of its texts.

    Raises:
        BackboneError: if the backbone cannot be had, or is of a type that the model cannot use.
        DataError: if no item has a text, a text field is missing, or all texts are equal.
        SettingError: for values that do not go together.
    """

    dataset_class = HistoryDataset
    trainer_class = StagedTrainer
    histories_on_host = True  # where texts are put together
    reads_text_only = True
    unmet_negatives: ClassVar[bool] = False
    form: ClassVar[TextForm] = TextForm()
    similarity: Any
    stage: Tensor
    frozen_table: Tensor

    def __init__(self, config: Any, dataset: HistoryDataset, start: PretrainedWeights | None = None) -> None:
        super().__init__(config, dataset)
        self.settings = settings = TowerSettings.from_config(config)
        self.precision = resolve_precision(config["precision"], torch.device(self.device))
        loaded = load_backbone(
            settings.backbone,
            dtype=settings.tuning.load_dtype(self.precision),
            attention_window=settings.attention_window,
        )
        self.check_backbone(loaded)
        self.histories = TrainingHistories(dataset, self.n_items)
        self.item_texts = TowerTexts(settings, loaded, self.form, type(self).__name__)
        self.texts = self.item_texts.of_items(dataset)
        self._offsets = self.texts.token_offsets(self.histories.flat)
        self.tower = self.make_tower(loaded)
        self.similarity = Similarity(settings.similarity, settings.temperature)
        counts = torch.from_numpy(self.histories.counts).float().clamp_min(1)
        self.register_buffer("log_popularity", (counts / counts[1:].sum()).log(), persistent=False)
        self._table: Tensor | None = None  # of `ranking_table`, with the version of the weights that it is of
        self._table_version: tuple[int, ...] = ()
        self._training_table: Tensor | None = None
        if settings.two_stage:
            # Stored with the weights: the table of the second stage cannot be made again from them.
            self.register_buffer("stage", torch.ones((), dtype=torch.long))
            self.register_buffer("frozen_table", torch.zeros(self.n_items, self.vector_size))
        self.pretrains = False
        self.pretraining = None if start is None else start.give(self, self.item_texts.origin())

    @property
    def vector_size(self) -> int:
        """The size of user and item vectors."""
        return self.tower.width

    @property
    def training_stages(self) -> int:
        """How many stages training has; see `StagedTrainer`."""
        return 2 if self.settings.two_stage and not self.pretrains else 1

    def check_backbone(self, loaded: Backbone) -> None:
        """Refuse a backbone that this model cannot use. Raises SettingError, and a subclass BackboneError."""
        limit = self.settings.max_sequence_tokens
        if limit is not None and loaded.max_positions is not None and limit > loaded.max_positions:
            raise SettingError(
                f"max_sequence_tokens={limit} is more than the {loaded.max_positions} positions of "
                f"{self.settings.backbone}: lower it"
            )

    def make_tower(self, loaded: Backbone) -> TextTower:
        """Return the tower of a loaded backbone."""
        return TextTower(loaded, self.settings.tuning, self.precision)

    # -- vectors -------------------------------------------------------------------------------------------------------

    def item_vectors(self, passes: list[PackedTexts]) -> Tensor:
        """Return the vectors of items given as texts: [items, size], float32, with gradients where these are on."""
        return self.tower.encode(passes)

    def encode_items(self, items: np.ndarray) -> Tensor:
        """Return the vectors of item ids: [items, size], float32, in passes within `train_batch_tokens`."""
        return self.item_vectors(self.texts.passes(self.texts.singles(items), self.settings.train_batch_tokens))

    @torch.no_grad()
    def item_table(self) -> Tensor:
        """Return the vectors of all items by the present weights, in eval mode: [items, size], float32, row 0 zero."""
        training = self.training
        self.eval()
        sequences = self.texts.singles(np.arange(1, self.n_items))
        vectors = self.item_vectors(self.texts.passes(sequences, self.settings.eval_batch_tokens))
        self.train(training)
        return torch.cat([vectors.new_zeros(1, vectors.shape[1]), vectors])

    def ranking_table(self) -> Tensor:
        """Return the table that items are ranked by: [items, size].

        That of the second stage is frozen. Any other is made again when a weight has changed: the version of a weight
        counts what was written to it, its address tells an average put in its place, and training drops the table.
        """
        if self.settings.two_stage and int(self.stage) == 2:
            return self.frozen_table
        version = tuple(value for weight in self.parameters() for value in (weight.data_ptr(), weight._version))
        if self._table is None or self._table_version != version:
            self._table, self._table_version = self.item_table(), version
        return self._table

    def train(self, mode: bool = True) -> "TowerRecommender":
        """Set training mode; with `mode` the table of items is dropped, since the weights are about to change."""
        super().train(mode)
        if mode:
            self._table = None
        return self

    @torch.no_grad()
    def row_vectors(self, interaction: Interaction) -> Tensor:
        """Return the vectors of the histories of RecBole's rows: [batch, size], float32."""
        sequences = self._sequences(interaction)
        return self.tower.encode(self.texts.passes(sequences, self.settings.eval_batch_tokens))

    def user_vectors(self, interaction: Interaction) -> Tensor:
        """Return the vectors of histories as an ID model has them: [batch, 1, size]; normalised if compared so."""
        vectors = self.row_vectors(interaction)
        if isinstance(self.similarity, Similarity):
            vectors = self.similarity.items(vectors)
        return vectors[:, None]

    def _sequences(self, interaction: Interaction) -> Sequences:
        return self.texts.histories(*self.rows_of(interaction))

    def rows_of(self, interaction: Interaction) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        """Return where the histories of RecBole's rows are: flat items, ends, lengths, and token offsets or None."""
        items, ends, lengths, flat = self.histories.rows(interaction, self.ITEM_SEQ, self.ITEM_SEQ_LEN)
        return items, ends, lengths, self._offsets if flat else None

    @torch.no_grad()
    def add_items(self, texts: pd.DataFrame) -> None:
        """Add items that have a text, see `ModelHooks`. A frozen table gets their vectors by the present weights."""
        begin = self.n_items
        self.texts = self.item_texts.with_new(self.texts, texts)
        self._offsets = self.texts.token_offsets(self.histories.flat)
        self.n_items += len(texts)
        self._table = None
        if self.settings.two_stage:
            new = self.frozen_table.new_zeros(len(texts), self.vector_size)
            if int(self.stage) == 2:
                new = self.item_table()[begin:]
            self.frozen_table = torch.cat([self.frozen_table, new])

    # -- ranking -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Return the scores of all items: [batch, items], float32, -inf for the padding id."""
        scores = self.similarity.matrix(self.row_vectors(interaction), self.ranking_table())
        return scores.index_fill(1, torch.zeros(1, dtype=torch.long, device=scores.device), float("-inf"))

    @torch.no_grad()
    def scores_of_items(self, interaction: Interaction) -> ScoresOfItems:
        """Return the scores of some items as a function."""
        vectors, table, similarity = self.row_vectors(interaction), self.ranking_table(), self.similarity
        if not isinstance(similarity, Similarity):  # a crossing is no product
            scores: ScoresOfItems = torch.no_grad()(lambda items: similarity.matrix(vectors, table[items]))
            return scores
        of_items: ScoresOfItems = torch.no_grad()(lambda items: similarity.items(table[items]))
        return ItemProducts(similarity.users(vectors)[:, None], of_items)

    @torch.no_grad()
    def predict(self, interaction: Interaction) -> Tensor:
        """Return the score of each row's `item_id`: [batch], float32."""
        items = interaction[self.ITEM_ID].to(self.device)
        return self.similarity.pairs(self.row_vectors(interaction), self.ranking_table()[items])

    # -- training ------------------------------------------------------------------------------------------------------

    def before_epoch(self, epoch: int) -> None:
        """Encode all items again, where the loss looks them up in a table. See `PackedTrainer`."""
        del epoch
        if self.settings.item_loss == "table":
            frozen = self.settings.two_stage and int(self.stage) == 2
            self._training_table = self.frozen_table if frozen else self.item_table()

    def begin_stage(self, stage: int) -> None:
        """Begin the second stage: the table of the present weights ranks and is trained against from now on."""
        assert stage == 2
        self.frozen_table.copy_(self.item_table())
        self.stage.fill_(2)

    def before_validation(self, valid_data: Any) -> None:
        """Drop the table of other weights. See `PackedTrainer`."""
        del valid_data
        self._table = None

    def training_samples(self, rng: np.random.Generator) -> Any:
        """Return the rows of one epoch. See `PackedTrainer`."""
        histories = self.histories
        targets = histories.one_target(rng) if self.settings.train_prefixes == "one" else histories.every_target()
        return histories.with_negatives(targets, self.settings.train_negatives, rng, self.unmet_negatives)

    def prepared_step(self, samples: Any) -> tuple[int, list[Any]]:
        """Return how many rows a step has, and its passes. See `PackedTrainer`."""
        sequences = self.texts.histories(self.histories.flat, samples.ends, samples.lengths, self._offsets)
        users = self.texts.passes(sequences, self.settings.train_batch_tokens)
        if self.settings.item_loss != "table":
            return len(samples), [TowerStep(users, *self.step_items(samples))]
        parts, begin, none = [], 0, torch.zeros(0, dtype=torch.long)
        for part in users:  # nothing joins the rows of a step, so each pass has a loss of its own
            rows = np.arange(begin, begin + len(part)) if part.order is None else part.order
            labels = torch.from_numpy(samples.labels[rows])
            parts.append(TowerStep([replace(part, order=None)], [], Candidates(labels, none, none, none, none)))
            begin += len(part)
        return len(samples), parts

    def step_items(self, samples: Targets) -> tuple[list[PackedTexts], Candidates]:
        """Return the texts of the distinct items of a step, and where each row's target and negatives are.

        Raises:
            DataError: if a whole step has one and the same target, so that an in-batch loss has no negative.
        """
        labels, in_batch = samples.labels, self.settings.item_loss == "in-batch"
        if in_batch and len(labels) == self.settings.train_batch_size:  # what is left for the last step may be one row
            self.require_negatives(labels)
        if self.settings.item_loss == "full":
            distinct = np.arange(1, self.n_items)
        else:
            distinct = np.unique(np.concatenate([labels, samples.negatives.ravel()]))
        known, owners = self._known_items(samples) if in_batch else (np.zeros((0, 0)), np.zeros(0))
        candidates = Candidates(
            *(
                torch.from_numpy(np.asarray(values, dtype=np.int64))
                for values in (
                    labels,
                    np.searchsorted(distinct, labels),
                    np.searchsorted(distinct, samples.negatives),
                    known,
                    owners,
                )
            )
        )
        return self.texts.passes(self.texts.singles(distinct), self.settings.train_batch_tokens), candidates

    def require_negatives(self, labels: np.ndarray) -> None:
        """Refuse the targets of a step, int64 [rows], that are one and the same item. Raises DataError."""
        if len(labels) and (labels == labels[0]).all():
            raise DataError(
                f"all {len(labels)} targets of a training step are the same item, so every negative is the target: "
                f"raise train_batch_size, or take item_loss=sampled"
            )

    def _known_items(self, samples: Targets) -> tuple[np.ndarray, np.ndarray]:
        """Return the items of the rows' histories, the most recent `max_items`: [rows, items] padded with 0."""
        lengths = np.minimum(samples.lengths, self.settings.max_items)
        known = np.zeros((len(samples), max(int(lengths.max(initial=0)), 1)), dtype=np.int64)
        inside = np.arange(known.shape[1]) < lengths[:, None]
        known[inside] = self.histories.flat[ranges(samples.ends - lengths, lengths)]
        return known, np.arange(len(samples))

    def pass_loss_sum(self, part: Any) -> Tensor:
        """Return the loss of one pass, summed over its rows. See `PackedTrainer`."""
        candidates = part.candidates.to(self.device)
        users = self.tower.encode(part.users)
        if self.settings.item_loss == "table":
            if self._training_table is None:
                self.before_epoch(0)
            assert self._training_table is not None
            return table_cross_entropy(self.similarity, users, self._training_table, candidates.labels)
        return self.items_loss_sum(users, self.item_vectors(part.items), candidates)

    def items_loss_sum(self, users: Tensor, items: Tensor, candidates: Candidates) -> Tensor:
        """Return the loss of user vectors [rows, size] among item vectors [items, size], summed over the rows."""
        popularity = self.log_popularity if self.settings.popularity_correction else None
        return loss_among_items(self.settings.item_loss, self.similarity, users, items, candidates, popularity)

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """Return the mean loss of a RecBole batch of prefix rows. `PackedTrainer` trains on `training_samples`."""
        ends = row_ends(interaction)
        assert ends is not None, "rows of the training part say where they are"
        lengths = interaction[self.ITEM_SEQ_LEN].cpu().numpy()
        targets = Targets(ends, lengths, self.histories.flat[ends], np.zeros((len(ends), 0), dtype=np.int64))
        rng = np.random.default_rng(0)
        targets = self.histories.with_negatives(targets, self.settings.train_negatives, rng, self.unmet_negatives)
        rows, parts = self.prepared_step(targets)
        return torch.stack([self.pass_loss_sum(part) for part in parts]).sum() / rows

    # -- what a run keeps ----------------------------------------------------------------------------------------------

    def stored_state(self) -> dict[str, Tensor]:
        """Return the weights that a checkpoint holds, with the table of a second stage; frozen ones are named alone."""
        if self.settings.tuning.tuning == "full":
            return self.state_dict()
        buffers = {name: value for name, value in self.state_dict().items() if name in _OF_STAGES}
        return {**trained_state(self), **buffers}

    def before_pretraining(self, dataset: Any) -> None:
        """Train in one stage, as a pre-training on other datasets does. See `ModelHooks`."""
        del dataset
        self.pretrains = True

    def transferred_state(self) -> dict[str, Tensor]:
        """Return the weights that serve another catalogue: all but a table of this one's items."""
        return {name: value for name, value in self.stored_state().items() if name not in _OF_STAGES}

    def extra_results(self) -> dict[str, Any]:
        """Return what `result.json` holds beyond what every model's does: what is known of the pre-training."""
        return {} if self.pretraining is None else {"pretraining": self.pretraining}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return AdamW's groups: the backbones, and all else, each with its rate."""
        backbone: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                (backbone if ".backbone." in name else others).append(parameter)
        rates = (self.settings.backbone_learning_rate, self.settings.learning_rate)
        return [{"params": group, "lr": lr} for group, lr in zip((backbone, others), rates, strict=True) if group]
