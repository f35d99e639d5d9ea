"""An interrupted run that is resumed ends exactly as one that was never interrupted (on the CPU)."""

import json
import random
from pathlib import Path

import pytest
import torch
from child_runs import command_line
from safetensors.torch import load_file
from small_data import write_dataset

ITEMS = [f"i{n}" for n in range(12)]
EPOCHS = 4
MODELS = {
    # 24 users and 12 alignment inputs in steps of 5: 8 steps an epoch
    "ilp": ["--model=ST2SI", "--tuning=ilp", "--learning_rate=0.01"],
    "full": ["--model=ST2SI", "--tuning=full", "--learning_rate=0.001"],  # OPT: dropout 0.1; random windows
    "lora": ["--model=ST2SI", "--tuning=lora", "--learning_rate=0.003", "--lora_dropout=0.2"],
    "regularised": [
        "--model=ST2SI", "--tuning=full", "--learning_rate=0.001", "--head_dropout=0.2",
        "--weight_average=0.9",
    ],
    "SASRec": ["--model=SASRec", "--n_layers=1", "--hidden_size=16", "--inner_size=16"],
    "ComiRec": ["--model=ComiRec", "--extraction=DR", "--num_interests=2", "--embedding_size=8"],
    "MLP4Rec": ["--model=MLP4Rec", "--n_layers=2", "--hidden_size=8"],
    "BPR": ["--model=BPR", "--embedding_size=8", "--learning_rate=0.05"],  # draws negative samples
}  # fmt: skip


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, tiny):
    """A folder with data, and what the uninterrupted run of each model ended with."""
    folder = tmp_path_factory.mktemp("resume")
    rng = random.Random(0)
    histories = {f"u{user}": rng.sample(ITEMS, rng.randint(4, 9)) for user in range(24)}
    titles = {item: f"Item {item} of {rng.choice(['Zelda', 'Mario'])}" for item in ITEMS}
    write_dataset(folder, histories, titles)
    return folder


def arguments_of(name, tiny, folder):
    arguments = [
        *MODELS[name], "--dataset=small", "--data_path=.", "--use_gpu=False", f"--epochs={EPOCHS}", "--topk=[1,5]",
        "--valid_metric=NDCG@5", "--train_batch_size=5", "--show_progress=False", "--state=ERROR", "--precision=fp32",
        "--resume_seconds=0",
        f"--checkpoint_dir={folder}", "--metrics=['Recall','NDCG','ItemCoverage']",
    ]  # fmt: skip
    if "ST2SI" in arguments[0]:
        arguments += [f"--backbone={tiny['opt']}", "--max_sequence_tokens=128", "--warmup_steps=3"]
    return arguments


def outcome(run):
    """All of a run's results that time has no part in, and its weights."""
    result = json.loads((run / "result.json").read_text())
    kept = {key: result[key] for key in ("valid", "test", "epochs", "best_epoch", "history", "parameters", "counts")}
    ranks = [(run / f"ranks-{part}.tsv.gz").read_bytes() for part in ("valid", "test")]
    return kept, ranks, load_file(run / "model.safetensors")


def assert_same_outcome(found, expected):
    assert found[0] == expected[0]
    assert found[1] == expected[1]
    assert found[2].keys() == expected[2].keys()
    for name, weights in expected[2].items():
        assert torch.equal(found[2][name], weights), name


def only_run(folder) -> Path:
    (run,) = folder.iterdir()
    return run


@pytest.fixture(scope="module")
def uninterrupted(workspace, tiny):
    known = {}

    def get(name):
        if name not in known:
            folder = workspace / "whole" / name
            code, _, error = command_line(workspace, arguments_of(name, tiny, folder))
            assert code == 0, error
            known[name] = outcome(only_run(folder))
        return known[name]

    return get


# Steps of an epoch: 8 for ST2SI, and 12 to 22 for the others, which have a row an interaction.
KILLS = [
    ("ilp", "step", 20), ("ilp", "state", 2), ("ilp", "weights", 1),
    ("full", "step", 21), ("full", "weights", 2), ("full", "between", 2),
    ("lora", "step", 13),
    ("regularised", "step", 30),
    ("SASRec", "step", 50), ("SASRec", "state", 1),
    ("ComiRec", "step", 50), ("MLP4Rec", "state", 2),
    ("BPR", "step", 50), ("BPR", "state", 3), ("BPR", "result", 1),
]  # fmt: skip


@pytest.mark.parametrize(("name", "moment", "count"), KILLS)
def test_resumed_run_ends_as_the_uninterrupted_one(workspace, tiny, uninterrupted, tmp_path, name, moment, count):
    arguments = arguments_of(name, tiny, tmp_path / "saved")
    code, _, error = command_line(workspace, arguments, kill=(moment, count))
    assert code == -9, error
    run = only_run(tmp_path / "saved")
    assert not (run / "result.json").exists()
    code, out, error = command_line(workspace, ["run", f"--resume={run}"])
    assert code == 0, error
    assert out.splitlines()[-1] == str(run / "result.json")
    assert_same_outcome(outcome(run), uninterrupted(name))
    left = sorted(file.name for file in run.iterdir())
    expected = ["config.yaml", "model.safetensors", "ranks-test.tsv.gz", "ranks-valid.tsv.gz", "result.json"]
    assert left == [*expected, *(["scenario.safetensors"] if name == "ilp" else [])]


def test_resumed_with_recboles_own_loader(workspace, tiny, uninterrupted, tmp_path):
    """The state of the order of the batches is the same with and without tables on the device."""
    assert command_line(workspace, arguments_of("SASRec", tiny, tmp_path / "saved"), kill=("step", 50))[0] == -9
    run = only_run(tmp_path / "saved")
    code, _, error = command_line(workspace, [f"--resume={run}", "--device_table=False"])
    assert code == 0, error
    assert_same_outcome(outcome(run), uninterrupted("SASRec"))


def test_interrupted_twice(workspace, tiny, uninterrupted, tmp_path):
    arguments = arguments_of("full", tiny, tmp_path / "saved")
    assert command_line(workspace, arguments, kill=("step", 11))[0] == -9
    run = only_run(tmp_path / "saved")
    assert command_line(workspace, [f"--resume={run}"], kill=("step", 12))[0] == -9  # in the third epoch
    code, _, error = command_line(workspace, [f"--resume={run}"])
    assert code == 0, error
    assert_same_outcome(outcome(run), uninterrupted("full"))


def test_different_seeds_end_differently(workspace, tiny, uninterrupted, tmp_path):
    """The comparison above would notice."""
    code, _, _ = command_line(workspace, [*arguments_of("full", tiny, tmp_path / "saved"), "--seed=7"])
    assert code == 0
    with pytest.raises(AssertionError):
        assert_same_outcome(outcome(only_run(tmp_path / "saved")), uninterrupted("full"))


# -- what cannot be resumed --------------------------------------------------------------------------------------------


@pytest.fixture
def interrupted(workspace, tiny, tmp_path):
    assert command_line(workspace, arguments_of("ilp", tiny, tmp_path / "saved"), kill=("step", 12))[0] == -9
    return only_run(tmp_path / "saved")


def assert_one_sentence(code, error, *words):
    lines = [line for line in error.splitlines() if line.strip()]
    assert code in (1, 2)
    assert lines[-1].startswith("error: ")
    assert "Traceback" not in error
    for word in words:
        assert word in lines[-1]


def test_finished_run_is_not_trained_again(workspace, tiny, tmp_path):
    assert command_line(workspace, arguments_of("ilp", tiny, tmp_path / "saved"))[0] == 0
    run = only_run(tmp_path / "saved")
    before = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in run.iterdir()}
    code, _, error = command_line(workspace, [f"--resume={run}"])
    assert_one_sentence(code, error, "finished", "result.json")
    assert {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in run.iterdir()} == before


def test_run_of_another_catalogue_is_refused(workspace, interrupted, tmp_path):
    write_dataset(
        tmp_path / "other", {f"u{n}": ITEMS[n % 5 : n % 5 + 6] for n in range(9)}, dict.fromkeys(ITEMS, "Pump")
    )
    code, _, error = command_line(workspace, [f"--resume={interrupted}", f"--data_path={tmp_path / 'other'}"])
    assert_one_sentence(code, error, "resume.pt", "belongs to another run")
    assert not (interrupted / "result.json").exists()


@pytest.mark.parametrize("how", ["half", "empty", "text"])
def test_broken_state_is_an_error(workspace, interrupted, how):
    file = interrupted / "resume.pt"
    whole = file.read_bytes()
    file.write_bytes({"half": whole[: len(whole) // 2], "empty": b"", "text": b"not a state"}[how])
    code, _, error = command_line(workspace, [f"--resume={interrupted}"])
    assert_one_sentence(code, error, "resume.pt is broken")


def test_state_is_never_unpickled_as_code(workspace, interrupted, tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    for write in (
        lambda path: torch.save({"description": Evil()}, path),
        lambda p: p.write_bytes(pickle.dumps(Evil())),
    ):
        write(interrupted / "resume.pt")
        code, _, error = command_line(workspace, [f"--resume={interrupted}"])
        assert_one_sentence(code, error, "resume.pt is broken")
        assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("what", ["missing", "folder", "file"])
def test_not_a_run(workspace, tmp_path, what):
    path = tmp_path / "x"
    if what == "folder":
        path.mkdir()
    elif what == "file":
        path.write_text("")
    code, _, error = command_line(workspace, [f"--resume={path}"])
    assert_one_sentence(code, error, "is not a run")
