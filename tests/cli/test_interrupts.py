"""Ctrl-C and SIGTERM, in processes of their own: what is said to be stored is stored, and nothing else is."""

import signal
from pathlib import Path

import pytest
from child_runs import command_line
from forked_compare import compare

from recbole_llm.cli.main import main

BASE = [
    "--dataset=small", "--data_path=.", "--use_gpu=False", "--topk=[1,3]", "--valid_metric=NDCG@3", "--state=ERROR",
    "--show_progress=False", "--resume_seconds=0", "--train_batch_size=4",
]  # fmt: skip
SASREC = ["--model=SASRec", "--epochs=6", "--stopping_step=10", *BASE]
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


def last_line(error):
    assert "Traceback" not in error
    return error.rstrip().splitlines()[-1]


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_run_that_stored_a_state(small, by):
    code, _, error = command_line(small, SASREC, kill=("step", 30), by=by)
    (run,) = (small / "saved").iterdir()
    assert (run / "resume.pt").is_file()
    assert code == CODES[by]
    assert last_line(error) == f"interrupted; resume with: recbole-llm run --resume=saved/{run.name}"
    code, out, error = command_line(small, last_line(error).split()[4:])
    assert code == 0, error
    assert out.splitlines()[-1] == f"saved/{run.name}/result.json"


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_run_that_stored_nothing(small, by):
    code, _, error = command_line(small, SASREC, kill=("step", 2), by=by)
    assert code == CODES[by]
    assert last_line(error) == "interrupted; nothing was kept"
    assert list((small / "saved").iterdir()) == []


def test_resumed_run_is_stored_still(small):
    command_line(small, SASREC, kill=("step", 30), by=signal.SIGINT)
    (run,) = (small / "saved").iterdir()
    code, _, error = command_line(small, ["run", f"--resume=saved/{run.name}"], kill=("step", 1), by=signal.SIGTERM)
    assert code == 143
    assert last_line(error) == f"interrupted; resume with: recbole-llm run --resume=saved/{run.name}"
    assert (run / "resume.pt").is_file()


def test_id_model_is_what_is_stored(small, tiny):
    arguments = [
        "--model=ST2SI", "--epochs=1", "--tuning=ilp", f"--backbone={tiny['llama']}", "--max_sequence_tokens=100",
        "--id_model=SASRec", "--id_model_settings={epochs: 6, train_batch_size: 4, stopping_step: 10}", *BASE,
    ]  # fmt: skip
    code, _, error = command_line(small, arguments, kill=("step", 30), by=signal.SIGINT)
    (folder,) = (path for path in (small / "saved").iterdir() if path.is_dir())
    assert folder.name.startswith("id-SASRec-small-")
    assert (code, (folder / "resume.pt").is_file()) == (130, True)
    assert last_line(error) == f"interrupted; the same command resumes the training of saved/{folder.name}"


@pytest.mark.parametrize(("step", "stored"), [(3, False), (40, True)])
def test_pretrain(small, tiny, step, stored):
    arguments = [
        "pretrain", "--pretrain_datasets=small", "--pretrain_epochs=60", f"--backbone={tiny['llama']}",
        "--max_sequence_tokens=100", *BASE[1:],
    ]  # fmt: skip
    code, _, error = command_line(small, arguments, kill=("step", step), by=signal.SIGTERM)
    (folder,) = (small / "saved").glob("pretrain-*")
    assert (code, (folder / "resume.pt").is_file()) == (143, stored)
    expected = f"the same command resumes saved/{folder.name}" if stored else "nothing was kept"
    assert last_line(error) == f"interrupted; {expected}"


@pytest.mark.parametrize("storage", [[], ["--storage=trials.log"]])
@pytest.mark.parametrize(("step", "trials"), [(2, 0), (30, 1)])
def test_tune(small, step, trials, storage):
    (small / "grid.hyper").write_text("learning_rate choice [0.01,0.05]")
    arguments = ["tune", "--model=SASRec", "--params_file=grid.hyper", "--epochs=2", *BASE, *storage]
    code, _, error = command_line(small, arguments, kill=("step", step), by=signal.SIGINT)
    (study,) = (small / "saved").glob("tune-*")
    assert (code, len(list(study.glob("trials/*/trial.json")))) == (130, trials)
    expected = f"the same command resumes the study saved/{study.name}" if trials else "nothing was kept"
    assert last_line(error) == f"interrupted; {expected}"


@pytest.mark.parametrize(("models", "step", "stored"), [("SASRec,GRU4Rec", 2, False), ("GRU4Rec,SASRec", 2, True)])
def test_compare(small, models, step, stored):
    arguments = [f"--models={models}", "--epochs=2", *BASE]
    code, _, error = compare(small, arguments, end=("SASRec", "both", step), by=signal.SIGTERM)
    (folder,) = (small / "comparisons").iterdir()
    assert code == 143
    expected = f"the same command resumes the comparison comparisons/{folder.name}" if stored else "nothing was kept"
    assert last_line(error) == f"interrupted; {expected}"


@pytest.mark.parametrize("downloaded", [False, True])
def test_prepare(workdir, capsys, monkeypatch, downloaded):
    def download(url, target, digest=None):
        if downloaded:
            target.parent.mkdir(parents=True, exist_ok=True)
            Path(f"{target}.part").write_bytes(b"some")
        raise KeyboardInterrupt

    monkeypatch.setattr("recbole_llm.prepare.download.download", download)
    assert main(["prepare", "--dataset=Scientific"]) == 130
    expected = "what was downloaded is kept in" if downloaded else "nothing was kept"
    assert last_line(capsys.readouterr().err).startswith(f"interrupted; {expected}")


def test_handlers_are_put_back(capsys):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    assert main(["--help"]) == 0
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
