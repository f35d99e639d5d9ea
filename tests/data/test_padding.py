"""Histories are padded to the longest of their batch where a model gives the same for them."""

import numpy as np
import pytest
import torch
from atomic_files import quick_settings, write_atomic_files
from recbole.data.interaction import Interaction
from recbole.utils import init_seed

from recbole_llm.config.config import Config
from recbole_llm.data.padding import READ_NO_PADDING, may_be_cut
from recbole_llm.quick_start.run import build

SETTINGS = {
    "SASRec": [{}, {"loss_type": "BPR", "train_neg_sample_args": {"distribution": "uniform", "sample_num": 1}}],
    "CORE": [{"dnn_type": "trm"}, {"dnn_type": "ave"}],
    "ComiRec": [{"extraction": "SA"}, {"extraction": "DR"}],
}
CASES = [(model, more) for model in sorted(READ_NO_PADDING) for more in SETTINGS.get(model, [{}])]
NO_DROPOUT = {"attn_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_atomic_files(tmp_path_factory.mktemp("data") / "tiny", users=30)


def parts_of(folder, model, **settings):
    parts = build(Config(config_dict=quick_settings(folder, model=model, **settings)))
    init_seed(3, True)
    with torch.no_grad():  # every row of every table, the padding item's as well
        for parameter in parts.model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return parts


def widened(rows, model, width):
    """The same rows as RecBole pads them."""
    items = rows[model.ITEM_SEQ]
    wide = torch.zeros(len(items), width, dtype=items.dtype)
    wide[:, : items.shape[1]] = items
    return Interaction({**rows.interaction, model.ITEM_SEQ: wide})


@pytest.mark.parametrize(("model", "more"), CASES, ids=str)
def test_scores_are_those_of_recboles_padding(folder, workdir, model, more):
    parts = parts_of(folder, model, MAX_ITEM_LIST_LENGTH=40, eval_batch_size=7, **more)
    parts.model.eval()
    widths = []
    with torch.no_grad():
        for rows, *_ in [*parts.valid, *parts.test]:
            longest = int(rows[parts.model.ITEM_SEQ_LEN].max())
            assert rows[parts.model.ITEM_SEQ].shape == (len(rows), longest)
            found = parts.model.full_sort_predict(rows)
            expected = parts.model.full_sort_predict(widened(rows, parts.model, 40))
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
            widths.append(longest)
    assert max(widths) < 40 and len(set(widths)) > 1


def test_training_without_dropout_has_recboles_loss_and_gradient(folder, workdir):
    parts = parts_of(folder, "SASRec", MAX_ITEM_LIST_LENGTH=40, train_batch_size=16, **NO_DROPOUT)
    parts.model.train()
    gradients = []
    rows = next(iter(parts.train))
    assert rows[parts.model.ITEM_SEQ].shape[1] < 40
    for batch in (rows, widened(rows, parts.model, 40)):
        parts.model.zero_grad()
        loss = parts.model.calculate_loss(batch)
        loss.backward()
        gradients.append([loss.detach(), *(p.grad.clone() for p in parts.model.parameters())])
    for found, expected in zip(*gradients, strict=True):
        if found.shape == expected.shape:
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("model", "settings", "training", "cut"),
    [
        ("SASRec", {}, False, True),
        ("SASRec", {}, True, False),  # dropout draws for each place
        ("SASRec", NO_DROPOUT, True, True),
        ("SASRec", {**NO_DROPOUT, "attn_dropout_prob": 0.1}, True, False),
        ("ComiRec", {}, True, False),
        ("ComiRec", {"dropout_prob": 0.0}, True, True),
        ("BERT4Rec", {}, False, False),  # its masks are drawn in evaluation, too
        ("STAMP", {}, False, False),  # adds up the padding item
        ("Caser", {}, False, False),  # has a width
        ("NextItNet", {}, False, False),  # reads its answer at the last place
    ],
)
def test_which_batches_are_cut(folder, workdir, model, settings, training, cut):
    config = Config(config_dict=quick_settings(folder, model=model, **settings))
    assert may_be_cut(config, training) == cut


def test_a_model_that_reads_its_padding_would_be_noticed(folder, workdir):
    """The comparison of scores above is not blind: STAMP's differ."""
    parts = parts_of(folder, "STAMP", MAX_ITEM_LIST_LENGTH=40)
    parts.model.eval()
    rows, *_ = next(iter(parts.test))
    assert rows[parts.model.ITEM_SEQ].shape[1] == 40
    with torch.no_grad():
        found = parts.model.full_sort_predict(widened(rows, parts.model, 40))
        longest = int(rows[parts.model.ITEM_SEQ_LEN].max())
        cut = {**rows.interaction, parts.model.ITEM_SEQ: rows[parts.model.ITEM_SEQ][:, :longest]}
        assert not np.allclose(found, parts.model.full_sort_predict(Interaction(cut)), atol=1e-3)
