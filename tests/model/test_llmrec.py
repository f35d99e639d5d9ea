"""LLM-Rec against transformers' own padded forward pass, and what all models with text towers have in common."""

import numpy as np
import pytest
import torch
from small_data import SHORT, build_parts, write_dataset
from st2si_parts import assert_same_gradients, gradients, prefix_rows
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from recbole_llm.data.targets import Targets
from recbole_llm.model.id_model.user_vector import user_vectors


@pytest.fixture
def make(small, rough_models):
    """The parts of an LLM-Rec run on a tiny OPT in eval mode."""

    write_dataset(small, titles=SHORT)

    def parts(**settings):
        built = build_parts(
            small, **{"model": "LLMRec", "backbone": str(rough_models["opt"]), "train_negatives": 2, **settings}
        )
        built.model.eval()
        return built

    return parts


def padded_vectors(folder, texts):
    """Vectors of texts by transformers: the last token of a padded batch, whose padding is masked."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    longest = max(map(len, texts))
    ids = torch.full((len(texts), longest), tokenizer.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text)
        mask[row, : len(text)] = 1
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    return hidden[torch.arange(len(texts)), mask.sum(1) - 1]


def written(parts, items):
    """The token ids of a history, put together from the items' titles by hand."""
    tokenizer = AutoTokenizer.from_pretrained(parts.model.settings.backbone)
    titles = [SHORT[parts.dataset.id2token("item_id", item)] for item in items]
    pieces = [tokenizer(f" {title};", add_special_tokens=False)["input_ids"] for title in titles]
    return [2, *(token for piece in pieces for token in piece), 2]


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_the_loss_is_that_of_a_padded_forward(make, similarity):
    """-log softmax of the target among the row's negatives, every text encoded by itself."""
    parts = make(similarity=similarity, temperature=0.5)
    model, histories = parts.model, parts.model.histories
    targets = histories.with_negatives(histories.every_target(), 2, np.random.default_rng(3), unmet=False)
    rows, (step,) = model.prepared_step(targets)
    found = model.pass_loss_sum(step)
    losses = []
    for end, length, label, negatives in zip(
        targets.ends, targets.lengths, targets.labels, targets.negatives, strict=True
    ):
        history = histories.flat[end - min(length, 10) : end]
        texts = [written(parts, history), *(written(parts, [item]) for item in (label, *negatives))]
        vectors = padded_vectors(model.settings.backbone, texts)
        if similarity == "cosine":
            vectors = F.normalize(vectors, dim=1)
        scores = vectors[1:] @ vectors[0] / 0.5
        losses.append(-scores.log_softmax(0)[0])
    assert rows == len(losses)
    torch.testing.assert_close(found, torch.stack(losses).sum(), atol=1e-4, rtol=1e-5)


def test_items_of_a_step_encoded_once_have_the_gradient_of_each_occurrence(make):
    """Distinct items, and items encoded again wherever they stand, pull the weights alike."""
    model = make().model
    histories = model.histories
    targets = histories.with_negatives(histories.every_target(), 2, np.random.default_rng(3), unmet=False)
    _, (step,) = model.prepared_step(targets)
    distinct = sum(map(len, step.items))
    assert distinct < targets.labels.size + targets.negatives.size
    loss = model.pass_loss_sum(step)
    loss.backward()
    once = gradients(model)
    model.zero_grad()

    users = model.tower.encode(step.users)
    chosen = np.concatenate([targets.labels[:, None], targets.negatives], axis=1)
    items = model.encode_items(chosen.ravel()).view(*chosen.shape, -1)
    scores = (users[:, None] * items).sum(-1)
    each = F.cross_entropy(scores, torch.zeros(len(chosen), dtype=torch.long), reduction="sum")
    torch.testing.assert_close(each, loss.detach(), atol=1e-4, rtol=1e-5)
    each.backward()
    assert_same_gradients(gradients(model), once)


@pytest.mark.parametrize("item_loss", ["sampled", "in-batch", "full", "bce", "table"])
def test_the_budget_of_a_pass_changes_no_gradient(make, item_loss):
    """One pass, or many with what they keep computed again."""
    results = []
    for budget in (4096, 40):
        model = make(train_batch_tokens=budget, item_loss=item_loss).model
        targets = model.training_samples(np.random.default_rng(0))
        _, steps = model.prepared_step(targets)
        loss = torch.stack([model.pass_loss_sum(step) for step in steps]).sum()
        loss.backward()
        results.append((loss.detach(), gradients(model), sum(len(step.users) for step in steps)))
    (loss, one, few), (other, many, more) = results
    assert few < more
    torch.testing.assert_close(other, loss, atol=1e-4, rtol=1e-5)
    assert_same_gradients(many, one)


def test_ranking_follows_every_change_of_the_weights(make):
    """The table of items is that of the present weights: after a step, a load, and an exchange of the memory."""
    parts = make()
    model = parts.model
    rows = next(prefix_rows(parts.test))[0]

    def expected():
        texts = [written(parts, [item]) for item in range(1, model.n_items)]
        table = model.tower.encode(
            [model.texts.packed(model.texts.singles(np.array([item + 1]))) for item in range(len(texts))]
        )
        return model.row_vectors(rows) @ table.T

    before = model.full_sort_predict(rows)
    torch.testing.assert_close(before[:, 1:], expected().detach(), atol=1e-4, rtol=1e-5)
    assert (before[:, 0] == -torch.inf).all()
    state = {name: weights.clone() for name, weights in model.state_dict().items()}
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
    model.pass_loss_sum(model.prepared_step(model.training_samples(np.random.default_rng(0)))[1][0]).backward()
    optimiser.step()
    after = model.full_sort_predict(rows)
    assert (after[:, 1:] - before[:, 1:]).abs().max() > 0.01
    torch.testing.assert_close(after[:, 1:], expected().detach(), atol=1e-4, rtol=1e-5)
    model.load_state_dict(state)
    torch.testing.assert_close(model.full_sort_predict(rows), before)
    weight = next(model.parameters())
    weight.data = 2 * weight.data
    torch.testing.assert_close(model.full_sort_predict(rows)[:, 1:], expected().detach(), atol=1e-4, rtol=1e-5)


def test_a_history_by_hand_is_that_of_the_dataset(make):
    """Rows that name no place in the dataset give the same vectors; an empty history has one, too."""
    parts = make(similarity="cosine")
    model = parts.model
    rows = next(prefix_rows(parts.test))[0]
    plain = type(rows)({name: rows[name] for name in (model.ITEM_SEQ, model.ITEM_SEQ_LEN)})
    vectors = user_vectors(model, rows)
    torch.testing.assert_close(user_vectors(model, plain), vectors)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(len(rows), 1))
    empty = type(rows)(
        {model.ITEM_SEQ: torch.zeros(1, 3, dtype=torch.long), model.ITEM_SEQ_LEN: torch.zeros(1, dtype=torch.long)}
    )
    assert model.full_sort_predict(empty)[:, 1:].isfinite().all()


def test_one_target_reaches_the_first_item_and_nothing_held_out(make):
    """Targets of many epochs are exactly the training items of every user."""
    model = make(train_prefixes="one").model
    drawn = set()
    for epoch in range(60):
        targets = model.training_samples(np.random.default_rng(epoch))
        assert isinstance(targets, Targets)
        assert len(targets) == len(model.histories.users)
        assert (targets.ends - targets.lengths == model.histories.users).all()
        drawn |= set(targets.ends.tolist())
    trained = [range(a, b + 1) for a, b in zip(model.histories.users, model.histories.last, strict=True)]
    assert drawn == {place for places in trained for place in places}


def test_attention_drops_nothing_in_training(small, rough_models, monkeypatch):
    """A BERT's attention weights stay whole, as the kernel of packed sequences has it; all other dropout is its own."""
    rates = []
    real = F.scaled_dot_product_attention

    def watched(*arguments, **options):
        rates.append(options["dropout_p"])
        return real(*arguments, **options)

    write_dataset(small, titles=SHORT)
    model = build_parts(small, model="LLMRec", backbone=str(rough_models["bert"])).model.train()
    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    _, (step,) = model.prepared_step(model.training_samples(np.random.default_rng(0)))
    vectors = [model.tower.encode(step.items) for _ in range(2)]
    assert model.tower.backbone.config.attention_probs_dropout_prob > 0
    assert set(rates) == {0.0}
    assert not torch.equal(*vectors)
