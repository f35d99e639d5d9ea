"""What a model holds beside its weights comes back as it was, of every kind that models hold."""

import io

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import nn

from recbole_llm.errors import CheckpointError
from recbole_llm.runs.outside_state import OutsideState


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.gru = nn.GRU(2, 2)  # lists its parameters in an attribute of its own
        self.register_buffer("cache", torch.zeros(2), persistent=False)
        self.step = 0
        self.losses = [[], []]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = Part()
        self.large = torch.arange(6)
        self.table = self.view_of = torch.zeros(3)
        self.counts = np.zeros(3, dtype=np.int64)
        self.adjacency = sp.csr_matrix(np.eye(3))
        self.names = {"a": 1, 2: (None, "x")}
        self.config = {"object": object()}


def stored(state):
    """What a file gives back that is read without running code."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def set_to(name, value):
    return lambda model: setattr(model, name, value)


CHANGES = {
    "part.step": lambda model: setattr(model.part, "step", 7),
    "part.losses": lambda model: model.part.losses[1].append(0.5),
    "part.cache": lambda model: model.part.cache.add_(1),
    "large": lambda model: model.large.mul_(2),
    "table": set_to("table", torch.full((4,), 2.5)),
    "counts": lambda model: np.add.at(model.counts, [1, 1], 1),
    "adjacency": lambda model: model.adjacency.data.__setitem__(0, 3.0),
    "names": lambda model: model.names.update(b=float("nan")),
    "late": set_to("late", np.float32(0.1)),
    "graph": set_to("graph", torch.eye(3).to_sparse()),
    "dense": set_to("dense", np.ones((1, 2)).view(np.matrix)),
    "empty": set_to("empty", np.zeros((0, 2))),
    "pair": set_to("pair", (torch.ones(1), [True, None])),
}


def plain(value):
    """Something that `==` compares."""
    if isinstance(value, torch.Tensor):
        return ("tensor", value.dtype, value.to_dense().tolist())
    if sp.issparse(value):
        return (type(value), value.toarray().tolist())
    if isinstance(value, np.ndarray):
        return (type(value), value.dtype, value.shape, value.tolist())
    if isinstance(value, list | tuple):
        return (type(value), [plain(each) for each in value])
    if isinstance(value, dict):
        return [(key, plain(each)) for key, each in value.items()]
    return (type(value), repr(value))


def value_of(model, name):
    path, _, attribute = name.rpartition(".")
    return plain(getattr(model.get_submodule(path), attribute))


@pytest.mark.parametrize("name", CHANGES)
def test_one_change_is_stored_and_put_back(name):
    model, other = Model(), Model()
    state, others = OutsideState(model), OutsideState(other)
    CHANGES[name](model)
    found = state.changed()
    assert set(found) == {name}
    others.put_back(stored(found))
    assert value_of(other, name) == value_of(model, name)
    assert set(others.changed()) == {name}


def test_all_changes_at_once_come_back_and_nothing_else_is_stored():
    model, other = Model(), Model()
    state, others = OutsideState(model), OutsideState(other)
    assert state.changed() == {}
    model.part.gru(model.part.linear(torch.ones(1, 2))).__getitem__(0).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert state.changed() == {}  # weights are no part of it
    for change in CHANGES.values():
        change(model)
    others.put_back(stored(state.changed()))
    assert [value_of(other, name) for name in CHANGES] == [value_of(model, name) for name in CHANGES]


def test_what_two_names_share_is_shared_again():
    model, other = Model(), Model()
    state, others = OutsideState(model), OutsideState(other)
    model.table[1] = 4.0
    others.put_back(stored(state.changed()))
    assert other.view_of is other.table and other.view_of.tolist() == [0.0, 4.0, 0.0]


@pytest.mark.parametrize("value", [object(), {1, 2}, np.array(["a"]), [torch.Generator()], np.array([None])])
def test_what_cannot_be_stored_is_named(value):
    model = Model()
    state = OutsideState(model)
    model.names = value
    with pytest.raises(CheckpointError, match=r"Model cannot be resumed: training changes its 'names' \("):
        OutsideState(Model()).put_back(stored(state.changed()))


def test_a_part_that_is_gone_is_named():
    state = {"head.step": {"form": "plain", "value": 1, "filled": False}}
    with pytest.raises(CheckpointError, match=r"Model has no 'head\.step'"):
        OutsideState(Model()).put_back(state)
