"""A projection that starts from the states of the items' texts: W against plain numpy, and in both models."""

import numpy as np
import pytest
import torch
from adapter_parts import CLEAN
from small_data import SHORT
from transformers import AutoModel, AutoTokenizer

from recbole_llm.errors import SettingError
from recbole_llm.model.layers.text_initialisation import projection_of_texts


def plain_projection(states):
    """c P S^(-1/2) (s_i - m) by a singular value decomposition, of more items than dimensions."""
    mean = states.mean(axis=0)
    left, sizes, right = np.linalg.svd(states - mean, full_matrices=False)
    least = sizes[0] * 1e-2  # a hundredth of a deviation is a ten-thousandth of a variance
    rows = (left * (sizes / np.maximum(sizes, least))) @ right
    rows -= np.outer(rows @ mean, mean) / (mean @ mean)
    return rows * 10 / (rows * states).sum(axis=1).mean()


def test_rows_are_the_numpy_formula():
    """One direction hardly varies: its variance counts as a ten-thousandth of the largest."""
    random = np.random.default_rng(0)
    states = random.normal(size=(40, 6)) * [3, 1, 1, 0.5, 0.1, 1e-3] + random.normal(size=6)
    weight = projection_of_texts(torch.from_numpy(np.concatenate([np.zeros((1, 6)), states]))).numpy()
    np.testing.assert_allclose(weight[1:], plain_projection(states), rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(weight[0], 0)
    assert (weight[1:] * states).sum(axis=1).mean() == pytest.approx(10)
    np.testing.assert_allclose(weight @ states.mean(axis=0), 0, atol=1e-9)


def test_an_item_without_a_text_gets_zeros():
    states = torch.randn(9, 4)
    states[[0, 5]] = 0
    weight = projection_of_texts(states)
    assert not weight[[0, 5]].any()
    torch.testing.assert_close(weight[[1, 2, 3, 4, 6, 7, 8]], projection_of_texts(states[[1, 2, 3, 4, 6, 7, 8]]))


ALONG_ONE_LINE = torch.outer(torch.tensor([1.0, 2.0, 3.0, 5.0]), torch.tensor([0.3, -0.7, 0.2]))


@pytest.mark.parametrize(
    "states", [torch.zeros(3, 4), torch.ones(3, 4), torch.tensor([[1.0, 2.0]]), ALONG_ONE_LINE], ids=len
)
def test_texts_that_nothing_tells_apart_give_zeros(states):
    torch.testing.assert_close(projection_of_texts(states), torch.zeros_like(states), atol=0, rtol=0)


def test_st2si_starts_from_histories_of_one_item(build_st2si, tiny):
    """By transformers' own states; from the second epoch on nothing is written."""
    parts = build_st2si("llama", titles=SHORT, projection_init="texts")
    tokenizer = AutoTokenizer.from_pretrained(tiny["llama"])
    language_model = AutoModel.from_pretrained(tiny["llama"], dtype=torch.float32).eval()
    ids = parts.dataset.field2token_id["item_id"]
    states = np.zeros((len(ids), 32))
    for item, title in SHORT.items():
        if item in ids:
            tokens = [*tokenizer(title, add_special_tokens=False)["input_ids"], tokenizer.get_vocab()["."]]
            with torch.no_grad():
                states[ids[item]] = language_model(torch.tensor([tokens])).last_hidden_state[0, -1].numpy()
    parts.model.before_epoch(0)
    expected = projection_of_texts(torch.from_numpy(states)).numpy()
    np.testing.assert_allclose(parts.model.projection.weight.detach().numpy(), expected, atol=1e-3)
    with torch.no_grad():
        parts.model.projection.weight.fill_(2)
    parts.model.before_epoch(1)
    assert (parts.model.projection.weight == 2).all()


def test_idleadapter_starts_from_prompts_of_one_item(build, rough_models):
    """By transformers' own states of the prompt, without virtual tokens."""
    parts = build("bert", larger=False, projection_init="texts")
    ids = parts.dataset.field2token_id["item_id"]
    tokenizer = AutoTokenizer.from_pretrained(rough_models["bert"])
    language_model = AutoModel.from_pretrained(rough_models["bert"], dtype=torch.float32).eval()
    states = {}
    for item, title in CLEAN.items():
        if item in ids and title:
            encoded = tokenizer(f"Recommend products: {title}.", return_tensors="pt")
            with torch.no_grad():
                states[ids[item]] = language_model(**encoded).last_hidden_state[0]
    found = {}
    for items, rows in parts.model.item_states():
        found.update(zip(items.tolist(), rows.detach(), strict=True))
    assert set(found) == set(states) <= set(range(1, len(ids)))
    for item, hidden in states.items():
        torch.testing.assert_close(found[item], hidden.mean(dim=0), atol=1e-4, rtol=1e-4)
    parts.model.before_epoch(0)
    table = torch.zeros(len(ids), parts.model.projection.width)
    for item, state in found.items():
        table[item] = state
    torch.testing.assert_close(parts.model.projection.weight.detach(), projection_of_texts(table))


@pytest.mark.parametrize("init", ["random", "texts"])
def test_random_is_left_alone(build_st2si, init):
    parts = build_st2si(projection_init=init)
    before = parts.model.projection.weight.detach().clone()
    parts.model.before_epoch(0)
    assert torch.equal(parts.model.projection.weight, before) == (init == "random")


@pytest.mark.parametrize("settings", [{"item_codes": "4x3"}, {"loss_type": "TwoLevel"}])
def test_what_has_no_rows_that_rank_by_themselves_is_refused(build_st2si, settings):
    with pytest.raises(SettingError, match=rf"{next(iter(settings))}.*projection_init"):
        build_st2si(**settings, projection_init="texts")


@pytest.mark.parametrize("settings", [{"epochs": 0}, {"epochs": 1, "learning_rate": 0.0}], ids=["no epoch", "no rate"])
@pytest.mark.parametrize("average", [None, 0.9])
def test_a_run_keeps_where_it_started(build_st2si, settings, average):
    """Also without an epoch: then items are ranked by the likeness of texts."""
    loss = {"loss_type": "SampledCE", "num_negatives": 3}  # whose projection is another class
    parts = build_st2si(projection_init="texts", weight_average=average, **settings, **loss)
    expected = build_st2si(projection_init="texts")
    expected.model.before_epoch(0)
    trainer = parts.trainer()
    trainer.precompute()
    trainer.fit(parts.train, parts.valid, show_progress=False)
    with trainer.evaluated_weights():
        torch.testing.assert_close(parts.model.projection.weight, expected.model.projection.weight)
