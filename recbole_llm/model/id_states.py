"""A trained id model's user states inside the decoder: both papers in one model.

ST2SI's query token after item k gets the id model's state of the user after that item, projected as IDLE-Adapter
projects it (its eq. 5): its embedding is ``E[Q] + W_u u_k + b_u``. So it is a virtual token of the user, and each later
query sees the earlier ones. Neither paper does this.
"""

from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import Tensor, nn

from recbole_llm.data.dataset import cut_histories
from recbole_llm.model.id_model.user_vector import check_finite, require_user_vector, user_vector_shape, user_vectors
from recbole_llm.model.layers.virtual_token_adapter import truncated_normal_
from recbole_llm.model.sequential_recommender.st2si.inputs import ST2SIInputs
from recbole_llm.packing.batch import PackedBatch
from recbole_llm.packing.sequences import Sequences

_ROWS = 4096  # histories that the id model reads at once


class IdStates(nn.Module):
    """What is added to the query tokens.

    Args:
        model: the frozen id model, in eval mode, on the run's device; it is no part of this module.
        width: of the backbone's token embeddings.
        inputs: what training reads.
        owners: int64 [interactions], the user of every item of ``inputs.histories``.

    Attributes:
        projection: W_u and b_u; the states of several interests are laid side by side.

    Raises:
        SettingError: if the id model has no user vector.
        TrainingError: if its vectors are not numbers.
    """

    def __init__(self, model: nn.Module, width: int, inputs: ST2SIInputs, owners: np.ndarray) -> None:
        super().__init__()
        require_user_vector(type(model))
        interests, size = user_vector_shape(model)
        self.projection = nn.Linear(interests * size, width)
        for parameter in self.projection.parameters():
            truncated_normal_(parameter)
        self._model = (model,)  # in a tuple: the weights are those of `id_scores`, stored once
        self._inputs, self._owners = inputs, owners
        self._trained: Tensor | None = None

    def forward(self, embeddings: Tensor, batch: PackedBatch, vectors: Tensor | None) -> Tensor:
        """Return the token embeddings with the states added at their places.

        Args:
            embeddings: [tokens, width].
            batch: with the places, and which vector belongs to each.
            vectors: [vectors, size]; None: those of the training histories.
        """
        if batch.state_places is None or batch.state_rows is None or not len(batch.state_places):
            return embeddings
        vectors = self.trained_vectors() if vectors is None else vectors
        added = self.projection(vectors.index_select(0, batch.state_rows))
        return embeddings.index_add(0, batch.state_places, added.to(embeddings.dtype))

    def trained_vectors(self) -> Tensor:
        """Return the states after every item that training reads, computed once: [interactions, size], else 0."""
        if self._trained is None:
            histories, last = self._inputs.histories, self._inputs.last_targets
            end = np.zeros(len(histories.items), dtype=np.int64)
            end[histories.user_start[last]] = last
            index = np.arange(len(end))
            wanted = index[index < end[histories.user_start]]  # held-out items and what follows are never read
            self._trained = self._vectors(histories.items, histories.user_start, wanted, self._owners)
        return self._trained

    def vectors_of(self, interaction: Interaction, sequences: Sequences) -> Tensor:
        """Return the states [items of all histories, size] that the windows of RecBole's rows need, 0 elsewhere."""
        model: Any = self._model[0]
        histories = interaction[model.ITEM_SEQ].cpu().numpy()
        lengths = interaction[model.ITEM_SEQ_LEN].cpu().numpy()
        flat = histories[np.arange(histories.shape[1]) < lengths[:, None]]
        starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
        owners = np.zeros_like(flat)
        if model.USER_ID in interaction:
            owners = np.repeat(interaction[model.USER_ID].cpu().numpy(), lengths)
        assert sequences.states is not None
        return self._vectors(flat, starts, np.unique(sequences.states[sequences.states >= 0]), owners)

    @torch.no_grad()
    def _vectors(self, items: np.ndarray, starts: np.ndarray, wanted: np.ndarray, owners: np.ndarray) -> Tensor:
        """Return the id model's states after the items at `wanted`, of histories that begin at `starts`.

        Args:
            items: int64 [items], of histories laid end to end.
            starts: int64 [items], where each item's history begins.
            wanted: int64 [states], indices into `items`.
            owners: int64 [items], users.

        Returns:
            float32 [items, size], 0 where nothing is wanted.
        """
        model: Any = self._model[0]
        device = self.projection.weight.device
        flat, first, users = (torch.from_numpy(values).to(device) for values in (items, starts, owners))
        found = torch.zeros(len(items), self.projection.in_features, device=device)
        for part in torch.from_numpy(wanted).to(device).split(_ROWS):
            lengths = (part + 1 - first[part]).clamp(max=model.max_seq_length)
            rows = cut_histories({model.ITEM_SEQ: flat}, part + 1, lengths, model.max_seq_length)
            rows |= {model.ITEM_SEQ_LEN: lengths, model.USER_ID: users[part]}
            with torch.autocast(device.type, enabled=False):  # in training this is called inside of the backbone's
                found[part] = user_vectors(model, Interaction(rows)).float().flatten(1)
        check_finite(found[:, None], model)
        return found
