"""benchmarks/constrained_decoding.py finds what transformers' prefix function finds; nothing is timed here."""

import importlib.util
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("constrained_decoding", FOLDER / "constrained_decoding.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_both_find_the_same_ids(benchmark, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = benchmark.measure("tiny", users=3, items=60, beams=5, tokens=8, repeats=1)
    assert (found["device"], found["same_best"]) == ("cpu", 1.0)
    assert found["largest_difference"] < 1e-3
