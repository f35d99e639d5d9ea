"""Recformer (Li et al., KDD 2023, "Text Is All You Need"): language representations of sequences of items.

An item is ``name value name value ...``; a bidirectional encoder reads the items of a history, the newest first, or one
item alone, and its state at the first token is the vector. Four embeddings are added before the first layer: of the
word, of the token's position, of its kind (before the items, name, value) and of its item's place in the history. The
score is cos(u, v) / .05. Fine-tuning has two stages around a table of item vectors that takes no gradient: made again
for every epoch; then, from the best weights, never again. See `StagedTrainer`.

The paper's backbone is a Longformer, which attends within windows of 64 tokens and reads 1,024. It is read here too,
with ``attention_window: 64``; see `recbole_llm.backbone.padded`. A deviation is the default: an encoder of a BERT or
RoBERTa type, which attends in full to what its positions allow, mostly 512 tokens.

A pre-training on other datasets contrasts a history with its next item, one of the second half of the user's items,
within a batch, and adds .1 of the loss of masked words in the history and .1 of that in the items; the word embeddings
stay as they are.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from recbole_llm.backbone.loading import Backbone
from recbole_llm.backbone.tuning import TuningSettings
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.history_texts import PackedTexts
from recbole_llm.data.targets import Targets
from recbole_llm.errors import BackboneError
from recbole_llm.model.layers.masked_tokens import MaskedTexts, MaskedTokenHead, TokenMasker
from recbole_llm.model.needs import PretrainedState
from recbole_llm.model.pretrained_state import PretrainedWeights
from recbole_llm.model.text_tower import TextTower
from recbole_llm.model.tower_recommender import TowerRecommender, TowerStep
from recbole_llm.model.tower_texts import TextForm

_KINDS = 3  # before the items, name, value


class RecformerTower(TextTower):
    """A text tower that adds embeddings of a token's kind and of its item's place to those of the words.

    The backbone adds its positions and the first row of its own token types before its normalisation, as to any text.
    So `kinds` begins at 0: every kind then has the backbone's row, as in the authors' code.

    Args:
        loaded: the backbone.
        tuning: how much of it is trained.
        precision: of its arithmetic.
        items: maximum number of items of a history.

    Attributes:
        kinds: [3, width].
        places: [items + 1, width], row 0 for what stands before the items.
    """

    def __init__(self, loaded: Backbone, tuning: TuningSettings, precision: torch.dtype, items: int) -> None:
        super().__init__(loaded, tuning, precision)
        words = loaded.model.get_input_embeddings()
        width = int(words.weight.shape[1])
        self.kinds = nn.Embedding(_KINDS, width)
        self.places = nn.Embedding(items + 1, width)
        nn.init.zeros_(self.kinds.weight)
        nn.init.normal_(self.places.weight, std=getattr(loaded.model.config, "initializer_range", 0.02))

    def embeddings(self, texts: PackedTexts) -> dict[str, Tensor]:
        """Return the sum of word, kind and place embeddings: [tokens, width]."""
        words = self.backbone.get_input_embeddings()
        assert texts.kinds is not None and texts.places is not None
        summed = words(texts.packed.token_ids) + self.kinds(texts.kinds) + self.places(texts.places)
        return {"inputs_embeds": summed.to(words.weight.dtype)}


@dataclass(frozen=True)
class SeededTargets(Targets):
    """Rows to pre-train on.

    Attributes:
        seeds: int64 [rows], of what is hidden in the steps that the rows come into.
    """

    seeds: np.ndarray

    def select(self, indices: np.ndarray) -> "SeededTargets":
        """Return the rows at `indices`, in that order."""
        return SeededTargets(*(values[indices] for values in vars(self).values()))


@dataclass(frozen=True)
class MaskedStep(TowerStep):
    """A step of the pre-training.

    Attributes:
        masked_users: the histories with hidden words, in passes.
        masked_items: the items likewise.
    """

    masked_users: list[MaskedTexts]
    masked_items: list[MaskedTexts]

    def pin_memory(self) -> "MaskedStep":
        """Return the step in page-locked memory."""
        plain = super().pin_memory()
        masked = ([each.pin_memory() for each in part] for part in (self.masked_users, self.masked_items))
        return MaskedStep(plain.users, plain.items, plain.candidates, *masked)


class Recformer(TowerRecommender):
    """Recformer as a RecBole sequential model.

    Args:
        config: the settings of the run.
        dataset: the training part of a `HistoryDataset`.
        start: pre-trained weights to start from; None for the backbone's.

    Raises:
        BackboneError: if the backbone cannot be had, or is a decoder.
        DataError: if items have no text, or all the same.
        SettingError: for values that do not go together.
    """

    stages = (PretrainedState(),)
    form = TextForm(named=True, newest_first=True, closed=False)

    def __init__(self, config: Any, dataset: HistoryDataset, start: PretrainedWeights | None = None) -> None:
        super().__init__(config, dataset, start)
        self._mlm_weight: float = config["mlm_weight"]
        self._mlm_share: float = config["mlm_share"]

    def check_backbone(self, loaded: Backbone) -> None:
        """Refuse a decoder. Raises BackboneError."""
        super().check_backbone(loaded)
        if loaded.preset.kind == "decoder":
            raise BackboneError(
                f"Recformer reads a history in both directions, but {self.settings.backbone} is a decoder: choose an "
                f"encoder such as sbert-minilm or bge-small"
            )

    def make_tower(self, loaded: Backbone) -> TextTower:
        """Return a tower with embeddings of kinds and places."""
        return RecformerTower(loaded, self.settings.tuning, self.precision, self.settings.max_items)

    # -- pre-training --------------------------------------------------------------------------------------------------

    def before_pretraining(self, dataset: Any) -> None:
        """Take the pre-training's loss: a contrast within the batch, and masked words. See `ModelHooks`.

        Raises:
            BackboneError: if the backbone's tokenizer has no mask token.
        """
        super().before_pretraining(dataset)
        self.settings = replace(
            self.settings, item_loss="in-batch", two_stage=False, popularity_correction=False, train_negatives=0
        )
        backbone = self.tower.backbone
        words: Tensor = backbone.get_input_embeddings().weight
        words.requires_grad_(False)
        if self._mlm_weight:
            self._masker = TokenMasker(self.item_texts.tokenizer, self._mlm_share)
            eps = getattr(backbone.config, "layer_norm_eps", 1e-12)
            self.mlm_head = MaskedTokenHead(words.shape[1], len(words), float(eps)).to(words.device)

    def training_samples(self, rng: np.random.Generator) -> Any:
        """Return the rows of one epoch: in a pre-training one target of the second half of each user's items."""
        if not self.pretrains:
            return super().training_samples(rng)
        histories = self.histories
        ends = rng.integers(histories.users + (histories.last - histories.users + 1) // 2, histories.last + 1)
        none, seeds = np.zeros((len(ends), 0), dtype=np.int64), rng.integers(0, 1 << 31, len(ends))
        return SeededTargets(ends, ends - histories.users, histories.flat[ends], none, seeds)

    def prepared_step(self, samples: Any) -> tuple[int, list[Any]]:
        """Return how many rows a step has, and its passes; in a pre-training with hidden words."""
        rows, parts = super().prepared_step(samples)
        if not self.pretrains or not self._mlm_weight:
            return rows, parts
        rng = np.random.default_rng(samples.seeds.tolist())
        (step,) = parts
        masked = [[self._masker(texts, rng) for texts in passes] for passes in (step.users, step.items)]
        return rows, [MaskedStep(step.users, step.items, step.candidates, *masked)]

    def pass_loss_sum(self, part: Any) -> Tensor:
        """Return the loss of one pass, summed over its rows. See `PackedTrainer`."""
        loss = super().pass_loss_sum(part)
        if not isinstance(part, MaskedStep):
            return loss
        rows = len(part.candidates.labels)
        for masked in (part.masked_users, part.masked_items):
            hidden = sum(len(each.labels) for each in masked)
            if hidden:
                # as `TextTower.encode` does: activations of one pass at a time
                sums = [checkpoint(self._masked_loss, each, use_reentrant=False) for each in masked]
                loss = loss + self._mlm_weight * rows / hidden * torch.stack(sums).sum()
        return loss

    def _masked_loss(self, masked: MaskedTexts) -> Tensor:
        """Return the sum of -log p over the hidden tokens of one pass."""
        texts, index = masked.texts.to(self.device), masked.index.to(self.device, non_blocking=True)
        words: Tensor = self.tower.backbone.get_input_embeddings().weight
        hidden = self.tower.hidden_states(texts).index_select(0, index)
        return self.mlm_head(hidden, words, masked.labels.to(self.device, non_blocking=True))

    def transferred_state(self) -> dict[str, Tensor]:
        """Return the weights that serve another catalogue: without the head of the masked words."""
        state = super().transferred_state()
        return {name: value for name, value in state.items() if not name.startswith("mlm_head.")}
