"""Forty commands are killed at random moments; asked again, each ends as one that was never killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from small_data import write_dataset

SMALL = [
    "--dataset=small", "--data_path=.", "--use_gpu=False", "--epochs=6", "--topk=[1,5]", "--valid_metric=NDCG@5",
    "--train_batch_size=8", "--show_progress=False", "--checkpoint_dir=saved", "--resume_seconds=0",
]  # fmt: skip
IDLE = ["--id_model=GRU4Rec", "--id_model_settings={'epochs': 3}", "--max_prompt_tokens=128"]


def commands(tiny: dict[str, Path]) -> dict[str, list[str]]:
    return {
        "run": ["run", "--model=SASRec", *SMALL],
        "idle": ["run", "--model=IDLEAdapter", f"--backbone={tiny['bert']}", *IDLE, *SMALL],
        "tune": ["tune", "--model=SASRec", *SMALL, "--params_file=space.hyper", "--max_evals=2", "--out=study"],
        "compare": ["compare", "--models=SASRec,Pop", *SMALL, "--out=table"],
    }


def start(place: Path, arguments: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "RECBOLE_LLM_CACHE": str(place / "cache"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "recbole_llm", *arguments],
        cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def prepared(place: Path) -> Path:
    write_dataset(place)
    (place / "space.hyper").write_text("learning_rate choice [0.01, 0.001]\n", encoding="utf-8")
    return place


def metrics(place: Path, name: str) -> object:
    """Return what a finished command found, without times and paths."""
    pattern = {"tune": "study/**/result.json", "compare": "saved/**/result.json"}.get(name, "saved/**/result.json")
    results = [json.loads(path.read_text()) for path in sorted(place.glob(pattern))]
    return sorted((str(result["model"]), str(result["test"]), str(result["valid"])) for result in results)


def check_files(place: Path) -> None:
    """Every file that carries a final name is whole."""
    for path in place.rglob("*"):
        if any(part.startswith(".") for part in path.relative_to(place).parts) or not path.is_file():
            continue
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".yaml":
            yaml.safe_load(path.read_text())
        elif path.suffix == ".safetensors":
            load_file(path)


def unfinished_run(place: Path) -> Path | None:
    """Return a run that can be resumed; an ID model that a run needs (``id-...``) waits for the same command."""
    folders = (state.parent for state in place.glob("saved/[!i]*/resume.pt"))
    return next((folder for folder in folders if not (folder / "result.json").exists()), None)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, tiny):
    """What each command finds, and how many seconds it takes, when nothing ends it."""
    found = {}
    for name, arguments in commands(tiny).items():
        place = prepared(tmp_path_factory.mktemp(name))
        began = time.monotonic()
        child = start(place, arguments)
        _, error = child.communicate(timeout=240)
        assert child.returncode == 0, error
        found[name] = (metrics(place, name), time.monotonic() - began)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("draw", range(10))
@pytest.mark.parametrize("name", ["run", "idle", "tune", "compare"])
def test_killed_at_a_random_moment(uninterrupted, tiny, tmp_path, name, draw):
    expected, seconds = uninterrupted[name]
    place = prepared(tmp_path)
    arguments = commands(tiny)[name]
    child = start(place, arguments)
    time.sleep(random.Random(f"{name}{draw}").uniform(0.2, 1.0) * seconds)
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
    check_files(place)
    unfinished = unfinished_run(place)
    if name in ("run", "idle") and unfinished is not None:
        arguments = ["run", f"--resume={unfinished.relative_to(place)}"]
    child = start(place, arguments)
    _, error = child.communicate(timeout=240)
    assert child.returncode == 0, error
    assert "Traceback" not in error
    check_files(place)
    found = metrics(place, name)
    assert set(map(str, expected)) <= set(map(str, found))
