"""ComiRec computes the paper's equations: all numbers here are compared with numpy in float64."""

import math

import numpy as np
import pytest
import torch
from atomic_files import quick_settings, write_atomic_files
from recbole.data.interaction import Interaction
from recbole.utils import init_seed

from recbole_llm.config.config import Config
from recbole_llm.errors import SettingError
from recbole_llm.model.sequential_recommender.comirec import squash
from recbole_llm.quick_start.run import Parts, build, run

EXACT = {"rtol": 1e-10, "atol": 1e-12}
VARIANTS = [(extraction, interests) for extraction in ("SA", "DR") for interests in (1, 4)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_atomic_files(tmp_path_factory.mktemp("data") / "tiny", users=30, items=40)


def built(data, **settings) -> Parts:
    """A model in float64 whose weights are large enough for every term to show."""
    more = {"model": "ComiRec", "embedding_size": 6, "attention_size": 10, "initializer_range": 0.5, **settings}
    config = Config(config_dict=quick_settings(data, **more))
    init_seed(config["seed"], config["reproducibility"])
    parts = build(config)
    parts.model.double().eval()
    return parts


def rows_of(parts: Parts) -> Interaction:
    """Prefixes of all lengths."""
    rows = parts.train.dataset[np.arange(0, len(parts.train.dataset), 3)]
    assert {1, 2, 8} <= set(rows["item_length"].tolist())
    return rows


def numbers(tensor):
    return tensor.detach().numpy()


def softmax(values, axis):
    exponentials = np.exp(values - values.max(axis=axis, keepdims=True))
    return exponentials / exponentials.sum(axis=axis, keepdims=True)


def interests_of(model, history):
    """V [K, size] of one history of item ids, from the equations."""
    E = numbers(model.item_embedding.weight)
    H = E[history]
    part, newest_first = model.extraction, np.arange(len(history))[::-1]
    if model.settings.extraction == "SA":
        P = numbers(part.position_embedding.weight)[newest_first]
        W1, W2 = numbers(part.w1.weight), numbers(part.w2.weight).T
        A = softmax(W2.T @ np.tanh(W1 @ (H + P).T), axis=1)  # [K, n]
        return A @ H
    S, b = numbers(part.map.weight), numbers(part.first_logits)[newest_first].T  # b [K, n]
    u = [S @ h for h in H]
    for iteration in range(3):
        c = softmax(b, axis=0)
        V = []
        for k in range(len(b)):
            s = sum(c[k, i] * u[i] for i in range(len(u)))
            norm = np.linalg.norm(s)
            V.append(norm**2 / (1 + norm**2) * s / norm)
        if iteration < 2:
            b = b + np.array([[u[i] @ V[k] for i in range(len(u))] for k in range(len(b))])
    return np.array(V)


def expected_interests(model, rows):
    histories = [
        ids[:length].tolist() for ids, length in zip(rows["item_id_list"], rows["item_length"].tolist(), strict=True)
    ]
    return np.array([interests_of(model, history) for history in histories])


@pytest.mark.parametrize(("extraction", "interests"), VARIANTS)
def test_interests_scores_and_loss_are_the_papers(extraction, interests, data, workdir):
    parts = built(data, extraction=extraction, num_interests=interests)
    model, rows = parts.model, rows_of(parts)
    V = expected_interests(model, rows)
    np.testing.assert_allclose(numbers(model.user_vectors(rows)), V, **EXACT)
    assert V.shape == (len(rows), interests, 6)

    E = numbers(model.item_embedding.weight)
    scores = (V @ E.T).max(axis=1)  # over the interests
    np.testing.assert_allclose(numbers(model.full_sort_predict(rows)), scores, **EXACT)
    items = rows["item_id"].numpy()
    np.testing.assert_allclose(numbers(model.predict(rows)), scores[np.arange(len(rows)), items], **EXACT)

    losses = []
    for vectors, item in zip(V, items, strict=True):
        hardest = vectors[np.argmax(vectors @ E[item])]
        losses.append(-np.log(softmax(E @ hardest, axis=0)[item]))
    np.testing.assert_allclose(float(model.calculate_loss(rows)), np.mean(losses), **EXACT)
    if interests > 1:
        chosen = {int(np.argmax(vectors @ E[item])) for vectors, item in zip(V, items, strict=True)}
        assert len(chosen) == interests  # every interest is somebody's


def test_pairwise_loss_is_recboles(data, workdir):
    parts = built(data, num_interests=2, loss_type="BPR")
    rows = next(iter(parts.train))
    V = expected_interests(parts.model, rows)
    E, losses = numbers(parts.model.item_embedding.weight), []
    for vectors, item, other in zip(V, rows["item_id"].tolist(), rows["neg_item_id"].tolist(), strict=True):
        hardest = vectors[np.argmax(vectors @ E[item])]
        losses.append(-np.log(1e-10 + 1 / (1 + np.exp(-hardest @ (E[item] - E[other])))))
    np.testing.assert_allclose(float(parts.model.calculate_loss(rows)), np.mean(losses), **EXACT)


@pytest.mark.parametrize(("extraction", "interests"), VARIANTS)
def test_padding_changes_nothing(extraction, interests, data, workdir):
    parts = built(data, extraction=extraction, num_interests=interests)
    model, rows = parts.model, rows_of(parts)
    with torch.no_grad():
        model.item_embedding.weight[0] = 1e3  # as if training had touched it
    expected = expected_interests(model, rows)
    short = rows[rows["item_length"] <= 3]
    for width in (3, 5, 8):
        found = model(short["item_id_list"][:, :width], short["item_length"])
        np.testing.assert_allclose(numbers(found), expected[(rows["item_length"] <= 3).numpy()], **EXACT)


def test_logits_of_routing_are_drawn_once(data, workdir):
    first, second, other = (built(data, extraction="DR", num_interests=3, seed=seed).model for seed in (1, 1, 2))
    drawn = first.extraction.first_logits
    assert drawn.shape == (8, 3) and "extraction.first_logits" in first.state_dict()
    assert not drawn.requires_grad
    assert torch.equal(drawn, second.extraction.first_logits)
    assert not torch.equal(drawn, other.extraction.first_logits)


def test_gradients_are_finite_where_a_capsule_is_zero():
    zero = torch.zeros(2, 3, requires_grad=True)
    squash(zero).sum().backward()
    assert torch.equal(squash(zero).detach(), torch.zeros(2, 3))
    assert torch.isfinite(zero.grad).all()


@pytest.mark.parametrize(("extraction", "loss"), [("SA", "CE"), ("DR", "CE"), ("SA", "BPR")])
def test_a_run_learns(extraction, loss, data, workdir):
    settings = {"extraction": extraction, "num_interests": 2, "loss_type": loss, "epochs": 6, "learning_rate": 0.01}
    result = run("ComiRec", settings=quick_settings(data, **settings))
    losses = [entry["train_loss"] for entry in result["history"]]
    assert losses[-1] < 0.97 * losses[0]
    by_chance = sum(1 / math.log2(rank + 1) for rank in range(1, 11)) / 40  # NDCG@10 of a random order of 40 items
    assert result["test"]["ndcg@10"] > 1.3 * by_chance


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("extraction", "sa", "extraction=sa must be SA or DR; did you mean 'SA'"),
        ("num_interests", 0, "num_interests=0 must be a whole number from 1"),
        ("routing_iterations", 1.5, "routing_iterations=1.5 must be"),
        ("dropout_prob", 1, "dropout_prob=1 must be a number from 0 to below 1"),
        ("initializer_range", 0, "initializer_range=0 must be a number above 0"),
        ("loss_type", "MSE", "loss_type=MSE must be CE or BPR"),
    ],
)
def test_values_that_cannot_be(setting, value, message, data, workdir):
    with pytest.raises(SettingError, match=message):
        built(data, **{setting: value})
