"""ST2SI's numbers against plain numpy, and every shortcut against the long way round."""

import numpy as np
import pytest
import torch
from small_data import HISTORIES, SHORT, build_parts, write_dataset
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from recbole_llm import registry
from recbole_llm.backbone import feature_cache
from recbole_llm.data.packing import Sequences
from recbole_llm.errors import BackboneError, SettingError

MODES = [("ilp", "full"), ("ilp", "recent"), ("full", "random")]


@pytest.fixture
def build(small, tiny):
    def make(backbone="llama", titles=None, **settings):
        if titles is not None:
            write_dataset(small, titles=titles)
        return build_parts(small, backbone=str(tiny[backbone]), **{"tuning": "ilp", **settings})

    return make


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


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(found, expected, tolerance=1e-5):
    assert found.keys() == expected.keys()
    assert found
    for name, gradient in expected.items():
        scale = gradient.abs().max().clamp(min=1.0)
        torch.testing.assert_close(found[name] / scale, gradient / scale, atol=tolerance, rtol=tolerance, msg=name)


def prefix_rows(loader):
    for interaction, _, _, positives in loader:
        yield interaction, positives


# -- scores and loss ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["llama", "opt", "opt_projected"])
def test_scores_are_those_of_transformers_and_numpy(build, tiny, backbone):
    parts = build(backbone, titles=SHORT)
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
def test_full_sort_equals_predict_item_by_item(build, tuning, window):
    parts = build(tuning=tuning, train_window=window)
    parts.model.eval()
    with torch.no_grad():
        for interaction, _ in prefix_rows(parts.valid):
            scores = parts.model.full_sort_predict(interaction)
            for item in range(1, parts.dataset.item_num):
                interaction.interaction["item_id"] = torch.full((len(interaction),), item)
                torch.testing.assert_close(parts.model.predict(interaction), scores[:, item], atol=1e-5, rtol=1e-5)


def test_padding_item_never_wins_and_takes_no_probability(build):
    parts = build()
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


def test_loss_is_softmax_cross_entropy(build, tiny):
    parts = build(titles=SHORT)
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


def test_loss_of_one_row_a_user_is_that_of_its_prefixes(build):
    """One causal pass gives every prefix's loss: multi-query training computes what RecBole's augmented rows would."""
    parts = build(titles=SHORT, alignment=False)
    model = parts.model.eval()
    rows = list(parts.train)
    by_prefix = sum(float(model.calculate_loss(rows_)) * len(rows_) for rows_ in rows)
    sequences = model.inputs.training_sequences(np.random.default_rng(0))
    assert len(sequences) < sequences.read.sum() == sum(len(rows_) for rows_ in rows)
    assert float(model.loss_sum(sequences)) == pytest.approx(by_prefix, rel=1e-5)


def test_large_catalogue_is_projected_in_pieces(build, monkeypatch):
    model = build().model
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
    pieces = model.projection.loss(states, labels)
    (2.0 * pieces).backward()
    assert float(pieces) == pytest.approx(float(whole), rel=1e-6)
    torch.testing.assert_close(states.grad, 2 * expected[0])
    torch.testing.assert_close(model.projection.weight.grad, 2 * expected[1])


# -- against over-fitting ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cached", [False, True])
def test_label_smoothing_takes_part_in_the_loss_of_users_and_alignment_inputs(build, cached):
    parts = build(label_smoothing=0.3)
    model = (fill(parts) if cached else parts.model).train()
    sequences = model.inputs.training_sequences(np.random.default_rng(0))
    labels = sequences.labels[sequences.read]
    assert len(labels) > len(model.inputs.alignment_sequences()) > 0
    states = model.states_of(sequences).double()
    logits = states @ model.projection.weight[1:].T.double()
    expected = F.cross_entropy(logits, torch.from_numpy(labels) - 1, reduction="sum", label_smoothing=0.3)
    found = cached_loss_sum(model, np.arange(len(sequences))) if cached else model.loss_sum(sequences)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("cached", [False, True])
def test_dropout_before_the_projection(build, cached, monkeypatch):
    """In training a share of the numbers is 0 and the others are scaled up; evaluation reads the states as they are."""
    plain, parts = build(), build(ilp_dropout=0.25)
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


def test_without_dropout_no_random_number_is_drawn(build):
    model = build().model.train()
    before = torch.get_rng_state()
    model.loss_sum(model.inputs.training_sequences(np.random.default_rng(0)))
    assert torch.equal(torch.get_rng_state(), before)


def test_mixed_windows_are_drawn_anew_in_every_epoch(build):
    model = build(train_window="mixed").model
    assert not model.settings.states_never_change
    inputs = model.inputs
    epochs = [inputs.training_windows(np.random.default_rng(epoch)) for epoch in range(20)]
    users = len(inputs.last_targets)
    full = len(epochs[0]) - users
    pairs = [list(zip(w.starts.tolist(), w.ends.tolist(), strict=True)) for w in epochs]
    assert all(epoch[:full] == pairs[0][:full] for epoch in pairs)
    assert len({tuple(epoch[full:]) for epoch in pairs}) > 10
    # every training target is read once by the full ones, and some of them again by the others
    read = [inputs.window_sequences(w).queries().sum() for w in epochs]
    assert min(read) >= inputs._is_target.sum() + users


# -- what is trained and stored ----------------------------------------------------------------------------------------


def test_encoder_is_refused(build):
    with pytest.raises(BackboneError, match=r"needs a decoder, .* is an encoder"):
        build("bert")


def test_window_longer_than_the_models_positions_is_refused(build):
    with pytest.raises(SettingError, match="max_sequence_tokens=129 is more than the 128 positions"):
        build(max_sequence_tokens=129)
    with pytest.raises(SettingError, match="positions"):  # a window fits, but not the instruction with the longest item
        build(max_sequence_tokens=128, alignment_instruction="Please give " * 30)


def test_ilp_tuning_trains_and_stores_the_projection_alone(build):
    parts = build("opt")
    model = parts.model.train()
    assert not model.backbone.training, "dropout of a frozen backbone must stay off"
    model.loss_sum(model.inputs.training_sequences(np.random.default_rng(0))).backward()
    assert set(gradients(model)) == {"projection.weight"}
    assert set(model.stored_state()) == {"projection.weight"}


def test_full_tuning_trains_and_stores_everything(build):
    parts = build("opt", tuning="full")
    model = parts.model.train()
    assert model.backbone.training
    model.loss_sum(model.inputs.training_sequences(np.random.default_rng(0))).backward()
    assert set(gradients(model)) == {name for name, _ in model.named_parameters()}
    assert set(model.stored_state()) == set(model.state_dict())


# -- frozen states, computed once --------------------------------------------------------------------------------------

WINDOWS = [
    {"MAX_ITEM_LIST_LENGTH": 50, "max_sequence_tokens": 128},  # u4's 15 items are more tokens than that
    {"MAX_ITEM_LIST_LENGTH": 3},
    {"max_sequence_tokens": 45},
    {"max_window_items": 1},
]


def fill(parts):
    parts.model.fill_state_cache([parts.valid.dataset, parts.test.dataset], parts.config["run_folder"], lambda p: p)
    return parts.model


def cached_loss_sum(model, samples):
    return model.pass_loss_sum(model.state_cache.queries(samples))


@pytest.mark.parametrize("limits", WINDOWS)
@pytest.mark.parametrize("window", ["full", "recent"])
def test_cached_training_has_the_loss_and_gradient_of_the_uncached(build, window, limits):
    model = build(train_window=window, **limits).model.eval()
    sequences = model.inputs.training_sequences(np.random.default_rng(0))
    samples = np.random.default_rng(1).permutation(len(sequences))[: len(sequences) * 2 // 3]
    plain = model.loss_sum(sequences.select(samples))
    plain.backward()
    expected = gradients(model)
    model.zero_grad()
    parts = build(train_window=window, **limits)
    parts.model.load_state_dict(model.state_dict())
    cached = cached_loss_sum(fill(parts), samples)
    cached.backward()
    assert float(cached) == pytest.approx(float(plain), rel=1e-5)
    assert_same_gradients(gradients(parts.model), expected)


@pytest.mark.parametrize("limits", WINDOWS)
def test_one_pass_serves_training_validation_and_test_exactly(build, limits):
    """Stored states equal those of each prefix alone, and none is computed again in evaluation."""
    parts = build(**limits)
    model = fill(parts)
    cache = model.state_cache
    inputs = model.inputs
    # training: position by position, each window's prefix by itself
    windows = inputs.training_windows(np.random.default_rng(0))
    for sample, (start, end) in enumerate(zip(windows.starts, windows.ends, strict=True)):
        queries = cache.queries(np.array([sample]))
        states, labels = cache.store.take(queries.rows), queries.labels
        assert labels.tolist() == inputs.histories.items[start + 1 : end + 1].tolist()
        for number, last in enumerate(range(start, end)):
            rows = inputs.histories.items[start : last + 1]
            read = np.arange(len(rows)) == len(rows) - 1
            alone = model.states_of(Sequences(rows, np.array([len(rows)]), read, np.zeros_like(rows)))
            torch.testing.assert_close(states[number], alone[0], atol=1e-5, rtol=1e-4)
    # evaluation: through RecBole's own rows
    for loader in (parts.valid, parts.test):
        for interaction, _ in prefix_rows(loader):
            with_cache = model.full_sort_predict(interaction)
            model.state_cache = None
            without = model.full_sort_predict(interaction)
            model.state_cache = cache
            torch.testing.assert_close(with_cache, without, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("limits", WINDOWS)
def test_evaluation_computes_no_state_again(build, limits, monkeypatch):
    parts = build(**limits)
    model = fill(parts)
    monkeypatch.setattr(model, "states_of", lambda *_: pytest.fail("a state was computed again"))
    for loader in (parts.valid, parts.test):
        for interaction, _ in prefix_rows(loader):
            model.full_sort_predict(interaction)


def test_history_that_was_never_stored_is_computed(build):
    parts = build()
    model = parts.model
    interaction = next(iter(parts.train))  # prefixes: most of them are no evaluation window
    expected = model.full_sort_predict(interaction)
    fill(parts)
    torch.testing.assert_close(model.full_sort_predict(interaction), expected, atol=1e-5, rtol=1e-4)


def test_short_histories_take_one_pass_a_user(build):
    """Nothing is computed twice: a user's training, validation and test queries are read off one pass."""
    parts = build(alignment=False, MAX_ITEM_LIST_LENGTH=50, max_sequence_tokens=128)
    model = parts.model
    read = []
    original = model.states_of
    model.states_of = lambda sequences: read.append(sequences) or original(sequences)
    fill(parts)
    passes = [s.rows[e - c : e] for s in read for e, c in zip(np.cumsum(s.counts), s.counts, strict=True)]
    written = sorted("".join(parts.dataset.id2token("item_id", rows)) for rows in passes)
    short = {user: items for user, items in HISTORIES.items() if user not in ("u4", "u7")}
    for user, items in short.items():
        assert written.count(items[:-1]) == 1, f"{user}: {written}"
        assert not [w for w in written if w != items[:-1] and items[:-1].startswith(w) and len(w) > 1], written


@pytest.mark.parametrize("window", [1, 2])
def test_windows_of_the_same_items_take_one_pass(build, window):
    parts = build(alignment=False, max_window_items=window)
    model = parts.model
    read = []
    original = model.states_of
    model.states_of = lambda sequences: read.append(sequences) or original(sequences)
    fill(parts)
    passes = [tuple(s.rows[e - c : e]) for s in read for e, c in zip(np.cumsum(s.counts), s.counts, strict=True)]
    assert len(passes) == len(set(passes))
    flat, starts = (values.numpy() for values in (parts.dataset.history_items, parts.dataset.history_start))
    ends = [
        end for end in range(len(flat)) if end + 1 < len(flat) and starts[end + 1] == starts[end]
    ]  # before a target
    seen = {tuple(flat[max(starts[end], end + 1 - window) : end + 1]) for end in ends}
    assert set(passes) <= seen
    if window == 1:
        assert set(passes) == seen


def test_memory_mapped_store_gives_the_same(build, monkeypatch):
    in_memory = fill(build())
    plain = feature_cache.FeatureStore.__init__
    monkeypatch.setattr(
        feature_cache.FeatureStore, "__init__", lambda self, *a, **k: plain(self, *a, **{**k, "in_memory": 0})
    )
    parts = build()
    parts.model.load_state_dict(in_memory.state_dict())
    mapped = fill(parts)
    samples = np.arange(len(in_memory.state_cache.samples))
    found, expected = (model.state_cache.queries(samples) for model in (mapped, in_memory))
    torch.testing.assert_close(found.labels, expected.labels, atol=0, rtol=0)
    states = [model.state_cache.store.take(found.rows) for model in (mapped, in_memory)]
    torch.testing.assert_close(states[0], states[1], atol=0, rtol=0)
    cached_loss_sum(mapped, samples).backward()
    cached_loss_sum(in_memory, samples).backward()
    torch.testing.assert_close(mapped.projection.weight.grad, in_memory.projection.weight.grad, atol=0, rtol=0)


# -- training steps ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tuning", ["full", "ilp"])
def test_micro_batches_make_the_same_step(build, tuning):
    """The budget of tokens changes memory and speed, never the result of an epoch."""

    def weights_after_an_epoch(tokens):
        settings = {"train_window": "random", "train_batch_size": 5, "warmup_steps": 0, "learning_rate": 0.1}
        parts = build(tuning=tuning, train_batch_tokens=tokens, clip_grad_norm={"max_norm": 0.5}, **settings)
        trainer = registry.trainer_class(parts.config)(parts.config, parts.model)
        # With plain steps a wrong scale of the gradient shows; AdamW would hide it.
        trainer.optimizer = torch.optim.SGD(trainer.optimizer.param_groups, lr=0.1)
        loss = trainer._train_epoch(parts.train, 0)
        return loss, {name: p.detach().clone() for name, p in parts.model.named_parameters()}

    one_loss, one = weights_after_an_epoch(10**6)
    many_loss, many = weights_after_an_epoch(20)
    assert many_loss == pytest.approx(one_loss, rel=1e-5)
    assert_same_gradients(many, one)


def test_step_is_the_mean_over_all_queries(build):
    parts = build(tuning="full", train_window="full", train_batch_size=10**6)
    model = parts.model
    trainer = registry.trainer_class(parts.config)(parts.config, model)
    sequences = model.inputs.training_sequences(np.random.default_rng(0))
    expected = float(model.eval().loss_sum(sequences)) / sequences.read.sum()
    assert trainer._train_epoch(parts.train, 0) == pytest.approx(expected, rel=1e-5)
