"""What the processes of a run exchange in a step, against one process with all of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from several_processes import together
from torch.utils._python_dispatch import TorchDispatchMode

from recbole_llm.config.hooks import ModelHooks
from recbole_llm.trainer.gradient_sums import GradientSums
from recbole_llm.trainer.shared_steps import shares
from recbole_llm.utils import processes


@pytest.mark.parametrize(("samples", "count"), [(37, 2), (5, 8), (1, 3), (128, 8)])
def test_samples_are_shared_out_once_each_and_evenly(samples, count):
    sizes = np.random.default_rng(0).integers(5, 60, samples)
    parts = shares(sizes, count)
    assert sorted(np.concatenate(parts).tolist()) == list(range(samples))
    assert all((np.diff(part) > 0).all() for part in parts)
    loads = [int(sizes[part].sum()) for part in parts]
    assert max(loads) - min(loads) <= sizes.max()


def test_a_process_that_torchrun_did_not_start_is_alone(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert processes.started() == processes.ONE == processes.world()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with processes.joined() as found:
        assert found == processes.ONE
    assert processes.first(lambda: 3) == 3
    assert processes.only_first(lambda: 3) == 3


GRADIENTS = [torch.tensor([3.0, -4.0]), torch.tensor([[1.0], [2.0], [2.0]])]


class Halved(ModelHooks, torch.nn.Module):
    """A vector that every process has, a table that is split, and a weight that nobody uses."""

    def __init__(self):
        super().__init__()
        self.vector = torch.nn.Parameter(torch.zeros(2))
        self.table = torch.nn.Parameter(torch.zeros(3, 1))
        self.unused = torch.nn.Parameter(torch.zeros(4))

    def share_over_processes(self):
        from recbole_llm.trainer.split_rows import SplitRows

        return [SplitRows(self.table)]


def clipped(norm_type):
    """Return what a step leaves as gradients; called in a process, which has a part of the vector's gradient."""
    from recbole_llm.trainer.shared_steps import SharedSteps

    model = Halved()
    shared = SharedSteps(model)
    model.vector.grad = GRADIENTS[0] * (0.25 if processes.world().is_first else 0.75)
    model.table.grad = shared.splits[0].own(GRADIENTS[1])
    weights = list(model.parameters())
    shared.add_gradients(weights)
    shared.clip(weights, max_norm=1.0, norm_type=norm_type)
    found = model.vector.grad.tolist(), shared.splits[0].whole(model.table.grad).tolist(), model.unused.grad is None
    model.vector.grad.fill_(float("inf"))
    with pytest.raises(RuntimeError, match="gradients is non-finite"):
        shared.clip(weights, 1.0, norm_type, error_if_nonfinite=True)
    return found


@pytest.mark.parametrize("norm_type", [2.0, float("inf")])
def test_gradients_are_clipped_as_in_one_process(norm_type):
    whole = [torch.zeros_like(gradient).requires_grad_() for gradient in GRADIENTS]
    for weight, gradient in zip(whole, GRADIENTS, strict=True):
        weight.grad = gradient.clone()
    torch.nn.utils.clip_grad_norm_(whole, 1.0, norm_type)
    for vector, table, none in together(clipped, 2, norm_type):
        assert vector == pytest.approx(whole[0].grad.tolist())
        assert np.ravel(table) == pytest.approx(np.ravel(whole[1].grad))
        assert none


class Operations(TorchDispatchMode):
    """Counts the operations that torch starts, and the exchanges among them."""

    def __init__(self):
        super().__init__()
        self.all = self.exchanges = 0

    def __torch_dispatch__(self, operation, types, arguments=(), more=None):
        self.all += 1
        self.exchanges += operation.namespace == "c10d"
        return operation(*arguments, **(more or {}))


SHAPES = [(3,), (2, 5), (400,), (1,), (7, 2)]  # by turns; the third is larger than a bucket of 1,000 bytes


def added(count, bucket_bytes, dtypes=(torch.float32,)):
    """Return the sums of gradients of `count` weights, and the exchanges and operations that they took."""
    rank = processes.world().rank
    weights = [
        torch.zeros(SHAPES[n % len(SHAPES)], dtype=dtypes[n % len(dtypes)], requires_grad=True) for n in range(count)
    ]
    sums = GradientSums(weights, bucket_bytes)
    for step in (1, 2):
        for n, weight in enumerate(weights):
            weight.grad = torch.full_like(weight, (n + 1) * step * 10**rank) if n or rank else None
        if step == 2 and len(weights[1].shape) == 2:  # a gradient that lies another way in memory
            weights[1].grad = weights[1].grad.T.contiguous().T
        with Operations() as operations:
            sums.add_up()
    values = [sorted({*weight.grad.flatten().tolist()}) for weight in weights]
    return values, operations.exchanges, operations.all, [weight.grad.shape == weight.shape for weight in weights]


def test_gradients_are_added_up_by_as_many_exchanges_for_few_weights_as_for_many():
    found = {count: together(added, 2, count, 10**6) for count in (2, 60)}
    for count, answers in found.items():
        for values, exchanges, operations, same_shapes in answers:
            # Process 0 has n + 1 in weight n, but nothing in the first; process 1 ten times that, both twice.
            assert values == [[2.0 * (n + 1) * (11 if n else 10)] for n in range(count)]
            assert all(same_shapes)
            assert exchanges == 1
            assert operations <= 4  # into the buffer, the exchange, and back; a missing gradient
    (_, _, few, _), (_, _, many, _) = found[2][1], found[60][1]
    assert few == many


def test_gradients_are_exchanged_in_buckets_of_one_type():
    for values, exchanges, _, _ in together(added, 2, 20, 1000, (torch.float32, torch.bfloat16)):
        assert values == [[2.0 * (n + 1) * (11 if n else 10)] for n in range(20)]
        # In float32 3 | 400 | 14, 10, 1, 3 | 400 | 14, 10, 1 numbers; in bfloat16 10, 1, 3, 400, 14, 10, 1, 3 | 400, 14
        assert exchanges == 5 + 2


def test_buckets_of_one_type_share_one_buffer():
    weights = [torch.zeros(SHAPES[n % len(SHAPES)], requires_grad=True) for n in range(50)]
    buffers = [bucket.buffer for bucket in GradientSums(weights, 1000)._buckets if bucket.buffer is not None]
    assert len(buffers) > 1
    sizes = {buffer.untyped_storage().data_ptr(): buffer.untyped_storage().nbytes() for buffer in buffers}
    assert len(sizes) == 1
    assert sum(sizes.values()) <= 1000


def agreements(own):
    """Return the steps that this process takes, and what is known of the queries in them."""
    from recbole_llm.trainer.shared_steps import SharedSteps

    model = Halved()
    shared = SharedSteps(model)
    (rows,) = shared.splits
    found = [(queries, passes, rows.queries) for queries, passes in shared.agreed(iter(own[processes.world().rank]))]
    return found, rows.queries, rows.trains_states


def test_processes_agree_on_steps_of_as_many_passes():
    own = [
        [(3, ["a"]), (0, []), (5, ["b", "c"]), (0, [])],
        [(4, ["d"]), (2, ["e"]), (6, ["f"]), (0, [])],
    ]
    first, second = together(agreements, 2, own)
    assert first == ([(7, ["a"], [3, 4]), (2, [None], [0, 2]), (11, ["b", "c"], None), (0, [], None)], None, True)
    assert second == ([(7, ["d"], [3, 4]), (2, ["e"], [0, 2]), (11, ["f", None], None), (0, [], None)], None, True)


def adam_state(torch_is_old):
    """Return whether an optimiser's state survives being stored; called in a process.

    An older torch cannot write parts: process 0 then stores the whole of it.
    """
    from recbole_llm.runs import resume_parts
    from recbole_llm.trainer.shared_steps import SharedSteps
    from recbole_llm.trainer.split_rows import SplitState
    from recbole_llm.utils import collectives
    from recbole_llm.utils.collectives import object_from_first

    collectives._PIECE_BYTES = 4  # a row at a time goes to process 0
    model = Halved()
    shared = SharedSteps(model)
    weights = [model.vector, model.table]
    optimizer = torch.optim.AdamW(weights, lr=0.1)
    for _ in range(2):
        model.vector.grad, model.table.grad = GRADIENTS[0].clone(), shared.splits[0].own(GRADIENTS[1])
        optimizer.step()
    split = SplitState(shared.splits, weights)
    if torch_is_old:
        resume_parts.can_be_written = lambda: False
    stored = split.stored_optimizer(optimizer.state_dict())
    moments = {name: value for name, value in stored["state"][1].items() if value.dim()}
    if torch_is_old:
        held = [len(value) for value in moments.values()]
        whole = object_from_first(stored)
    else:
        held = [len(value.to_local()) for value in moments.values()]
        moments = {name: value.full_tensor() for name, value in moments.items()}
        whole = {**stored, "state": {0: stored["state"][0], 1: {**stored["state"][1], **moments}}}
    own = split.own_optimizer(whole)
    same = all(torch.equal(own["state"][1][name], value) for name, value in optimizer.state_dict()["state"][1].items())
    with shared.joined():
        table = model.table.detach().clone()
    return {name: value.tolist() for name, value in whole["state"][1].items()}, table.tolist(), held, same


@pytest.mark.parametrize(("torch_is_old", "held"), [(False, [[2, 2], [1, 1]]), (True, [[3, 3], [1, 1]])])
def test_the_optimisers_state_is_stored_as_that_of_one_process(torch_is_old, held):
    table = torch.zeros(3, 1).requires_grad_()
    optimizer = torch.optim.AdamW([table], lr=0.1)
    for _ in range(2):
        table.grad = GRADIENTS[1].clone()
        optimizer.step()
    expected = {name: value.tolist() for name, value in optimizer.state_dict()["state"][0].items()}
    for (whole, stored, own, same), rows in zip(together(adam_state, 2, torch_is_old), held, strict=True):
        assert whole == expected
        assert stored == table.tolist()
        assert own == rows
        assert same


STATES = torch.arange(22).view(11, 2) * 0.37
BOUNDS = [0, 4, 4, 6, 9, 11]  # of five parts: the first process has the first and the fourth, ...
OWN = [[0, 1, 2, 3, 6, 7, 8], [9, 10], [4, 5]]
ASKED = [[10, 0, 3, 10], [], [4, 4]]


def stored(folder, key):
    """Return what a process finds in states that three have parts of, and how often they are computed."""
    import os

    from recbole_llm.backbone.feature_store import stored_or_computed

    os.environ["RECBOLE_LLM_CACHE"] = folder
    own = OWN[processes.world().rank]
    computed = []

    def parts():
        computed.append(own)
        yield from STATES[own].split(2)

    found = []
    for _ in range(2):  # the second time from the disk
        arguments = (torch.float32, torch.device("cpu"), Path(folder), 1e9, parts)
        store = stored_or_computed(key, tuple(STATES.shape), *arguments, bounds=BOUNDS)
        common = torch.tensor([9, 1, 5, 1, 10])
        asked = torch.tensor(ASKED[processes.world().rank], dtype=torch.long)
        shared = store.take_own(common[store.share(common)])
        taken = (store.own.table, store.take(asked), store.take_common(common), shared)
        found.append([each.tolist() for each in taken])
    return found, computed


def test_processes_have_parts_of_stored_states(tmp_path):
    answers = together(stored, 3, str(tmp_path), "key")
    for rank, (found, computed) in enumerate(answers):
        common = [9, 1, 5, 1, 10]
        shared = [row for row in common if row in OWN[rank]]
        expected = [STATES[rows].tolist() for rows in (OWN[rank], ASKED[rank], common, shared)]
        assert found == [expected, expected]
        assert computed == [OWN[rank]]
    (file,) = (tmp_path / "states").iterdir()
    assert np.array_equal(np.load(file), STATES.numpy())


def test_processes_have_parts_of_states_that_are_not_stored(tmp_path):
    for rank, (found, computed) in enumerate(together(stored, 3, str(tmp_path), None)):
        assert found[0] == found[1]
        assert found[0][0] == STATES[OWN[rank]].tolist()
        assert computed == [OWN[rank]] * 2
    assert not list(tmp_path.rglob("*.npy"))


def turns(parts):
    """Return which parts this process computes, and what it has in the end; called in a process."""
    from recbole_llm.backbone.feature_cache import by_turns

    computed = []

    def compute(part):
        computed.append(part)
        return torch.full((part, 2), float(part))

    found = torch.cat(list(by_turns(parts, compute, torch.empty(0, 2))))
    return computed, found.tolist()


def test_stored_states_are_computed_by_turns():
    parts = [3, 1, 4, 2, 5]
    answers = together(turns, 2, parts)
    assert [computed for computed, _ in answers] == [[3, 4, 5], [1, 2]]
    expected = [[float(part)] * 2 for part in parts for _ in range(part)]
    assert all(found == expected for _, found in answers)
