"""Item text vectors: one vector per item from a frozen backbone, computed once and kept by content.

A text is read as the backbone's own tokenizer frames it ([CLS] ... [SEP] for BERT, a first token for OPT), packed with
others, and pooled from the last layer's hidden states.
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from recbole_llm.backbone.attention import packed_hidden_states, use_packed_attention
from recbole_llm.backbone.loading import Backbone, fingerprint, first_position, load_backbone
from recbole_llm.backbone.padded import padded_lengths, padded_multiple
from recbole_llm.backbone.pooling import segments
from recbole_llm.backbone.preset import Pooling
from recbole_llm.backbone.pretrained import release_device_memory
from recbole_llm.backbone.resolve import resolve
from recbole_llm.backbone.special_tokens import special_tokens
from recbole_llm.errors import SettingError
from recbole_llm.packing.batch import PackedBatch, sequence_bounds
from recbole_llm.packing.ragged import RaggedTable, ranges
from recbole_llm.packing.sequences import alike_within_budget, within_budget
from recbole_llm.utils.files import replacing
from recbole_llm.utils.paths import cache_folder

_FORMAT = 1  # part of every key: raise it when the same texts would give other vectors
_KEY = "vectors"


def item_vectors(
    name: str,
    tokenizer: Any,
    texts: RaggedTable,
    *,
    device: torch.device | str,
    precision: torch.dtype,
    budget: int,
    pooling: Pooling | None = None,
) -> Tensor:
    """Return the vector of each text: float32 [rows, width] on the CPU, zero for an empty row.

    The vectors are found again by the content of the backbone's files, tokens, pooling and precision; the weights are
    loaded only where they must be computed.

    Args:
        name: a preset, a folder or a hub ID, as `load_backbone` takes it.
        tokenizer: the backbone's, see `load_tokenizer`.
        texts: token ids without special tokens; in a table of items row 0 is the padding item, empty.
        device: where to compute.
        precision: of the backbone, float32 or bfloat16.
        budget: maximum number of tokens of one packed pass.
        pooling: mean, cls or last; None for the backbone's own.

    Raises:
        SettingError: if no such backbone is known, or a text is longer than the backbone can read.
        BackboneError: if the backbone cannot be had or is broken.
        StorageError: if the vectors cannot be stored.
    """
    found = resolve(name)
    pooling = pooling or found.preset.pooling
    before, after = special_tokens(tokenizer)
    framed = framed_rows(texts, before, after)
    path = cache_folder("item_vectors") / f"{_content_key(found.folder, framed, pooling, precision)}.safetensors"
    if (stored := _read(path)) is not None:
        return stored
    backbone = load_backbone(name, dtype=precision)
    backbone.model.requires_grad_(False).to(device)
    vectors = compute_vectors(backbone, framed, torch.device(device), budget, pooling)
    del backbone
    release_device_memory()
    with replacing(path) as temporary:
        save_file({_KEY: vectors}, temporary)
    return vectors


def framed_rows(texts: RaggedTable, before: list[int], after: list[int]) -> RaggedTable:
    """Return a table whose every non-empty row stands between the tokens `before` and `after`; empty ones stay so."""
    filled = texts.lengths > 0
    added = len(before) + len(after)
    lengths = texts.lengths + added * filled
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = np.empty(int(offsets[-1]), dtype=np.int64)
    begins = offsets[:-1][filled]
    values[ranges(begins, np.full(len(begins), len(before)))] = np.tile(before, len(begins))
    values[ranges(offsets[:-1] + len(before) * filled, texts.lengths)] = texts.values
    ends = offsets[1:][filled]
    values[ranges(ends - len(after), np.full(len(ends), len(after)))] = np.tile(after, len(ends))
    return RaggedTable(values, offsets)


@torch.no_grad()
def compute_vectors(
    backbone: Backbone, framed: RaggedTable, device: torch.device, budget: int, pooling: Pooling
) -> Tensor:
    """Return the pooled states of every row of `framed`: float32 [rows, width] on the CPU, zero for an empty row.

    Args:
        backbone: loaded, its model on `device`; it is made to attend within packed sequences.
        framed: token ids with their special tokens.
        device: where to compute.
        budget: maximum number of tokens of one pass, padding included where there is any.
        pooling: how the states of a text become one vector.

    Raises:
        SettingError: if a row is longer than the backbone has positions for.
    """
    longest = int(framed.lengths.max(initial=0))
    if backbone.max_positions is not None and longest > backbone.max_positions:
        raise SettingError(
            f"the longest item text takes {longest} tokens, more than the {backbone.max_positions} positions of "
            f"{backbone.preset.name}: lower max_attribute_tokens, or name fewer item_text_fields"
        )
    use_packed_attention(backbone.model)
    causal, shift = backbone.preset.kind == "decoder", first_position(backbone.model)
    rows = np.flatnonzero(framed.lengths)
    vectors = torch.zeros(len(framed), backbone.width)
    multiple = padded_multiple(backbone.model.config)
    grouped = within_budget if multiple == 1 else alike_within_budget  # what is padded is read with its like
    for group in grouped(padded_lengths(framed.lengths[rows], multiple), budget):
        tokens, lengths = framed.gather(rows[group])
        batch = PackedBatch(
            token_ids=torch.from_numpy(tokens),
            positions=torch.from_numpy(ranges(np.zeros_like(lengths), lengths)) + shift,
            bounds=sequence_bounds(lengths, causal),
            query_index=torch.empty(0, dtype=torch.long),
        ).to(device)
        states = packed_hidden_states(backbone.model, batch)
        vectors[torch.from_numpy(rows[group])] = segments(pooling, lengths).to(device).pool(states).cpu()
    return vectors


def _content_key(folder: Path, framed: RaggedTable, pooling: Pooling, precision: torch.dtype) -> str:
    digest = hashlib.sha256(json.dumps([_FORMAT, fingerprint(folder), pooling, str(precision)]).encode())
    digest.update((folder / "config.json").read_bytes())
    digest.update(framed.values.astype("<i8").tobytes())
    digest.update(framed.offsets.astype("<i8").tobytes())
    return digest.hexdigest()[:32]


def _read(path: Path) -> Tensor | None:
    if not path.is_file():
        return None
    try:
        return load_file(path)[_KEY]
    except (SafetensorError, OSError, KeyError):
        logging.getLogger().warning("the stored item vectors %s are broken and are made again", path)
        return None
