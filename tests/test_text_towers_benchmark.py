"""benchmarks/text_towers.py measures every model in the ways that are picked; nothing is timed here."""

import importlib
import json
from pathlib import Path

import pytest

from recbole_llm.backbone import short_sequences

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
SHAPES = "--shapes=tiny-bert,tiny"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(short_sequences, "LONGEST_MEAN", short_sequences.LONGEST_MEAN)  # put back afterwards
    return importlib.import_module("text_towers")


def lines_of(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]


def test_the_ways_differ_in_what_they_say(benchmark, monkeypatch, capsys):
    usual = short_sequences.LONGEST_MEAN

    def seen(model, shape, steps, warm_up, **settings):
        ways = (settings.get("compile", False), short_sequences.LONGEST_MEAN, warm_up)
        return {"flops_per_second": 1.0, "ways": ways, "train_batch_size": settings.get("train_batch_size", 0)}

    monkeypatch.setattr(benchmark, "measure", seen)
    monkeypatch.setattr("sys.argv", ["text_towers.py", SHAPES])
    benchmark.main()
    lines = lines_of(capsys)
    found = {line["name"]: line["ways"] for line in lines}
    assert {name: ways[:2] for name, ways in found.items()} == {
        "plain": [False, 0],
        "bf16 weights, compiled": [True, 0],
        "bf16 weights, compiled, flex attention": [True, usual],
    }
    assert all(ways[2] >= 24 for name, ways in found.items() if "compiled" in name)
    assert {line["model"] for line in lines if line["train_batch_size"] == 512} == {"MoRec", "Recformer", "LLMRec"}
    monkeypatch.setattr("sys.argv", ["text_towers.py", SHAPES, "--cases=Recformer", "--names=compiled,flex"])
    benchmark.main()
    assert [(line["model"], line["name"]) for line in lines_of(capsys)] == [
        ("Recformer", name) for name in ("bf16 weights, compiled", "bf16 weights, compiled, flex attention")
    ] * 2
    monkeypatch.setattr("sys.argv", ["text_towers.py", SHAPES, "--names=compiled", "--batches=large"])
    benchmark.main()
    assert [line["train_batch_size"] for line in lines_of(capsys)] == [512] * 3
    monkeypatch.setattr("sys.argv", ["text_towers.py", "--names=compield"])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert "compield is none of plain,compiled,flex" in capsys.readouterr().err


def test_steps_are_measured(benchmark, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "USERS", 60)
    monkeypatch.setattr(benchmark, "ITEMS", 80)
    monkeypatch.setattr("sys.argv", ["text_towers.py", SHAPES, "--cases=LLMRec", "--names=plain", "--steps=1"])
    benchmark.main()
    lines = lines_of(capsys)
    assert [line["item_loss"] for line in lines] == ["sampled", "table"]
    for line in lines:
        assert line["tokens_per_step"] > 0 and line["step_ms"] > 0 and line["graphs_compiled_while_measured"] == 0
