"""Every file that a user hands over, cut, empty, binary or of another kind: one sentence, never a traceback."""

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from child_runs import command_line
from small_data import write_dataset

RUN = [
    "run", "--model=SASRec", "--dataset=small", "--data_path=.", "--use_gpu=False", "--epochs=1", "--topk=[1,5]",
    "--valid_metric=NDCG@5", "--train_batch_size=64", "--show_progress=False", "--checkpoint_dir=saved",
    "--config_files=mine.yaml", "--resume_seconds=0",
]  # fmt: skip


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def binary(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 8)


def other_kind(path: Path) -> None:
    """Valid JSON and YAML, but a list where a mapping is expected, and no table at all."""
    path.write_text("[1, 2, 3]\n", encoding="utf-8")


def compressed(path: Path) -> None:
    path.write_bytes(gzip.compress(path.read_bytes())[:-4])


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


FAULTS: tuple[Callable[[Path], None], ...] = (cut, empty, binary, other_kind, compressed, folder)
RECOMMEND = ["recommend", "--run=saved/one", "--users=u1"]
COMPARE = ["compare", "--runs=saved/one", "--out=table"]
REPORT = ["report", "--comparison=table/comparison.json"]
PLOT = ["plot", "--kind=bars", "--comparison=table/comparison.json"]
# Each file with the commands that read it.
FILES: dict[str, tuple[list[str], ...]] = {
    "small/small.inter": (RUN, RECOMMEND),
    "small/small.item": (["run", "--model=FDSA", "--selected_features=['title']", *RUN[2:]],),
    "mine.yaml": (RUN,),
    "space.hyper": (["tune", *RUN[1:], "--params_file=space.hyper", "--max_evals=1", "--out=study"],),
    "saved/one/result.json": (
        RECOMMEND,
        COMPARE,
        ["run", "--resume=saved/one"],
        ["plot", "--kind=curves", "--runs=saved/one"],
    ),
    "saved/one/config.yaml": (RECOMMEND, ["run", "--resume=saved/one"]),
    "saved/one/model.safetensors": (RECOMMEND,),
    "saved/one/ranks-test.tsv.gz": (COMPARE,),
    "table/comparison.json": (REPORT, PLOT),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with a dataset, a finished run, a comparison of it, and settings files."""
    place = tmp_path_factory.mktemp("broken")
    write_dataset(place)
    (place / "mine.yaml").write_text("hidden_size: 8\ninner_size: 8\nn_heads: 1\n", encoding="utf-8")
    (place / "space.hyper").write_text("learning_rate choice [0.01, 0.001]\n", encoding="utf-8")
    code, _, error = command_line(place, RUN)
    assert code == 0, error
    (run,) = (place / "saved").iterdir()
    run.rename(place / "saved" / "one")
    code, _, error = command_line(place, COMPARE)
    assert code == 0, error
    return place


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("name", FILES)
def test_a_broken_file_is_named_in_a_sentence(finished, tmp_path, name, fault):
    faults = []
    for number, arguments in enumerate(FILES[name]):
        place = tmp_path / str(number)
        shutil.copytree(finished, place)
        fault(place / name)
        before = {path for path in place.rglob("*") if path.is_file()}
        code, out, error = command_line(place, arguments)
        left = {path for path in place.rglob("*") if path.is_file()} - before
        if code not in (0, 1, 2) or "Traceback" in out + error or (code and len(error.strip()) < 20):
            faults.append((arguments[0], code, error.strip().splitlines()[-2:]))
        if any(path.name.endswith(".tmp") for path in left):
            faults.append((arguments[0], "left", sorted(left)))
    assert not faults, faults
