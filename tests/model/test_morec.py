"""MoRec against RecBole's SASRec, and its texts against transformers' own padded forward pass."""

import numpy as np
import pytest
import torch
from small_data import SHORT, build_parts, write_dataset
from st2si_parts import prefix_rows
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from recbole_llm.backbone.item_vectors import item_vectors
from recbole_llm.data.item_text import tokenize_items
from recbole_llm.data.windows import Windows
from recbole_llm.errors import DataError
from recbole_llm.model.layers.table_loss import Similarity

SIZES = {"hidden_size": 8, "inner_size": 12, "n_layers": 2, "n_heads": 2, "initializer_range": 0.5}


@pytest.fixture
def make(small, rough_models):
    """The parts of a MoRec run on a tiny BERT in eval mode."""
    write_dataset(small, titles=SHORT)

    def parts(**settings):
        built = build_parts(small, **{"model": "MoRec", "backbone": str(rough_models["bert"]), **SIZES, **settings})
        built.model.eval()
        return built

    return parts


@pytest.fixture
def sasrec(small):
    """RecBole's SASRec of the same layout, in eval mode."""
    write_dataset(small, titles=SHORT)
    built = build_parts(
        small, model="SASRec", **SIZES, hidden_act="relu", layer_norm_eps=1e-6, MAX_ITEM_LIST_LENGTH=20,
        train_neg_sample_args=None,
    )  # fmt: skip
    built.model.eval()
    return built.model


def copy_layout(morec, sasrec):
    """Give MoRec's transformer the weights of SASRec."""
    morec.encoder.position_embedding.load_state_dict(sasrec.position_embedding.state_dict())
    morec.encoder.norm.load_state_dict(sasrec.LayerNorm.state_dict())
    morec.encoder.transformer.load_state_dict(sasrec.trm_encoder.state_dict())


def test_with_an_id_table_it_is_sasrec(make, sasrec, monkeypatch):
    """Scores of every row, and the full loss at all positions of the windows as that of RecBole's prefix rows."""
    parts = make(item_loss="full")
    model = parts.model
    copy_layout(model, sasrec)
    table = sasrec.item_embedding.weight.detach()
    monkeypatch.setattr(model, "ranking_table", lambda: table)
    monkeypatch.setattr(model, "item_vectors", lambda passes: table[1:])
    for rows, _ in prefix_rows(parts.test):
        found = model.full_sort_predict(rows)
        torch.testing.assert_close(found[:, 1:], sasrec.full_sort_predict(rows)[:, 1:], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.user_vectors(rows)[:, 0], sasrec(rows["item_id_list"], rows["item_length"]))
    rows, (step,) = model.prepared_step(model.training_samples(np.random.default_rng(0)))
    prefixes = parts.train._dataset[torch.arange(len(parts.train._dataset))]
    scores = sasrec(prefixes["item_id_list"], prefixes["item_length"]) @ table[1:].T
    expected = F.cross_entropy(scores, prefixes["item_id"] - 1, reduction="sum")
    assert rows == len(prefixes)
    torch.testing.assert_close(model.pass_loss_sum(step), expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(model.calculate_loss(prefixes), expected / rows, atol=1e-5, rtol=1e-5)


def mean_vectors(parts):
    """[CLS] title [SEP] by transformers, one text at a time, averaged over all tokens."""
    folder = parts.model.settings.backbone
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    titles = [SHORT[parts.dataset.id2token("item_id", item)] for item in range(1, parts.model.n_items)]
    with torch.no_grad():
        states = [model(**tokenizer(title, return_tensors="pt")).last_hidden_state for title in titles]
    return torch.cat([state.mean(dim=1) for state in states])


def test_items_are_the_gelu_of_a_linear_layer_of_their_mean_state(make):
    parts = make()
    linear = parts.model.head[0]
    expected = F.gelu(mean_vectors(parts) @ linear.weight.T + linear.bias)
    torch.testing.assert_close(parts.model.ranking_table()[1:], expected.detach(), atol=1e-5, rtol=1e-5)
    assert (parts.model.ranking_table()[0] == 0).all()


def test_a_frozen_backbone_is_read_once_and_not_trained(make):
    """Its features are transformers' own, and other models' item text vectors; loss and ranking are unfrozen's."""
    parts, other = make(tuning="frozen"), make()
    model, plain = parts.model, other.model
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model.text_features()[1:], mean_vectors(parts), atol=1e-5, rtol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(model.settings.backbone)
    titles = tokenize_items(parts.train._dataset.item_texts_by_id(["title"]), tokenizer, 30)
    vectors = item_vectors(
        model.settings.backbone, tokenizer, titles, device="cpu", precision=torch.float32, budget=64
    )  # fmt: skip
    torch.testing.assert_close(model.text_features(), vectors, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.ranking_table(), plain.ranking_table(), atol=1e-5, rtol=1e-5)
    steps = [each.prepared_step(each.training_samples(np.random.default_rng(5)))[1][0] for each in (model, plain)]
    losses = [each.pass_loss_sum(step) for each, step in zip((model, plain), steps, strict=True)]
    torch.testing.assert_close(*losses, atol=1e-4, rtol=1e-5)
    assert not steps[0].items
    assert not any(p.requires_grad for p in model.tower.parameters())
    assert not any(name.startswith("tower.") for name in model.stored_state())


def test_gradients_reach_the_word_embeddings_at_a_rate_of_their_own(make):
    """Of the words of this step's titles, and of no other; the head learns at learning_rate."""
    parts = make(learning_rate=1e-3, backbone_learning_rate=1e-5)
    model = parts.model
    model.pass_loss_sum(model.prepared_step(model.training_samples(np.random.default_rng(0)))[1][0]).backward()
    touched = model.tower.backbone.get_input_embeddings().weight.grad.abs().sum(dim=1) > 0
    used = torch.zeros_like(touched)
    used[torch.from_numpy(model.texts.table.values)] = True
    assert torch.equal(touched, used)
    backbone, others = model.parameter_groups()
    assert (backbone["lr"], others["lr"]) == (1e-5, 1e-3)
    assert {id(p) for p in backbone["params"]} == {id(p) for p in model.tower.parameters()}
    assert len(backbone["params"]) + len(others["params"]) == len(list(model.parameters()))


def test_negatives_are_strangers_and_bce_is_that_of_every_position(make):
    """No negative is an item of the user's own training history; the loss is the sum over positions of two terms."""
    model = make(train_negatives=3, MAX_ITEM_LIST_LENGTH=5).model
    histories = model.histories
    samples = model.training_samples(np.random.default_rng(1))
    for start, last in zip(histories.users, histories.last, strict=True):
        own = set(histories.flat[start : last + 1].tolist())
        drawn = set(samples.negatives[start + 1 : last + 1].ravel().tolist())
        assert 0 not in drawn
        assert not own & drawn or len(own) == model.n_items - 1
    _, (step,) = model.prepared_step(samples)
    table = model.item_table()
    expected = 0.0
    for start, end in zip(samples.windows.starts, samples.windows.ends, strict=True):
        for target in range(start + 1, end + 1):
            history = torch.from_numpy(histories.flat[start:target])[None]
            state = model.encoder(table[history], history, torch.tensor([target - start]))[0]
            negatives = samples.negatives[target]
            expected += F.softplus(-state @ table[histories.flat[target]])
            expected += F.softplus(table[torch.from_numpy(negatives)] @ state).mean()
    torch.testing.assert_close(model.pass_loss_sum(step), expected, atol=1e-3, rtol=1e-5)


def test_in_batch_negatives_are_none_of_the_window_own_items(make):
    """The mask of every position: the same item, and all that the window reads or predicts."""
    model = make(item_loss="in-batch", MAX_ITEM_LIST_LENGTH=4).model
    samples = model.training_samples(np.random.default_rng(0))
    _, (step,) = model.prepared_step(samples)
    flat, positions = model.histories.flat, samples.windows.positions()[0]
    windows = [set(flat[a : b + 1].tolist()) for a, b in zip(samples.windows.starts, samples.windows.ends, strict=True)]
    owners = np.repeat(np.arange(len(windows)), samples.windows.positions()[1])
    assert step.candidates.labels.tolist() == flat[positions + 1].tolist()
    assert step.candidates.owners.tolist() == owners.tolist()
    for known, own in zip(step.candidates.known.tolist(), windows, strict=True):
        assert set(known) - {0} == own


def test_bad_input_is_one_sentence(make, small):
    model = make(item_loss="in-batch", train_batch_size=1).model
    one = model.training_samples(np.random.default_rng(0))
    start = one.windows.starts[0]
    single = type(one)(Windows(np.array([start]), np.array([start + 1])), one.negatives)
    with pytest.raises(DataError, match="all 1 targets of a training step are the same item, so every negative is the"):
        model.prepared_step(single)
    rows = next(prefix_rows(make().test))[0]
    rows.interaction["item_length"] = torch.zeros(len(rows), dtype=torch.long)
    with pytest.raises(DataError, match="a history is empty: there is nothing to predict from"):
        model.full_sort_predict(rows)


def test_similarity_of_the_loss_is_that_of_the_ranking(make):
    """Cosine and tau: the same user and item score alike in training and when ranked."""
    parts = make(similarity="cosine", temperature=0.1)
    model = parts.model
    assert isinstance(model.similarity, Similarity)
    rows = next(prefix_rows(parts.test))[0]
    users, table = model.row_vectors(rows), model.ranking_table()
    expected = F.normalize(users, dim=1) @ F.normalize(table, dim=1).T / 0.1
    torch.testing.assert_close(model.full_sort_predict(rows)[:, 1:], expected[:, 1:], atol=1e-5, rtol=1e-5)
