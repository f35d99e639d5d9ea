"""The projection split by items over processes: loss and gradients of the whole one, by torch's own cross-entropy."""

import itertools

import pytest
import torch
from several_processes import together
from torch.nn import functional as F

from recbole_llm.model.layers.split_item_projection import SplitItemProjection
from recbole_llm.trainer.split_rows import SplitRows

CASES = {  # items, queries of each process, queries with label 0, items of a block
    "uneven queries": (1001, (20, 17, 9), 0, 100),
    "a process without queries": (57, (5, 0, 3), 0, 512),
    "labels that are left out": (57, (6, 7, 2), 4, 512),
    "fewer items than processes hold": (3, (4, 3, 5), 1, 512),
    "no query at all": (9, (0, 0, 0), 0, 512),
}
WIDTH = 12


def case(name, processes):
    """Return states, labels (-100: none), W and what each query's loss is multiplied with."""
    items, queries, unlabelled, _ = CASES[name]
    counts = list(queries[:processes])
    generator = torch.Generator().manual_seed(len(name))
    states = torch.randn(sum(counts), WIDTH, generator=generator)
    weight = torch.randn(items, WIDTH, generator=generator)
    labels = torch.randint(1, items, (sum(counts),), generator=generator)
    labels[:unlabelled] = 0
    return counts, states, weight, labels


def split_losses(processes, known):
    """Return for each case the loss of this process and the gradients of its states and rows; called in a process.

    Args:
        processes: how many.
        known: whether each is told how many queries the others have, and need not ask.
    """
    from recbole_llm.model.layers import block_softmax
    from recbole_llm.utils.processes import world

    found = {}
    for name, (*_, block) in CASES.items():
        block_softmax._BLOCK_BYTES["cpu"], block_softmax._LEAST_ITEMS = 1, block
        counts, states, weight, labels = case(name, processes)
        begin = sum(counts[: world().rank])
        own = slice(begin, begin + counts[world().rank])
        parameter = torch.nn.Parameter(weight)
        split = SplitRows(parameter)
        split.queries, split.trains_states = (counts, True) if known else (None, None)
        projection = SplitItemProjection(parameter, split)
        own_states = states[own].clone().requires_grad_()
        loss = projection.loss(own_states, labels[own])
        (loss / 3 * (world().rank + 1)).backward()  # another factor in each process
        with split.joined():
            whole = bool(torch.equal(parameter.data, weight))
        found[name] = (
            float(loss), own_states.grad.tolist(), parameter.grad.reshape(-1, WIDTH).tolist(), whole, len(parameter)
        )  # fmt: skip
    return found


# losses on drawn items, and how many
DRAWN = {
    "SampledCE": 40, "plain SampledCE": 40, "sparse SampledCE": 40, "gBCE": 7, "sparse gBCE": 7, "BPR": 1,
}  # fmt: skip


def drawn_loss(name, items):
    """Return a loss on drawn items, whose draws for a query follow from its label."""
    from recbole_llm.model.layers.position_loss import PositionLoss

    def others(labels, number):
        shift = torch.arange(1, number + 1, device=labels.device) * 3
        return (labels[:, None] + shift) % (items - 1) + 1

    kind, _, loss_type = name.rpartition(" ")
    options = {"correction": "plain" if kind == "plain" else "corrected", "sparse": kind == "sparse"}
    loss = PositionLoss(loss_type, torch.arange(items).float(), DRAWN[name], **options)
    loss._others = others
    return loss


def drawn_losses(processes):
    """Return what `split_losses` does, for the losses on drawn items; called in a process."""
    from recbole_llm.model.layers import split_table
    from recbole_llm.model.layers.split_item_projection import SplitDrawnItems
    from recbole_llm.utils.processes import world

    split_table._PIECE_BYTES = 4 * WIDTH * 5  # five pairs
    found = {}
    for case_name in ("a process without queries", "labels that are left out"):
        for loss_name in DRAWN:
            counts, states, weight, labels = case(case_name, processes)
            begin = sum(counts[: world().rank])
            own = slice(begin, begin + counts[world().rank])
            parameter = torch.nn.Parameter(weight)
            split = SplitRows(parameter)
            projection = SplitDrawnItems(parameter, split, drawn_loss(loss_name, len(weight)), {})
            own_states = states[own].clone().requires_grad_()
            torch.manual_seed(world().rank)
            loss = projection.loss(own_states, labels[own])
            (loss / 3 * (world().rank + 1)).backward()
            assert parameter.grad.is_sparse == loss_name.startswith("sparse")
            found[case_name, loss_name] = float(loss), own_states.grad.tolist(), parameter.grad.to_dense().tolist()
    return found


def all_losses(processes):
    """Return what both functions above do."""
    return split_losses(processes, False), split_losses(processes, True), drawn_losses(processes)


def assert_drawn_losses(answers, processes):
    for case_name, loss_name in answers[0]:
        counts, states, weight, labels = case(case_name, processes)
        states.requires_grad_()
        weight.requires_grad_()
        loss = drawn_loss(loss_name, len(weight))
        parts = []
        for rank, (part, of_part) in enumerate(zip(states.split(counts), labels.split(counts), strict=True)):
            torch.manual_seed(0)  # the first process draws for all
            parts.append(loss.summed(part, weight, of_part))
            (parts[-1] / 3 * (rank + 1)).backward(retain_graph=True)
        own, state_gradients, rows = zip(*(answer[case_name, loss_name] for answer in answers), strict=True)
        assert own == pytest.approx([float(part) for part in parts], rel=1e-5, abs=1e-5)
        for found, expected in ((state_gradients, states.grad), (rows, weight.grad.to_dense())):
            joined = torch.tensor([row for part in found for row in part])
            torch.testing.assert_close(joined, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("processes", [2, 3])
def test_loss_and_gradients_are_those_of_the_whole_projection(processes):
    *of_all, drawn = zip(*together(all_losses, processes, processes), strict=True)
    assert_drawn_losses(drawn, processes)
    for name, answers in itertools.product(CASES, of_all):
        counts, states, weight, labels = case(name, processes)
        states.requires_grad_()
        weight.requires_grad_()
        logits = states @ weight.T
        logits = torch.cat([torch.full_like(logits[:, :1], -torch.inf), logits[:, 1:]], dim=1)
        losses = F.cross_entropy(logits, labels.masked_fill(labels == 0, -100), reduction="none")
        factors = torch.repeat_interleave(torch.arange(1, processes + 1) / 3, torch.tensor(counts))
        (losses * factors).sum().backward()
        own, state_gradients, rows, whole, sizes = zip(*(answer[name] for answer in answers), strict=True)
        assert sum(sizes) == len(weight)
        assert all(whole)
        for loss, part in zip(own, losses.split(counts), strict=True):
            assert loss == pytest.approx(float(part.sum()), rel=1e-5, abs=1e-5)
        for found, expected in ((state_gradients, states.grad), (rows, weight.grad)):
            joined = torch.tensor([row for part in found for row in part]).reshape(expected.shape)
            torch.testing.assert_close(joined, expected, rtol=1e-5, atol=1e-5)


def test_states_of_another_number_than_the_others_were_told_are_refused():
    split = SplitRows(torch.nn.Parameter(torch.ones(9, WIDTH)))
    split.queries, split.trains_states = [3], True
    with pytest.raises(RuntimeError, match="got 2 states, and the other processes wait for 3"):
        SplitItemProjection(split.weight, split).loss(torch.ones(2, WIDTH), torch.tensor([1, 2]))
