"""The best items in blocks: those of numpy's whole ranking, and never more than a block of scores at once."""

import numpy as np
import pytest
import torch

from recbole_llm.evaluation.blocks import top_by_groups
from recbole_llm.inference.best_items import best_in_blocks

ROWS, ITEMS, WIDTH = 5, 50, 6


@pytest.fixture
def parts():
    rng = np.random.default_rng(3)
    states, weight = rng.normal(size=(ROWS, WIDTH)), rng.normal(size=(ITEMS, WIDTH))
    return states, weight, [rng.choice(np.arange(1, ITEMS), size, replace=False) for size in (0, 1, 7, 20, 49)]


@pytest.mark.parametrize("block", [1, 7, 49, 50, 64])
@pytest.mark.parametrize("k", [1, 3, 10, ITEMS - 1])
@pytest.mark.parametrize("leave_out", [False, True])
def test_blocks_are_the_whole(parts, block, k, leave_out):
    states, weight, seen = parts
    scores = states @ weight.T
    scores[:, 0] = -np.inf
    if leave_out:
        for row, items in zip(scores, seen, strict=True):
            row[items] = -np.inf
    widths = []

    def scorer(begin, end):
        def of_items(items):
            widths.append(items.stop - items.start)
            return torch.from_numpy(states[begin:end] @ weight[items].T)

        return of_items

    values, ids = best_in_blocks(scorer, ROWS, ITEMS, k, seen if leave_out else None, block)
    assert sum(widths) == ITEMS and max(widths) == min(block, ITEMS)
    np.testing.assert_allclose(values, -np.sort(-scores, axis=1)[:, :k], rtol=1e-6)
    ranked = values > -np.inf
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(ids[ranked], expected[ranked])


def test_a_model_without_blocks_is_told_apart():
    assert best_in_blocks(lambda begin, end: None, ROWS, ITEMS, 3, None) is None


def test_a_score_that_is_not_a_number_is_kept():
    scores = torch.zeros(1, ITEMS)
    scores[0, 33] = torch.nan
    found = best_in_blocks(lambda *_: lambda items: scores[:, items].clone(), 1, ITEMS, 2, None, 7)
    assert np.isnan(found[0]).any()


@pytest.mark.parametrize("items", [64, 120, 123])
def test_groups_hold_the_best(items):
    scores = torch.randn(6, items, generator=torch.Generator().manual_seed(4))
    scores[0, 5:] = -torch.inf  # fewer than k are left
    scores[1, 8:16] += 10  # several of the best in one group
    scores[2, items - 1] = torch.nan
    for k in (1, 3, 20):
        values, places = top_by_groups(scores, k, group=4)
        expected = scores.topk(k, dim=1)
        torch.testing.assert_close(values, expected.values, equal_nan=True, rtol=0, atol=0)
        torch.testing.assert_close(scores.gather(1, places), values, equal_nan=True, rtol=0, atol=0)
        assert all(len(set(row.tolist())) == k for row in places)
