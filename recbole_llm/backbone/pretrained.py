"""A backbone that was pre-trained here: an ordinary transformers folder with a note of what it was trained on.

Any program that reads transformers' folders reads it; here ``--backbone=<folder>`` does.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from recbole_llm.backbone.gguf import quiet_transformers
from recbole_llm.errors import BackboneError, StorageError
from recbole_llm.utils.files import replacing_folder, write_json

RECORD = "pretraining.json"
ITEMS = "pretraining-items.safetensors"


def save_backbone(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    record: dict[str, Any],
    items: dict[str, np.ndarray],
) -> None:
    """Write a backbone and its tokenizer, with a query token that was added to both, unless `folder` is there already.

    Args:
        folder: where to.
        model: the base model, without a head.
        tokenizer: its tokenizer.
        record: what is to be known of its training; plain values.
        items: int64 [items] for each source dataset, see `recbole_llm.data.sources.item_keys`.

    Raises:
        StorageError: if the folder cannot be written; nothing is then left of it.
    """
    if folder.exists():
        return
    with replacing_folder(folder) as temporary, quiet_transformers():
        try:
            model.save_pretrained(temporary)
        except SafetensorError as error:  # a failed write, as text only
            raise StorageError(f"the backbone {folder} could not be written: {error}") from error
        tokenizer.save_pretrained(temporary)
        (temporary / ITEMS).write_bytes(save(items))
        write_json(temporary / RECORD, record)


def read_record(backbone: str | Path) -> dict[str, Any] | None:
    """Return what is known of the training of a backbone that `save_backbone` wrote; None for any other.

    Raises:
        BackboneError: if the note in the folder cannot be read.
    """
    path = Path(backbone) / RECORD
    if not backbone or not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise ValueError(type(record).__name__)
    except (OSError, ValueError) as error:
        raise BackboneError(f"{path} is broken: pre-train again, or use another backbone") from error
    return {**record, "folder": str(backbone)}


def source_items(backbone: str | Path) -> dict[str, np.ndarray]:
    """Return the item keys of each dataset that a backbone of `save_backbone` was trained on.

    Raises:
        BackboneError: if the file is missing or broken.
    """
    path = Path(backbone) / ITEMS
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise BackboneError(f"{path} is missing or broken: pre-train again, or use another backbone") from error


def release_device_memory() -> None:
    """Give back what a model that is gone held on the device."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
