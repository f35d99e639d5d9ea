"""``run --dry-run``: what it prints is what a run then does, and it writes nothing."""

import json
from pathlib import Path

import pytest
from small_data import write_dataset

from recbole_llm.cli.main import main
from recbole_llm.utils.values import parse_value

SMALL = [
    "--model=SASRec", "--dataset=small", "--data_path=.", "--use_gpu=False", "--topk=[1,3]", "--valid_metric=NDCG@3",
    "--state=ERROR", "--show_progress=False", "--epochs=1",
]  # fmt: skip


def everything(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def dry_run(capsys, *arguments, what="--dry-run"):
    capsys.readouterr()
    assert main(["run", *arguments, what]) == 0
    sections = {}
    for block in capsys.readouterr().out.split("\n\n"):
        title, *lines = block.strip().splitlines()
        sections[title] = lines
    return sections


def settings_of(lines):
    found = [(line[: line.index(":")].strip(), *line[line.index(":") + 1 :].rsplit(" # ", 1)) for line in lines]
    return {name: parse_value(text.strip()) for name, text, _ in found}, {name: source for name, _, source in found}


def test_ml_100k_writes_nothing(workdir, capsys):
    before = everything(workdir)
    found = dry_run(capsys, "-m", "SASRec", "-d", "ml-100k", "--epochs", "3", "--topk=[5, 10, 20]")
    assert everything(workdir) == before
    values, sources = settings_of(found["settings that differ from the defaults"])
    assert values == {"model": "SASRec", "dataset": "ml-100k", "epochs": 3, "topk": [5, 10, 20]}
    assert set(sources.values()) == {"the command line"}
    assert "943 users, 1,682 items" in found["dataset"][0]
    assert found["dataset"][1].endswith("943 valid, 943 test")
    assert found["loaded"] == ["  nothing: SASRec reads no text with a language model"]
    assert found["trained first"] == ["  nothing"]
    assert not (workdir / "saved").exists() and not (workdir / "log").exists()


def test_it_is_what_the_run_does(small, capsys):
    found = dry_run(capsys, *SMALL)
    assert main(SMALL) == 0
    path = Path(capsys.readouterr().out.splitlines()[-1])
    result = json.loads(path.read_text())
    counts = result["counts"]
    assert f"{counts['users']} users, {counts['items']} items" in found["dataset"][0]
    rows = f"  rows: {counts['train']} train, {counts['valid']} valid, {counts['test']} test"
    assert found["dataset"][1] == rows
    (announced,) = found["run folder"]
    begin, end = announced.strip().split("<time>")
    assert str(path.parent).startswith(begin) and str(path.parent).endswith(end)


def test_all_settings_and_where_they_are_from(small, capsys):
    Path("mine.yaml").write_text("epochs: 7\nhidden_size: 16\n")
    found = dry_run(capsys, *SMALL[:-1], "--config_files=mine.yaml", "--seed=3", what="--dry-run=all")
    values, sources = settings_of(found["settings"])
    assert (values["epochs"], values["hidden_size"], values["seed"]) == (7, 16, 3)
    assert sources["epochs"] == sources["hidden_size"] == "mine.yaml"
    assert sources["seed"] == "the command line"
    assert sources["n_layers"] == "RecBole's model/SASRec.yaml"
    assert sources["learning_rate"] == "RecBole's properties/overall.yaml"
    assert sources["repeatable"] == "properties/overall.yaml"


def test_id_model_before_and_after_it_is_trained(small, tiny, capsys):
    arguments = [
        "--model=ST2SI", *SMALL[1:], "--tuning=ilp", f"--backbone={tiny['llama']}", "--max_sequence_tokens=100",
        "--id_model=SASRec", "--id_model_settings={epochs: 1}",
    ]  # fmt: skip
    before = everything(small)
    (first,) = dry_run(capsys, *arguments)["trained first"]
    assert everything(small) == before
    what, folder = first.strip().split(", in ")
    assert what == "the ID model SASRec: is trained first"
    assert main(arguments) == 0
    assert (Path(folder) / "result.json").is_file()
    (second,) = dry_run(capsys, *arguments)["trained first"]
    assert second.strip() == f"the ID model SASRec: is there, in {folder}"


@pytest.mark.parametrize("arguments", [["--tuning=ilp"], []])
def test_the_language_model_that_would_be_loaded(small, tiny, capsys, arguments):
    found = dry_run(capsys, "--model=ST2SI", *SMALL[1:], f"--backbone={tiny['llama']}", *arguments)
    assert found["loaded"] == [f"  the language model {tiny['llama']} is here (folder): {tiny['llama'].resolve()}"]


def test_pretraining_before_and_after_it_is_made(small, tiny, capsys):
    """Its folder is the one that the run then makes."""
    write_dataset(
        small, {"u1": "abcd", "u2": "dcba"}, dict.fromkeys("ab", "Tea") | {"c": "Oil", "d": "Salt"}, name="food"
    )
    sizes = ["--hidden_size=8", "--inner_size=8", "--n_layers=1", "--pretrain_epochs=1", "--precision=fp32"]
    given = ["--model=ZESRec", *SMALL[1:], f"--backbone={tiny['bert']}", "--pretrain_datasets=food", *sizes]
    (before,) = dry_run(capsys, *given)["trained first"]
    assert before.startswith("  the pre-training on food: is trained first, in saved/pretrain-ZESRec-food-")
    assert main(given) == 0
    (after,) = dry_run(capsys, *given)["trained first"]
    assert after == before.replace("is trained first", "is there")


def test_a_dataset_that_is_not_here(workdir, capsys):
    found = dry_run(capsys, "--model=SASRec", "--dataset=Scientific")
    assert found["dataset"][0] == "  Scientific is not in dataset/: it is prepared first"
    assert found["trained first"] == ["  not known before the dataset is here"]
    assert everything(workdir) == {}


def test_wrong_settings_are_refused(small, capsys):
    assert main([*SMALL, "--valid_metric=NDCG@7", "--dry-run"]) == 2
    assert main([*SMALL[:-1], "--epochs=-1", "--dry-run"]) == 2
    assert main(["--model=ST2SI", *SMALL[1:], "--backbone=opt-125mm", "--dry-run"]) == 2
