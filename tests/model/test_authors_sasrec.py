"""SASRec with its authors' layers: the equations in plain numpy, one pass, rows, and what a run has of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from atomic_files import quick_settings, write_atomic_files
from recbole.utils import init_seed

from recbole_llm.config.config import Config
from recbole_llm.data.position_windows import WindowTable, labelled_windows
from recbole_llm.errors import SettingError
from recbole_llm.model.id_model.user_vector import user_vectors
from recbole_llm.quick_start.run import build, load, run

SMALL = {"sasrec_layers": "authors", "n_layers": 2, "n_heads": 2, "hidden_size": 8, "inner_size": 6}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0}
LONGEST = 20  # of write_atomic_files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_atomic_files(tmp_path_factory.mktemp("data") / "tiny", users=25, items=40)


def parts_of(folder, **settings):
    given = quick_settings(folder, MAX_ITEM_LIST_LENGTH=LONGEST, **{**SMALL, **NO_DROPOUT, **settings})
    config = Config("SASRec", config_dict=given)
    init_seed(config["seed"], True)
    return build(config)


def moved(model):
    """Weights away from where they start, so that no bias is 0 and no normalisation is plain."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.3 * torch.randn_like(weight)
    return model


def whole(parts):
    table = WindowTable(labelled_windows(parts.train._dataset, LONGEST), LONGEST, 1000, torch.device("cpu"))
    ((width, windows),) = table.epoch(0, 0)
    return table.rows(windows, width)


def numpy_states(weights, items, heads=2, eps=1e-12):
    """The states [length, size] of one history, from the equations of Kang & McAuley's code."""

    def norm(x, name):
        centred = x - x.mean(1, keepdims=True)
        scale = np.sqrt((centred**2).mean(1, keepdims=True) + eps)
        return centred / scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    table = weights["item_embedding.weight"]
    size, length = table.shape[1], len(items)
    x = table[items] * np.sqrt(size) + weights["trm_encoder.position_embedding.weight"][:length]
    for layer in range(2):
        at = f"trm_encoder.layers.{layer}"
        q = norm(x, f"{at}.query_norm")
        query, (key, value) = linear(q, f"{at}.query"), np.split(linear(x, f"{at}.key_value"), 2, axis=1)
        attended, width = np.zeros_like(x), size // heads
        for head in range(heads):
            of_head = slice(head * width, (head + 1) * width)
            for t in range(length):
                scores = key[: t + 1, of_head] @ query[t, of_head] / np.sqrt(width)
                share = np.exp(scores - scores.max())
                attended[t, of_head] = share / share.sum() @ value[: t + 1, of_head]
        f = norm(q + linear(attended, f"{at}.out"), f"{at}.hidden_norm")
        x = f + linear(np.maximum(linear(f, f"{at}.inner"), 0), f"{at}.outer")
    return norm(x, "trm_encoder.norm")


def test_states_are_those_of_the_equations(folder):
    parts = parts_of(folder, train_positions="all", hidden_act="relu")
    model = moved(parts.model).double().eval()
    histories, _ = whole(parts)
    found = model.states_at_all_positions(histories).detach().numpy()
    weights = {name: weight.detach().numpy() for name, weight in model.state_dict().items()}
    lengths = (histories > 0).sum(1)
    assert lengths.max() > 8
    for row in lengths.argsort()[-5:].tolist():
        items, states = histories[row, : lengths[row]].numpy(), found[row]
        np.testing.assert_allclose(states[: len(items)], numpy_states(weights, items), rtol=1e-6, atol=1e-8)


def test_loss_and_gradients_are_those_of_all_rows(folder):
    every, last = parts_of(folder, train_positions="all"), parts_of(folder)
    every.model.load_state_dict(moved(last.model).state_dict())
    for parts in (every, last):
        parts.model.double().train()
    part = last.train._dataset
    found = every.model.positions_loss(*whole(every))
    expected = last.model.calculate_loss(part[torch.arange(len(part))])
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    found.backward()
    expected.backward()
    weights = dict(last.model.named_parameters())
    for name, weight in every.model.named_parameters():
        torch.testing.assert_close(weight.grad, weights[name].grad, rtol=1e-5, atol=1e-6, msg=name)


def test_later_items_change_nothing(folder):
    parts = parts_of(folder, train_positions="all")
    model = moved(parts.model).eval()
    histories, _ = whole(parts)
    before = model.states_at_all_positions(histories)
    changed = histories.clone()
    changed[:, 5:] = changed[:, 5:].flip(1)  # padding among them
    after = model.states_at_all_positions(changed)
    torch.testing.assert_close(after[:, :5], before[:, :5], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(after[:, 5:], before[:, 5:], atol=1e-3)


def test_weights_start_as_in_public_implementations(folder):
    """Normal with the given deviation, but queries, keys and values uniform up to sqrt(6 / (3 size + size))."""
    model = parts_of(folder, hidden_size=64, inner_size=64, train_positions="all").model
    layer = model.trm_encoder.layers[0]
    for weight in (layer.query.weight, layer.key_value.weight):
        assert weight.abs().max().item() == pytest.approx((6 / 256) ** 0.5, rel=0.01)
    for weight in (layer.out.weight, layer.inner.weight, model.trm_encoder.position_embedding.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert all(not bias.any() for name, bias in model.named_parameters() if name.endswith("bias"))


def test_a_run_is_loaded_with_its_layers(folder, workdir):
    settings = quick_settings(folder, **SMALL, train_positions="all", epochs=2, learning_rate=0.01)
    result = json.loads(Path(run("SASRec", settings=settings)["path"]).read_text())
    assert result["model"] == "SASRec"
    parts = load(next(workdir.glob("saved/SASRec-*")))
    assert "trm_encoder.layers.1.query.weight" in parts.model.state_dict()
    rows = next(iter(parts.test))[0]
    parts.model.eval()
    with torch.no_grad():
        vectors = user_vectors(parts.model, rows)[:, 0]
        scores = parts.model.full_sort_predict(rows)
    torch.testing.assert_close(vectors @ parts.model.item_embedding.weight.T, scores)


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("GRU4Rec", {}, "sasrec_layers=authors is for RecBole's SASRec, not for GRU4Rec: leave it out"),
        ("SASRec", {"hidden_size": 8, "n_heads": 3}, "n_heads=3 must divide hidden_size=8"),
    ],
)
def test_what_cannot_be_is_refused(folder, model, settings, message):
    with pytest.raises(SettingError, match=message):
        build(Config(model, config_dict=quick_settings(folder, sasrec_layers="authors", **settings)))
