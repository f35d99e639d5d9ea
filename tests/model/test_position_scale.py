"""Positions times a number, for every model that has a table of them."""

import pytest
import torch
from atomic_files import quick_settings, write_atomic_files
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import init_seed

from recbole_llm.config.config import Config
from recbole_llm.errors import SettingError
from recbole_llm.model.layers.position_scale import scale_positions
from recbole_llm.quick_start.run import build, load, run

SMALL = {"n_layers": 1, "n_heads": 2, "hidden_size": 8, "inner_size": 8}
LISTS = {
    "SASRec": {},
    "SASRecF": {"selected_features": ["class"]},
    "FDSA": {"selected_features": ["class"]},
    "BERT4Rec": {},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_atomic_files(tmp_path_factory.mktemp("data") / "tiny", users=20, items=30)


def parts_of(folder, model="SASRec", **settings):
    config = Config(model, config_dict=quick_settings(folder, **SMALL, **LISTS[model], **settings))
    init_seed(config["seed"], True)
    return build(config)


def scores_of(parts):
    parts.model.eval()
    with torch.no_grad():
        return parts.model.full_sort_predict(next(iter(parts.test))[0])


def test_items_times_a_number_are_positions_divided_by_it(folder):
    """LN(s e + p) = LN(e + p / s): the authors' way, written with RecBole's forward and a larger table."""
    scaled, plain = parts_of(folder, position_scale=0.25), parts_of(folder)
    rows = next(iter(plain.test))[0]
    items, lengths = rows["item_id_list"], rows["item_length"]
    with torch.no_grad():
        plain.model.position_embedding.weight.mul_(10)
        scaled.model.load_state_dict(plain.model.state_dict())
        found = scaled.model.eval()(items, lengths)
        plain.model.item_embedding.weight.mul_(4)
        expected = plain.model.eval()(items, lengths)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", LISTS)
@pytest.mark.parametrize("positions", ["all", "last"])
def test_without_positions(folder, model, positions):
    """With 0 the table is not read, and with 1 nothing is changed."""
    if model == "BERT4Rec" and positions == "all":
        pytest.skip("it reads both directions")
    parts = [parts_of(folder, model, train_positions=positions, position_scale=scale) for scale in (0.0, 1.0)]
    plain = parts_of(folder, model, train_positions=positions)
    assert torch.equal(scores_of(parts[1]), scores_of(plain))
    before = scores_of(parts[0])
    assert not torch.allclose(before, scores_of(plain))
    for each in parts:
        each.model.position_embedding.weight.data.add_(1.0 + torch.arange(8.0))
    assert torch.equal(scores_of(parts[0]), before)
    assert not torch.allclose(scores_of(parts[1]), scores_of(plain), atol=1e-4)


def test_a_loaded_run_has_its_scale(folder, workdir):
    settings = quick_settings(folder, **SMALL, train_positions="all", position_scale=0.1, epochs=1)
    run("SASRec", settings=settings)
    parts = load(next(workdir.glob("saved/SASRec-*")))
    before = scores_of(parts)
    parts.model.position_embedding._forward_hooks.clear()
    assert not torch.allclose(scores_of(parts), before, atol=1e-6)
    parts.model.position_embedding.weight.data.mul_(0.1)
    torch.testing.assert_close(scores_of(parts), before)


def test_an_id_model_inside_keeps_its_own_positions():
    class Host(SequentialRecommender):
        def __init__(self, inner):
            torch.nn.Module.__init__(self)
            self.position_embedding, self.id_model = torch.nn.Embedding(3, 2), inner

    inner = Host(None)
    host, places = Host(inner), torch.arange(3)
    scale_positions(host, 0.1)
    torch.testing.assert_close(host.position_embedding(places), 0.1 * host.position_embedding.weight)
    assert torch.equal(inner.position_embedding(places), inner.position_embedding.weight)


def test_a_model_without_positions_is_refused(folder):
    config = Config("GRU4Rec", config_dict=quick_settings(folder, position_scale=0.1))
    with pytest.raises(SettingError, match=r"position_scale=0\.1 is for models with .* not for GRU4Rec"):
        build(config)
