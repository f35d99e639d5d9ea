"""Runs that two processes share end as those of one process do, whatever the number that resumes them."""

import json
import os
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
from several_processes import command_lines, together
from shared_runs import MODELS, SOON, arguments_of, assert_ends_alike, only_run, ranks_of, resume, write_histories
from small_data import write_dataset

import recbole_llm

IN_CI = ("full", "lora", "ilp", "SASRec")  # the others are run by name, with -m slow


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return write_histories(tmp_path_factory.mktemp("shared"))


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "loss", "drawn", "more"),
    [
        ("full", "SampledCE", 300, []),
        ("full", "SampledCE", 300, ["--item_optimizer=rowwise_adagrad", "--item_learning_rate=0.05"]),
        ("ilp", "gBCE", 12, ["--item_optimizer=adamw"]),
        ("SASRec", "SampledCE", 300, []),
    ],
)
def test_losses_on_drawn_items_fall_as_in_one_process(workspace, tiny, tmp_path, name, loss, drawn, more):
    """Other items are drawn, of 13 as many that the losses are nearly the same."""
    own = [f"--loss_type={loss}", f"--num_negatives={drawn}", *more]
    code, _, error = command_line(workspace, [*arguments_of(name, tiny, tmp_path / "one"), *own])
    assert code == 0, error
    ended = command_lines(workspace, [*arguments_of(name, tiny, tmp_path / "two"), *own])
    assert [each.code for each in ended] == [0, 0], [each.error for each in ended]
    found, known = (json.loads((only_run(tmp_path / run) / "result.json").read_text()) for run in ("two", "one"))
    losses, expected = ([entry["train_loss"] for entry in each["history"]] for each in (found, known))
    assert losses == pytest.approx(expected, rel=0.02)
    assert losses[-1] < 0.98 * losses[0]
    assert found["parameters"] == known["parameters"]


@pytest.mark.slow
def test_draws_of_a_resumed_run_are_those_of_an_uninterrupted_one(workspace, tiny, tmp_path):
    own = ["--loss_type=SampledCE", "--num_negatives=20", "--item_optimizer=adamw"]
    runs = [tmp_path / "whole", tmp_path / "killed"]
    whole, killed = ([*arguments_of("ilp", tiny, folder), *own] for folder in runs)
    assert [one.code for one in command_lines(workspace, whole)] == [0, 0]
    assert -9 in [one.code for one in command_lines(workspace, killed, kill={0: ("step", 20)})]
    resume(workspace, only_run(runs[1]), 2)
    assert_ends_alike(only_run(runs[1]), only_run(runs[0]))


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
    if name == "ilp":
        sizes = together(sizes_while_resumed, resuming, str(workspace), str(run))
        total = sum(each["states"] for each in sizes)
        assert all(total / resuming / 1.5 < each["states"] < total / resuming * 1.5 for each in sizes)
    else:
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


@pytest.mark.parametrize(
    ("name", "processes"),
    [("lora", 3), *(pytest.param(*case, marks=pytest.mark.slow) for case in (("lora", 2), ("ilp", 2), ("mixed", 3)))],
)
def test_a_checkpoint_has_the_same_ranks_in_any_number_of_processes(
    workspace, tiny, one_process, tmp_path, name, processes
):
    code, _, error = command_line(workspace, arguments_of(name, tiny, tmp_path / "saved"), kill=("result", 1))
    assert code == -9, error
    run, expected = only_run(tmp_path / "saved"), one_process(name)
    items, width = load_file(expected / "model.safetensors")["projection.weight"].shape
    for sizes in together(sizes_while_resumed, processes, str(workspace), str(run)):
        assert 0 < sizes["rows"] <= -(-items // processes)
        if name == "lora":  # whose batches have two rows
            assert 0 < sizes["gathered"] < items * width, "a process has the whole projection"
    for part in ("valid", "test"):
        assert ranks_of(run, part) == ranks_of(expected, part)
    found, known = (json.loads((folder / "result.json").read_text()) for folder in (run, expected))
    for measured in ("test", "valid_other", "test_other", "candidates", "ilp_accuracy"):
        assert found.get(measured) == known.get(measured)


def sizes_while_resumed(folder, run):
    """Resume a run; return what the process had and got at most.

    Returns:
        "rows" of the projection while items are scored, "gathered" numbers of an exchange, and stored "states".
    """
    os.chdir(folder)
    os.environ["RECBOLE_LLM_CACHE"] = str(Path(folder) / "cache")
    from recbole_llm.backbone.feature_store import FeatureStore
    from recbole_llm.model.layers.item_linear_projection import ItemLinearProjection
    from recbole_llm.quick_start.run import run as resumed
    from recbole_llm.utils import collectives

    sizes = {"rows": 0, "gathered": 0, "states": 0}
    append = FeatureStore.append
    of_items, all_gather = ItemLinearProjection.of_items, collectives._all_gather

    def scored(self, states, items):
        sizes["rows"] = max(sizes["rows"], len(self.weight))
        return of_items(self, states, items)

    def stored(self, states):
        sizes["states"] += len(states)
        append(self, states)

    FeatureStore.append = stored

    def gathered(found, own, **more):
        sizes["gathered"] = max(sizes["gathered"], found.numel())
        return all_gather(found, own, **more)

    ItemLinearProjection.of_items, collectives._all_gather = scored, gathered
    resumed(resume=run)
    return sizes


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
        (
            ["--model=SASRec", "--train_positions=all", "--loss_type=SampledCE", "--item_optimizer=adamw"],
            2,
            "error: item_optimizer=adamw of SASRec is for one process",
        ),
        (["--loss_type=TwoLevel"], 2, "error: loss_type=TwoLevel is for one process"),
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
