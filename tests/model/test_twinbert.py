"""TwinBERT's two crossings against numpy on transformers' own vectors, and its towers."""

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from small_data import SHORT, build_parts, write_dataset
from st2si_parts import prefix_rows
from transformers import AutoModel, AutoTokenizer


@pytest.fixture
def make(small, rough_models):
    """The parts of a run on a tiny BERT in eval mode."""
    write_dataset(small, titles=SHORT)

    def parts(**settings):
        given = {"model": "TwinBERT", "backbone": str(rough_models["bert"]), "MAX_ITEM_LIST_LENGTH": 20, **settings}
        built = build_parts(small, **given)
        built.model.eval()
        return built

    return parts


def mean_vector(parts, titles):
    """[CLS] title , title , [SEP] by transformers, averaged over its tokens."""
    folder = parts.model.settings.backbone
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    given = tokenizer(" ".join(f"{title} ," for title in titles), return_tensors="pt")
    with torch.no_grad():
        return model(**given).last_hidden_state[0].mean(dim=0).numpy()


@pytest.mark.parametrize("crossing", ["cosine", "residual"])
def test_crossings_by_hand(make, crossing):
    """Every score of every test row, with the titles oldest first."""
    parts = make(crossing=crossing, temperature=0.07)
    model = parts.model
    titles = [SHORT[parts.dataset.id2token("item_id", item)] for item in range(1, model.n_items)]
    items = np.stack([mean_vector(parts, [title]) for title in titles])
    for rows, _ in prefix_rows(parts.test):
        for row, found in enumerate(model.full_sort_predict(rows)):
            history = rows["item_id_list"][row][: rows["item_length"][row]].tolist()
            user = mean_vector(parts, [titles[item - 1] for item in history])
            if crossing == "cosine":
                expected = items @ user / np.linalg.norm(items, axis=1) / np.linalg.norm(user) / 0.07
            else:
                inner, bias, outer, constant = (p.detach().numpy() for p in model.similarity.parameters())
                x = np.maximum(items, user)
                expected = (np.maximum(x @ inner.T + bias, 0) + x) @ outer[0] + constant[0]
            np.testing.assert_allclose(found[1:].numpy(), expected, rtol=1e-4, atol=1e-4)


def alone(model, items):
    """Rows whose histories are one item each."""
    rows = {model.ITEM_SEQ: torch.tensor(items)[:, None], model.ITEM_SEQ_LEN: torch.ones(len(items), dtype=torch.long)}
    return Interaction(rows)


def test_swapping_shared_towers_changes_nothing(make):
    """The score of item j after item i is that of i after j; with towers of their own it is not, once one moves."""
    every = list(range(1, 9))
    for crossing in ("cosine", "residual"):
        model = make(crossing=crossing).model
        scores = model.full_sort_predict(alone(model, every))[:, 1:]
        torch.testing.assert_close(scores, scores.T, atol=1e-4, rtol=1e-5)
    model = make(shared_towers=False).model
    scores = model.full_sort_predict(alone(model, every))[:, 1:]
    torch.testing.assert_close(scores, scores.T, atol=1e-4, rtol=1e-5)  # both begin with the backbone's weights
    with torch.no_grad():
        next(model.item_tower.parameters()).mul_(1.5)
    moved = model.full_sort_predict(alone(model, every))[:, 1:]
    assert (moved - moved.T).abs().max() > 0.05


def test_its_cosine_is_that_of_llmrec(make):
    """On an encoder, with the same texts: the same vectors, scores, and loss of a step."""
    twin = make(item_loss="sampled", learned_temperature=False).model
    other = make(
        model="LLMRec", item_end=",", similarity="cosine", temperature=0.05, max_attribute_tokens=32
    )  # fmt: skip
    rows = next(prefix_rows(other.test))[0]
    torch.testing.assert_close(other.model.full_sort_predict(rows), twin.full_sort_predict(rows), atol=1e-4, rtol=1e-5)
    targets = twin.training_samples(np.random.default_rng(0))
    losses = [each.pass_loss_sum(each.prepared_step(targets)[1][0]) for each in (twin, other.model)]
    torch.testing.assert_close(*losses, atol=1e-4, rtol=1e-5)


def test_separate_towers_are_both_trained_at_the_backbone_rate(make):
    model = make(shared_towers=False, backbone_learning_rate=1e-5, learning_rate=1e-3).model
    backbone, others = model.parameter_groups()
    assert len(backbone["params"]) == 2 * len(list(model.tower.parameters()))
    assert [(others["lr"], len(others["params"]))] == [(1e-3, 1)]  # the temperature
    model.pass_loss_sum(model.prepared_step(model.training_samples(np.random.default_rng(0)))[1][0]).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
