"""RecBole's baselines that read item attributes against plain formulas, one user at a time, at equal weights."""

import numpy as np
import pytest
from atomic_files import quick_settings
from plain_baselines import (
    linear,
    log_loss,
    normed,
    recurrent,
    rough_parts,
    rows_of,
    sigmoid,
    softmax,
    transformer,
    weights_of,
)

TRANSFORMER = {
    "hidden_size": 4,
    "inner_size": 6,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dropout_prob": 0.0,
    "attn_dropout_prob": 0.0,
}
SETTINGS = {
    "FDSA": TRANSFORMER,
    "SASRecF": TRANSFORMER,
    "GRU4RecF": {"embedding_size": 4, "hidden_size": 5, "num_layers": 1, "dropout_prob": 0.0},
}


@pytest.fixture
def parts_of(data, workdir):
    def get(name: str, **more):
        settings = quick_settings(
            data,
            model=name,
            train_batch_size=16,
            MAX_ITEM_LIST_LENGTH=12,
            selected_features=["category", "class"],
            **SETTINGS[name],
            **more,
        )
        return rough_parts(settings)

    return get


def attributes_of(w, dataset, items, pooling):
    """The vectors [items, 2, size] of each item's category, and of its classes taken together."""
    categories = w["feature_embed_layer.token_embedding_table.item.embedding.weight"]
    classes = w["feature_embed_layer.token_seq_embedding_table.item.0.weight"]
    pool = {"mean": np.mean, "sum": np.sum, "max": np.max}[pooling]
    found = []
    for item in items:
        own = dataset.item_feat["class"][item].numpy()
        found.append([categories[int(dataset.item_feat["category"][item])], pool(classes[own[own > 0]], axis=0)])
    return np.array(found)


def fdsa(w, dataset, items, pooling):
    places = w["position_embedding.weight"][: len(items)]
    both = attributes_of(w, dataset, items, pooling)
    layer = "feature_att_layer.projection"
    share = softmax(linear(w, f"{layer}.2", np.maximum(linear(w, f"{layer}.0", both), 0))[..., 0])
    inputs = {"item": w["item_embedding.weight"][items], "feature": np.einsum("if,ifd->id", share, both)}
    ends = [transformer(w, normed(w, "LayerNorm", x + places), f"{name}_trm_encoder")[-1] for name, x in inputs.items()]
    return normed(w, "LayerNorm", linear(w, "concat_layer", np.concatenate(ends)))


def sasrecf(w, dataset, items, pooling):
    both = attributes_of(w, dataset, items, pooling).reshape(len(items), -1)
    x = linear(w, "concat_layer", np.concatenate([w["item_embedding.weight"][items], both], axis=1))
    return transformer(w, normed(w, "LayerNorm", x + w["position_embedding.weight"][: len(items)]))[-1]


def gru4recf(w, dataset, items, pooling):
    both = attributes_of(w, dataset, items, pooling).reshape(len(items), -1)
    ends = [
        recurrent(w, inputs, f"{name}_gru_layers", 1, bias=False)[-1]
        for name, inputs in (("item", w["item_embedding.weight"][items]), ("feature", both))
    ]
    return linear(w, "dense_layer", np.concatenate(ends))


VECTORS = {"FDSA": fdsa, "SASRecF": sasrecf, "GRU4RecF": gru4recf}


@pytest.mark.parametrize("pooling", ["mean", "sum", "max"])
@pytest.mark.parametrize("name", VECTORS)
def test_scores_and_losses_are_the_formula_s(name, pooling, parts_of):
    loss = {"mean": "CE", "sum": "BPR", "max": "CE"}[pooling]
    parts = parts_of(name, pooling_mode=pooling, loss_type=loss)
    weights, model = weights_of(parts.model), parts.model.eval()

    def scores_of(items):
        return weights["item_embedding.weight"] @ VECTORS[name](weights, parts.dataset, items, pooling)

    test, *_ = next(iter(parts.test))
    found = model.full_sort_predict(test).detach().numpy()
    histories = [items for _, items, _ in rows_of(test)]
    assert len({len(items) for items in histories}) > 2
    expected = np.array([scores_of(items) for items in histories])
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)
    own = model.predict(test).detach().numpy()
    np.testing.assert_allclose(own, expected[np.arange(len(own)), test["item_id"].numpy()], rtol=2e-4, atol=2e-4)

    train = next(iter(parts.train))
    losses = []
    for row, (_, items, target) in enumerate(rows_of(train)):
        scores = scores_of(items)
        if loss == "CE":
            losses.append(log_loss(scores, target))
        else:
            losses.append(-np.log(sigmoid(scores[target] - scores[int(train["neg_item_id"][row])]) + 1e-10))
    assert model.train().calculate_loss(train).item() == pytest.approx(np.mean(losses), rel=2e-4)
