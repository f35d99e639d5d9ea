"""MoRec (Yuan et al., SIGIR 2023, "Where to Go Next for Recommender Systems?"): SASRec over texts.

SASRec whose table of items is replaced by a text encoder, trained end to end: an item is the text's pooled vector, a
linear layer and GELU; a history is read by a causal transformer, which predicts the next item at every position. The
score is the product of both vectors. The loss is binary cross-entropy with one random negative per position (the
paper), or cross-entropy among the items of the batch, less log p (the authors' newer one). With ``tuning: frozen`` the
texts' vectors are computed once, and the linear layer and the transformer are trained alone.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.data.interaction import Interaction
from torch import Tensor, nn

from recbole_llm.data.dataset import HistoryDataset, row_ends
from recbole_llm.data.history_texts import PackedTexts
from recbole_llm.data.targets import Targets
from recbole_llm.data.windows import Histories, WindowLimits, Windows, full_windows, recent_windows
from recbole_llm.errors import DataError
from recbole_llm.model.layers.sequence_encoder import EncoderSettings, sequence_encoder
from recbole_llm.model.layers.table_loss import Candidates
from recbole_llm.model.tower_recommender import TowerRecommender


@dataclass(frozen=True)
class WindowTargets:
    """Windows of histories, in which every position is trained.

    Attributes:
        windows: slices of the flat histories that are read; position p predicts the item at p + 1.
        negatives: int64 [interactions, k], by the flat index of a target, what is drawn for it.
    """

    windows: Windows
    negatives: np.ndarray

    def __len__(self) -> int:
        return len(self.windows)

    def select(self, indices: np.ndarray) -> "WindowTargets":
        """Return the windows at `indices`, in that order."""
        return WindowTargets(Windows(self.windows.starts[indices], self.windows.ends[indices]), self.negatives)


@dataclass(frozen=True)
class MoRecStep:
    """An optimiser step.

    Attributes:
        items: the texts of the distinct items of the step, in passes; empty for a frozen backbone.
        distinct: int64 [distinct items], their ids.
        histories: int64 [windows, items], rows of the distinct items from 1, padded with 0 on the right.
        queries: int64 [rows], the flat index into `histories` of every position that predicts.
        candidates: where each position's target and negatives are.
    """

    items: list[PackedTexts]
    distinct: Tensor
    histories: Tensor
    queries: Tensor
    candidates: Candidates

    def pin_memory(self) -> "MoRecStep":
        """Return the step in page-locked memory."""
        return MoRecStep(
            [part.pin_memory() for part in self.items],
            self.distinct.pin_memory(),
            self.histories.pin_memory(),
            self.queries.pin_memory(),
            self.candidates.pin_memory(),
        )


class MoRec(TowerRecommender):
    """MoRec as a RecBole sequential model.

    Args:
        config: the settings of the run.
        dataset: the training part of a `HistoryDataset`.

    Attributes:
        head: from the text's vector to the item's.
        encoder: reads the items' vectors of a history.

    Raises:
        BackboneError: if the backbone cannot be had.
        DataError: if items have no text, or all the same.
        SettingError: for values that do not go together.
    """

    trains_on_rows = False  # but on windows of whole histories
    histories_on_host = False
    unmet_negatives = True

    def __init__(self, config: Any, dataset: HistoryDataset) -> None:
        settings = EncoderSettings.from_config(config)
        self._size = settings.hidden_size
        super().__init__(config, dataset)
        linear = nn.Linear(self.tower.width, self._size)
        nn.init.xavier_normal_(linear.weight)
        nn.init.zeros_(linear.bias)
        self.head = nn.Sequential(linear, nn.GELU())
        self.encoder = sequence_encoder("sasrec", settings, self.settings.max_items)
        flat, start = self.histories.flat, self.histories.start
        limits = WindowLimits(self.settings.max_items, self.settings.max_items)  # an item counts as one token
        items = Histories(flat, start, np.ones(self.n_items, dtype=np.int64), limits)
        cut = recent_windows if config["train_window"] == "recent" else full_windows
        self._windows = cut(items, self.histories.last)
        self._is_target = np.zeros(len(flat) + 1, dtype=bool)
        self._is_target[self.histories.ends] = True
        self._features: Tensor | None = None

    @property
    def vector_size(self) -> int:
        """The size of user and item vectors."""
        return self._size

    @property
    def frozen(self) -> bool:
        """Whether the backbone is not trained."""
        return self.settings.tuning.tuning == "frozen"

    # -- vectors -------------------------------------------------------------------------------------------------------

    def item_vectors(self, passes: list[PackedTexts]) -> Tensor:
        """Return the vectors of items given as texts: [items, size], float32."""
        return self.head(self.tower.encode(passes))

    @torch.no_grad()
    def text_features(self) -> Tensor:
        """Return the text vectors of all items by a frozen backbone, computed once: [items, width], row 0 zero."""
        if self._features is None:
            sequences = self.texts.singles(np.arange(1, self.n_items))
            found = self.tower.encode(self.texts.passes(sequences, self.settings.eval_batch_tokens))
            self._features = torch.cat([found.new_zeros(1, found.shape[1]), found])
        return self._features

    def encode_items(self, items: np.ndarray) -> Tensor:
        """Return the vectors of item ids: [items, size], float32, in passes within `train_batch_tokens`."""
        if self.frozen:
            return self.head(self.text_features()[torch.from_numpy(items).to(self.device)])
        return super().encode_items(items)

    @torch.no_grad()
    def item_table(self) -> Tensor:
        """Return the vectors of all items by the present weights, in eval mode: [items, size], float32, row 0 zero."""
        if not self.frozen:
            return super().item_table()
        vectors = self.head(self.text_features())
        return vectors.index_fill(0, torch.zeros(1, dtype=torch.long, device=vectors.device), 0.0)

    def add_items(self, texts: pd.DataFrame) -> None:
        """Add items that have a text, see `ModelHooks`."""
        self._features = None
        super().add_items(texts)

    @torch.no_grad()
    def row_vectors(self, interaction: Interaction) -> Tensor:
        """Return the states after the histories of RecBole's rows: [batch, size], float32.

        Raises:
            DataError: if a history is empty.
        """
        histories = interaction[self.ITEM_SEQ].to(self.device)
        lengths = interaction[self.ITEM_SEQ_LEN].to(self.device)
        if bool((lengths < 1).any()):
            raise DataError("a history is empty: there is nothing to predict from")
        return self.encoder(self.ranking_table()[histories], histories, lengths)

    # -- training ------------------------------------------------------------------------------------------------------

    def training_samples(self, rng: np.random.Generator) -> Any:
        """Return the windows of one epoch. See `PackedTrainer`."""
        targets = self.histories.with_negatives(
            self.histories.every_target(), self.settings.train_negatives, rng, self.unmet_negatives
        )
        negatives = np.zeros((len(self.histories.flat), targets.negatives.shape[1]), dtype=np.int64)
        negatives[targets.ends] = targets.negatives
        return WindowTargets(self._windows, negatives)

    def prepared_step(self, samples: Any) -> tuple[int, list[Any]]:
        """Return how many positions a step predicts at, and its one pass. See `PackedTrainer`."""
        positions, _ = samples.windows.positions()
        return self._step(samples, self._is_target[positions + 1])

    def _step(self, samples: WindowTargets, predicts: np.ndarray) -> tuple[int, list[MoRecStep]]:
        """Return the step of some windows; `predicts` says of every position in them whether its target counts."""
        flat, (positions, counts) = self.histories.flat, samples.windows.positions()
        owners = np.repeat(np.arange(len(counts)), counts)
        columns = positions - np.repeat(samples.windows.starts, counts)
        ends = positions[predicts] + 1
        targets = Targets(ends, columns[predicts] + 1, flat[ends], samples.negatives[ends])
        read = flat[positions]
        whole = len(samples) == self.settings.train_batch_size
        distinct = self._distinct(targets, read, whole)
        width = int(counts.max(initial=1))
        histories = np.zeros((len(counts), width), dtype=np.int64)
        histories[owners, columns] = np.searchsorted(distinct, read) + 1
        known = np.zeros((len(counts), width + 1), dtype=np.int64)
        if self.settings.item_loss == "in-batch":
            known[owners, columns] = read
            known[owners[predicts], columns[predicts] + 1] = targets.labels
        queries = (owners * width + columns)[predicts]
        step = MoRecStep(
            [] if self.frozen else self.texts.passes(self.texts.singles(distinct), self.settings.train_batch_tokens),
            torch.from_numpy(distinct),
            torch.from_numpy(histories),
            torch.from_numpy(queries),
            Candidates(
                torch.from_numpy(targets.labels),
                torch.from_numpy(np.searchsorted(distinct, targets.labels)),
                torch.from_numpy(np.searchsorted(distinct, targets.negatives)),
                torch.from_numpy(known),
                torch.from_numpy(owners[predicts]),
            ),
        )
        return len(targets), [step]

    def _distinct(self, targets: Targets, read: np.ndarray, whole: bool) -> np.ndarray:
        """Return the ids of the items of a step, ascending; `whole`: it has as many windows as any step."""
        if whole and self.settings.item_loss == "in-batch":
            self.require_negatives(targets.labels)
        if self.settings.item_loss == "full":
            return np.arange(1, self.n_items)
        return np.unique(np.concatenate([read, targets.labels, targets.negatives.ravel()]))

    def pass_loss_sum(self, part: Any) -> Tensor:
        """Return the loss of a step, summed over its positions. See `PackedTrainer`."""
        histories = part.histories.to(self.device, non_blocking=True)
        if self.frozen:
            items = self.head(self.text_features()[part.distinct.to(self.device)])
        else:
            items = self.item_vectors(part.items)
        padded = torch.cat([items.new_zeros(1, items.shape[1]), items])
        states = self.encoder.states(padded[histories], histories)
        users = states.flatten(0, 1).index_select(0, part.queries.to(self.device, non_blocking=True))
        return self.items_loss_sum(users, items, part.candidates.to(self.device))

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """Return the mean loss of a RecBole batch of prefix rows, each at its last item."""
        ends, lengths = row_ends(interaction), interaction[self.ITEM_SEQ_LEN].cpu().numpy()
        assert ends is not None, "rows of the training part say where they are"
        epoch = self.training_samples(np.random.default_rng(0))
        last = np.zeros(int(lengths.sum()), dtype=bool)
        last[np.cumsum(lengths) - 1] = True
        rows, (step,) = self._step(WindowTargets(Windows(ends - lengths, ends), epoch.negatives), last)
        return self.pass_loss_sum(step) / rows
