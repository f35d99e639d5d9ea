"""Every general and sequential model of RecBole trains, reloads its best checkpoint and evaluates here."""

import inspect
import math
from importlib.util import find_spec
from pathlib import Path

import pytest
import recbole.model.general_recommender as general
import recbole.model.sequential_recommender as sequential
from atomic_files import KNOWLEDGE, quick_settings, write_atomic_files
from recbole.model.abstract_recommender import AbstractRecommender

from recbole_llm.config import registry
from recbole_llm.errors import SettingError
from recbole_llm.quick_start.run import load, run

# Settings that a model needs on a small dataset, or with which it is quick.
SPECIAL = {
    "ConvNCF": {"embedding_size": 16, "cnn_channels": [1, 8, 8], "cnn_kernels": [4, 4], "cnn_strides": [4, 4]},
    "GRU4RecCPR": {"reranker_CAN_NUM": 20},
    "GRU4RecKG": KNOWLEDGE,
    "KSR": {**KNOWLEDGE, "kg_embedding_size": KNOWLEDGE["embedding_size"]},
    "NCL": {"num_clusters": 5},
    "NNCF": {"num_conv_kernel": 8},
    "RaCT": {"pretrain_epochs": 1, "metrics_k": 10},
    "S3Rec": {"pretrain_epochs": 1},
    "SASRecCPR": {"reranker_CAN_NUM": 20},
}
# What draws its scores, or noise against ties, gives others when it is loaded again.
DRAWS_ITS_SCORES = ("ADMMSLIM", "Random")
QUICK = (
    "BERT4Rec",
    "BPR",
    "Caser",
    "DIN",
    "EASE",
    "FDSA",
    "GRU4Rec",
    "ItemKNN",
    "KSR",
    "LightGCN",
    "Pop",
    "Random",
    "SASRecCPR",
)


def models_of_recbole() -> list[str]:
    modules = [
        module for package in (general, sequential) for _, module in inspect.getmembers(package, inspect.ismodule)
    ]
    classes = [value for module in modules for value in vars(module).values() if inspect.isclass(value)]
    return sorted(
        value.__name__
        for value in set(classes)
        if issubclass(value, AbstractRecommender) and value.__module__.rsplit(".", 1)[1] == value.__name__.lower()
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_atomic_files(tmp_path_factory.mktemp("data") / "tiny")


def check(name: str, data: Path) -> None:
    result = run(name, settings=quick_settings(data, **SPECIAL.get(name, {})))
    assert all(math.isfinite(value) for value in result["test"].values())
    assert result["test"].keys() >= {"ndcg@10", "recall@10", "mrr"}
    if name in DRAWS_ITS_SCORES:
        return
    parts = load(result["path"])  # a new model with the stored weights ...
    trainer = parts.trainer()
    assert trainer.evaluate(parts.test, load_best_model=False) == result["test"]  # ... ranks as the best one did


def test_all_models_of_recbole_are_swept_and_known():
    names = models_of_recbole()
    assert len(names) == 64
    assert set(names) <= set(registry.known_models())
    assert set(QUICK) <= set(names)


@pytest.mark.parametrize("name", QUICK)
def test_model_trains_reloads_and_evaluates(name, data, workdir):
    check(name, data)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in models_of_recbole() if name not in QUICK])
def test_model_trains_reloads_and_evaluates_too(name, data, workdir):
    if name == "NCL" and find_spec("faiss") is None:
        with pytest.raises(SettingError, match=r"the model NCL needs the package 'faiss'.*pip install faiss-cpu"):
            check(name, data)
        return
    check(name, data)
