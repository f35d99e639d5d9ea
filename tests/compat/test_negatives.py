"""A loss that needs negative items or labels where a setting leaves none: one sentence, and nothing is trained."""

from pathlib import Path

import pytest
from atomic_files import quick_settings, write_atomic_files

from recbole_llm.config import registry
from recbole_llm.config.config import Config
from recbole_llm.errors import SettingError
from recbole_llm.quick_start.run import build, run

NONE = [None, "None", {"distribution": None}, {"distribution": "None"}]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_atomic_files(tmp_path_factory.mktemp("data") / "tiny", users=30, items=40)


@pytest.mark.parametrize("none", NONE)
@pytest.mark.parametrize("model", ["BPR", "FPMC", "LightGCN", "SASRec", "GRU4Rec", "MLP4Rec", "CKE"])
def test_pairs_without_negatives_are_refused(model, none, data):
    settings = {} if hasattr(registry.model_class(model), "input_type") else {"loss_type": "BPR"}
    words = (
        rf"^{model}( with loss_type=BPR)? compares each item with a negative one, but train_neg_sample_args draws none"
    )
    with pytest.raises(SettingError, match=words):
        Config(config_dict=quick_settings(data, model=model, train_neg_sample_args=none, **settings))


def test_triples_without_negatives_are_refused(data):
    with pytest.raises(SettingError, match="MKR compares each triple of the knowledge graph with a negative one"):
        Config(config_dict=quick_settings(data, model="MKR", train_neg_sample_args=None))


@pytest.mark.parametrize("model", ["SASRec", "GRU4Rec", "MLP4Rec"])
def test_pairs_have_negatives_unless_they_are_refused(model, data):
    config = Config(config_dict=quick_settings(data, model=model, loss_type="BPR"))
    interaction = next(iter(build(config).train))
    assert (interaction["neg_item_id"] > 0).all()


@pytest.mark.parametrize("model", ["NeuMF", "DMF", "FM", "DIN"])
def test_labels_that_nobody_has_are_refused(model, data, workdir):
    settings = quick_settings(data, train_neg_sample_args=None)
    with pytest.raises(SettingError, match=f"{model} learns from labels, and there is no column 'label'"):
        run(model, settings=settings)


@pytest.mark.parametrize(
    "settings",
    [
        {
            "threshold": {"rating": 3},
            "train_neg_sample_args": None,
            "eval_args": {"mode": "labeled"},
            "metrics": ["AUC"],
            "valid_metric": "AUC",
        },
        {"threshold": None},
    ],
)
def test_labels_of_either_kind_are_enough(settings, data, workdir):
    assert run("NeuMF", settings=quick_settings(data, **settings))["epochs"] == 1


@pytest.mark.parametrize("model", ["MultiVAE", "EASE", "ENMF", "SASRec"])
def test_models_without_pairs_need_none(model, data, workdir):
    assert run(model, settings=quick_settings(data, train_neg_sample_args=None))["epochs"] == 1
