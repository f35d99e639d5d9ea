"""What a run stores: weights in safetensors, and the state that training resumes from. Nothing here is unpickled.

* ``model.safetensors``: the weights of the best epoch. Its header names the model, the dataset and a hash of the item
  vocabulary, so that it is never loaded for another catalogue; that of a model with a row per user, of its users, too.
* ``resume.pt``: weights, optimiser, schedule and random states after the last epoch, read with ``weights_only=True``;
  what several processes split is beside it, see `resume_parts`.
"""

import json
import random
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import scipy.sparse as sp
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recbole_llm.errors import CheckpointError
from recbole_llm.utils.files import replacing
from recbole_llm.utils.hashing import hash_of_tokens

WEIGHTS = "model.safetensors"
RESUME = "resume.pt"
_MAPPED_BYTES = 2**32  # a larger state is not read, but mapped: processes of one machine share its memory
_OTHER = "other:"  # prefix of what a model keeps beside its parameters (RecBole's `other_parameter`)


def catalogue_hash(dataset: Any) -> str:
    """Return 16 hexadecimal digits that identify the item vocabulary: every item token in the order of the ids."""
    return hash_of_tokens(dataset.field2id_token[dataset.iid_field])


def describe(config: Any, dataset: Any, model: Any = None) -> dict[str, str]:
    """Return what identifies the model and catalogue that weights belong to.

    Args:
        config: the settings of the run.
        dataset: its dataset.
        model: the model; one with a row for every user (BPR, FPMC, Caser, HGN, ItemKNN, ...) belongs to its users, too.
    """
    found = {
        "model": config["model"],
        "dataset": config["dataset"],
        "items": str(dataset.item_num),
        "catalogue": catalogue_hash(dataset),
    }
    if _has_rows_of_users(model, dataset.user_num):
        found["users"] = hash_of_tokens(dataset.field2id_token[dataset.uid_field])
    return found


def _has_rows_of_users(model: Any, users: int) -> bool:
    # A table with as many rows is one of items, or of something else, in a model that never reads the number of users.
    if not (hasattr(model, "n_users") or hasattr(model, "n_user")):
        return False
    tables = [*model.parameters(), *(model.other_parameter() or {}).values()]
    return any(tuple(getattr(table, "shape", ()))[:1] == (users,) for table in tables)


class StoredWeights(Protocol):
    """What a checkpoint asks of a model, see `recbole_llm.config.hooks`."""

    renamed_weights: ClassVar[Mapping[str, str]]

    def stored_state(self) -> dict[str, Tensor]:
        """Return the weights that a checkpoint holds."""


def trained_state(model: torch.nn.Module) -> dict[str, Tensor]:
    """Return the weights of `model` that are trained; frozen ones are named elsewhere, not stored again."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name: weights for name, weights in model.state_dict().items() if name in trained}


@dataclass(frozen=True)
class Snapshot:
    """A copy of a model's weights on the CPU, and how its other parameters are put back."""

    tensors: dict[str, Tensor]
    others: dict[str, Any]


def snapshot(model: Any, state: MutableMapping[str, Tensor]) -> Snapshot:
    """Copy weights of `model`, and what RecBole calls its other parameters.

    Args:
        model: the model.
        state: its weights that a checkpoint holds, by name, see `StoredWeights`. It is emptied, so that what was
            gathered for it is not kept twice.
    """
    tensors = {}
    for name in list(state):
        tensors[name] = state.pop(name).detach().cpu().clone().contiguous()
    others: dict[str, Any] = {}
    for name, value in (model.other_parameter() or {}).items():
        others[name] = _flatten(f"{_OTHER}{name}", value, tensors)
    return Snapshot(tensors, others)


def save_weights(path: Path, weights: Snapshot, description: dict[str, str]) -> None:
    """Write a snapshot to a safetensors file.

    Raises:
        StorageError: if the disk is full; an older file then stays as it was.
    """
    metadata = {**description, "other_parameters": json.dumps(weights.others)}
    with replacing(path) as temporary:
        try:
            save_file(weights.tensors, temporary, metadata)
        except SafetensorError as error:
            # safetensors reports a failed write as text only; opening the file again tells the reason.
            raise OSError(_errno(str(error)), str(error)) from error


def read_weights(path: Path, rows: Mapping[str, slice] | None = None) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return the header and the tensors of a file that `save_weights` wrote.

    Args:
        path: of the file.
        rows: which rows of some tensors are read, by name; the others are read whole.

    Raises:
        CheckpointError: if the file is missing or broken.
    """
    if not path.is_file():
        raise CheckpointError(f"there are no weights in {path}: the run has not finished an epoch")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            found = file.metadata() or {}
            names = list(file.keys())
            parts = {name: file.get_slice(name)[part] for name, part in (rows or {}).items() if name in names}
            tensors = {name: parts[name] if name in parts else file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"the weights {path} are broken or cut short ({error}): run again") from error
    return found, tensors


def parameters_only(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights among the tensors of a file, without what belongs to the other parameters."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(_OTHER)}


def load_weights(
    path: Path,
    model: Any,
    description: dict[str, str],
    hooks: StoredWeights,
    rows: Mapping[str, slice] | None = None,
) -> None:
    """Load weights that `save_weights` wrote.

    Args:
        path: of the file.
        model: gets the weights.
        description: what the model is, see `describe`.
        hooks: the model's.
        rows: which rows of its weights the model has, by name, where it does not have all.

    Raises:
        CheckpointError: if the file is missing or broken, or belongs to another model, another catalogue or, where the
            model has something of every user, to other users.
    """
    older = {old: rows[new] for old, new in hooks.renamed_weights.items() if rows and new in rows}
    found, tensors = read_weights(path, {**(rows or {}), **older})
    for key, what in (("model", "the model"), ("catalogue", "the item catalogue")):
        if found.get(key) != description[key]:
            raise CheckpointError(
                f"the weights {path} belong to {what} {_name(found, key)}, but this run has {_name(description, key)}"
            )
    # Weights of older versions do not tell their users.
    if "users" in description and found.get("users", description["users"]) != description["users"]:
        raise CheckpointError(
            f"the weights {path} belong to other users than those of {description['dataset']}, and "
            f"{description['model']} has learned each of its users: train it again"
        )
    others = {
        name: _unflatten(f"{_OTHER}{name}", form, tensors)
        for name, form in json.loads(found.get("other_parameters", "{}")).items()
        if form["form"] != "kept"
    }
    load_state(path, model, parameters_only(tensors), hooks)
    model.load_other_parameter(others or None)


def renamed(state: Mapping[str, Tensor], hooks: StoredWeights) -> dict[str, Tensor]:
    """Return weights under the names that they have in this version."""
    return {hooks.renamed_weights.get(name, name): weights for name, weights in state.items()}


def load_state(path: Path, model: Any, state: dict[str, Tensor], hooks: StoredWeights) -> None:
    """Put `state` into `model`; weights that a checkpoint of this model never holds (a frozen backbone) are left.

    Of a weight that FSDP2 splits, a DTensor in the model, it has the rows of this process.

    Raises:
        CheckpointError: if names or shapes differ.
    """
    state = renamed(state, hooks)
    expected = hooks.stored_state()
    own = {name: _rows(weight) for name, weight in expected.items()}
    wrong = sorted(set(expected) ^ set(state)) or sorted(n for n in state if state[n].shape != own[n].shape)
    if wrong:
        raise CheckpointError(
            f"the weights {path} do not fit this model: '{wrong[0]}' is missing, extra or of another size"
        )
    model.load_state_dict({name: _like(expected[name], rows) for name, rows in state.items()}, strict=False)


def _rows(weight: Any) -> Any:
    return weight.to_local() if hasattr(weight, "to_local") else weight


def _like(weight: Any, own: Tensor) -> Tensor:
    if not hasattr(weight, "to_local"):
        return own
    shape = {"shape": weight.shape, "stride": weight.stride()}
    placed: Tensor = weight.from_local(own, weight.device_mesh, weight.placements, run_check=False, **shape)
    return placed


def _name(description: dict[str, str], key: str) -> str:
    if key == "catalogue":
        return f"of {description.get('dataset', '?')} with {description.get('items', '?')} ids"
    return str(description.get(key, "?"))


def _errno(message: str) -> int:
    found = [part for part in message.replace(")", " ").split() if part.isdigit()]
    return int(found[-1]) if found else 0


def _flatten(key: str, value: Any, tensors: dict[str, Tensor]) -> Any:
    """Put `value` into `tensors` under `key` and return how to get it back."""
    if isinstance(value, Tensor):
        tensors[key] = value.detach().cpu().clone().contiguous()
        return {"form": "tensor", "device": value.device.type}
    if isinstance(value, np.ndarray) and value.dtype != object:
        tensors[key] = torch.from_numpy(np.ascontiguousarray(value).copy())
        # `recbole/model/general_recommender/ease.py:63` keeps a matrix, whose products are not an array's.
        return {"form": "matrix" if isinstance(value, np.matrix) else "array"}
    if sp.issparse(value):
        matrix = value.tocoo()
        for part in ("row", "col", "data"):
            tensors[f"{key}:{part}"] = torch.from_numpy(getattr(matrix, part).copy())
        return {"form": "sparse", "layout": value.format, "shape": list(matrix.shape)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"form": "value", "value": value}
    # A module (`recbole/model/sequential_recommender/fdsa.py:108` and others) whose weights are among the model's own,
    # or what the constructor makes from the data: it stays as it is.
    return {"form": "kept"}


def _unflatten(key: str, form: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    match form["form"]:
        case "tensor":
            return tensors[key].to("cuda" if form["device"] == "cuda" and torch.cuda.is_available() else "cpu")
        case "array":
            return tensors[key].numpy()
        case "matrix":
            return tensors[key].numpy().view(np.matrix)
        case "sparse":
            row, col, data = (tensors[f"{key}:{part}"].numpy() for part in ("row", "col", "data"))
            return sp.coo_matrix((data, (row, col)), shape=form["shape"]).asformat(form["layout"])
        case "value":
            return form["value"]
    return None


# -- resuming ----------------------------------------------------------------------------------------------------------


def random_states() -> dict[str, Any]:
    """Return the states of all generators that training draws from, as plain values and tensors."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (
            name,
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Put every generator back to where `random_states` found it."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


def save_resume(path: Path, state: dict[str, Any]) -> None:
    """Write the state of training under a temporary name and rename it. Raises StorageError if the disk is full."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            # torch closes its archive after a failed write and complains about that; the reason is what came before.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


def is_finished(path: Path) -> bool:
    """Tell whether `path` is the state of a training that is over.

    Raises:
        CheckpointError: if the file is broken.
    """
    return path.is_file() and bool(_read_resume(path)["finished"])


def load_resume(path: Path, description: dict[str, str]) -> dict[str, Any]:
    """Return what `save_resume` wrote.

    Raises:
        CheckpointError: if the file is broken, or belongs to another model, another catalogue or other users.
    """
    state = _read_resume(path)
    found = {"users": description.get("users"), **state["description"]}  # older versions do not tell them
    for key, own in description.items():
        if found.get(key) != own:
            raise CheckpointError(
                f"{path} belongs to another run: its {key} is {found.get(key)}, this run's is {own}: start a new run"
            )
    return state


def _read_resume(path: Path) -> dict[str, Any]:
    try:
        mapped = path.stat().st_size > _MAPPED_BYTES
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        return {**state, "description": state["description"]}
    except Exception as error:  # torch reports a broken archive in many ways
        raise CheckpointError(
            f"{path} is broken and training cannot be resumed from it: remove it and run again"
        ) from error
