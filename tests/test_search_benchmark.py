"""benchmarks/approximate_search.py: what the generated catalogues are, and that a small one is measured."""

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setenv("RECBOLE_LLM_CACHE", "unused")  # the benchmark sets it, and this restores it
    yield import_module("approximate_search")
    sys.modules.pop("approximate_search")


@pytest.fixture
def table():
    rng = torch.Generator().manual_seed(0)
    groups = torch.randn(40, 6, generator=rng).repeat_interleave(10, dim=0)
    return torch.cat([torch.zeros(1, 6), groups + 0.1 * torch.randn(400, 6, generator=rng)])


def test_variants_are_as_far_apart_as_neighbours(benchmark, table):
    made = benchmark.generated("variants", table, 4000)
    assert made.shape == (4001, 6) and not made[0].any()
    own = table[1:]
    distances = torch.cdist(own, own).fill_diagonal_(torch.inf)
    # A variant of an item, and another one: each the item and a step.
    near = torch.cdist(made[1:], own).square().min(dim=1).values.mean()
    step = distances.min(dim=1).values.square().mean() / 2
    assert 0.3 * step < near < step
    lengths = benchmark.generated("lengths", table, 4000).norm(dim=1)[1:]
    assert lengths.std() / lengths.mean() > 1.5 * made[1:].norm(dim=1).std() / made[1:].norm(dim=1).mean()
    normal = benchmark.generated("normal", table, 40_000)[1:]
    torch.testing.assert_close(normal.T.cov(), own.T.cov(), rtol=0.1, atol=0.05)


def test_a_small_catalogue_is_measured(benchmark, table, monkeypatch, capsys):
    for name, value in {"SAMPLE": 40, "OTHERS": 64}.items():
        monkeypatch.setattr(benchmark, name, value)
    users = table[torch.randint(1, 400, (104,))] + 0.1
    benchmark.measure("trained", table, users, 0.9)
    line = json.loads(capsys.readouterr().out)
    assert line["items"] == 400 and line["lists"] == 40 and line["recall"] >= 0.9 and line["recall_of_others"] > 0.8
    assert min(line[name] for name in ("build_s", "start_s", "one_ms", "batch_ms", "exact_one_ms", "peak_mib")) > 0
