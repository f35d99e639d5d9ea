"""Training on a frozen ID model and a frozen language model: what neither changes is computed once."""

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from recbole_llm.backbone.feature_cache import SharedRows, by_turns, storing_budget
from recbole_llm.backbone.feature_store import stored_or_computed
from recbole_llm.backbone.stored_states import files_key, states_key
from recbole_llm.model.id_model.user_vector import user_vector_shape
from recbole_llm.trainer.packed_trainer import PackedTrainer
from recbole_llm.utils.collectives import numbers_of_all
from recbole_llm.utils.processes import world

_ROWS = 8192  # histories of one pass of the ID model
_SHARE = 0.25  # of a device's free memory that stored language model states may take
_HOST_BYTES = 4 * 1024**3  # and of the host's, on the CPU


class AdapterTrainer(PackedTrainer):
    """`PackedTrainer` for IDLE-Adapter."""

    def precompute(self, *evaluated: Any, show_progress: bool = False) -> None:
        """Compute the user vectors of all training rows, and H~ (eq. 12) where it fits; evaluation needs neither."""
        del evaluated
        if self.finished:  # a trial whose best weights are evaluated
            return
        with torch.no_grad():
            self._user_vectors(show_progress)
            if self.model.settings.mmd_weight:
                with self.whole_backbone():
                    self._language_states(show_progress)

    def _user_vectors(self, show_progress: bool) -> None:
        inputs = self.model.inputs
        starts = range(0, len(inputs.ends), _ROWS)
        none = torch.empty(0, *user_vector_shape(self.model.id_model), device=self.device)

        def vectors(begin: int) -> Tensor:
            found: Tensor = self.model.user_vectors(
                inputs.dataset[np.arange(begin, min(begin + _ROWS, len(inputs.ends)))]
            )
            return found

        bar = tqdm(starts, desc="User vectors", ncols=100, disable=not show_progress)
        inputs.vectors = torch.cat(list(by_turns(bar, vectors, none)))

    def _language_states(self, show_progress: bool) -> None:
        model, inputs = self.model, self.model.inputs
        first, index, content = inputs.distinct_prompts()
        device, width = torch.device(self.device), model.layers * model.width
        budget = storing_budget(device, model.settings.eval_batch_tokens)
        passes = inputs.plain_passes(first, budget)
        own_passes = passes[world().rank :: world().size]  # each process keeps what it computes
        size = sum(map(len, own_passes)) * width * model.precision.itemsize
        room = _SHARE * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _HOST_BYTES
        if bool(numbers_of_all([size > room]).any()):
            logging.getLogger().info("%.1f GB of language model states do not fit: computed in every step", size / 1e9)
            return

        def parts() -> Iterator[Tensor]:
            with tqdm(total=len(first), desc="Hidden states", ncols=100, disable=not show_progress) as bar:
                for rows in own_passes:
                    found: Tensor = model.language_states(inputs.plain_prompts(rows).to(device)).flatten(1)
                    bar.update(len(found) * world().size)
                    yield found

        how = {"model": "IDLEAdapter", "style": inputs.style, "precision": model.precision}
        limit = self.config["stored_states_gb"] * 1e9
        key = None
        if limit:  # the key reads all weight files
            key = states_key(files_key(model.backbone_folder), content, **how, device=device.type, budget=budget)
        shape, whole = (len(first), width), len(first) * width * model.precision.itemsize
        bounds = np.cumsum([0, *map(len, passes)]).tolist() if world().is_shared else None
        store = stored_or_computed(
            key, shape, model.precision, device, self.run_folder, limit, parts, in_memory=whole, bounds=bounds
        )
        inputs.language_states = SharedRows(store, torch.from_numpy(index).to(device))
