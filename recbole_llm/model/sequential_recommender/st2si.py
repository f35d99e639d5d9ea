"""ST2SI: Learning Transition Patterns by Large Language Models for Sequential Recommendation (Zhai et al.).

A decoder language model reads the texts of a user's items with a query token after each (eq. 2); a linear projection
turns the hidden state at every query into a distribution over item ids (eq. 4, 5). Alignment inputs, an instruction
and one item's text, are mapped to the item's own id by the same projection (eq. 6), and both are trained together by
cross-entropy (eq. 7). With ``tuning: ilp`` the language model is frozen and the projection alone is trained (3.4.2).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor

from recbole_llm.backbone.feature_cache import FeatureStore, QueryStateCache, shared_passes
from recbole_llm.backbone.loading import load_backbone
from recbole_llm.backbone.packed import PackedBatch, packed_hidden_states, use_packed_attention
from recbole_llm.backbone.precision import resolve_precision
from recbole_llm.backbone.query_token import query_token_id
from recbole_llm.data.dataset import HISTORY_END, HistoryDataset
from recbole_llm.data.item_text import tokenize_items
from recbole_llm.data.packing import Sequences, concatenate, pack, within_budget
from recbole_llm.data.ragged import RaggedTable
from recbole_llm.data.windows import Histories, WindowLimits, Windows, full_windows, random_windows, recent_windows
from recbole_llm.errors import BackboneError, DataError, SettingError, nearest
from recbole_llm.model.layers.item_linear_projection import ItemLinearProjection
from recbole_llm.trainer.packed_trainer import PackedTrainer

_LEARNING_RATES = {"full": 5e-5, "ilp": 3e-4}  # appendix A.3
_WINDOWS = {"full": "random", "ilp": "full"}


@dataclass(frozen=True)
class ST2SISettings:
    """The settings of `properties/model/ST2SI.yaml`, checked.

    Attributes:
        backbone: a preset, a folder or a hub id.
        tuning: full or ilp.
        item_text_fields: columns of the `.item` file.
        max_attribute_tokens: the most tokens of one field.
        max_items: the most items of a window (`MAX_ITEM_LIST_LENGTH`).
        max_sequence_tokens: the most tokens of a window.
        query_token: the token after every item text.
        train_window: random, full or recent.
        alignment: whether alignment inputs are trained too.
        alignment_instruction: the text before the item in an alignment input.
        train_batch_tokens: the most tokens of a packed pass with gradients.
        eval_batch_tokens: the most tokens of a packed pass without.

    Raises:
        SettingError: for a value that is not allowed.
    """

    backbone: str
    tuning: str
    item_text_fields: list[str]
    max_attribute_tokens: int
    max_items: int
    max_sequence_tokens: int
    query_token: str
    train_window: str
    alignment: bool
    alignment_instruction: str
    train_batch_tokens: int
    eval_batch_tokens: int

    def __post_init__(self) -> None:
        for name, allowed in (("tuning", tuple(_LEARNING_RATES)), ("train_window", ("random", "full", "recent"))):
            value = getattr(self, name)
            if value not in allowed:
                raise SettingError(f"{name}={value} is not one of {', '.join(allowed)}{nearest(str(value), allowed)}")
        for name in ("max_attribute_tokens", "max_items", "max_sequence_tokens", "train_batch_tokens"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise SettingError(f"{name}={value} must be a whole number from 1")
        if not isinstance(self.item_text_fields, list) or not self.item_text_fields:
            raise SettingError("item_text_fields must be a list of columns of the .item file, such as ['title']")
        if not self.query_token:
            raise SettingError("query_token is empty: it must be one token, such as '.'")

    @classmethod
    def from_config(cls, config: Any) -> "ST2SISettings":
        """Read the settings of a run."""
        return cls(
            backbone=str(config["backbone"]),
            tuning=config["tuning"],
            item_text_fields=config["item_text_fields"],
            max_attribute_tokens=config["max_attribute_tokens"],
            max_items=config["MAX_ITEM_LIST_LENGTH"],
            max_sequence_tokens=config["max_sequence_tokens"],
            query_token=str(config["query_token"]),
            train_window=config["train_window"] or _WINDOWS.get(config["tuning"], "full"),
            alignment=config["alignment"],
            alignment_instruction=config["alignment_instruction"],
            train_batch_tokens=config["train_batch_tokens"],
            eval_batch_tokens=config["eval_batch_tokens"],
        )


class ST2SI(SequentialRecommender):
    """ST2SI as a RecBole sequential model.

    Args:
        config: the settings of the run.
        dataset: the training part of a `HistoryDataset`.

    Attributes:
        table: token ids, row v is T_v^q = {T_v, [Q]}; the last row is the instruction of alignment inputs.
        histories: all users' items, from which windows are cut.

    Raises:
        BackboneError: if the backbone cannot be had, or is an encoder: its queries would see later items.
        DataError: if no item has a text, or a text field is missing.
    """

    input_type = InputType.POINTWISE
    dataset_class = HistoryDataset
    trainer_class = PackedTrainer

    def __init__(self, config: Any, dataset: HistoryDataset) -> None:
        super().__init__(config, dataset)
        self.settings = ST2SISettings.from_config(config)
        self.precision = resolve_precision(config["precision"], torch.device(self.device))
        self.frozen = self.settings.tuning == "ilp"
        loaded = load_backbone(self.settings.backbone, dtype=self.precision if self.frozen else torch.float32)
        if loaded.preset.kind != "decoder":
            raise BackboneError(
                f"ST2SI needs a decoder, but {self.settings.backbone} is an encoder, whose query tokens would see the "
                f"items that they should predict: choose a decoder such as smollm2-135m or opt-125m"
            )
        if loaded.max_positions is not None and self.settings.max_sequence_tokens > loaded.max_positions:
            raise SettingError(
                f"max_sequence_tokens={self.settings.max_sequence_tokens} is more than the {loaded.max_positions} "
                f"positions of {self.settings.backbone}: lower it"
            )
        self.backbone = loaded.model
        use_packed_attention(self.backbone)
        self.backbone_fingerprint = loaded.fingerprint
        self._build_text(dataset, loaded.tokenizer)
        self.projection = ItemLinearProjection(loaded.width, self.n_items)
        if self.frozen:
            self.backbone.requires_grad_(False)
        limits = WindowLimits(self.settings.max_items, self.settings.max_sequence_tokens)
        items, user_start = dataset.history_items.numpy(), dataset.history_start.numpy()
        self.histories = Histories(items, user_start, self.table.lengths[: self.n_items], limits)
        self._find_targets(dataset)
        self.state_cache: Any = None

    def _build_text(self, dataset: HistoryDataset, tokenizer: Any) -> None:
        fields = self.settings.item_text_fields
        texts = dataset.item_texts_by_id(fields)
        table = tokenize_items(texts, tokenizer, self.settings.max_attribute_tokens)
        if not table.lengths[1:].any():
            raise DataError(f"no item of {dataset.dataset_name} has a text in '{fields[0]}'")
        without = len(np.unique(dataset.history_items[table.lengths[dataset.history_items] == 0]))
        if without:
            raise DataError(
                f"{without} items of {dataset.dataset_name} have no text in '{fields[0]}', and ST2SI reads nothing but "
                f"text: set items_without_text=drop"
            )
        instruction = tokenizer(self.settings.alignment_instruction, add_special_tokens=False)["input_ids"]
        # The query token is looked up last: a token added to the tokenizer must not change how texts are cut.
        query = query_token_id(tokenizer, self.backbone, self.settings.query_token)
        self.table = table.with_row_ends(query).with_row(instruction)

    def _find_targets(self, dataset: HistoryDataset) -> None:
        targets = dataset.inter_feat[HISTORY_END].numpy()
        self._is_target = np.zeros(len(self.histories.items) + 1, dtype=bool)
        self._is_target[targets] = True
        starts = self.histories.user_start[targets]
        last = np.zeros(len(self.histories.items), dtype=np.int64)
        np.maximum.at(last, starts, targets)
        self.last_targets = last[np.unique(starts)]

    def train(self, mode: bool = True) -> "ST2SI":
        """Set training mode; a frozen backbone stays in eval mode, without dropout."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    # -- training samples ------------------------------------------------------------------------------------------

    def training_windows(self, rng: np.random.Generator) -> Windows:
        """Return the windows of one epoch, as `train_window` says."""
        if self.settings.train_window == "random":
            return random_windows(self.histories, self.last_targets, rng)
        windows = full_windows if self.settings.train_window == "full" else recent_windows
        return windows(self.histories, self.last_targets)

    def training_sequences(self, rng: np.random.Generator) -> Sequences:
        """Return the samples of one epoch: multi-query inputs (eq. 2), then alignment inputs (eq. 6)."""
        users = self.window_sequences(self.training_windows(rng))
        return concatenate([users, self.alignment_sequences()]) if self.settings.alignment else users

    def window_sequences(self, windows: Windows) -> Sequences:
        """Return X_q of every window, with the next item as label wherever that is a training target."""
        positions, counts = windows.positions()
        read = self._is_target[positions + 1]
        following = np.append(self.histories.items, 0)[positions + 1]
        return Sequences(self.histories.items[positions], counts, read, np.where(read, following, 0))

    def alignment_sequences(self) -> Sequences:
        """Return X_I = {T_I, T_v, [Q]} with label v for every item v that has a text."""
        items = np.flatnonzero(self.table.lengths[: self.n_items] > 1)
        rows = np.stack([np.full_like(items, self.n_items), items], axis=1).ravel()
        read = np.tile([False, True], len(items))
        return Sequences(rows, np.full(len(items), 2), read, np.where(read, rows, 0))

    # -- computation -----------------------------------------------------------------------------------------------

    def query_states(self, batch: PackedBatch) -> Tensor:
        """Return the last-layer hidden states h_q [queries, width] (eq. 4)."""
        batch = batch.to(self.device)
        autocast = self.precision == torch.bfloat16 and not self.frozen
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=autocast):
            hidden = packed_hidden_states(self.backbone, batch)
        return hidden.index_select(0, batch.query_index)

    def loss_sum(self, sequences: Sequences) -> Tensor:
        """Return the sum of -log p over all queries of `sequences`, in one packed pass (eq. 7)."""
        batch = pack(sequences, self.table)
        assert batch.labels is not None
        return self.projection.loss(self.query_states(batch).float(), batch.labels.to(self.device))

    @torch.no_grad()
    def states_of(self, sequences: Sequences) -> Tensor:
        """Return the states of all queries of `sequences` [queries, width] in float32, in passes within the budget."""
        groups = within_budget(sequences.tokens(self.table), self.settings.eval_batch_tokens)
        return torch.cat([self.query_states(pack(sequences.select(group), self.table)).float() for group in groups])

    def cached_loss_sum(self, samples: np.ndarray) -> Tensor:
        """Return `loss_sum` of training samples from their stored states."""
        states, labels = self.state_cache.training_states(samples)
        return self.projection.loss(states, labels)

    def fill_state_cache(self, evaluated: list[HistoryDataset], folder: Path, progress: Callable[..., Any]) -> None:
        """Compute every hidden state that training and the `evaluated` parts read, once (frozen backbone, full windows).

        Args:
            evaluated: validation and test parts.
            folder: where a large table may be memory-mapped.
            progress: wraps the list of passes, such as `tqdm.tqdm`.
        """
        windows = self.training_windows(np.random.default_rng(0))
        users = self.window_sequences(windows)
        positions, counts = windows.positions()
        starts = [np.repeat(windows.starts, counts)[users.read]]
        wanted = [positions[users.read]]
        for part in evaluated:
            ends = part.inter_feat[HISTORY_END].numpy()
            starts.append(self.histories.window_starts(self.histories.user_start[ends], ends))
            wanted.append(ends - 1)
        passes, index = shared_passes(self.histories.items, np.concatenate(starts), np.concatenate(wanted))
        trained = int(users.read.sum())
        eval_index = {
            self.histories.items[start : last + 1].tobytes(): int(state)
            for start, last, state in zip(
                np.concatenate(starts[1:] or [[]]), np.concatenate(wanted[1:] or [[]]), index[trained:], strict=True
            )
        }
        samples, labels = [index[:trained]], [users.labels[users.read]]
        per_sample = [users.queries()]
        if self.settings.alignment:
            aligned = self.alignment_sequences()
            samples.append(int(passes.read.sum()) + np.arange(len(aligned)))
            labels.append(aligned.labels[aligned.read])
            per_sample.append(aligned.queries())
            passes = concatenate([passes, aligned])
        store = FeatureStore(int(passes.read.sum()), self.projection.weight.shape[1], torch.device(self.device), folder)
        self.eval()
        for group in progress(within_budget(passes.tokens(self.table), self.settings.eval_batch_tokens)):
            store.append(self.states_of(passes.select(group)))
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(per_sample))])
        table = RaggedTable(np.concatenate(samples), offsets)
        self.state_cache = QueryStateCache(store, table, np.concatenate(labels), eval_index)

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """Return the mean cross-entropy of a RecBole batch of prefix rows (one query each, at the end).

        `PackedTrainer` trains on `training_sequences` instead, where one row serves all positions of a user.
        """
        sequences = self.prefix_sequences(interaction)
        labels = interaction[self.POS_ITEM_ID].cpu().numpy()
        labelled = Sequences(sequences.rows, sequences.counts, sequences.read, np.zeros_like(sequences.rows))
        labelled.labels[np.cumsum(sequences.counts) - 1] = labels
        return self.loss_sum(labelled) / len(labels)

    def prefix_sequences(self, interaction: Interaction) -> Sequences:
        """Return the windows of a batch of histories, read at their last query.

        Args:
            interaction: with `item_id_list` int64 [batch, items] and `item_length` int64 [batch].

        Raises:
            DataError: if a history is empty, or holds an item without text.
        """
        histories = interaction[self.ITEM_SEQ].cpu().numpy()
        lengths = interaction[self.ITEM_SEQ_LEN].cpu().numpy()
        if (lengths < 1).any():
            raise DataError("a history is empty: there is nothing to predict from")
        columns = np.arange(histories.shape[1])
        inside = columns < lengths[:, None]
        tokens = np.where(inside, self.table.lengths[histories], 0)
        if (inside & (tokens == 0)).any():
            raise DataError("a history holds an item without text: set items_without_text=drop")
        after = tokens[:, ::-1].cumsum(axis=1)[:, ::-1]  # tokens from an item to the end of its history
        kept = inside & (after <= self.settings.max_sequence_tokens) & (columns >= lengths[:, None] - self.settings.max_items)
        counts = kept.sum(axis=1)
        read = np.zeros(int(counts.sum()), dtype=bool)
        read[np.cumsum(counts) - 1] = True
        return Sequences(histories[kept], counts, read, np.zeros(len(read), dtype=np.int64))

    def _last_states(self, interaction: Interaction) -> Tensor:
        sequences = self.prefix_sequences(interaction)
        if self.state_cache is not None:
            return self.state_cache.lookup(sequences, self.states_of).to(self.device)
        return self.states_of(sequences)

    def predict(self, interaction: Interaction) -> Tensor:
        """Return the score of each row's `item_id`: [batch], float32."""
        states = self._last_states(interaction)
        return (states * self.projection.weight[interaction[self.ITEM_ID].to(self.device)]).sum(dim=1)

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Return the scores of all items: [batch, items], float32, -inf for the padding id."""
        return self.projection(self._last_states(interaction))

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def stored_state(self) -> dict[str, Tensor]:
        """Return the weights that a checkpoint holds: ILP tuning stores the projection alone."""
        state = self.state_dict()
        return {name: w for name, w in state.items() if not (self.frozen and name.startswith("backbone."))}

    def parameter_groups(self, config: Any) -> list[dict[str, Any]]:
        """Return AdamW's groups with their rates: the backbone's (if it is tuned), and the projection's."""
        rate = config["learning_rate"] or _LEARNING_RATES[self.settings.tuning]
        groups = [{"params": list(self.projection.parameters()), "lr": config["ilp_learning_rate"] or rate}]
        if not self.frozen:
            groups.append({"params": list(self.backbone.parameters()), "lr": rate})
        return groups
