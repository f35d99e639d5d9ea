"""Scenarios: one language model in memory, and for each catalogue one small file (ST2SI, 3.4.2).

A scenario is what differs between two catalogues that share a frozen backbone: the item linear projection, the item
vocabulary in the order of the ids, and the items' token ids. It is one safetensors file, which names the backbone by a
fingerprint of its weights; putting it onto a loaded backbone reads that file and nothing else.

    games = load_scenario("saved/<run>/scenario.safetensors")
    swap(model, games)                  # an ST2SI model on the same backbone; `dataset` is checked if given
    scores = model.full_sort_predict(interaction)   # interaction holds ids of games.tokens
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from recbole_llm.backbone.fingerprint import weights_fingerprint
from recbole_llm.data.windows import WindowLimits
from recbole_llm.errors import CheckpointError
from recbole_llm.model.layers.item_linear_projection import ItemLinearProjection
from recbole_llm.model.sequential_recommender.st2si.inputs import CatalogueInputs
from recbole_llm.packing.ragged import RaggedTable
from recbole_llm.runs.checkpoint import catalogue_hash
from recbole_llm.utils.files import replacing
from recbole_llm.utils.hashing import hash_of_tokens

FILE = "scenario.safetensors"
_FORMAT = "recbole_llm scenario 1"


@dataclass(frozen=True)
class Scenario:
    """A catalogue's part of an ST2SI model.

    Attributes:
        dataset: the dataset's name.
        tokens: item tokens in the order of the ids; the first is the padding id's.
        weight: float32 [items, width], the projection (eq. 5).
        text: token ids of the items, row = item id.
        backbone: what the backbone was called.
        fingerprint: of the backbone's weights, see `weights_fingerprint`.
        query_token: the token after every item text.
        query: its id.
        instruction: token ids of the alignment instruction.
        max_items: maximum number of items of a window.
        max_sequence_tokens: maximum number of tokens of a window.
        max_attribute_tokens: maximum number of tokens of one field; `text` is cut already.
        item_text_fields: the columns that `text` was made of.
        multi_query: whether a query follows every item, or the last one alone.
        alignment_query: id of the token after an alignment input; None for the query token.
    """

    dataset: str
    tokens: list[str]
    weight: Tensor
    text: RaggedTable
    backbone: str
    fingerprint: str
    query_token: str
    query: int
    instruction: list[int]
    max_items: int
    max_sequence_tokens: int
    max_attribute_tokens: int
    item_text_fields: list[str]
    multi_query: bool
    alignment_query: int | None = None

    @property
    def catalogue(self) -> str:
        """The hash that a checkpoint's header calls `catalogue`."""
        return hash_of_tokens(self.tokens)

    def inputs(self) -> CatalogueInputs:
        """Return what the model reads of the catalogue."""
        limits = WindowLimits(self.max_items, self.max_sequence_tokens)
        return CatalogueInputs(self.text, self.query, self.instruction, limits, self.multi_query, self.alignment_query)


# Fields of the header; the others are tensors.
_IN_HEADER = (
    *("dataset", "backbone", "fingerprint", "query_token", "query", "instruction", "max_items", "max_sequence_tokens"),
    *("max_attribute_tokens", "item_text_fields", "multi_query"),
)


def scenario_of(model: Any, dataset: Any) -> Scenario:
    """Return the scenario of a trained ST2SI model.

    The backbone's fingerprint is that of the weights as they are now. With ``tuning: ilp`` they are the preset's, or
    the pre-trained ones; after full or LoRA tuning they are the model's own, and the scenario fits no other backbone.

    Args:
        model: an `ST2SI`.
        dataset: the dataset that it was built on.

    Raises:
        CheckpointError: if `dataset` has another number of items than the model.
    """
    tokens = [str(token) for token in dataset.field2id_token[dataset.iid_field]]
    if len(tokens) != len(model.projection.weight):
        raise CheckpointError(
            f"the projection has {len(model.projection.weight)} ids, but {dataset.dataset_name} has {len(tokens)}: "
            f"give the dataset that the model was built on"
        )
    settings, inputs = model.settings, model.inputs
    return Scenario(
        dataset=dataset.dataset_name,
        tokens=tokens,
        weight=model.projection.weight.detach().float().cpu(),
        text=inputs.text,
        backbone=settings.backbone,
        fingerprint=weights_fingerprint(model.backbone),
        query_token=settings.query_token,
        query=inputs.query,
        instruction=[int(token) for token in inputs.instruction],
        max_items=inputs.limits.items,
        max_sequence_tokens=inputs.limits.tokens,
        max_attribute_tokens=settings.max_attribute_tokens,
        item_text_fields=list(settings.item_text_fields),
        multi_query=inputs.multi_query,
        alignment_query=inputs.alignment_query,
    )


def save_scenario(model: Any, dataset: Any, path: str | Path) -> Path:
    """Write the scenario of a trained ST2SI model, see `scenario_of`.

    Raises:
        CheckpointError: if `dataset` has another number of items than the model.
        StorageError: if the file cannot be written; an older one then stays as it was.
    """
    found = scenario_of(model, dataset)
    header = {name: getattr(found, name) for name in _IN_HEADER}
    if found.alignment_query is not None:  # earlier versions read a header without it
        header["alignment_query"] = found.alignment_query
    tensors = {
        "projection": found.weight.contiguous(),
        "tokens": torch.frombuffer(bytearray("\n".join(found.tokens).encode()), dtype=torch.uint8),
        "text": torch.from_numpy(found.text.values.astype(np.int32)),
        "text_offsets": torch.from_numpy(found.text.offsets.astype(np.int64)),
    }
    metadata = {"format": _FORMAT, "catalogue": found.catalogue, "scenario": json.dumps(header)}
    with replacing(path) as temporary:
        temporary.write_bytes(save(tensors, metadata))
    return Path(path)


def load_scenario(path: str | Path) -> Scenario:
    """Read a file that `save_scenario` wrote.

    Raises:
        CheckpointError: if it is missing, is no scenario, or is broken or cut short.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"there is no scenario {path}: ILP tuning without an ID model leaves one in its run folder, as {FILE}"
        )
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise CheckpointError(f"{path} is not a scenario: give the {FILE} of a run")
            # Copied: a tensor that is read is a map of the file, and the file may change.
            tensors = {name: file.get_tensor(name).clone() for name in ("projection", "tokens", "text", "text_offsets")}
        header = json.loads(metadata["scenario"])
        tokens = bytes(tensors["tokens"].numpy()).decode().split("\n")
        text = RaggedTable(tensors["text"].numpy().astype(np.int64), tensors["text_offsets"].numpy())
        scenario = Scenario(tokens=tokens, weight=tensors["projection"], text=text, **header)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"the scenario {path} is broken or cut short ({error}): copy or make it again") from error
    whole = len(tokens) == len(scenario.weight) == len(text) and text.offsets[-1] == len(text.values)
    if not whole or scenario.catalogue != metadata.get("catalogue"):
        raise CheckpointError(f"the scenario {path} is broken, its parts do not belong together: make it again")
    return scenario


def swap(model: Any, scenario: Scenario, dataset: Any = None) -> None:
    """Put the projection and the item texts of another catalogue onto a loaded ST2SI model, in place.

    The backbone is not touched; the model then gives exactly the scores of one that was built on that catalogue. It is
    for inference: the histories that the model trained on are gone.

    A `Recommender` (and any CUDA graph) that was made of the model before keeps the ids of the old catalogue: make
    another, of this model and the new dataset.

    Args:
        model: an `ST2SI`, on any device.
        scenario: of the same backbone.
        dataset: the dataset whose ids the model will be given, to be checked; None if there is none.

    Raises:
        CheckpointError: if the scenario belongs to another backbone, or to another catalogue than `dataset`. The model
            is then as it was.
    """
    _require_fitting(model, scenario, dataset)
    width = model.projection.weight.shape[1]
    old = model.projection.weight
    with torch.device("meta"):  # random weights would be drawn for nothing
        projection = ItemLinearProjection(width, len(scenario.tokens))
    weight = scenario.weight.to(device=old.device, dtype=old.dtype)
    projection.weight = torch.nn.Parameter(weight, requires_grad=old.requires_grad)
    model.projection = projection.train(model.projection.training)
    model.inputs = scenario.inputs()
    model.n_items = len(scenario.tokens)
    model.state_cache = None


def _require_fitting(model: Any, scenario: Scenario, dataset: Any) -> None:
    own = weights_fingerprint(model.backbone)
    if scenario.fingerprint != own:
        raise CheckpointError(
            f"the scenario of {scenario.dataset} belongs to the backbone {scenario.backbone} with query token "
            f"'{scenario.query_token}' (weights {scenario.fingerprint}), but this one is {model.settings.backbone} "
            f"with '{model.settings.query_token}' (weights {own}): load the backbone that it was tuned on"
        )
    width = model.projection.weight.shape[1]
    if scenario.weight.shape[1] != width:
        raise CheckpointError(
            f"the scenario of {scenario.dataset} is for states {scenario.weight.shape[1]} wide, not {width}"
        )
    if dataset is not None and catalogue_hash(dataset) != scenario.catalogue:
        raise CheckpointError(
            f"the scenario belongs to the item catalogue of {scenario.dataset} with {len(scenario.tokens)} ids, but "
            f"the dataset is {dataset.dataset_name} with {dataset.item_num} ids, or has them in another order"
        )
