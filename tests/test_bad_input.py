"""Every mistake a user can make: one sentence on stderr, an exit code, no traceback, nothing half-written."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from child_runs import command_line
from small_data import HISTORIES, TITLES, write_dataset

from recbole_llm.cli import main as cli

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def attempt(small, tiny, capsys):
    """Run the command line in-process on the small dataset; return (exit code, the error's sentence)."""

    def run(*arguments, backbone="llama", **settings):
        base = {
            "model": "ST2SI", "dataset": "small", "data_path": ".", "use_gpu": False, "epochs": 1, "topk": "[1,3]",
            "valid_metric": "NDCG@3", "show_progress": False, "state": "ERROR", "max_sequence_tokens": 100,
            "backbone": str(tiny.get(backbone, backbone)),
        }  # fmt: skip
        given = {**base, **settings}
        if given["model"] != "ST2SI":
            given = {name: value for name, value in given.items() if name not in ("backbone", "max_sequence_tokens")}
        argv = [f"--{name}={value}" for name, value in given.items() if value is not None]
        capsys.readouterr()
        code = cli.main([*arguments, *argv])
        captured = capsys.readouterr()
        if code == 0:
            return code, captured.out
        return code, only_error(captured.err)

    return run


def only_error(stderr):
    """Return the one line that is the error; progress bars of weights may stand before it."""
    assert "Traceback" not in stderr
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, stderr
    assert stderr.rstrip().endswith(errors[0]), "the error must be the last line"
    return errors[0].removeprefix("error: ")


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and "/log" not in f"/{p}")


def assert_nothing_left(folder):
    """No run, no result, no temporary file. RecBole's logs and our finished caches may stay."""
    assert not [name for name in files(folder) if name.endswith(".tmp") or name.startswith("saved/")]


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": "ST2SII"}, ["no model 'ST2SII'", "'ST2SI'"]),
        ({"model": "sasrec"}, ["no model 'sasrec'", "'SASRec'"]),
        ({"dataset": "smal"}, ["no dataset 'smal'", "'small'"]),
        ({"data_path": "nowhere"}, ["no dataset 'small'", "nowhere"]),
        ({"tunning": "ilp"}, ["no setting 'tunning'", "'tuning'"]),
        ({"learning_rat": "0.1"}, ["no setting 'learning_rat'", "'learning_rate'"]),
        ({"model": "SASRec", "n_layer": "2"}, ["no setting 'n_layer'", "'n_layers'"]),
        ({"tuning": "ipl"}, ["tuning=ipl", "'ilp'"]),
        ({"train_window": "recnt"}, ["train_window=recnt", "'recent'"]),
        ({"head_dropout": 1.0}, ["head_dropout=1.0", "from 0 to below 1"]),
        ({"head_dropout": "some"}, ["head_dropout=some", "from 0 to below 1"]),
        ({"head_dropout": -0.1}, ["head_dropout=-0.1", "from 0 to below 1"]),
        ({"weight_average": 1.0}, ["weight_average=1.0", "above 0 and below 1"]),
        ({"weight_average": "yes"}, ["weight_average=yes", "above 0 and below 1"]),
        ({"precision": "bf32"}, ["precision=bf32", "bf16"]),
        ({"items_without_text": "dropp"}, ["items_without_text=dropp", "'drop'"]),
        ({"lr_scheduler": "cosin"}, ["lr_scheduler=cosin", "'cosine'"]),
        ({"item_text_fields": "titel"}, ["no column 'titel'", "'title'"]),
        ({"item_text_fields": "['title','brnd']"}, ["no column 'brnd'", "item_text_fields"]),
        ({"item_text_fields": "[]"}, ["item_text_fields"]),
        ({"query_token": "''"}, ["query_token"]),
        ({"backbone": "opt-125mm"}, ["opt-125mm", "'opt-125m'"]),
        ({"backbone": "bert"}, ["needs a decoder", "encoder"]),
        ({"MAX_ITEM_LIST_LENGTH": 0}, ["MAX_ITEM_LIST_LENGTH=0", "from 1"]),
        ({"MAX_ITEM_LIST_LENGTH": -3, "model": "SASRec"}, ["MAX_ITEM_LIST_LENGTH=-3", "from 1"]),
        ({"epochs": -1}, ["epochs=-1"]),
        ({"epochs": -1, "model": "BPR"}, ["epochs=-1"]),
        ({"epochs": "many"}, ["epochs=many"]),
        ({"train_batch_size": 0}, ["train_batch_size=0"]),
        ({"train_batch_tokens": 0}, ["train_batch_tokens=0"]),
        ({"eval_batch_tokens": -5}, ["eval_batch_tokens=-5"]),
        ({"max_attribute_tokens": 0}, ["max_attribute_tokens=0"]),
        ({"max_sequence_tokens": 5}, ["max_sequence_tokens=5", "longest item"]),
        ({"max_sequence_tokens": 1000}, ["max_sequence_tokens=1000", "128 positions"]),
        ({"warmup_steps": -1}, ["warmup_steps=-1"]),
        ({"learning_rate": "fast"}, ["learning_rate=fast"]),
        ({"learning_rate": -0.1}, ["learning_rate=-0.1"]),
        ({"learning_rate": "fast", "model": "SASRec"}, ["learning_rate=fast"]),
        ({"seed": "a"}, ["seed=a"]),
        ({"topk": "[3,9]"}, ["topk=[3, 9]", "8 items"]),
        ({"topk": "[0]"}, ["topk", "a whole number from 1"]),
        ({"topk": "ten"}, ["topk"]),
        ({"valid_metric": "NDCG@4"}, ["NDCG@4"]),
        ({"valid_metric": "NDGC@3"}, ["NDGC@3"]),
        ({"metrics": "['NDGC']"}, ["NDGC"]),
    ],
)  # fmt: skip
def test_setting(attempt, small, settings, words):
    settings = dict(settings)
    backbone = settings.pop("backbone", "llama")
    code, sentence = attempt(backbone=backbone, **settings)
    assert code != 0
    for word in words:
        assert word in sentence
    assert_nothing_left(small)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["no model"]),
        (["--model=ST2SI"], ["no dataset"]),
        (["runn", "--model=ST2SI"], ["no verb 'runn'", "'run'"]),
        (["--model"], ["--model has no value", "--model=value"]),
        (["--model", "ST2SI"], ["no dataset"]),
        (["--model=ST2SI", "ST2SI"], ["'ST2SI' is not understood", "--name=value"]),
        (["model=ST2SI"], ["'model=ST2SI'", "--name=value"]),
        (["--model=ST2SI", "--dataset=small", "--seed=1", "--seed=2"], ["--seed is given twice"]),
        (["--config_files=none.yaml"], ["none.yaml does not exist"]),
        (["--config_files=list.yaml"], ["list.yaml must hold settings"]),
        (["--config_files=bad.yaml"], ["bad.yaml is not valid YAML"]),
        (["--config_files=binary.yaml"], ["binary.yaml is not UTF-8 text"]),
        (["--config_files=."], ["."]),
    ],
)  # fmt: skip
def test_command_line(small, capsys, arguments, words):
    Path("list.yaml").write_text("- model\n- dataset\n")
    Path("bad.yaml").write_text("model: [ST2SI\nx: {")
    Path("binary.yaml").write_bytes(b"\xff\xfe\x00model")
    assert cli.main(arguments) != 0
    sentence = only_error(capsys.readouterr().err)
    for word in words:
        assert word in sentence
    assert_nothing_left(small)


def test_debug_shows_the_traceback(small, capsys):
    assert cli.main(["--model=ST2SII", "--dataset=small", "--debug"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.splitlines()[-1].startswith("error: there is no model 'ST2SII'")


# -- data --------------------------------------------------------------------------------------------------------------

INTER = Path("small/small.inter")
ITEM = Path("small/small.item")


def change_header(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def break_data(how):
    match how:
        case "empty":
            INTER.write_text("")
        case "header only":
            INTER.write_text("user_id:token\titem_id:token\ttimestamp:float\n")
        case "no interactions file":
            INTER.unlink()
        case "no time":
            change_header(INTER, "timestamp:float", "time:float")
        case "no item column":
            change_header(INTER, "item_id:token", "itemid:token")
        case "header without types":
            change_header(INTER, "user_id:token\titem_id:token\ttimestamp:float", "user_id\titem_id\ttimestamp")
        case "comma-separated":
            INTER.write_text(INTER.read_text().replace("\t", ","))
        case "unknown type":
            change_header(INTER, "timestamp:float", "timestamp:date")
        case "time is a word":
            change_header(INTER, "\t1\n", "\tmonday\n")
        case "not text":
            INTER.write_bytes(b"\xff\xfe\x00\x01" * 40)
        case "no titles":
            write_dataset(Path.cwd(), titles=dict.fromkeys(TITLES, ""))
        case "no item file":
            ITEM.unlink()
        case "empty item file":
            ITEM.write_text("")
        case "no item id in item file":
            change_header(ITEM, "item_id:token", "asin:token")
        case "one item each":
            write_dataset(Path.cwd(), {f"u{n}": item for n, item in enumerate("abcdefgh")})
        case "two items each":
            write_dataset(Path.cwd(), {f"u{n}": [item, "a"] for n, item in enumerate("bcdefgh")})


ANY_MODEL = {
    "empty": ["small.inter is empty"],
    "header only": ["small.inter is empty"],
    "no interactions file": ["small.inter do not exist"],
    "no time": ["lacks the column 'timestamp'", "'time'"],
    "no item column": ["lacks the column 'item_id'", "'itemid'"],
    "header without types": ["header", "name:type"],
    "comma-separated": ["header", "tabs"],
    "unknown type": ["small.inter", "type 'date'"],
    "time is a word": ["small", "timestamp:float"],
    "not text": ["small.inter", "UTF-8", "encoding"],
    "one item each": ["small"],
    "two items each": ["no user of small has a test target", "3 interactions"],
    "no titles": ["no item of", "'title'"],
}  # fmt: skip
TEXT_MODEL = {
    "no item file": ["small.item does not exist", "title"],
    "empty item file": ["small.item is empty"],
    "no item id in item file": ["no column 'item_id'"],
}


@pytest.mark.parametrize("model", ["ST2SI", "SASRec", "BPR"])
@pytest.mark.parametrize("how", ANY_MODEL)
def test_data(attempt, small, model, how):
    break_data(how)
    code, sentence = attempt(model=model)
    assert code == 1
    for word in ANY_MODEL[how]:
        assert word in sentence
    assert_nothing_left(small)


@pytest.mark.parametrize("how", TEXT_MODEL)
def test_item_file(attempt, small, how):
    break_data(how)
    code, sentence = attempt()
    assert code == 1
    for word in TEXT_MODEL[how]:
        assert word in sentence
    assert_nothing_left(small)


def test_users_with_one_item_are_harmless_beside_others(attempt, small):
    write_dataset(small, {**HISTORIES, "x": "a", "y": "b"})
    assert attempt(tuning="ilp")[0] == 0


def test_all_items_known_to_a_user_leave_no_negative_sample(attempt, small):
    write_dataset(small, {**HISTORIES, "x": "abcdefgh"})
    code, sentence = attempt(model="BPR")
    assert code == 1
    assert "all items" in sentence
    assert_nothing_left(small)


# -- backbones, checkpoints, disks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["opt-1.3b", "someone/some-model", "./no-folder"])
def test_backbone_that_cannot_be_had(attempt, small, monkeypatch, backbone):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(small / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, sentence = attempt(backbone=backbone)
    assert code != 0
    assert backbone.split("/")[-1] in sentence
    assert_nothing_left(small)


def test_checkpoint_of_another_catalogue(attempt, small, tiny):
    from recbole_llm.errors import CheckpointError
    from recbole_llm.quick_start.run import load

    _, out = attempt(tuning="ilp")
    run = Path(out.splitlines()[-1]).parent
    write_dataset(small / "other", {**HISTORIES, "u3": "hgx"}, {**TITLES, "x": "New"})
    with pytest.raises(CheckpointError, match=r"item catalogue of small with 9 ids, but this run has of small with 10"):
        load(run, {"data_path": str(small / "other")})
    # the same number of items, of which one has another name
    write_dataset(small / "third", {u: i.replace("h", "x") for u, i in HISTORIES.items()}, {**TITLES, "x": "New"})
    with pytest.raises(CheckpointError, match="catalogue"):
        load(run, {"data_path": str(small / "third")})
    (run / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="broken or cut short"):
        load(run)


@pytest.mark.parametrize("place", ["weights", "state", "result"])
def test_full_disk(attempt, small, monkeypatch, place):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if place == "result":
        monkeypatch.setattr(Path, "write_text", full)
    else:
        name = {"weights": "recbole_llm.runs.checkpoint.save_file", "state": "torch.save"}[place]
        monkeypatch.setattr(name, full)
    code, sentence = attempt(tuning="ilp", resume_seconds=0)
    assert code == 1
    assert "no space is left on the disk" in sentence
    assert not [name for name in files(small) if name.endswith((".tmp", "result.json"))]


@pytest.mark.parametrize(
    ("limit", "tuning", "file"),
    [
        (30_000, "full", "model.safetensors"),  # 80 kB of weights
        (150_000, "full", "resume.pt"),  # with AdamW's moments three times that
        (300, "ilp", ""),  # not even the settings
    ],
)
def test_files_that_may_not_grow(small, tiny, limit, tuning, file):
    """A real refusal by the system, in the middle of a write."""
    arguments = [
        f"--backbone={tiny['llama']}", "--model=ST2SI", "--dataset=small", "--data_path=.", "--use_gpu=False",
        "--topk=[1,3]", "--valid_metric=NDCG@3", "--epochs=1", "--state=ERROR", "--show_progress=False",
        "--max_sequence_tokens=100", f"--tuning={tuning}", "--resume_seconds=0",
    ]  # fmt: skip
    code, _, error = command_line(small, arguments, largest_file=limit)
    assert code == 1, error
    sentence = only_error(error)
    assert file in sentence
    assert "could not be written" in sentence or "too large" in sentence.lower()
    assert not [name for name in files(small) if name.endswith((".tmp", "result.json"))]


def test_script_of_the_checkout(small):
    child = subprocess.run(
        [sys.executable, str(REPOSITORY / "run_recbole_llm.py"), "--model=ST2SII", "--dataset=small"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert child.returncode == 2
    assert only_error(child.stderr).startswith("there is no model 'ST2SII'; did you mean 'ST2SI'?")
    assert child.stdout == ""


def test_diverged_training_is_told(attempt, small):
    code, sentence = attempt(tuning="full", learning_rate=1e30, warmup_steps=0, epochs=3, train_batch_size=4)
    assert code == 1
    assert "not numbers" in sentence or "loss is" in sentence
    assert not list(small.rglob("result.json"))
