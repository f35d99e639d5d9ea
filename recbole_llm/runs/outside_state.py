"""What a model keeps outside its parameters and buffers: counters, caches of losses, cluster centres, graphs.

``state_dict`` does not hold it, so a training that is resumed from weights alone goes on otherwise: MultiVAE and
MacridVAE count their steps (``update``) for the annealing, DiffRec keeps the losses of the last steps (``Lt_history``),
NCL its centroids, KGAT its attentive graph. `OutsideState` stores what training has changed, as plain numbers and
tensors; what it never changed is made again by the constructor, however large it is.
"""

import hashlib
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from recbole_llm.errors import CheckpointError

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_PLAIN = (bool, int, float, str, type(None))


class OutsideState:
    """The attributes of a model and its modules that are neither parameters nor stored buffers.

    Args:
        model: before training. Whatever differs from now when `changed` is called is its state.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._marks = {name: _mark(value) for name, _, _, value in _attributes(model)}

    def changed(self) -> dict[str, dict[str, Any]]:
        """Return what training has changed, by name, in a form that ``torch.load(weights_only=True)`` reads.

        What cannot be stored (an object of another class) is named, with its class under "kind"; `put_back` refuses it.
        """
        found = {}
        for name, _, _, value in _attributes(self._model):
            old = self._marks.get(name)
            if old is not None and _is_unchanged(old, value):
                continue
            try:
                packed = _pack(value)
            except _NotPlainError as error:
                packed = {"form": "object", "kind": str(error)}
            # A tensor that others may hold, too, is filled where it is; one that took another's place is set.
            found[name] = {**packed, "filled": old is not None and _is_same_tensor(old, value)}
        return found

    def put_back(self, state: dict[str, dict[str, Any]]) -> None:
        """Give the model what `changed` returned.

        Raises:
            CheckpointError: if something of it could not be stored, or has no place in this model.
        """
        kind = type(self._model).__name__
        for name, packed in state.items():
            if packed["form"] == "object":
                raise CheckpointError(
                    f"{kind} cannot be resumed: training changes its '{name}' ({packed['kind']}), which cannot be "
                    f"stored; start a new run"
                )
        places = {name: (owner, attribute) for name, owner, attribute, _ in _attributes(self._model)}
        modules = dict(self._model.named_modules())
        for name, packed in state.items():
            path, _, attribute = name.rpartition(".")
            owner, attribute = places.get(name, (modules.get(path), attribute))
            if owner is None:
                raise CheckpointError(f"{kind} has no '{name}', which its state holds: start a new run")
            value = _unpack(packed)
            if packed["filled"]:
                with torch.no_grad():
                    getattr(owner, attribute).copy_(value)
            else:
                setattr(owner, attribute, value)


def _attributes(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Any]]:
    """Yield the name, owner, attribute and value of all that a model's `state_dict` does not hold."""
    for path, module in model.named_modules():
        if type(module).__module__.startswith("torch."):
            continue  # torch's own hold nothing more, but for lists of their own parameters (GRU)
        transient = {name: module._buffers[name] for name in module._non_persistent_buffers_set}
        for attribute, value in {**vars(module), **transient}.items():
            if attribute not in _OF_EVERY_MODULE:
                yield (f"{path}.{attribute}" if path else attribute), module, attribute, value


# -- what has changed --------------------------------------------------------------------------------------------------


def _mark(value: Any) -> Any:
    """Return what tells later whether `value` is still the same, without a copy of it."""
    if isinstance(value, nn.Parameter):
        return ("object", value)  # what it holds is among the weights
    if isinstance(value, Tensor):
        return ("tensor", weakref.ref(value), None if value.is_inference() else value._version)
    if isinstance(value, np.ndarray) and value.dtype != object:
        return ("array", value.shape, value.dtype.str, _digest(value))
    if sp.issparse(value):
        matrix = value.tocoo()
        return ("sparse", value.shape, *(_digest(part) for part in (matrix.row, matrix.col, matrix.data)))
    if isinstance(value, (*_PLAIN, np.generic)):
        return ("plain", type(value), repr(value))  # so that nan is equal to itself
    if type(value) in (list, tuple):
        return (type(value), [_mark(each) for each in value])
    if type(value) is dict and all(isinstance(key, _PLAIN) for key in value):
        return (dict, list(value), [_mark(each) for each in value.values()])
    return ("object", value)


def _is_unchanged(mark: Any, value: Any) -> bool:
    kind = mark[0]
    if kind == "tensor":
        return _is_same_tensor(mark, value) and not value.is_inference() and mark[2] == value._version
    if kind == "object":
        return mark[1] is value
    if kind in (list, tuple, dict):
        if type(value) is not kind or len(value) != len(mark[-1]):
            return False
        if kind is dict and list(value) != mark[1]:
            return False
        values = value.values() if kind is dict else value
        return all(_is_unchanged(old, new) for old, new in zip(mark[-1], values, strict=True))
    new = _mark(value)
    return bool(new[0] == kind and new == mark)


def _is_same_tensor(mark: Any, value: Any) -> bool:
    return mark[0] == "tensor" and mark[1]() is value


def _digest(array: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(array).view(np.uint8).data if array.size else b"").digest()


# -- how it is stored --------------------------------------------------------------------------------------------------


class _NotPlainError(Exception):
    """The class of a value that is neither plain nor made of plain ones."""


def _pack(value: Any) -> dict[str, Any]:
    if isinstance(value, Tensor):
        return {"form": "tensor", "value": value.detach().cpu().clone(), "device": value.device.type}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        form = "matrix" if isinstance(value, np.matrix) else "array"
        return {"form": form, "value": torch.from_numpy(np.ascontiguousarray(value).copy())}
    if sp.issparse(value):
        matrix = value.tocoo()
        parts = [torch.from_numpy(getattr(matrix, name).copy()) for name in ("row", "col", "data")]
        return {"form": "sparse", "value": parts, "shape": list(value.shape), "layout": value.format}
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        return {"form": "number", "value": value.item(), "type": value.dtype.str}
    if isinstance(value, _PLAIN):
        return {"form": "plain", "value": value}
    if type(value) in (list, tuple):
        return {"form": type(value).__name__, "value": [_pack(each) for each in value]}
    if type(value) is dict and all(isinstance(key, _PLAIN) for key in value):
        return {"form": "dict", "keys": list(value), "value": [_pack(each) for each in value.values()]}
    raise _NotPlainError(type(value).__name__)


def _unpack(packed: dict[str, Any]) -> Any:
    value = packed["value"]
    match packed["form"]:
        case "tensor":
            return value.to("cuda" if packed["device"] == "cuda" and torch.cuda.is_available() else "cpu")
        case "array":
            return value.numpy()
        case "matrix":
            return value.numpy().view(np.matrix)
        case "sparse":
            row, column, data = (part.numpy() for part in value)
            return sp.coo_matrix((data, (row, column)), shape=packed["shape"]).asformat(packed["layout"])
        case "number":
            return np.dtype(packed["type"]).type(value)
        case "list":
            return [_unpack(each) for each in value]
        case "tuple":
            return tuple(_unpack(each) for each in value)
        case "dict":
            return dict(zip(packed["keys"], map(_unpack, value), strict=True))
    return value
