"""Models on text vectors in one pass, on bad input, and inside other models."""

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from small_data import TITLES, build_parts, small_settings, write_dataset
from vector_parts import SIZES

from recbole_llm.errors import DataError, SettingError
from recbole_llm.model.id_model.user_vector import user_vector_shape, user_vectors
from recbole_llm.quick_start.run import load, run

TOKENS = sorted(TITLES)


def test_rows(parts):
    return next(iter(parts.test))[0]


test_rows.__test__ = False


def scores_of(model, rows):
    with torch.no_grad():
        return model.full_sort_predict(rows).view(len(rows), -1)


# -- one pass over a history -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["ZESRec", "UniSRec", "AlphaFuse", "TextInitSASRec"])
def test_all_positions_of_a_pass_are_the_rows(model, vector_model):
    """The loss and its gradients are those of RecBole's rows, one per position."""
    parts = vector_model(model, train_positions="all", **({"null_size": 3} if model == "AlphaFuse" else {}))
    model = parts.model
    histories = torch.tensor([[3, 1, 4, 2, 5], [6, 2, 7, 0, 0]])
    labels = torch.tensor([[1, 4, 2, 5, 8], [2, 7, 1, 0, 0]])
    prefixes = [(row, n) for row in range(2) for n in range(1, 6) if labels[row, n - 1]]
    lists = torch.zeros(len(prefixes), model.max_seq_length, dtype=torch.long)
    for line, (row, n) in enumerate(prefixes):
        lists[line, :n] = histories[row, :n]
    rows = Interaction({
        "item_id_list": lists, "item_length": torch.tensor([n for _, n in prefixes]),
        "item_id": torch.tensor([int(labels[row, n - 1]) for row, n in prefixes]),
    })  # fmt: skip
    found = []
    for loss in (model.positions_loss(histories, labels), model.calculate_loss(rows)):
        model.zero_grad()
        loss.backward()
        found.append((loss, {n: w.grad for n, w in model.named_parameters() if w.grad is not None}))
    assert found[0][0].item() == pytest.approx(found[1][0].item(), abs=1e-5)
    assert found[0][1].keys() == found[1][1].keys()
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(gradient, found[1][1][name], atol=1e-5, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("model", ["ZESRec", "UniSRec", "AlphaFuse", "TextInitSASRec"])
def test_steps_from_a_graph_are_the_plain_ones(model, vector_model, workdir):
    """With dropout and the gate's noise: the same random numbers, losses and weights."""
    found = []
    for replays in (True, False):
        more = {"null_size": 3} if model == "AlphaFuse" else {}
        parts = vector_model(model, use_gpu=True, train_positions="all", train_batch_size=2, learning_rate=0.01, **more)
        trainer = parts.trainer(workdir)
        assert trainer._replays
        trainer._replays = replays
        torch.manual_seed(0)
        losses = [trainer._train_epoch(parts.train, epoch) for epoch in range(3)]
        assert all(graph._graph is not None for graph in trainer._graphs.values())
        found.append((losses, dict(parts.model.named_parameters())))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-4)
    for name, weight in found[0][1].items():
        torch.testing.assert_close(weight, found[1][1][name], rtol=1e-2, atol=1e-3)


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["ZESRec", "UniSRec", "AlphaFuse", "TextInitSASRec"])
def test_texts_that_are_all_equal_are_refused(model, tiny, workdir):
    """One sentence."""
    root = write_dataset(workdir, titles=dict.fromkeys(TITLES, "the same"))
    with pytest.raises(DataError, match=r"all 8 items of small have the same text in title, which tells nothing apart"):
        build_parts(root, model=model, backbone=str(tiny["bert"]), **SIZES)


def test_items_without_text_are_refused(tiny, workdir):
    """Where they are kept."""
    root = write_dataset(workdir, titles={**TITLES, "a": ""})
    with pytest.raises(DataError, match=r"1 items of small have no text in 'title'.*items_without_text=drop"):
        build_parts(root, model="ZESRec", backbone=str(tiny["bert"]), items_without_text="keep", **SIZES)


@pytest.mark.parametrize(
    ("model", "settings", "words"),
    [
        (
            "AlphaFuse",
            {"hidden_size": 64, "null_size": 8},
            "hidden_size=64 is more than the 32 numbers of a text vector",
        ),
        ("AlphaFuse", {"null_size": 8}, "null_size=8 must be below hidden_size=8"),
        ("UniSRec", {"n_heads": 3}, "n_heads=3 must divide hidden_size=8"),
        ("ZESRec", {"item_text_fields": []}, "item_text_fields names no column"),
    ],
)
def test_sizes_that_cannot_be_are_refused(vector_model, model, settings, words):
    """One sentence each."""
    with pytest.raises(SettingError, match=words):
        vector_model(model, **settings)


# -- inside other models -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["ZESRec", "UniSRec", "AlphaFuse", "TextInitSASRec"])
def test_scores_are_those_of_the_user_vectors(model, vector_model):
    """What IDLE-Adapter is given is what ranks: the dot product with the item table, or the cosine / temperature."""
    parts = vector_model(model, **({"null_size": 3} if model == "AlphaFuse" else {}))
    rows = test_rows(parts)
    assert user_vector_shape(parts.model) == (1, 8)
    with torch.no_grad():
        users = user_vectors(parts.model, rows)[:, 0].double()
        items = parts.model.item_table().double()
    expected = users @ items.T
    if parts.model.temperature is not None:
        expected /= users.norm(dim=1)[:, None] * items.norm(dim=1) * parts.model.temperature
    np.testing.assert_allclose(scores_of(parts.model, rows)[:, 1:].numpy(), expected[:, 1:].numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("host", "guest", "backbone"), [("IDLEAdapter", "UniSRec", "bert"), ("ST2SI", "AlphaFuse", "llama")]
)
def test_as_an_id_model(host, guest, backbone, small, tiny):
    """A run trains it first, reads its vectors or mixes its scores in, and is loaded with a copy of it."""
    own = {"backbone": str(tiny["bert"]), "epochs": 2, "learning_rate": 0.01, **SIZES}
    own.update({"null_size": 3} if guest == "AlphaFuse" else {})
    settings = small_settings(
        small, model=host, backbone=str(tiny[backbone]), id_model=guest, id_model_settings=own, epochs=1,
        **({"max_prompt_tokens": 128} if host == "IDLEAdapter" else {"tuning": "ilp", "id_weight": 0.5}),
    )  # fmt: skip
    result = run(settings=settings)
    assert result["id_model"]["model"] == guest
    assert result["id_model"]["test"]["ndcg@3"] >= 0
    parts = load(result["path"])
    scores = scores_of(parts.model, test_rows(parts))
    assert scores[:, 1:].isfinite().all()
    if host == "ST2SI":
        rows = test_rows(parts)
        guests = scores_of(parts.model.id_scores.model, rows)[:, 1:].log_softmax(dim=1)
        parts.model.id_scores.weight.fill_(1.0)
        torch.testing.assert_close(scores_of(parts.model, rows)[:, 1:], guests, atol=1e-5, rtol=1e-5)
