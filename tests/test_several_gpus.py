"""Runs that several GPUs share, by NCCL, end as those of one GPU do, and when one is lost the others say so.

`cuda` is run by name, with -m gpu, where there are two GPUs; `cpu` runs the same tests by gloo, with -m slow.
"""

import json

import pytest
import torch
from child_runs import command_line
from several_processes import command_lines
from shared_runs import SOON, arguments_of, assert_ends_alike, only_run, resume, write_histories

EPOCHS = 2
HANGS = 60  # seconds of a run
LEAST = 2  # devices
# By name: the model of shared_runs, the setting `shard`, and how many steps of the second epoch are begun when a
# process is killed. 36 samples of ST2SI are 8 steps of an epoch, 23 of SASRec 5.
RUNS = {"SASRec": ("SASRec", None, 7), "ST2SI": ("full", "none", 12), "split ST2SI": ("full", "backbone", 12)}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("cpu", marks=pytest.mark.slow),
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(torch.cuda.device_count() < LEAST, reason=f"needs {LEAST} GPUs"),
            ],
        ),
    ],
)
def use_gpu(request):
    return request.param == "cuda"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, use_gpu):
    return write_histories(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="module")
def arguments(tiny, use_gpu):
    def get(name, folder):
        model, shard, _ = RUNS[name]
        given = arguments_of(model, tiny, folder, use_gpu, EPOCHS)
        return given if shard is None else [*given, f"--shard={shard}"]

    return get


@pytest.fixture(scope="module")
def one_process(workspace, arguments):
    """The run of each model in one process, which splits no backbone."""
    known = {}

    def get(name):
        model = RUNS[name][0]
        if model not in known:
            folder = workspace / "one" / model
            code, _, error = command_line(workspace, arguments(name, folder))
            assert code == 0, error
            known[model] = only_run(folder)
        return known[model]

    return get


@pytest.mark.parametrize("name", RUNS)
def test_two_devices_end_as_one_does(workspace, arguments, one_process, tmp_path, name):
    expected = one_process(name)
    first, second = command_lines(workspace, arguments(name, tmp_path / "saved"), limit=HANGS)
    assert (first.code, second.code) == (0, 0), first.error + second.error
    run = only_run(tmp_path / "saved")
    result = json.loads((run / "result.json").read_text())
    assert result["processes"] == 2
    losses = [epoch["train_loss"] for epoch in result["history"]]
    assert len(losses) == EPOCHS and losses[-1] < losses[0]
    assert_ends_alike(run, expected, within=1e-4, weights=False)


@pytest.mark.parametrize("killed", [0, 1])
@pytest.mark.parametrize("name", RUNS)
def test_a_killed_process_ends_the_other_and_one_resumes(workspace, arguments, one_process, tmp_path, name, killed):
    expected = one_process(name)
    step = RUNS[name][2]
    ended = command_lines(workspace, arguments(name, tmp_path / "saved"), kill={killed: ("step", step)}, limit=HANGS)
    run = only_run(tmp_path / "saved")
    assert ended[killed].code == -9
    assert ended[1 - killed].code == 1, ended[1 - killed].error
    assert ended[1 - killed].after < SOON
    words = ended[1 - killed].error.splitlines()
    assert [line for line in words if f"recbole-llm run --resume={run}" in line and "processes" in line], words
    resume(workspace, run, 1)
    assert_ends_alike(run, expected, within=1e-4, weights=False)
