"""Runs whose processes split the backbone end as those of one process, which has all of it."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from several_processes import command_lines
from shared_runs import SOON, arguments_of, assert_ends_alike, only_run, resume, write_histories

pytestmark = pytest.mark.slow  # tests/trainer/test_sharded_backbone.py has some steps of it

SHARDED = {
    "full": ["--gradient_checkpointing=True", "--weight_average=0.9", "--clip_grad_norm={'max_norm': 0.5}"],
    "lora": [],
    "ilp": ["--train_window=random"],  # so that the frozen backbone computes in every step
    "IDLEAdapter": ["--gradient_checkpointing=True"],
    "trained IDLEAdapter": ["--tuning=full"],
    "tables": [],
    "codes": ["--train_window=random"],
    "bf16": ["--precision=bf16", "--weights=bf16", "--weight_average=0.9"],
}


def sharded_arguments(name, tiny, folder, shard="backbone"):
    arguments = arguments_of("full" if name == "bf16" else name.split()[-1], tiny, folder)
    given = [one for one in arguments if name != "bf16" or one != "--precision=fp32"]
    return [*given, *SHARDED[name], f"--shard={shard}"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return write_histories(tmp_path_factory.mktemp("shared"))


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


@pytest.mark.parametrize("name", [name for name in SHARDED if name != "bf16"])
def test_processes_that_split_the_backbone_end_as_one_does(workspace, tiny, whole_backbone, tmp_path, name):
    first, second = command_lines(workspace, sharded_arguments(name, tiny, tmp_path / "saved"))
    assert (first.code, second.code) == (0, 0), first.error + second.error
    assert_ends_alike(only_run(tmp_path / "saved"), whole_backbone(name))


@pytest.mark.parametrize(
    ("name", "begun", "resuming"), [("full", 2, 1), ("full", 1, 2), ("lora", 2, 1), ("lora", 1, 3)]
)
def test_a_split_backbone_is_resumed_by_any_number(workspace, tiny, whole_backbone, tmp_path, name, begun, resuming):
    arguments = sharded_arguments(name, tiny, tmp_path / "saved")
    ended = command_lines(workspace, arguments, begun, kill={begun - 1: ("step", 20)})
    run = only_run(tmp_path / "saved")
    assert ended[-1].code == -9
    assert len(list(run.glob("resume-*"))) == begun - 1  # the folder of what two have split
    if begun == 2:
        assert ended[0].code == 1
        assert ended[0].after < SOON
        assert f"recbole-llm run --resume={run}" in ended[0].error
    resume(workspace, run, resuming)
    assert_ends_alike(run, whole_backbone(name))
    assert not list(run.glob("*resume*"))


@pytest.mark.parametrize("name", ["full", "lora"])
def test_machines_that_split_the_backbone_within_end_as_one_process(workspace, tiny, whole_backbone, tmp_path, name):
    """Two machines of two processes; then the run is killed, and one process resumes it."""
    for kill in (None, {3: ("step", 20)}):
        folder = tmp_path / ("killed" if kill else "whole")
        arguments = [*sharded_arguments(name, tiny, folder), "--shard_within=machine"]
        ended = command_lines(workspace, arguments, 4, kill, on_each=2)
        run = only_run(folder)
        if kill:
            assert ended[3].code == -9
            resume(workspace, run, 1)
        else:
            assert [one.code for one in ended] == [0] * 4, [one.error for one in ended]
        assert_ends_alike(run, whole_backbone(name))


def test_a_run_resumed_from_parts_has_the_weights_of_an_uninterrupted_one(workspace, tiny, tmp_path):
    folders = tmp_path / "killed", tmp_path / "uninterrupted"
    for folder, kill in zip(folders, ({0: ("step", 20)}, None), strict=True):
        ended = command_lines(workspace, sharded_arguments("full", tiny, folder), kill=kill)
        assert ended[0].code == (-9 if kill else 0)
    run, uninterrupted = map(only_run, folders)
    broken = shutil.copytree(run, tmp_path / "broken")
    next(broken.glob("resume-*/*")).unlink()
    ended = command_lines(workspace, ["run", f"--resume={broken}"])
    assert [one.code for one in ended] == [1, 1]
    assert [line for one in ended for line in one.error.splitlines() if "is broken and training cannot" in line] == [
        f"error: {next(broken.glob('resume-*'))} is broken and training cannot be resumed from it: remove "
        f"{broken / 'resume.pt'} and run again"
    ]
    resume(workspace, run, 2)
    assert_ends_alike(run, uninterrupted, within=1e-6)


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


def test_layers_of_bfloat16_write_their_states_for_who_asked(workspace, tiny, tmp_path):
    """IDLEAdapter reads the states of all layers in every step, where it has no room to store those of before."""
    losses = {}
    for shard in ("backbone", "none"):
        arguments = sharded_arguments("trained IDLEAdapter", tiny, tmp_path / shard, shard)
        arguments = [one for one in arguments if one != "--precision=fp32"]
        ended = command_lines(
            workspace, [*arguments, "--precision=bf16"], kill={rank: ("unstored", 1) for rank in (0, 1)}
        )
        assert [one.code for one in ended] == [0, 0], ended[0].error + ended[1].error
        result = json.loads((only_run(tmp_path / shard) / "result.json").read_text())
        losses[shard] = [epoch["train_loss"] for epoch in result["history"]]
    assert losses["backbone"] == pytest.approx(losses["none"], rel=2**-8)


def test_an_error_of_one_process_ends_all_that_split_a_backbone(workspace, tiny, tmp_path):
    arguments = sharded_arguments("lora", tiny, tmp_path / "saved")
    first, second = command_lines(workspace, arguments, kill={1: ("fail", 3)})
    assert (first.code, second.code) == (1, 1)
    assert max(first.after, second.after) < SOON
    assert "error: the titles of this process are gone" in second.error
    assert first.error == ""
