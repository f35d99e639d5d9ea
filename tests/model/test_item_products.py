"""Models whose scores are products of vectors hand out these vectors; models whose scores are none do not."""

import numpy as np
import pytest
import torch
from small_data import SHORT, build_parts, write_dataset
from st2si_parts import prefix_rows
from vector_parts import SIZES

from recbole_llm.config.hooks import hooks_of
from recbole_llm.utils import item_products
from recbole_llm.utils.item_products import ItemProducts

RECBOLE = {"hidden_size": 16, "inner_size": 16, "n_heads": 2, "train_neg_sample_args": None}
PRODUCTS = {
    "SASRec": (None, RECBOLE),
    "SASRec in one pass": (None, {**RECBOLE, "train_positions": "all"}),
    "BERT4Rec": (None, RECBOLE),  # has a bias
    "ComiRec": (None, {"num_interests": 3, "train_neg_sample_args": None}),
    "UniSRec": ("bert", {}),  # a cosine over a temperature
    "MoRec": ("bert", {**SIZES, "similarity": "cosine"}),
    "ST2SI with codes": ("opt", {"tuning": "ilp", "item_codes": "4x3"}),
}
OTHERS = {
    "TwinBERT": ("bert", {"crossing": "residual", "item_loss": "bce"}),
    "ST2SI in two levels": ("opt", {"tuning": "ilp", "loss_type": "TwoLevel"}),
    "ST2SI with an ID model": (
        "opt",
        {"tuning": "ilp", "id_model": "SASRec", "id_weight": 0.3, "id_model_settings": {**RECBOLE, "epochs": 1}},
    ),
}


@pytest.fixture
def parts(request, small, tiny):
    backbone, settings = {**PRODUCTS, **OTHERS}[request.param]
    write_dataset(small, titles=SHORT)
    own = {} if backbone is None else {"backbone": str(tiny[backbone])}
    built = build_parts(small, model=request.param.split()[0], **own, **settings)
    built.model.eval()
    if hasattr(built.model, "output_bias"):
        torch.nn.init.normal_(built.model.output_bias)
    return built


@pytest.mark.parametrize("parts", PRODUCTS, indirect=True)
@torch.no_grad()
def test_scores_are_products_of_the_vectors(parts, monkeypatch):
    rows = next(prefix_rows(parts.test))[0]
    expected = parts.model.full_sort_predict(rows).view(len(rows), -1)[:, 1:]
    products = hooks_of(parts.model).scores_of_items(rows)
    assert isinstance(products, ItemProducts)
    torch.testing.assert_close(products(slice(1, 9)), expected)
    users, items = products.users_with_one().numpy(), products.with_bias(slice(1, 9)).numpy()
    plain = np.einsum("uks,is->uki", users.astype(np.float64), items.astype(np.float64)).max(axis=1)
    np.testing.assert_allclose(plain, expected, rtol=1e-5, atol=1e-5)
    some = torch.tensor([len(rows) - 1, 0])
    torch.testing.assert_close(products.of_rows(some)(slice(1, 9)), expected[some])
    own = torch.tensor([[(row + place) % 8 + 1 for place in range(3)] for row in range(len(rows))])
    for room in (1, item_products._GATHERED_BYTES):
        monkeypatch.setattr(item_products, "_GATHERED_BYTES", room)
        torch.testing.assert_close(products.of_pairs(own), expected.gather(1, own - 1))


@pytest.mark.parametrize("parts", OTHERS, indirect=True)
@torch.no_grad()
def test_other_scores_are_told_apart(parts):
    rows = next(prefix_rows(parts.test))[0]
    scores = hooks_of(parts.model).scores_of_items(rows)
    assert scores is not None and not isinstance(scores, ItemProducts)
