"""Both stages of S3Rec against plain formulas, one history at a time and without padding, at equal weights."""

from pathlib import Path

import numpy as np
import pytest
from atomic_files import quick_settings
from plain_baselines import linear, log_loss, normed, rough_parts, rows_of, sigmoid, transformer, weights_of
from recbole.utils import init_seed

from recbole_llm.quick_start.run import run

WIDTH = 6
SETTINGS = {
    "hidden_size": 4, "inner_size": 6, "n_layers": 2, "n_heads": 2, "hidden_dropout_prob": 0.0,
    "attn_dropout_prob": 0.0, "MAX_ITEM_LIST_LENGTH": WIDTH, "train_batch_size": 16, "mask_ratio": 0.4,
}  # fmt: skip
WEIGHTS = {"aap_weight": 0.2, "mip_weight": 1.5, "map_weight": 0.7, "sp_weight": 3.0}


def states_of(w, sequence, causal):
    inputs = w["item_embedding.weight"][sequence] + w["position_embedding.weight"][: len(sequence)]
    return transformer(w, normed(w, "LayerNorm", inputs), causal=causal)


def binary(logits, labels):
    return -(labels * np.log(sigmoid(logits)) + (1 - labels) * np.log(sigmoid(-logits)))


def pretraining_losses(w, mask, row, attributes):
    """The paper's four losses of one history: eq. 5, 6, 8 and 10, summed over what each predicts."""
    masked, positive, negative, context, own_segment, other_segment = row
    states, hidden = states_of(w, masked, causal=False), masked == mask
    items = w["item_embedding.weight"]

    def of_attributes(name, places):
        scores = linear(w, f"{name}_norm", states[places]) @ w["feature_embedding.weight"].T
        return binary(scores, attributes[positive[places]]).sum()

    of_masks = linear(w, "mip_norm", states[hidden])
    gaps = sigmoid((of_masks * items[positive[hidden]]).sum(1)) - sigmoid((of_masks * items[negative[hidden]]).sum(1))
    around = linear(w, "sp_norm", states_of(w, context, causal=False)[-1])
    ends = [sigmoid(around @ states_of(w, each, causal=False)[-1]) for each in (own_segment, other_segment)]
    return {
        "aap_weight": of_attributes("aap", ~hidden),
        "mip_weight": binary(gaps, 1).sum(),
        "map_weight": of_attributes("map", hidden),
        "sp_weight": binary(ends[0] - ends[1], 1),
    }


@pytest.mark.parametrize("only", [None, *WEIGHTS])
def test_pretraining_losses_are_the_paper_s(only, data, workdir):
    share = WEIGHTS if only is None else {name: float(name == only) for name in WEIGHTS}
    parts = rough_parts(quick_settings(data, model="S3Rec", train_stage="pretrain", **SETTINGS, **share))
    weights, model = weights_of(parts.model), parts.model.train()
    drawn, reconstruct = [], model.reconstruct_pretrain_data
    model.reconstruct_pretrain_data = lambda *rows: drawn.append(reconstruct(*rows)) or drawn[-1]
    init_seed(5, True)
    batch = next(iter(parts.train))
    found = model.calculate_loss(batch).item()

    classes = parts.dataset.item_feat["class"].numpy()
    attributes = np.zeros((parts.dataset.item_num, parts.dataset.num("class") - 1))
    for item, own in enumerate(classes):
        attributes[item, own[own > 0] - 1] = 1
    expected, lengths = dict.fromkeys(WEIGHTS, 0.0), set()
    for number, (_, items, target) in enumerate(rows_of(batch)):
        whole = np.append(items, target)[-WIDTH:]  # the row's own target is read, too
        row = [values[number].numpy()[WIDTH - len(whole) :] for values in drawn[0][1:]]
        assert (row[1] == whole).all()
        assert ((row[2] > 0) & (row[2] < parts.dataset.item_num)).all()  # negatives are items
        for name, loss in pretraining_losses(weights, model.mask_token, row, attributes).items():
            expected[name] += loss
        lengths.add(len(whole))
    assert len(lengths) > 3 and all(expected.values())
    assert found == pytest.approx(sum(share[name] * expected[name] for name in share), rel=2e-4)


def test_fine_tuning_is_its_formula(data, workdir):
    settings = quick_settings(data, **SETTINGS, train_stage="pretrain", pretrain_epochs=1)
    start = Path(run("S3Rec", settings=settings)["path"]).parent
    parts = rough_parts({**settings, "model": "S3Rec", "train_stage": "finetune", "pre_model_path": str(start)})
    weights, model = weights_of(parts.model), parts.model.eval()
    batch = next(iter(parts.train))
    expected = [
        weights["item_embedding.weight"][:-1] @ states_of(weights, items, causal=True)[-1]
        for _, items, _ in rows_of(batch)
    ]
    assert len({len(items) for _, items, _ in rows_of(batch)}) > 3
    found = model.full_sort_predict(batch).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)
    losses = [log_loss(scores, target) for scores, (_, _, target) in zip(expected, rows_of(batch), strict=True)]
    assert model.train().calculate_loss(batch).item() == pytest.approx(np.mean(losses), rel=2e-4)
