"""BERT4Rec against a plain formula, and its masks against its paper: any item, and the next one at the end."""

import numpy as np
import pytest
import torch
from atomic_files import quick_settings
from plain_baselines import gelu, linear, log_loss, normed, rough_parts, rows_of, sigmoid, transformer, weights_of
from recbole.data.interaction import Interaction

from recbole_llm.compat.masked_items import MaskedItems, append
from recbole_llm.errors import DataError
from recbole_llm.model.id_model.user_vector import user_vectors

WIDTH = 6
SETTINGS = {
    "hidden_size": 4, "inner_size": 6, "n_layers": 2, "n_heads": 2, "hidden_dropout_prob": 0.0,
    "attn_dropout_prob": 0.0, "MAX_ITEM_LIST_LENGTH": WIDTH, "train_batch_size": 16,
}  # fmt: skip


@pytest.fixture
def parts_of(data, workdir):
    def get(**more):
        return rough_parts(quick_settings(data, model="BERT4Rec", **{**SETTINGS, **more}))

    return get


def states_of(w, sequence):
    """The states at all places of a sequence that may hold masks, which read both directions."""
    inputs = w["item_embedding.weight"][sequence] + w["position_embedding.weight"][: len(sequence)]
    states = transformer(w, normed(w, "LayerNorm", inputs), causal=False)
    return normed(w, "output_ln", gelu(linear(w, "output_ffn", states)))


def scores_at(w, sequence, place):
    return w["item_embedding.weight"][:-1] @ states_of(w, sequence)[place] + w["output_bias"]


def test_scores_are_those_of_a_mask_behind_the_history(parts_of):
    """The oldest item is left out where the history is full, and there alone."""
    parts = parts_of()
    weights, model = weights_of(parts.model), parts.model.eval()
    test = parts.train.dataset[np.arange(len(parts.train.dataset))]  # histories of one item to WIDTH
    assert {len(items) for _, items, _ in rows_of(test)} == set(range(1, WIDTH + 1))
    found = model.full_sort_predict(test).detach().numpy()
    for row, (_, items, _) in enumerate(rows_of(test)):
        sequence = np.append(items, model.mask_token)[-WIDTH:]
        np.testing.assert_allclose(
            found[row], scores_at(weights, sequence, -1), rtol=2e-4, atol=2e-4, err_msg=str(items)
        )
    own = model.predict(test).detach().numpy()
    np.testing.assert_allclose(own, found[np.arange(len(own)), test["item_id"].numpy()], rtol=1e-4, atol=1e-4)
    vectors = user_vectors(model, test)[:, 0] @ model.item_embedding.weight[:-1].T + model.output_bias
    np.testing.assert_allclose(vectors.detach().numpy(), found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ft_ratio", [0.0, 1.0])
@pytest.mark.parametrize("loss", ["CE", "BPR"])
def test_losses_are_those_of_all_masked_items(loss, ft_ratio, parts_of):
    parts = parts_of(loss_type=loss, ft_ratio=ft_ratio, mask_ratio=0.5)
    weights, model = weights_of(parts.model), parts.model.train()
    batch = next(iter(parts.train))
    expected, places = [], set()
    for row, (_, items, target) in enumerate(rows_of(batch)):
        whole = np.append(items, target)[-WIDTH:]
        sequence = batch["Mask_item_id_list"][row].numpy()[: len(whole)]
        masked = np.flatnonzero(sequence == parts.dataset.item_num)
        assert (sequence[sequence != model.mask_token] == whole[sequence != model.mask_token]).all()
        assert ft_ratio == 0 or masked.tolist() == [len(whole) - 1]
        for place in masked:
            scores = scores_at(weights, sequence, place)
            if loss == "CE":
                expected.append(log_loss(scores, whole[place]))
            else:
                negative = int(batch["Neg_item_id"][row, place])
                assert 0 < negative < parts.dataset.item_num and negative not in whole
                expected.append(-np.log(sigmoid(scores[whole[place]] - scores[negative])))
            places.add((int(place), int(place) == len(whole) - 1))
    assert ft_ratio == 1 or {(0, False), (WIDTH - 1, True)} <= places  # the oldest, and the row's own target
    assert model.calculate_loss(batch).item() == pytest.approx(np.mean(expected), rel=2e-4)


def test_every_item_is_masked_as_often_as_the_ratio_says():
    config = {"ITEM_ID_FIELD": "i", "LIST_SUFFIX": "_l", "ITEM_LIST_LENGTH_FIELD": "n", "mask_ratio": 0.3,
              "ft_ratio": 0.25, "loss_type": "CE"}  # fmt: skip
    masks, rows = MaskedItems(config), 4000
    histories = torch.tensor([[7, 0, 0, 0], [1, 2, 3, 0], [1, 2, 3, 4]]).repeat(rows, 1)
    columns = {"i_l": histories, "n": (histories > 0).sum(1), "i": torch.tensor([9, 9, 9]).repeat(rows)}
    torch.manual_seed(0)
    drawn, last = torch.zeros(3, 4), 0
    for _ in range(40):
        found = masks(_Catalogue(), Interaction(dict(columns)))["Pos_i"].view(rows, 3, 4)
        share = (found > 0).float().mean(0)
        if share[2, 3] == 1:
            last += 1
            assert (found > 0).sum(dim=2).eq(1).all() and (found == 9).sum() == 3 * rows
        else:
            drawn += share
    whole = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]])
    torch.testing.assert_close(drawn / (40 - last), 0.3 * whole, rtol=0, atol=0.01)
    assert 2 < last < 20  # ten of forty are expected


class _Catalogue:
    def __init__(self, items=50):
        self.items = items

    def num(self, field):
        return self.items


def test_an_item_is_put_behind_each_history():
    whole, places = append(
        torch.tensor([[5, 0, 0], [5, 6, 0], [5, 6, 7]]), torch.tensor([1, 2, 3]), torch.tensor([9, 9, 9])
    )
    assert whole.tolist() == [[5, 9, 0], [5, 6, 9], [6, 7, 9]] and places.tolist() == [1, 2, 2]


def test_a_batch_without_masks_teaches_nothing(parts_of):
    parts = parts_of(ft_ratio=0.0, mask_ratio=1e-9)
    loss = parts.model.calculate_loss(next(iter(parts.train)))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in parts.model.parameters())


def test_a_history_of_the_whole_catalogue_has_no_negative():
    config = {"ITEM_ID_FIELD": "i", "LIST_SUFFIX": "_l", "ITEM_LIST_LENGTH_FIELD": "n", "mask_ratio": 1.0,
              "ft_ratio": 0, "loss_type": "BPR"}  # fmt: skip
    rows = Interaction({"i_l": torch.tensor([[1, 2, 0]]), "n": torch.tensor([2]), "i": torch.tensor([3])})
    with pytest.raises(DataError, match="every item of the catalogue"):
        MaskedItems(config)(_Catalogue(4), rows)
