"""Fixtures for all tests: no test writes into the user's caches or the working folder."""

from pathlib import Path

import pytest
from small_data import write_dataset
from tiny_models import tiny_bert, tiny_llama, tiny_opt, tiny_opt_projected


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> dict[str, Path]:
    """Folders of tiny models by type; tests that change one copy it first."""
    root = tmp_path_factory.mktemp("tiny")
    makers = {"llama": tiny_llama, "opt": tiny_opt, "opt_projected": tiny_opt_projected, "bert": tiny_bert}
    return {name: make(root / name) for name, make in makers.items()}


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """An empty working folder with a cache of its own; the hub may not be asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECBOLE_LLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


@pytest.fixture
def small(workplace) -> Path:
    """The data_path of the data set `small` of small_data.py, in an empty working folder."""
    return write_dataset(workplace)
