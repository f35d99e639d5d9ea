"""A run that is being worked on is not worked on twice."""

import signal
import subprocess
import sys
import textwrap

import pytest
from small_data import write_dataset

from recbole_llm import run
from recbole_llm.config.config import Config
from recbole_llm.errors import CheckpointError, RecBoleLLMError
from recbole_llm.quick_start.run import fit
from recbole_llm.runs.lock import LOCK, alone

HOLD = """
    import sys, time
    from pathlib import Path
    from recbole_llm.runs.lock import alone
    with alone(Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def other(folder):
    """Another process that holds the run."""
    command = [sys.executable, "-c", textwrap.dedent(HOLD), str(folder)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "held\n"
    yield child
    child.kill()
    child.wait()


def test_a_run_of_another_process_is_refused_until_that_is_killed(folder, other):
    (folder / ".model.safetensors.1234.tmp").touch()  # which that process is writing
    refused = f"^the run {folder} is still running, here or in another process: wait"
    with pytest.raises(CheckpointError, match=refused), alone(folder):
        pass
    assert (folder / ".model.safetensors.1234.tmp").exists()
    other.send_signal(signal.SIGKILL)
    other.wait()
    with alone(folder):
        assert not (folder / ".model.safetensors.1234.tmp").exists()


def test_it_is_released_by_an_error_and_gone_with_the_result(folder):
    with pytest.raises(ValueError, match="broken"), alone(folder):
        raise ValueError("broken")
    with alone(folder):
        (folder / "result.json").touch()
    assert [file.name for file in folder.iterdir()] == ["result.json"]
    with pytest.raises(CheckpointError, match="is finished"), alone(folder):
        pass


def test_resuming_a_run_that_trains_in_this_process_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path)
    settings = {
        "data_path": ".", "use_gpu": False, "epochs": 2, "state": "ERROR", "show_progress": False, "hidden_size": 8,
        "n_layers": 1, "inner_size": 8, "topk": [1, 2], "valid_metric": "NDCG@2", "resume_seconds": 0,
    }  # fmt: skip
    refused = []

    def resume_it(epoch, score):
        with pytest.raises(RecBoleLLMError, match="still running") as error:
            run(resume=tmp_path / "trial")
        refused.append(str(error.value))

    fit(Config("SASRec", "small", config_dict=settings), tmp_path / "trial", resume_it)
    assert len(refused) == 2 and refused[0].count("\n") == 0
    result = run(resume=tmp_path / "trial")  # it is over, and may be evaluated
    assert result["test"] is not None
    assert not (tmp_path / "trial" / LOCK).exists()
