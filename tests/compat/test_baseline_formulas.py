"""RecBole's baselines against plain formulas, one user at a time and without padding, at equal weights."""

import numpy as np
import pytest
from atomic_files import quick_settings
from plain_baselines import log_loss, normed, recurrent, rough_parts, rows_of, sigmoid, transformer, weights_of

WIDTH = 12
SETTINGS = {
    "BPR": {"embedding_size": 4},
    "FPMC": {"embedding_size": 4},
    "GRU4Rec": {"embedding_size": 4, "hidden_size": 5, "num_layers": 2, "dropout_prob": 0.0},
    "NARM": {"embedding_size": 4, "hidden_size": 5, "n_layers": 1, "dropout_probs": [0.0, 0.0]},
    "Caser": {"embedding_size": 4, "nh": 3, "nv": 2, "reg_weight": 0.01, "dropout_prob": 0.0},
    "SASRec": {
        "hidden_size": 4,
        "inner_size": 6,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dropout_prob": 0.0,
        "attn_dropout_prob": 0.0,
    },
}
SEQUENTIAL = [name for name in SETTINGS if name not in ("BPR", "FPMC")]


@pytest.fixture
def parts_of(data, workdir):
    def get(name: str, **more):
        settings = quick_settings(
            data, model=name, train_batch_size=16, MAX_ITEM_LIST_LENGTH=WIDTH, **SETTINGS[name], **more
        )
        return rough_parts(settings)

    return get


def gru4rec(w, items, user):
    states = recurrent(w, w["item_embedding.weight"][items], "gru_layers", 2, bias=False)
    return w["dense.weight"] @ states[-1] + w["dense.bias"]


def narm(w, items, user):
    states = recurrent(w, w["item_embedding.weight"][items], "gru", 1, bias=False)
    share = [w["v_t.weight"][0] @ sigmoid(w["a_1.weight"] @ h + w["a_2.weight"] @ states[-1]) for h in states]
    local = sum(a * h for a, h in zip(share, states, strict=True))
    return w["b.weight"] @ np.concatenate([local, states[-1]])


def caser(w, items, user):
    image = w["item_embedding.weight"][np.pad(items, (0, WIDTH - len(items)))]  # it reads the whole width, padding too
    down = np.einsum("kt,td->kd", w["conv_v.weight"][:, 0, :, 0], image).ravel()
    across = []
    for height in range(1, WIDTH + 1):
        kernel, bias = w[f"conv_h.{height - 1}.weight"][:, 0], w[f"conv_h.{height - 1}.bias"]
        windows = [(kernel * image[t : t + height]).sum(axis=(1, 2)) + bias for t in range(WIDTH + 1 - height)]
        across.append(np.maximum(np.array(windows), 0).max(axis=0))
    down += np.repeat(w["conv_v.bias"], image.shape[1])
    z = np.maximum(w["fc1.weight"] @ np.concatenate([down, *across]) + w["fc1.bias"], 0)
    return np.maximum(w["fc2.weight"] @ np.concatenate([z, w["user_embedding.weight"][user]]) + w["fc2.bias"], 0)


def sasrec(w, items, user):
    inputs = w["item_embedding.weight"][items] + w["position_embedding.weight"][: len(items)]
    return transformer(w, normed(w, "LayerNorm", inputs))[-1]


VECTORS = {"GRU4Rec": gru4rec, "NARM": narm, "Caser": caser, "SASRec": sasrec}


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_scores_are_the_formula_s(name, parts_of):
    parts = parts_of(name)
    weights, model = weights_of(parts.model), parts.model.eval()
    interaction, *_ = next(iter(parts.test))
    found = model.full_sort_predict(interaction).detach().numpy()
    lengths = set()
    for row, (user, items, _) in enumerate(rows_of(interaction)):
        expected = weights["item_embedding.weight"] @ VECTORS[name](weights, items, user)
        np.testing.assert_allclose(found[row], expected, rtol=2e-4, atol=2e-4)
        lengths.add(len(items))
    assert len(lengths) > 2  # short ones, too
    own = model.predict(interaction).detach().numpy()
    np.testing.assert_allclose(own, found[np.arange(len(own)), interaction["item_id"].numpy()], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("loss", ["CE", "BPR"])
@pytest.mark.parametrize("name", SEQUENTIAL)
def test_losses_are_the_formula_s(name, loss, parts_of):
    parts = parts_of(name, loss_type=loss)
    weights, model = weights_of(parts.model), parts.model.train()
    interaction = next(iter(parts.train))
    expected = []
    for row, (user, items, target) in enumerate(rows_of(interaction)):
        scores = weights["item_embedding.weight"] @ VECTORS[name](weights, items, user)
        if loss == "CE":
            expected.append(log_loss(scores, target))  # over all items and the padding id, as RecBole has it
        else:
            expected.append(-np.log(sigmoid(scores[target] - scores[int(interaction["neg_item_id"][row])]) + 1e-10))
    mean = np.mean(expected)
    if name == "Caser":
        penalised = ["user_embedding", "item_embedding", "conv_v", "fc1", "fc2"]
        mean += 0.01 * sum(np.linalg.norm(weights[f"{each}.weight"].ravel()) for each in penalised)
        mean += 0.01 * sum(np.linalg.norm(weights[f"conv_h.{n}.weight"].ravel()) for n in range(WIDTH))
    assert model.calculate_loss(interaction).item() == pytest.approx(mean, rel=2e-4)


def fpmc(w, user, last, item):
    own = w["UI_emb.weight"][user] @ w["IU_emb.weight"][item]
    return own + w["IL_emb.weight"][item] @ w["LI_emb.weight"][last]


def test_fpmc_is_its_formula(parts_of):
    parts = parts_of("FPMC")
    weights, model = weights_of(parts.model), parts.model.eval()
    test, *_ = next(iter(parts.test))
    found = model.full_sort_predict(test).detach().numpy()
    for row, (user, items, _) in enumerate(rows_of(test)):
        expected = [fpmc(weights, user, items[-1], item) for item in range(parts.dataset.item_num)]
        np.testing.assert_allclose(found[row], expected, rtol=1e-4, atol=1e-4)
    train = next(iter(parts.train))
    pairs = zip(rows_of(train), train["neg_item_id"].tolist(), strict=True)
    gaps = [fpmc(weights, u, i[-1], t) - fpmc(weights, u, i[-1], negative) for (u, i, t), negative in pairs]
    assert model.calculate_loss(train).item() == pytest.approx(
        np.mean([-np.log(sigmoid(gap) + 1e-10) for gap in gaps]), rel=1e-4
    )


def test_bpr_is_its_formula(parts_of):
    parts = parts_of("BPR")
    weights, model = weights_of(parts.model), parts.model.eval()
    users, items = weights["user_embedding.weight"], weights["item_embedding.weight"]
    test, *_ = next(iter(parts.test))
    found = model.full_sort_predict(test).detach().numpy().reshape(len(test), -1)
    np.testing.assert_allclose(found, users[test["user_id"].numpy()] @ items.T, rtol=1e-4, atol=1e-4)
    train = next(iter(parts.train))
    user, positive, negative = (train[name].numpy() for name in ("user_id", "item_id", "neg_item_id"))
    gaps = (users[user] * (items[positive] - items[negative])).sum(axis=1)
    assert model.calculate_loss(train).item() == pytest.approx(-np.log(sigmoid(gaps) + 1e-10).mean(), rel=1e-4)
    known = {
        (u, i)
        for u, i in zip(*(parts.train._dataset.inter_feat[k].tolist() for k in ("user_id", "item_id")), strict=True)
    }
    assert not known & set(zip(user.tolist(), negative.tolist(), strict=True))  # no negative is one of the user's items
