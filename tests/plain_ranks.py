"""Ranks and their metrics, written out in plain numpy."""

import numpy as np
import pytest


def plain_metrics(ranks):
    """The metrics of ranks, written out."""
    found = {}
    for k in (5, 10):
        found[f"hit{k}"] = np.mean([rank <= k for rank in ranks])
        found[f"ndcg{k}"] = np.mean([1 / np.log2(1 + rank) if rank <= k else 0 for rank in ranks])
    return {**found, "mrr": np.mean([1 / rank for rank in ranks])}


def plain_ranks(scores, targets):
    """Scores of the items from 1 on [rows, items - 1]; a tie counts against the target."""
    own = scores[np.arange(len(targets)), targets - 1]
    return (scores >= own[:, None]).sum(axis=1)


def assert_metrics(line, ranks, abs=1e-9):
    for name, value in plain_metrics(ranks).items():
        assert line[name] == pytest.approx(value, abs=abs), name
