"""User vectors: their product with the item table is what RecBole's own model scores."""

import numpy as np
import pytest
import recbole.model.sequential_recommender as package
import torch
from atomic_files import KNOWLEDGE, quick_settings, write_atomic_files
from recbole.model.sequential_recommender import SASRec
from recbole.utils import init_seed
from test_sweep import models_of_recbole
from torch.nn import functional as F

from recbole_llm.compat.user_vectors import CALLS
from recbole_llm.config.config import Config
from recbole_llm.config.registry import model_class
from recbole_llm.errors import SettingError, TrainingError
from recbole_llm.model.id_model import user_vector
from recbole_llm.model.id_model.user_vector import check_finite, require_user_vector, user_vector_shape, user_vectors
from recbole_llm.quick_start.run import Parts, build

SPECIAL = {
    "GRU4RecKG": KNOWLEDGE,
    "KSR": {**KNOWLEDGE, "kg_embedding_size": KNOWLEDGE["embedding_size"]},
    "S3Rec": {"train_stage": "pretrain"},
}
# The items that a model multiplies its vector with, where these are not its item embeddings.
ITEMS = {
    "BERT4Rec": lambda model: model.item_embedding.weight[:-1],
    "CORE": lambda model: F.normalize(model.item_embedding.weight, dim=1) / model.temperature,
    "HGN": lambda model: model.item_embedding_for_prediction.weight,
    "KSR": lambda model: model.dense_layer_i(
        torch.cat([model.item_embedding.weight, model.entity_embedding.weight], dim=1)
    ),
    "NPE": lambda model: model.item_embedding.weight.relu(),
    "S3Rec": lambda model: model.item_embedding.weight[:-1],
}
WITHOUT = ["BPR", "DIEN", "DIN", "FPMC", "Pop", "RepeatNet", "SASRecCPR", "TransRec"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_atomic_files(tmp_path_factory.mktemp("data") / "tiny", users=20, items=30)


def built(data, model, **settings) -> Parts:
    config = Config(config_dict=quick_settings(data, model=model, **{**SPECIAL.get(model, {}), **settings}))
    init_seed(config["seed"], config["reproducibility"])
    return build(config)


@pytest.mark.parametrize("name", CALLS)
def test_vector_times_items_is_recboles_own_score(name, data, workdir):
    parts = built(data, name)
    model = parts.model.eval()
    rows = parts.train.dataset[np.arange(0, len(parts.train.dataset), 3)]  # prefixes of all lengths
    assert len(set(rows["item_length"].tolist())) > 4
    with torch.no_grad():
        expected = model.full_sort_predict(rows)
        found = user_vectors(model, rows)
        items = ITEMS.get(name, lambda model: model.item_embedding.weight)(model)
        scores = found[:, 0] @ items.T + getattr(model, "output_bias", 0)
    assert found.shape == (len(rows), *user_vector_shape(model))
    assert found.shape[1] == 1
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-6)
    assert scores.std() > 0


@pytest.mark.parametrize(("name", "interests"), [("ComiRec", 1), ("ComiRec", 3), ("MLP4Rec", 1)])
def test_our_models_are_asked_themselves(name, interests, data, workdir):
    parts = built(data, name, **({"num_interests": interests} if name == "ComiRec" else {}))
    model = parts.model.train()
    rows = parts.test.dataset[np.arange(5)]
    assert user_vector_shape(model) == (interests, 64)
    assert model.training  # as it was found
    model.eval()
    with torch.no_grad():
        best = (user_vectors(model, rows) @ model.item_embedding.weight.T).amax(dim=1)
        torch.testing.assert_close(best, model.full_sort_predict(rows))


@pytest.mark.parametrize("name", WITHOUT)
def test_model_without_a_user_vector_is_refused_before_it_is_built(name):
    with pytest.raises(
        SettingError, match=rf"the model {name} has no user vector: take one of ComiRec, MLP4Rec, S3Rec"
    ):
        require_user_vector(model_class(name))


def test_every_sequential_model_is_in_one_list_or_the_other():
    sequential = {name for name in models_of_recbole() if hasattr(package, name)}
    assert sequential - {*CALLS, *user_vector._OURS} == {*WITHOUT, "GRU4RecCPR"} - {"BPR", "Pop"}


def test_a_subclass_must_say_it_itself(data, workdir):
    class Turned(SASRec):
        def forward(self, item_seq_len, item_seq):
            return super().forward(item_seq, item_seq_len)

    with pytest.raises(SettingError, match="Turned has no user vector"):
        require_user_vector(Turned)

    class Said(Turned):
        def user_vectors(self, interaction):
            return self(interaction["item_length"], interaction["item_id_list"])[:, None]

    require_user_vector(Said)
    model = built(data, "SASRec").model
    model.__class__ = Said
    assert user_vector_shape(model) == (1, 64)


def test_vectors_that_are_not_numbers_are_refused(data, workdir):
    model = built(data, "GRU4Rec").model
    vectors = torch.zeros(4, 1, 8)
    check_finite(vectors, model)
    vectors[1, 0, 3], vectors[2, 0] = float("nan"), float("inf")
    with pytest.raises(TrainingError, match="2 of 4 user vectors of GRU4Rec are not numbers"):
        check_finite(vectors, model)
