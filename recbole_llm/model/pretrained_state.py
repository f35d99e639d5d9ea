"""The weights of a pre-training on other datasets, as a model takes them at its start, and how they are stored.

A state lies in a folder: the weights in safetensors, a note of how it was trained, and the keys of the items that it
has seen (the files `recbole_llm.backbone.pretrained` also writes).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import save as save_arrays
from safetensors.torch import load_file, save_file
from torch import Tensor

from recbole_llm.backbone.pretrained import ITEMS, RECORD
from recbole_llm.config.hooks import ModelHooks
from recbole_llm.errors import CheckpointError, DataError, StorageError
from recbole_llm.runs.checkpoint import WEIGHTS
from recbole_llm.utils.files import read_json_object, replacing_folder, write_json

_WHAT = {
    "weights": "another backbone",
    "pooling": "another pooling of texts (item_pooling)",
    "further_fields": "other text fields behind the first (item_text_fields)",
    "windows": "other windows of attention (attention_window)",
}


def save_state(
    folder: Path, weights: Mapping[str, Tensor], record: dict[str, Any], items: dict[str, np.ndarray]
) -> None:
    """Write a pre-trained state, unless `folder` is there already.

    Args:
        folder: where to.
        weights: the model's `transferred_state`.
        record: what is to be known of its training, with "model" and "origin"; plain values.
        items: int64 [items] for each source dataset, see `recbole_llm.data.sources.item_keys`.

    Raises:
        StorageError: if the folder cannot be written; nothing is then left of it.
    """
    if folder.exists():
        return
    tensors = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    with replacing_folder(folder) as temporary:
        try:
            save_file(tensors, temporary / WEIGHTS)
        except SafetensorError as error:
            raise StorageError(f"the pre-trained state {folder} could not be written: {error}") from error
        (temporary / ITEMS).write_bytes(save_arrays(items))
        write_json(temporary / RECORD, record)


@dataclass(frozen=True)
class PretrainedWeights:
    """A pre-trained state that was read.

    Attributes:
        folder: where it lies.
        record: what is known of its training.
        weights: by name.
    """

    folder: Path
    record: dict[str, Any]
    weights: dict[str, Tensor]

    @classmethod
    def read(cls, folder: Path) -> "PretrainedWeights":
        """Read what `save_state` wrote.

        Raises:
            CheckpointError: if the folder holds no such state, or a broken one.
        """
        try:
            record = read_json_object(folder / RECORD, "record of a pre-training")
            if not isinstance(record.get("origin", {}), dict):
                raise DataError(f"origin={record['origin']} of {folder / RECORD} is no mapping")
            return cls(folder, {**record, "folder": str(folder)}, load_file(folder / WEIGHTS))
        except (OSError, ValueError, DataError, SafetensorError) as error:
            raise CheckpointError(
                f"{folder} holds no whole pre-trained state ({WEIGHTS} and {RECORD}): pre-train again, or name the "
                f"folder that the verb pretrain printed"
            ) from error

    @torch.no_grad()
    def give(self, model: Any, origin: dict[str, Any]) -> dict[str, Any]:
        """Put the weights into a model that is built for another catalogue.

        Args:
            model: with the hooks of `ModelHooks`.
            origin: what its item vectors depend on, see `ItemTexts.origin`.

        Returns:
            What is known of the pre-training.

        Raises:
            CheckpointError: if they were trained for another model, on other vectors, or at another size.
        """
        name, hooks = type(model).__name__, model
        assert isinstance(hooks, ModelHooks)
        if self.record.get("model") != name:
            raise CheckpointError(
                f"the pre-trained state {self.folder} is of {self.record.get('model')}, not of {name}: pre-train {name}"
            )
        for key, found in self.record.get("origin", {}).items():
            if found != origin.get(key):
                raise CheckpointError(
                    f"the pre-trained state {self.folder} read items with {_WHAT.get(key, key)} ({found}, here "
                    f"{origin.get(key)}): take what it was trained with, or pre-train again"
                )
        expected = hooks.transferred_state()
        for key in sorted(set(expected) | set(self.weights)):
            sizes = [tuple(state[key].shape) if key in state else "none" for state in (self.weights, expected)]
            if sizes[0] != sizes[1]:
                raise CheckpointError(
                    f"the pre-trained state {self.folder} has '{key}' of size {sizes[0]}, this model of {sizes[1]}: "
                    f"give the sizes and the MAX_ITEM_LIST_LENGTH that it was trained with, or pre-train again"
                )
        model.load_state_dict(self.weights, strict=False)
        return self.record
