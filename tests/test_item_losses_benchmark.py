"""benchmarks/item_losses.py trains by every loss; nothing is timed here."""

import importlib
import json
from pathlib import Path

import torch

from recbole_llm.config.settings.one_pass import ONE_PASS_LOSSES

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


def test_every_loss_has_a_line_beside_the_full_softmax(monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER)
    benchmark = importlib.import_module("item_losses")
    monkeypatch.setattr(benchmark, "WARM_UP", 0)
    monkeypatch.setattr(benchmark, "STEPS", 1)
    arguments = ["item_losses.py", "--items=300", "--queries=5", "--width=8", "--negatives=7"]
    monkeypatch.setattr("sys.argv", arguments)
    benchmark.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0]["loss_type"] == "CE" and lines[0]["times_full"] == 1
    assert {line["loss_type"] for line in lines} == {"CE", *ONE_PASS_LOSSES} - {"BCE"}
    assert {line["item_optimizer"] for line in lines} == {"~", "adamw", "rowwise_adagrad"}
    assert all(line["step_ms"] > 0 for line in lines)


def test_what_does_not_fit_is_skipped(monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER)
    benchmark = importlib.import_module("item_losses")

    def fits(way, *_):
        if way["loss_type"] == "CE":
            raise torch.cuda.OutOfMemoryError
        return {"step_ms": 1.0, "beside_mib": 1.0}

    monkeypatch.setattr(benchmark, "run_way", fits)
    monkeypatch.setattr("sys.argv", ["item_losses.py", "--items=300"])
    benchmark.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == len(benchmark.WAYS)
    for line in lines:
        assert ("skipped" in line) == (line["loss_type"] == "CE") != ("step_ms" in line)
        assert "times_full" not in line  # there is no full softmax to compare with
