"""Pooling of packed rows against plain loops."""

import numpy as np
import pytest
import torch

from recbole_llm.backbone.pooling import segments

LENGTHS = np.array([5, 3, 9, 4])
POOLINGS = ["mean", "cls", "last"]


def plain(pooling, hidden, skipped):
    """One vector a sequence, of the rows behind the first `skipped`."""
    vectors, begin = [], 0
    for length in LENGTHS:
        rows = hidden[begin + skipped : begin + length]
        vectors.append({"mean": rows.mean(axis=0), "cls": rows[0], "last": rows[-1]}[pooling])
        begin += length
    return np.stack(vectors)


def hidden_states(dtype=torch.float32):
    return torch.randn(int(LENGTHS.sum()), 6, generator=torch.Generator().manual_seed(0)).to(dtype)


def virtual_rows(skipped):
    """Which rows of the packed row are skipped."""
    return torch.from_numpy(np.concatenate([np.arange(length) < skipped for length in LENGTHS]))


@pytest.mark.parametrize("skipped", [0, 1, 2])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_vectors_equal_plain_loops(pooling, skipped):
    hidden = hidden_states()
    found = segments(pooling, LENGTHS, skipped).pool(hidden)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, plain(pooling, hidden.double().numpy(), skipped), atol=1e-6)


@pytest.mark.parametrize("skipped", [1, 2])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_skipped_rows_are_never_pooled(pooling, skipped):
    hidden = hidden_states()
    parts = segments(pooling, LENGTHS, skipped)
    expected = parts.pool(hidden)
    hidden[virtual_rows(skipped)] = torch.nan
    assert torch.equal(parts.pool(hidden), expected)


@pytest.mark.parametrize("skipped", [0, 2])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_gradients(pooling, skipped):
    """Each pooled row has its share of its sequence's gradient, each other row none."""
    hidden = hidden_states().requires_grad_()
    weights = torch.randn(len(LENGTHS), 6, generator=torch.Generator().manual_seed(1))
    (segments(pooling, LENGTHS, skipped).pool(hidden) * weights).sum().backward()
    expected, begin = np.zeros(hidden.shape), 0
    for length, weight in zip(LENGTHS, weights.numpy(), strict=True):
        rows = slice(begin + skipped, begin + length)
        if pooling == "mean":
            expected[rows] = weight / (length - skipped)
        else:
            expected[rows.start if pooling == "cls" else rows.stop - 1] = weight
        begin += length
    np.testing.assert_allclose(hidden.grad, expected, atol=1e-7)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_bf16_states_are_summed_in_float32(pooling):
    """The mean of 9 rows in bf16 would be off by a part in 256."""
    hidden = hidden_states(torch.bfloat16)
    found = segments(pooling, LENGTHS, 1).pool(hidden)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, plain(pooling, hidden.double().numpy(), 1), atol=1e-6)
