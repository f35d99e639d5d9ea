"""Runs that two processes share end as those of one process do, whatever the number that resumes them."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from child_runs import command_line
from safetensors.torch import load_file
from several_processes import command_lines
from small_data import write_dataset

import recbole_llm
from recbole_llm.config.declared import has_setting

ITEMS = [f"i{n}" for n in range(13)]
EPOCHS = 4
SOON = 25  # seconds: by itself, within one or two, and not when somebody's patience ends, after 30 seconds or minutes
# 23 users and 13 alignment inputs in steps of 5: the last of 8 steps has one sample, and one process none.
MODELS = {
    "full": ["--model=ST2SI", "--tuning=full", "--learning_rate=0.001", "--train_batch_tokens=150"],
    "lora": [
        "--model=ST2SI", "--tuning=lora", "--learning_rate=0.003", "--lora_dropout=0", "--weight_average=0.9",
        "--clip_grad_norm={'max_norm': 0.5}", "--candidates=5", "--eval_batch_size=2",
    ],
    "ilp": ["--model=ST2SI", "--tuning=ilp", "--learning_rate=0.01"],
    "SASRec": [
        "--model=SASRec", "--train_positions=all", "--n_layers=1", "--hidden_size=16", "--inner_size=16",
        "--hidden_dropout_prob=0", "--attn_dropout_prob=0", "--clip_grad_norm={'max_norm': 0.5}",
    ],
    "GRU4Rec": [
        "--model=GRU4Rec", "--train_positions=all", "--embedding_size=8", "--hidden_size=8", "--dropout_prob=0",
    ],
    "IDLEAdapter": [
        "--model=IDLEAdapter", "--id_model=SASRec", "--id_weight=~", "--learning_rate=0.01", "--max_prompt_tokens=120",
        "--id_model_settings={hidden_size: 8, inner_size: 8, n_layers: 1, epochs: 1}",
    ],
    **{
        model: [
            f"--model={model}", "--train_positions=all", "--hidden_size=8", "--hidden_dropout_prob=0",
            "--attn_dropout_prob=0", "--adaptor_dropout=0", "--num_experts=1", "--null_size=4",
        ]
        for model in ("ZESRec", "UniSRec", "AlphaFuse", "TextInitSASRec")
    },
}  # fmt: skip
IN_CI = ("full", "lora", "ilp", "SASRec")  # the others are run by name, with -m slow


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("shared")
    rng = random.Random(0)
    histories = {f"u{user}": rng.sample(ITEMS, rng.randint(4, 9)) for user in range(23)}
    write_dataset(folder, histories, {item: f"Item {item} of {rng.choice(['Zelda', 'Mario'])}" for item in ITEMS})
    return folder


def arguments_of(name, tiny, folder):
    arguments = [
        *MODELS[name], "--dataset=small", "--data_path=.", "--use_gpu=False", f"--epochs={EPOCHS}", "--topk=[1,5]",
        "--valid_metric=NDCG@5", "--train_batch_size=5", "--show_progress=False", "--state=ERROR", "--precision=fp32",
        "--resume_seconds=0", "--stored_states_gb=0", f"--checkpoint_dir={folder}", "--metric_decimal_place=8",
        "--metrics=['Recall','NDCG','ItemCoverage']", "--max_sequence_tokens=128", "--warmup_steps=3",
        f"--backbone={tiny['bert' if '--hidden_size=8' in MODELS[name] else 'llama']}",
    ]  # fmt: skip
    model = MODELS[name][0].removeprefix("--model=")
    return [one for one in arguments if has_setting(model, one[2:].partition("=")[0])]


def only_run(folder):
    (run,) = (one for one in folder.iterdir() if one.is_dir() and not one.name.startswith("id-"))
    return run


def ranks_of(run, part):
    lines = gzip.decompress((run / f"ranks-{part}.tsv.gz").read_bytes()).decode().splitlines()
    return [line.split("\t") for line in lines]


def assert_ends_alike(run, expected):
    """Losses, metrics and weights within 1e-5; at most two ranks differ, by one place: near-ties."""
    found, known = (json.loads((folder / "result.json").read_text()) for folder in (run, expected))
    assert found.keys() - {"processes"} == known.keys()
    for own, other in zip(found["history"], known["history"], strict=True):
        assert own["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)
        assert own["valid"] == pytest.approx(other["valid"], abs=1e-5)
    for name in ("valid", "test", "valid_other", "test_other", "ilp_accuracy", "parameters", "counts"):
        assert found.get(name) == pytest.approx(known.get(name), abs=1e-5), name
    assert found.get("candidates") == known.get("candidates")
    assert (found["epochs"], found["best_epoch"]) == (known["epochs"], known["best_epoch"])
    weights, others = (load_file(folder / "model.safetensors") for folder in (run, expected))
    assert weights.keys() == others.keys()
    for name, weight in others.items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=1e-5)
    for part in ("valid", "test"):
        pairs = list(zip(ranks_of(run, part), ranks_of(expected, part), strict=True))
        different = [(own, other) for own, other in pairs if own != other]
        assert len(different) <= 2
        for own, other in different:
            assert own[:2] == other[:2]
            assert all(abs(int(a) - int(b)) <= 1 for a, b in zip(own[2:], other[2:], strict=True))


@pytest.fixture(scope="module")
def one_process(workspace, tiny):
    """The run of each model that one process trains, without an interruption."""
    known = {}

    def get(name):
        if name not in known:
            folder = workspace / "one" / name
            code, _, error = command_line(workspace, arguments_of(name, tiny, folder))
            assert code == 0, error
            known[name] = only_run(folder)
        return known[name]

    return get


@pytest.mark.parametrize(
    "name", [name if name in IN_CI else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
def test_two_processes_end_as_one_does(workspace, tiny, one_process, tmp_path, name):
    first, second = command_lines(workspace, arguments_of(name, tiny, tmp_path / "saved"))
    assert (first.code, second.code) == (0, 0), first.error + second.error
    run = only_run(tmp_path / "saved")
    assert first.out.splitlines()[-1] == str(run / "result.json")
    assert second.out == ""
    assert_ends_alike(run, one_process(name))
    assert json.loads((run / "result.json").read_text())["processes"] == 2
    assert "processes" not in json.loads((one_process(name) / "result.json").read_text())
    assert sorted(file.name for file in run.iterdir()) == sorted(file.name for file in one_process(name).iterdir())


def torchrun(folder, arguments):
    """Start the command line by torchrun in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "recbole_llm"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RECBOLE_LLM_CACHE": str(folder / "cache")}
    environment["PYTHONPATH"] = str(Path(recbole_llm.__file__).parents[1])
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*command, *arguments], cwd=folder, env=environment, text=True, **pipes)


def test_torchrun_starts_a_run(workspace, tiny, one_process, tmp_path):
    started = torchrun(workspace, ["run", *arguments_of("ilp", tiny, tmp_path / "saved")])
    out, error = started.communicate(timeout=200)
    assert started.returncode == 0, error
    run = only_run(tmp_path / "saved")
    assert out.splitlines()[-1] == str(run / "result.json")
    assert out.count("result.json") == 1
    assert_ends_alike(run, one_process("ilp"))


def resume(workspace, run, processes):
    arguments = ["run", f"--resume={run}"]
    if processes == 1:
        code, _, error = command_line(workspace, arguments)
        assert code == 0, error
        return
    ended = command_lines(workspace, arguments, processes)
    assert [one.code for one in ended] == [0] * processes, [one.error for one in ended]


@pytest.mark.parametrize(("name", "killed", "resuming"), [("lora", 1, 1), ("ilp", 0, 3)])
def test_a_killed_process_ends_the_other_and_any_number_resumes(
    workspace, tiny, one_process, tmp_path, name, killed, resuming
):
    arguments = arguments_of(name, tiny, tmp_path / "saved")
    ended = command_lines(workspace, arguments, kill={killed: ("step", 20)})
    run = only_run(tmp_path / "saved")
    assert ended[killed].code == -9
    assert ended[1 - killed].code == 1
    assert ended[1 - killed].after < SOON
    words = ended[1 - killed].error.splitlines()
    assert [line for line in words if f"recbole-llm run --resume={run}" in line and "processes" in line], words
    resume(workspace, run, resuming)
    assert_ends_alike(run, one_process(name))


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_torchrun_ends_what_is_left_of_a_run(workspace, tiny, tmp_path, killed):
    arguments = [one for one in arguments_of("lora", tiny, tmp_path / "saved") if "--epochs" not in one]
    started = torchrun(workspace, ["run", *arguments, "--epochs=2000", "--stopping_step=2000"])
    until = time.monotonic() + 120
    while not list(tmp_path.glob("saved/*/resume.pt")) and time.monotonic() < until:
        time.sleep(0.1)
    workers = {int(child.environ()["RANK"]): child for child in psutil.Process(started.pid).children()}
    workers[killed].kill()
    _, error = started.communicate(timeout=120)
    assert started.returncode != 0
    assert f"recbole-llm run --resume={only_run(tmp_path / 'saved')}" in error


def test_a_checkpoint_has_the_same_ranks_in_any_number_of_processes(workspace, tiny, one_process, tmp_path):
    code, _, error = command_line(workspace, arguments_of("lora", tiny, tmp_path / "saved"), kill=("result", 1))
    assert code == -9, error
    run, expected = only_run(tmp_path / "saved"), one_process("lora")
    resume(workspace, run, 3)
    for part in ("valid", "test"):
        assert ranks_of(run, part) == ranks_of(expected, part)
    found, known = (json.loads((folder / "result.json").read_text()) for folder in (run, expected))
    for name in ("test", "valid_other", "test_other", "candidates"):
        assert found[name] == known[name]


def test_two_processes_resume_what_one_began(workspace, tiny, one_process, tmp_path):
    code, _, error = command_line(workspace, arguments_of("lora", tiny, tmp_path / "saved"), kill=("step", 20))
    assert code == -9, error
    run = only_run(tmp_path / "saved")
    resume(workspace, run, 2)
    assert_ends_alike(run, one_process("lora"))


def test_an_error_of_one_process_ends_all_with_its_sentence(workspace, tiny, tmp_path):
    arguments = arguments_of("lora", tiny, tmp_path / "saved")
    first, second = command_lines(workspace, arguments, kill={1: ("fail", 3)})
    assert (first.code, second.code) == (1, 1)
    assert max(first.after, second.after) < SOON
    assert "error: the titles of this process are gone" in second.error
    assert first.error == ""


SHARDED = {
    "full": ["--gradient_checkpointing=True", "--weight_average=0.9", "--clip_grad_norm={'max_norm': 0.5}"],
    "lora": [],
    "ilp": ["--train_window=random"],  # so that the frozen backbone computes in every step
    "IDLEAdapter": ["--gradient_checkpointing=True"],
    "trained IDLEAdapter": ["--tuning=full"],
    "bf16": ["--precision=bf16", "--weights=bf16", "--weight_average=0.9"],
}


def sharded_arguments(name, tiny, folder, shard="backbone"):
    arguments = arguments_of("full" if name == "bf16" else name.split()[-1], tiny, folder)
    given = [one for one in arguments if name != "bf16" or one != "--precision=fp32"]
    return [*given, *SHARDED[name], f"--shard={shard}"]


@pytest.fixture(scope="module")
def whole_backbone(workspace, tiny):
    """The run of each of SHARDED in one process; in two where gradients are rounded, which split nothing."""
    known = {}

    def get(name):
        if name not in known:
            folder = workspace / "whole" / name
            count = 1 + (name == "bf16")
            ended = command_lines(workspace, sharded_arguments(name, tiny, folder, "none"), count)
            assert [one.code for one in ended] == [0] * count, ended[0].error
            known[name] = only_run(folder)
        return known[name]

    return get


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SHARDED if name != "bf16"])
def test_processes_that_split_the_backbone_end_as_one_does(workspace, tiny, whole_backbone, tmp_path, name):
    first, second = command_lines(workspace, sharded_arguments(name, tiny, tmp_path / "saved"))
    assert (first.code, second.code) == (0, 0), first.error + second.error
    assert_ends_alike(only_run(tmp_path / "saved"), whole_backbone(name))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "begun", "resuming"), [("full", 2, 1), ("full", 1, 2), ("lora", 2, 1), ("lora", 1, 3)]
)
def test_a_split_backbone_is_resumed_by_any_number(workspace, tiny, whole_backbone, tmp_path, name, begun, resuming):
    arguments = sharded_arguments(name, tiny, tmp_path / "saved")
    ended = command_lines(workspace, arguments, begun, kill={begun - 1: ("step", 20)})
    run = only_run(tmp_path / "saved")
    assert ended[-1].code == -9
    if begun == 2:
        assert ended[0].code == 1
        assert ended[0].after < SOON
        assert f"recbole-llm run --resume={run}" in ended[0].error
    resume(workspace, run, resuming)
    assert_ends_alike(run, whole_backbone(name))


@pytest.mark.slow
def test_a_backbone_in_bfloat16_has_the_same_masters_split_or_not(workspace, tiny, whole_backbone, tmp_path):
    """The same to the rounding of gradients: those of a process's passes are added up in float32 where it is split."""
    expected, arguments = whole_backbone("bf16"), sharded_arguments("bf16", tiny, tmp_path / "saved", "none")
    ended = command_lines(workspace, arguments, kill={1: ("step", 20)})
    run = only_run(tmp_path / "saved")
    assert ended[1].code == -9
    ended = command_lines(workspace, ["run", f"--resume={run}", "--shard=backbone"], kill={0: ("step", 7)})
    assert ended[0].code == -9
    resume(workspace, run, 1)
    found, known = (json.loads((folder / "result.json").read_text()) for folder in (run, expected))
    losses, others = ([epoch["train_loss"] for epoch in each["history"]] for each in (found, known))
    assert losses == pytest.approx(others, rel=2**-8)
    weights, others = (load_file(folder / "model.safetensors") for folder in (run, expected))
    for name, weight in others.items():
        assert weights[name].dtype == weight.dtype == (torch.float32 if "projection" in name else torch.bfloat16)
        torch.testing.assert_close(weights[name], weight, rtol=2**-6, atol=2**-8)


@pytest.mark.slow
def test_an_error_of_one_process_ends_all_that_split_a_backbone(workspace, tiny, tmp_path):
    arguments = sharded_arguments("lora", tiny, tmp_path / "saved")
    first, second = command_lines(workspace, arguments, kill={1: ("fail", 3)})
    assert (first.code, second.code) == (1, 1)
    assert max(first.after, second.after) < SOON
    assert "error: the titles of this process are gone" in second.error
    assert first.error == ""


@pytest.mark.slow
def test_an_interruption_of_one_process_ends_all(workspace, tiny, tmp_path):
    arguments = arguments_of("ilp", tiny, tmp_path / "saved")
    first, second = command_lines(workspace, arguments, kill={0: ("step", 20)}, by=signal.SIGTERM)
    assert (first.code, second.code) == (143, 130)
    assert f"interrupted; resume with: recbole-llm run --resume={only_run(tmp_path / 'saved')}" in first.error
    assert second.error == ""


@pytest.mark.parametrize(
    ("change", "code", "sentence"),
    [
        (["--model=SASRec"], 2, "error: SASRec trains in one process: start it with recbole-llm run, without torchrun"),
        (["--learning_rat=1"], 2, "error: there is no setting 'learning_rat'"),
        (["--checkpoint_dir=small/small.inter"], 1, "cannot be made: Not a directory"),
        (["--topk=[100]", "--valid_metric=MRR@100"], 2, "error: topk=[100] is more than the 13 items of small"),
        (["--loss_type=BCE"], 2, "error: loss_type=BCE does not read all items"),
    ],
)
def test_what_is_refused_is_said_once(workspace, change, code, sentence):
    model = [] if change[0].startswith("--model") else ["--model=ST2SI"]
    arguments = [*model, "--dataset=small", "--data_path=.", "--use_gpu=False", "--state=ERROR"]
    ended = command_lines(workspace, [*arguments, *change])
    assert [one.code for one in ended] == [code, code], [one.error for one in ended]
    assert sum(one.error.count(sentence) for one in ended) == 1, [one.error for one in ended]
    assert sum(one.error.count("error:") for one in ended) == 1


@pytest.mark.slow
def test_other_verbs_have_one_process(workspace):
    first, second = command_lines(workspace, ["tune", "--model=SASRec", "--dataset=small"])
    assert (first.code, second.code) == (2, 2)
    assert "tune has one process: start it with recbole-llm tune, without torchrun" in first.error
    assert second.error == ""


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["none", "backbone"])
def test_two_processes_pretrain_as_one_does(workspace, tiny, tmp_path, shard):
    write_dataset(workspace, {"u1": "abcd", "u2": "dcba", "u3": "bcd", "u9": "ac", "u7": "dab"}, name="food")
    arguments = [
        "pretrain", "--pretrain_datasets=food", "--data_path=.", "--use_gpu=False", f"--backbone={tiny['llama']}",
        "--pretrain_epochs=2", "--pretrain_save_epochs=[1,2]", "--pretrain_learning_rate=0.0001", "--warmup_steps=0",
        "--train_batch_size=3", "--precision=fp32", "--state=ERROR", "--show_progress=False",
        "--max_sequence_tokens=128", f"--shard={shard}",
    ]  # fmt: skip
    code, out, error = command_line(workspace, [*arguments, f"--checkpoint_dir={tmp_path / 'one'}"])
    assert code == 0, error
    first, second = command_lines(workspace, [*arguments, f"--checkpoint_dir={tmp_path / 'two'}"])
    assert (first.code, second.code) == (0, 0), first.error + second.error
    assert second.out == ""
    one, two = (Path(printed.splitlines()[-1]) for printed in (out, first.out))
    assert [one.name, two.name] == ["backbone-epoch-2"] * 2
    assert one.parent.name == two.parent.name, "it would be found by a run of any number of processes"
    assert sorted(file.name for file in two.parent.iterdir()) == sorted(file.name for file in one.parent.iterdir())
    for epoch in (1, 2):
        found, known = (load_file(of.parent / f"backbone-epoch-{epoch}/model.safetensors") for of in (two, one))
        for name, weight in known.items():
            torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-5)
