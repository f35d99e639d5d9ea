"""A library call leaves the process as it found it, and each run has a log file of its own."""

import logging
import os
import sys
from pathlib import Path

import pytest
import torch
from small_data import small_settings

from recbole_llm.config.config import Config
from recbole_llm.errors import SettingError
from recbole_llm.quick_start.process import unchanged_process
from recbole_llm.quick_start.run import fit, load, run

SASREC = {"hidden_size": 8, "inner_size": 8, "n_layers": 1, "n_heads": 2, "epochs": 1}


def settings_of(data_path, **settings):
    given = small_settings(data_path, model="SASRec", **{**SASREC, "state": "INFO", **settings})
    return {name: value for name, value in given.items() if name not in ("max_sequence_tokens", "train_batch_tokens")}


@pytest.fixture(params=["bare", "with a handler"])
def root(request):
    """The root logger of a process that logs nothing yet, or of one with a handler of its own; at level ERROR."""
    logger = logging.getLogger()
    level, handlers = logger.level, list(logger.handlers)
    logger.handlers[:] = [] if request.param == "bare" else [logging.NullHandler()]
    logger.setLevel(logging.ERROR)
    yield logger
    logger.handlers[:] = handlers
    logger.setLevel(level)


def state(logger):
    cudnn = torch.backends.cudnn
    flags = cudnn.benchmark, cudnn.deterministic, torch.is_anomaly_enabled()
    flags += torch.are_deterministic_algorithms_enabled(), torch.get_default_dtype(), torch.get_num_threads()
    return logger.level, list(logger.handlers), flags, sys.stdout, sys.stderr, dict(os.environ), list(sys.path)


def log_files():
    return sorted(Path("log").rglob("*.log"))


@pytest.mark.parametrize("flag", [True, False])
def test_process_is_as_it_was(small, root, monkeypatch, flag):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", flag)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", not flag)
    settings = settings_of(small, reproducibility=flag)
    before = state(root)
    folder = run(settings=settings)["path"]
    assert state(root) == before
    load(folder)
    assert state(root) == before
    fit(Config(config_dict=settings), small / "fitted")
    assert state(root) == before


def test_process_is_as_it_was_after_a_failure(small, root):
    before = state(root)
    with pytest.raises(SettingError, match="is more than the 8 items"):
        run(settings=settings_of(small, topk=[9], valid_metric="NDCG@9"))
    assert log_files()
    assert state(root) == before


def test_each_run_logs_to_its_own_file(small, root):
    """Also a run of the same process with other settings, and a level below that of the process."""
    for seed in (11, 12):
        run(settings=settings_of(small, seed=seed))
    texts = [file.read_text() for file in log_files()]
    assert len(texts) == 2
    assert sorted(("seed = 11" in text, "seed = 12" in text) for text in texts) == [(False, True), (True, False)]
    assert all("epoch 0 training" in text for text in texts)


def test_nested_run_logs_to_its_own_file(small, tiny, root):
    """The ID model's epochs are in its log, and the log of the run around it goes on after them."""
    own = {name: value for name, value in SASREC.items() if name != "epochs"}
    settings = small_settings(
        small, state="INFO", backbone=str(tiny["llama"]), tuning="ilp", epochs=3, id_model="SASRec",
        id_model_settings={**own, "epochs": 5, "seed": 77},
    )  # fmt: skip
    run(settings=settings)
    (nested,) = (file.read_text() for file in log_files() if file.name.startswith("SASRec"))
    (host,) = (file.read_text() for file in log_files() if file.name.startswith("ST2SI"))
    assert nested.count(" training [") == 5
    assert host.count(" training [") == 3


def test_handlers_of_the_caller_see_the_lines(small, root, caplog):
    """A process with a handler of its own shows the run's lines as it likes."""
    seen = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())
    root.addHandler(handler)
    run(settings=settings_of(small))
    assert any("epoch 0 training" in message for message in seen)


def test_files_are_closed():
    with unchanged_process():
        handler = logging.FileHandler("one.log", delay=False)
        logging.getLogger().addHandler(handler)
    assert handler.stream is None
    Path("one.log").unlink()
