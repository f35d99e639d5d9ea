"""Every file that a user hands over, cut, empty, binary or of another kind: one sentence, never a traceback."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from child_runs import command_line
from small_data import write_dataset

from recbole_llm.runs.archive import write_archive

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
SMALL = [argument for argument in RUN if argument[2:].split("=")[0] not in ("model", "config_files")][1:]
RECOMMEND = ["recommend", "--run=saved/one", "--users=u1", "--k=3"]
COMPARE = ["compare", "--runs=saved/one", "--out=table"]
REPORT = ["report", "--comparison=table/comparison.json"]
PLOT = ["plot", "--kind=bars", "--comparison=table/comparison.json"]
TUNE = ["tune", *RUN[1:], "--params_file=space.hyper", "--max_evals=2", "--out=study"]
TEXT = ["run", "--model=UniSRec", *SMALL, "--backbone=opt", "--num_experts=2"]
LOADED = ["recommend", "--run=saved/text", "--users=u1", "--k=3", "--new_items=new.item"]
PREPARE = ["prepare", "--dataset=made.yaml", "--raw=raw", "--out=made"]
AGAIN = ["run", "--resume=saved/one"]  # of a run that is finished, which is refused
MADE = {
    "format": "table", "options": {"columns": {"user": "user", "item": "item", "timestamp": "time"}},
    "sources": {"interactions": {"file": "rows.csv"}}, "filters": [],
}  # fmt: skip
# Each file with the commands that read it.
FILES: dict[str, tuple[list[str], ...]] = {
    "small/small.inter": (RUN, RECOMMEND),
    "small/small.item": (["run", "--model=FDSA", "--selected_features=['title']", *RUN[2:]],),
    "small.yaml": (["run", "--model=SASRec", "--dataset=small.yaml", *SMALL[1:]],),
    "made.yaml": (PREPARE,),
    "mine.yaml": (RUN,),
    "models.yaml": (["compare", "--models=SASRec", *SMALL, "--model_settings=models.yaml", "--out=other"],),
    "space.hyper": ([*TUNE[:-1], "--out=other"],),
    "study/study.yaml": (TUNE,),
    "study/trials/0000/trial.json": (TUNE,),
    "study/trials/0000/config.yaml": (TUNE,),
    "saved/one/result.json": (
        RECOMMEND,
        COMPARE,
        AGAIN,
        ["plot", "--kind=curves", "--runs=saved/one"],
    ),
    "saved/one/config.yaml": (RECOMMEND, AGAIN),
    "saved/one/model.safetensors": (RECOMMEND,),
    "saved/one/ranks-test.tsv.gz": (COMPARE,),
    "saved/cut/config.yaml": (["run", "--resume=saved/cut"],),
    "saved/cut/resume.pt": (["run", "--resume=saved/cut"],),
    "saved/cut/.fingerprint": (["run", "--resume=saved/cut"],),
    "runs.parquet": (["compare", "--runs=runs.parquet", "--out=other"],),
    "table/comparison.json": (REPORT, PLOT),
    "new.item": (LOADED,),
    "users.txt": (["recommend", "--run=saved/one", "--users=users.txt", "--k=3"],),
    "histories.txt": (["recommend", "--run=saved/one", "--histories=histories.txt", "--k=3"],),
    "opt/config.json": (TEXT,),
    "opt/model.safetensors": (TEXT,),
    "opt/tokenizer.json": (TEXT,),
    "opt/tokenizer_config.json": (TEXT,),
}


def ended(place: Path, arguments: list[str]) -> None:
    code, _, error = command_line(place, arguments)
    assert code == 0, (arguments, error)


def call(place: Path, name: str) -> None:
    """Give the only new run this name."""
    (run,) = (path for path in (place / "saved").iterdir() if path.is_dir() and path.name not in ("one", "text"))
    run.rename(place / "saved" / name)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny) -> Path:
    """A folder with datasets, runs, a study, a comparison, an archive, a backbone and files of settings."""
    place = tmp_path_factory.mktemp("broken")
    write_dataset(place)
    shutil.copytree(tiny["opt"], place / "opt")
    (place / "mine.yaml").write_text("hidden_size: 8\ninner_size: 8\nn_heads: 1\n", encoding="utf-8")
    (place / "models.yaml").write_text("SASRec: {hidden_size: 8, inner_size: 8}\n", encoding="utf-8")
    (place / "small.yaml").write_text("item_text_fields: [title]\nMAX_ITEM_LIST_LENGTH: 9\n", encoding="utf-8")
    (place / "space.hyper").write_text("learning_rate choice [0.01, 0.001]\n", encoding="utf-8")
    rows = "".join(f"u{row % 4},i{row % 5},{row}\n" for row in range(40))
    (place / "raw").mkdir()
    (place / "raw" / "rows.csv").write_text(f"user,item,time\n{rows}", encoding="utf-8")
    (place / "made.yaml").write_text(yaml.safe_dump({"prepare": MADE}), encoding="utf-8")
    (place / "new.item").write_text("item_id:token\ttitle:token_seq\nnew\tToy Zelda\n", encoding="utf-8")
    (place / "users.txt").write_text("u1\nu2\n", encoding="utf-8")
    (place / "histories.txt").write_text("a,b\nc,d\n", encoding="utf-8")
    ended(place, TEXT)
    call(place, "text")
    ended(place, RUN)
    call(place, "one")
    assert command_line(place, RUN, kill=("result", 1))[0] == -9
    call(place, "cut")
    for arguments in (COMPARE, TUNE, LOADED):
        ended(place, arguments)
    seed = json.loads((place / "saved/one/result.json").read_text())["seed"]
    shutil.copytree(place / "saved" / "one", place / "labels" / "SASRec" / f"seed-{seed}")
    write_archive([place / "labels" / "SASRec" / f"seed-{seed}"], place / "runs.parquet")
    for name, commands in FILES.items():
        assert (place / name).is_file(), (name, commands[0])
    return place


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_each_command_ends_well_with_whole_files(finished, tmp_path, name):
    for number, arguments in enumerate(FILES[name]):
        if arguments is AGAIN:
            continue
        place = tmp_path / str(number)
        shutil.copytree(finished, place)
        ended(place, arguments)


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
