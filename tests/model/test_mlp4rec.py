"""MLP4Rec computes the paper's mixers: all numbers here are compared with numpy in float64."""

import math

import numpy as np
import pytest
import torch
from atomic_files import quick_settings, write_atomic_files
from recbole.utils import init_seed
from small_data import small_settings, write_dataset

from recbole_llm.config.config import Config
from recbole_llm.errors import DataError, SettingError
from recbole_llm.quick_start.run import Parts, build, run

EXACT = {"rtol": 1e-9, "atol": 1e-11}
SIZE, LENGTH = 6, 8


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_atomic_files(tmp_path_factory.mktemp("data") / "tiny", users=30, items=40)


def built(data, **settings) -> Parts:
    """A model in float64 whose weights are large enough for every term to show."""
    more = {"model": "MLP4Rec", "hidden_size": SIZE, "n_layers": 2, "initializer_range": 0.5, **settings}
    config = Config(config_dict=quick_settings(data, **more))
    init_seed(config["seed"], config["reproducibility"])
    parts = build(config)
    parts.model.double().eval()
    with torch.no_grad():
        for name, parameter in parts.model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return parts


def rows_of(parts):
    rows = parts.train.dataset[np.arange(0, len(parts.train.dataset), 3)]
    assert {1, 2, 8} <= set(rows["item_length"].tolist())
    return rows


def numbers(tensor):
    return tensor.detach().numpy()


def layer_norm(x, module):
    mean, variance = x.mean(axis=-1, keepdims=True), x.var(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-12) * numbers(module.weight) + numbers(module.bias)


def perceptron(x, mixer):
    """Of the last axis of x, with the exact gelu."""
    hidden = x @ numbers(mixer.w1.weight).T + numbers(mixer.w1.bias)
    hidden = 0.5 * hidden * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
    return hidden @ numbers(mixer.w2.weight).T + numbers(mixer.w2.bias)


def user_vector(model, fields):
    """The user vector from the embeddings [fields, n, size] of a history, oldest item first."""
    x = np.zeros((fields.shape[0], LENGTH, SIZE))
    x[:, LENGTH - fields.shape[1] :] = fields
    for number in range(2):
        layer = model.layers[number % len(model.layers)]
        for f in range(len(x)):
            x[f] += perceptron(layer_norm(x[f], layer.sequence.norm).T, layer.sequence).T
            x[f] += perceptron(layer_norm(x[f], layer.channel.norm), layer.channel)
        if len(x) > 1:
            y = layer_norm(x, layer.feature.norm)
            mixed = np.zeros_like(x)
            for position in range(LENGTH):
                mixed[:, position] = perceptron(y[:, position].T, layer.feature).T
            x += mixed
    return layer_norm(x[0, -1], model.last_norm)


def expected(model, rows, attributes_of=None):
    E, found = numbers(model.item_embedding.weight), []
    for ids, length in zip(rows["item_id_list"].numpy(), rows["item_length"].tolist(), strict=True):
        history = ids[:length]
        fields = [E[history], *(attributes_of(history) if attributes_of else ())]
        found.append(user_vector(model, np.array(fields)))
    return np.array(found)


@pytest.mark.parametrize("shared", [True, False])
def test_vectors_scores_and_loss_are_the_papers(shared, data, workdir):
    parts = built(data, share_layers=shared)
    model, rows = parts.model, rows_of(parts)
    assert len(model.layers) == (1 if shared else 2)
    users = expected(model, rows)
    np.testing.assert_allclose(numbers(model.user_vectors(rows))[:, 0], users, **EXACT)
    E, items = numbers(model.item_embedding.weight), rows["item_id"].numpy()
    scores = users @ E.T
    np.testing.assert_allclose(numbers(model.full_sort_predict(rows)), scores, **EXACT)
    np.testing.assert_allclose(numbers(model.predict(rows)), scores[np.arange(len(rows)), items], **EXACT)
    shifted = scores - scores.max(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(rows)), items]
    np.testing.assert_allclose(float(model.calculate_loss(rows)), losses.mean(), **EXACT)


def test_attributes_are_mixed_with_the_item(data, workdir):
    """One column with one value an item, one with several, whose mean counts."""
    parts = built(data, selected_features=["category", "class"])
    model, dataset = parts.model, parts.dataset
    layer = model.attribute_embedding
    single = numbers(layer.token_embedding_table["item"].embedding.weight)
    several = numbers(layer.token_seq_embedding_table["item"][0].weight)
    categories, classes = (dataset.item_feat[name].numpy() for name in ("category", "class"))

    def attributes_of(history):
        first = single[categories[history]]
        second = np.array([several[[v for v in classes[item] if v]].mean(axis=0) for item in history])
        return first, second

    rows = rows_of(parts)
    assert {(classes[item] > 0).sum() for item in range(1, 41)} == {2}
    users = expected(model, rows, attributes_of)
    # RecBole divides the sum of n values by n + 1e-8, in float32.
    np.testing.assert_allclose(numbers(model.user_vectors(rows))[:, 0], users, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("features", [[], ["category"]])
def test_width_of_the_padding_changes_nothing(features, data, workdir):
    parts = built(data, selected_features=features)
    model, rows = parts.model, rows_of(parts)
    with torch.no_grad():
        before = model.user_vectors(rows)
        model.item_embedding.weight[0] = 1e3  # as if training had touched it
        np.testing.assert_allclose(model.user_vectors(rows), before, **EXACT)
        short = rows["item_length"] <= 3
        found = model(rows["item_id_list"][short][:, :3], rows["item_length"][short])
        np.testing.assert_allclose(found, before[short][:, 0], **EXACT)


@pytest.mark.parametrize(("features", "loss"), [([], "CE"), (["kind"], "CE"), ([], "BPR")])
def test_a_run_learns_what_follows_what(features, loss, workdir):
    """Everybody walks along a ring of items, from another one on, and a step further each time."""
    items = [f"i{n}" for n in range(12)]
    histories = {f"u{n}": [items[(5 * n + step) % 12] for step in range(5 + n % 4)] for n in range(36)}
    write_dataset(workdir, histories, {item: (item, f"k{n % 3}") for n, item in enumerate(items)}, ("title", "kind"))
    settings = {"n_layers": 2, "hidden_size": 16, "hidden_dropout_prob": 0.0, "epochs": 25, "learning_rate": 0.01}
    settings |= {"train_batch_size": 32, "MAX_ITEM_LIST_LENGTH": 6, "selected_features": features, "loss_type": loss}
    result = run(settings=small_settings(workdir, model="MLP4Rec", **settings))
    losses = [entry["train_loss"] for entry in result["history"]]
    assert losses[-1] < 0.3 * losses[0]
    assert result["test"]["ndcg@3"] > 0.9


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("n_layers", 0, "n_layers=0 must be a whole number from 1"),
        ("hidden_dropout_prob", -0.1, "hidden_dropout_prob=-0.1 must be"),
        ("layer_norm_eps", 0, "layer_norm_eps=0 must be a number above 0"),
        ("pooling_mode", "median", "pooling_mode=median must be mean, sum or max"),
        ("loss_type", "MSE", "loss_type=MSE must be CE or BPR"),
        ("share_layers", "no", "share_layers=no must be True or False"),
    ],
)
def test_values_that_cannot_be(setting, value, message, data, workdir):
    with pytest.raises(SettingError, match=message):
        built(data, **{setting: value})


def test_missing_attribute_is_named(data, workdir):
    with pytest.raises(DataError, match=r"MLP4Rec reads the attribute 'colour' of items, .*title, category, class"):
        built(data, selected_features=["colour"])
