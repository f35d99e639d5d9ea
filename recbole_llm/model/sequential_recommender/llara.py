"""LLaRA (Liao et al., SIGIR 2024, "LLaRA: Large Language-Recommendation Assistant").

The prompt lists the titles of the history and of the candidates. In a hybrid prompt a behaviour token follows every
title: the item's vector in a frozen ID model, put through a projector into the space of word embeddings. A curriculum
goes from prompts of text alone to hybrid ones: a step of training is hybrid with the probability step / all steps. The
model writes the title of the item that it chooses.

In text-only prompts nothing stands where the behaviour tokens would (the authors' code puts an untrained placeholder
there), so with ``hybrid_share: 0`` all of it is TALLRec with ``task: listwise``.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recbole_llm.data.answered_prompts import AnsweredPrompts
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.list_prompts import Items
from recbole_llm.data.list_samples import ListSamples
from recbole_llm.model.id_model.frozen import FrozenIdModel
from recbole_llm.model.id_model.item_vectors import item_vectors
from recbole_llm.model.list_tuned_recommender import ListTunedRecommender
from recbole_llm.model.needs import IdModel
from recbole_llm.runs.checkpoint import trained_state

_COIN = 2  # which numbers of an epoch's generator decide what is hybrid


class LLaRA(ListTunedRecommender):
    """LLaRA as a RecBole sequential model.

    Args:
        config: the settings of the run.
        dataset: the training part of a `HistoryDataset`.
        id_model: frozen; its item vectors are what is projected.

    Attributes:
        id_run: the ID model with its folder.
        projector: from item vectors [size] to word embeddings [width], two linear layers with GELU between.
        behaviour: float32 [items, size], the item vectors.

    Raises:
        BackboneError: if the backbone cannot be had or is no decoder, or two titles have the same tokens.
        DataError: if an item has no title.
        SettingError: if the ID model has no item vectors, or values do not go together.
    """

    stages = (IdModel(),)
    behaviour: Tensor

    def __init__(self, config: Any, dataset: HistoryDataset, id_model: FrozenIdModel) -> None:
        super().__init__(config, dataset)
        self.id_run = id_model
        share = config["hybrid_share"]
        self._share = None if share is None else float(share)
        self._seed = config["seed"]
        self._steps_of_epoch = -(-len(self._rows) // self.settings.train_batch_size)
        self._steps = max(self._steps_of_epoch * config["epochs"], 1)
        self._epoch, self._step = 0, 0
        vectors = item_vectors(id_model.module, self.n_items).to(self.device)
        self.register_buffer("behaviour", vectors, persistent=False)
        words = self.backbone.get_input_embeddings().weight
        with torch.random.fork_rng():  # nothing else depends on whether there is a projector
            torch.manual_seed(self._seed)
            self.projector = nn.Sequential(
                nn.Linear(vectors.shape[1], words.shape[1]), nn.GELU(), nn.Linear(words.shape[1], words.shape[1])
            )
        if self._share == 0:
            self.projector.requires_grad_(False)

    @property
    def hybrid(self) -> bool:
        """Whether prompts are hybrid when the model is evaluated."""
        return self._share != 0

    def embed(self, batch: AnsweredPrompts) -> Tensor:
        """Return the input embeddings of a batch: words, and at markers the projected vectors: [tokens, width]."""
        words = super().embed(batch)
        if not len(batch.markers):
            return words
        projected = self.projector(self.behaviour[batch.marked_items])
        return words.index_copy(0, batch.markers, projected.to(words.dtype))

    def prompt_rows(self, history: Items, candidates: Items) -> list[int]:
        """Return the rows of a prompt in evaluation: hybrid, unless training never is."""
        lists = {"history": history[-self.settings.max_items :], "candidates": candidates}
        return self.prompts.rows(lists, marked=self.hybrid)

    def before_epoch(self, epoch: int) -> None:
        """Begin to count the steps of an epoch. See `PackedTrainer`."""
        self._epoch, self._step = epoch, 0

    def prepared_step(self, samples: ListSamples) -> tuple[int, list[AnsweredPrompts]]:
        """Return how many answer tokens a step has, and its passes, all hybrid or none. See `PackedTrainer`.

        Steps are prepared in their order, each once.
        """
        done = self._epoch * self._steps_of_epoch + self._step
        share = done / self._steps if self._share is None else self._share
        coin = np.random.default_rng([self._seed, self._epoch, _COIN, self._step]).random()
        self._step += 1
        return self._passes(samples, marked=bool(coin < share))

    def stored_state(self) -> dict[str, Tensor]:
        """Return the weights that a checkpoint holds: what is trained of the language model, and the projector."""
        projector = {f"projector.{name}": value for name, value in self.projector.state_dict().items()}
        return {**super().stored_state(), **projector} if self.hybrid else trained_state(self)

    def extra_results(self) -> dict[str, Any]:
        """Return the ID model and its own test metrics, for `result.json`."""
        return {"id_model": {"model": type(self.id_run.module).__name__, "test": self.id_run.test_metrics()}}

    def save_extras(self, folder: Any, dataset: Any) -> None:
        """Put a copy of the ID model into the folder of the run."""
        del dataset
        self.id_run.copy_into(folder)
