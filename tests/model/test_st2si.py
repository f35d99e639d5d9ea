"""ST2SI's numbers against plain numpy, and every shortcut against the long way round."""

import numpy as np
import pytest
import torch
from small_data import HISTORIES, SHORT
from st2si_parts import assert_same_gradients, cached_loss_sum, fill, gradients, prefix_rows
from transformers import AutoModel, AutoTokenizer

from recbole_llm.errors import BackboneError, SettingError
from recbole_llm.trainer.choose import trainer_class

MODES = [("ilp", "full"), ("ilp", "recent"), ("full", "random")]


def reference_state(folder, items):
    """The last hidden state of X_q for item tokens `items`, by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    query = tokenizer.get_vocab()["."]
    tokens = []
    for item in items:
        tokens += [*tokenizer(SHORT[item], add_special_tokens=False)["input_ids"], query]
    ids = torch.tensor([tokens])
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0, -1].numpy()


def softmax_cross_entropy(states, weight, labels):
    """-log p(label) of each query: row 0 of W takes no probability."""
    logits = states.astype(np.float64) @ weight.astype(np.float64)[1:].T
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels - 1]


# -- scores and loss ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["llama", "opt", "opt_projected"])
def test_scores_are_those_of_transformers_and_numpy(build_st2si, tiny, backbone):
    parts = build_st2si(backbone, titles=SHORT)
    parts.model.eval()
    weight = parts.model.projection.weight.detach().numpy()
    seen = set()
    with torch.no_grad():
        for interaction, _ in prefix_rows(parts.test):
            scores = parts.model.full_sort_predict(interaction).numpy()
            for row, user in enumerate(parts.dataset.id2token("user_id", interaction["user_id"].numpy())):
                state = reference_state(tiny[backbone], HISTORIES[user][:-1])
                np.testing.assert_allclose(scores[row, 1:], weight[1:] @ state, atol=1e-4)
                seen.add(str(user))
    assert seen == {user for user, items in HISTORIES.items() if len(items) > 2}


@pytest.mark.parametrize(("tuning", "window"), MODES)
def test_full_sort_equals_predict_item_by_item(build_st2si, tuning, window):
    parts = build_st2si(tuning=tuning, train_window=window)
    parts.model.eval()
    with torch.no_grad():
        for interaction, _ in prefix_rows(parts.valid):
            scores = parts.model.full_sort_predict(interaction)
            for item in range(1, parts.dataset.item_num):
                interaction.interaction["item_id"] = torch.full((len(interaction),), item)
                torch.testing.assert_close(parts.model.predict(interaction), scores[:, item], atol=1e-5, rtol=1e-5)


def test_padding_item_never_wins_and_takes_no_probability(build_st2si):
    parts = build_st2si()
    model = parts.model
    with torch.no_grad():
        model.projection.weight[0] = 1e4 * torch.ones(32)
        states = torch.ones(3, 32)
        scores = model.projection(states)
        assert torch.isneginf(scores[:, 0]).all()
        assert torch.isfinite(scores[:, 1:]).all()
        labels = torch.tensor([1, 2, 3])
        expected = softmax_cross_entropy(states.numpy(), model.projection.weight.numpy(), labels.numpy()).sum()
        assert float(model.projection.loss(states, labels)) == pytest.approx(expected, rel=1e-5)
    model.projection.loss(states, labels).backward()
    assert not model.projection.weight.grad[0].any()


def test_loss_is_softmax_cross_entropy(build_st2si, tiny):
    parts = build_st2si(titles=SHORT)
    parts.model.eval()
    weight = parts.model.projection.weight.detach().numpy()
    for interaction in parts.train:
        states, labels = [], interaction["item_id"].numpy()
        for row in range(len(interaction)):
            history = interaction["item_id_list"][row, : int(interaction["item_length"][row])].numpy()
            items = parts.dataset.id2token("item_id", history)
            states.append(reference_state(tiny["llama"], items))
        expected = softmax_cross_entropy(np.stack(states), weight, labels).mean()
        assert float(parts.model.calculate_loss(interaction)) == pytest.approx(expected, abs=1e-4)
        break


def test_loss_of_one_row_a_user_is_that_of_its_prefixes(build_st2si):
    """One causal pass gives every prefix's loss: multi-query training computes what RecBole's augmented rows would."""
    parts = build_st2si(titles=SHORT, alignment=False)
    model = parts.model.eval()
    rows = list(parts.train)
    by_prefix = sum(float(model.calculate_loss(rows_)) * len(rows_) for rows_ in rows)
    sequences = model.inputs.training_sequences(np.random.default_rng(0))
    assert len(sequences) < sequences.query_mask.sum() == sum(len(rows_) for rows_ in rows)
    assert float(model.loss_sum(sequences)) == pytest.approx(by_prefix, rel=1e-5)


def test_large_catalogue_is_projected_in_pieces(build_st2si, monkeypatch):
    model = build_st2si().model
    states = torch.randn(37, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.arange(37) % 8 + 1
    whole = model.projection.loss(states, labels)
    whole.backward()
    expected = states.grad.clone(), model.projection.weight.grad.clone()
    reference = torch.nn.functional.cross_entropy(
        states.detach() @ model.projection.weight[1:].T.detach(), labels - 1, reduction="sum"
    )
    assert float(whole) == pytest.approx(float(reference), rel=1e-5)
    states.grad = model.projection.weight.grad = None
    monkeypatch.setattr("recbole_llm.model.layers.item_linear_projection._LOGITS_BYTES", 4 * 9 * 5)  # 5 queries a piece
    monkeypatch.setattr("recbole_llm.model.layers.item_linear_projection._LEAST_QUERIES", 0)
    pieces = model.projection.loss(states, labels)
    (2.0 * pieces).backward()
    assert float(pieces) == pytest.approx(float(whole), rel=1e-6)
    torch.testing.assert_close(states.grad, 2 * expected[0])
    torch.testing.assert_close(model.projection.weight.grad, 2 * expected[1])


# -- against over-fitting ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cached", [False, True])
def test_dropout_before_the_projection(build_st2si, cached, monkeypatch):
    """In training a share of the numbers is 0 and the others are scaled up; evaluation reads the states as they are."""
    plain, parts = build_st2si(), build_st2si(head_dropout=0.25)
    parts.model.load_state_dict(plain.model.state_dict())
    model = fill(parts) if cached else parts.model
    sequences = model.inputs.training_sequences(np.random.default_rng(0))
    states, read = model.states_of(sequences), []

    def loss():
        return cached_loss_sum(model, np.arange(len(sequences))) if cached else model.loss_sum(sequences)

    projected = model.projection.loss
    monkeypatch.setattr(model.projection, "loss", lambda given, *a: read.append(given.detach()) or projected(given, *a))
    model.eval()
    assert float(loss()) == pytest.approx(float(plain.model.eval().loss_sum(sequences)), rel=1e-5)
    torch.testing.assert_close(read.pop(), states, atol=1e-5, rtol=1e-5)
    model.train()
    torch.manual_seed(0)
    for _ in range(200):
        loss()
    found = torch.stack(read)
    kept = found != 0
    assert float((~kept).double().mean()) == pytest.approx(0.25, abs=0.01)
    torch.testing.assert_close(found[kept], (states / 0.75).expand_as(found)[kept], atol=1e-5, rtol=1e-5)
    assert float((found.mean(dim=0) - states).abs().mean()) < 0.06 * float(states.abs().mean())
    model.eval()
    for interaction, _ in prefix_rows(parts.test):
        expected = plain.model.eval().full_sort_predict(interaction)
        torch.testing.assert_close(model.full_sort_predict(interaction), expected, atol=1e-5, rtol=1e-5)


def test_without_dropout_no_random_number_is_drawn(build_st2si):
    model = build_st2si().model.train()
    before = torch.get_rng_state()
    model.loss_sum(model.inputs.training_sequences(np.random.default_rng(0)))
    assert torch.equal(torch.get_rng_state(), before)


# -- what is trained and stored ----------------------------------------------------------------------------------------


def test_encoder_is_refused(build_st2si):
    with pytest.raises(BackboneError, match=r"needs a decoder, .* is an encoder"):
        build_st2si("bert")


def test_window_longer_than_the_models_positions_is_refused(build_st2si):
    with pytest.raises(SettingError, match="max_sequence_tokens=129 is more than the 128 positions"):
        build_st2si(max_sequence_tokens=129)
    with pytest.raises(SettingError, match="positions"):  # a window fits, but not the instruction with the longest item
        build_st2si(max_sequence_tokens=128, alignment_instruction="Please give " * 30)


def test_ilp_tuning_trains_and_stores_the_projection_alone(build_st2si):
    parts = build_st2si("opt")
    model = parts.model.train()
    assert not model.backbone.training, "dropout of a frozen backbone must stay off"
    model.loss_sum(model.inputs.training_sequences(np.random.default_rng(0))).backward()
    assert set(gradients(model)) == {"projection.weight"}
    assert set(model.stored_state()) == {"projection.weight"}


def test_full_tuning_trains_and_stores_everything(build_st2si):
    parts = build_st2si("opt", tuning="full")
    model = parts.model.train()
    assert model.backbone.training
    model.loss_sum(model.inputs.training_sequences(np.random.default_rng(0))).backward()
    assert set(gradients(model)) == {name for name, _ in model.named_parameters()}
    assert set(model.stored_state()) == set(model.state_dict())


# -- training steps ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tuning", ["full", "ilp"])
def test_micro_batches_make_the_same_step(build_st2si, tuning):
    """The budget of tokens changes memory and speed, never the result of an epoch."""

    def weights_after_an_epoch(tokens):
        settings = {"train_window": "random", "train_batch_size": 5, "warmup_steps": 0, "learning_rate": 0.1}
        parts = build_st2si(tuning=tuning, train_batch_tokens=tokens, clip_grad_norm={"max_norm": 0.5}, **settings)
        trainer = parts.trainer()
        # With plain steps a wrong scale of the gradient shows; AdamW would hide it.
        trainer.optimizer = torch.optim.SGD(trainer.optimizer.param_groups, lr=0.1)
        loss = trainer._train_epoch(parts.train, 0)
        return loss, {name: p.detach().clone() for name, p in parts.model.named_parameters()}

    one_loss, one = weights_after_an_epoch(10**6)
    many_loss, many = weights_after_an_epoch(20)
    assert many_loss == pytest.approx(one_loss, rel=1e-5)
    assert_same_gradients(many, one)


def test_step_is_the_mean_over_all_queries(build_st2si):
    parts = build_st2si(tuning="full", train_window="full", train_batch_size=10**6)
    model = parts.model
    trainer = trainer_class(parts.config)(parts.config, model, parts.context)
    sequences = model.inputs.training_sequences(np.random.default_rng(0))
    expected = float(model.eval().loss_sum(sequences)) / sequences.query_mask.sum()
    assert trainer._train_epoch(parts.train, 0) == pytest.approx(expected, rel=1e-5)
