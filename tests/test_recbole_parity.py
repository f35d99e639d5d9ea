"""RecBole's models give here what they give in RecBole alone, and our rows are RecBole's rows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import recbole
import torch
from atomic_files import quick_settings, write_atomic_files
from recbole.data.dataset import SequentialDataset

from recbole_llm.config.config import Config
from recbole_llm.data.dataset import HISTORY_END, HistoryDataset, with_protocol
from recbole_llm.quick_start.run import run
from recbole_llm.runs.ranks import read_ranks

# What recbole.quick_start does, without ray; torch and numpy are put back to what RecBole was written for.
RECBOLE_ALONE = """
import functools, json, sys
from logging import getLogger
import numpy as np
import torch

np.float_, np.complex_, np.unicode_ = np.float64, np.complex128, np.str_
torch.load = functools.partial(torch.load, weights_only=False)
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.transform import construct_transform
from recbole.utils import get_flops, get_model, get_trainer, init_logger, init_seed

settings = json.loads(sys.argv.pop())
config = Config(config_dict=settings)
init_seed(config["seed"], config["reproducibility"])
init_logger(config)
dataset = create_dataset(config)
train, valid, test = data_preparation(config, dataset)
init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
model = get_model(config["model"])(config, train._dataset).to(config["device"])
transform = construct_transform(config)
get_flops(model, dataset, config["device"], getLogger(), transform)
trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
_, best = trainer.fit(train, valid, saved=True, show_progress=False)
print(json.dumps({"valid": best, "test": trainer.evaluate(test, load_best_model=True)}))
assert not any(name.startswith("recbole_llm") or name == "ray" for name in sys.modules)
"""


@pytest.fixture(scope="module")
def ml_100k_cut(tmp_path_factory) -> Path:
    """A data_path with 40 users of the ml-100k that ships with RecBole, 40 interactions each at most."""
    source = Path(recbole.__file__).parent / "dataset_example" / "ml-100k"
    folder = tmp_path_factory.mktemp("cut") / "cut"
    folder.mkdir()
    inter = pd.read_csv(source / "ml-100k.inter", sep="\t")
    users = inter["user_id:token"].drop_duplicates().sort_values()[:40]
    inter = inter[inter["user_id:token"].isin(users)].groupby("user_id:token").head(40)
    # RecBole sorts by float32, which holds no seconds since 1970: both get times that it holds.
    inter["timestamp:float"] = inter["timestamp:float"].rank(method="dense")
    inter.to_csv(folder / "cut.inter", sep="\t", index=False)
    return folder.parent


@pytest.fixture
def one_thread():
    """Sums do not depend on the number of threads then."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


RANKING = {"metrics": ["Recall", "NDCG", "MRR"], "topk": [5, 20], "valid_metric": "NDCG@20"}
MODELS = {
    "SASRec": {
        "repeatable": True,
        "train_neg_sample_args": None,
        "hidden_size": 16,
        "inner_size": 32,
        "n_layers": 1,
        "MAX_ITEM_LIST_LENGTH": 20,
    },
    "BPR": {
        "repeatable": False,
        "embedding_size": 16,
        "eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "group_by": "user", "mode": "full"},
    },
}


@pytest.mark.parametrize("model", MODELS)
def test_metrics_are_those_of_recbole_alone(model, ml_100k_cut, one_thread, workdir):
    settings = {
        "model": model,
        "dataset": "cut",
        "data_path": str(ml_100k_cut),
        "checkpoint_dir": "saved",
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "epochs": 4,
        "train_batch_size": 512,
        "learning_rate": 0.01,
        "use_gpu": False,
        "show_progress": False,
        "state": "ERROR",
        **RANKING,
        **MODELS[model],
    }
    # RecBole leaves the history out for general models alone, whatever it is told.
    theirs = {name: value for name, value in settings.items() if name != "repeatable"}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", RECBOLE_ALONE, json.dumps({**theirs, "gpu_id": ""})]
    done = subprocess.run(command, capture_output=True, text=True, cwd=workdir, env=environment)
    assert done.returncode == 0, done.stderr
    expected = json.loads(done.stdout.splitlines()[-1])

    result = run(settings=settings)
    for part in ("valid", "test"):
        ours = {name: value for name, value in result[part].items() if name != "mrr"}
        assert ours == expected[part]
        assert ours["ndcg@20"] > 0


@pytest.mark.parametrize("ties", [False, True], ids=["times", "ties"])
@pytest.mark.parametrize("split", [{"LS": "valid_and_test"}, {"RS": [0.6, 0.2, 0.2]}], ids=["leave-one-out", "ratio"])
def test_history_rows_are_recboles(split, ties, workdir):
    folder = write_atomic_files(workdir / "tiny", ties=ties)
    protocol = {"split": split, "order": "TO", "group_by": "user", "mode": "full"}
    settings = quick_settings(folder, model="SASRec", eval_args=protocol, MAX_ITEM_LIST_LENGTH=6)
    ours = with_protocol(HistoryDataset)(Config(config_dict=settings)).build()
    theirs = SequentialDataset(Config(config_dict=settings)).build()
    for our_part, their_part in zip(ours, theirs, strict=True):
        index = torch.randperm(len(their_part))
        assert len(our_part) == len(their_part) > 0
        our_rows, their_rows = our_part[index], their_part[index]
        for field in ("user_id", "item_id", "timestamp", "item_id_list", "item_length"):
            assert torch.equal(our_rows[field], their_rows[field]), field
        padded = our_rows["item_length"] < 6
        assert torch.equal(our_rows["item_id_list"][padded, -1], torch.zeros(int(padded.sum()), dtype=torch.int64))
        assert torch.equal(our_part.history_items[our_rows[HISTORY_END]], our_rows["item_id"])
    longest = theirs[2][:]["item_length"]
    assert longest.max() == 6 and theirs[0][:]["item_length"].min() == 1


def test_ties_are_in_the_data(workdir):
    folder = write_atomic_files(workdir / "tiny", ties=True)
    inter = pd.read_csv(folder / "tiny.inter", sep="\t")
    assert inter.duplicated(["user_id:token", "timestamp:float"]).mean() > 0.3


def test_general_and_sequential_models_have_the_same_users_and_targets(workdir):
    folder = write_atomic_files(workdir / "tiny", users=30, ties=True)
    with (folder / "tiny.inter").open("a") as file:  # histories of one to four interactions
        for length in range(1, 5):
            for position in range(length):
                file.write(f"short{length}\ti{position}\t3\t{position}\n")
    found = {}
    for model in ("Pop", "BPR", "SASRec"):
        path = Path(run(model, settings=quick_settings(folder))["path"])
        for part in ("valid", "test"):
            ranks = read_ranks(path.parent / f"ranks-{part}.tsv.gz")
            found[model, part] = set(zip(ranks["user"], ranks["item"], strict=True))
            assert len(found[model, part]) == len(ranks)
    for part, users in (("valid", 31), ("test", 32)):
        assert found["Pop", part] == found["BPR", part] == found["SASRec", part]
        assert len(found["Pop", part]) == users
    assert {user for user, _ in found["Pop", "test"]} >= {"short3", "short4"}
    assert not {user for user, _ in found["Pop", "test"]} & {"short1", "short2"}
    assert np.isin(["u0", "u29"], [user for user, _ in found["Pop", "test"]]).all()
