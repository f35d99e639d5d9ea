"""The hidden states of a frozen backbone, computed once: what is read from the store is what a pass would give."""

import numpy as np
import pytest
import torch
from small_data import HISTORIES
from st2si_parts import assert_same_gradients, cached_loss_sum, fill, gradients, prefix_rows

from recbole_llm.backbone import feature_store
from recbole_llm.packing.sequences import Sequences

WINDOWS = [
    {"MAX_ITEM_LIST_LENGTH": 50, "max_sequence_tokens": 128},  # u4's 15 items are more tokens than that
    {"MAX_ITEM_LIST_LENGTH": 3},
    {"max_sequence_tokens": 45},
    {"max_items": 1},
]


@pytest.mark.parametrize("limits", WINDOWS)
@pytest.mark.parametrize("window", ["full", "recent"])
def test_cached_training_has_the_loss_and_gradient_of_the_uncached(build_st2si, window, limits):
    model = build_st2si(train_window=window, **limits).model.eval()
    sequences = model.inputs.training_sequences(np.random.default_rng(0))
    samples = np.random.default_rng(1).permutation(len(sequences))[: len(sequences) * 2 // 3]
    plain = model.loss_sum(sequences.select(samples))
    plain.backward()
    expected = gradients(model)
    model.zero_grad()
    parts = build_st2si(train_window=window, **limits)
    parts.model.load_state_dict(model.state_dict())
    cached = cached_loss_sum(fill(parts), samples)
    cached.backward()
    assert float(cached) == pytest.approx(float(plain), rel=1e-5)
    assert_same_gradients(gradients(parts.model), expected)


@pytest.mark.parametrize("limits", WINDOWS)
def test_one_pass_serves_training_validation_and_test_exactly(build_st2si, limits):
    """Stored states equal those of each prefix alone, and none is computed again in evaluation."""
    parts = build_st2si(**limits)
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
def test_evaluation_computes_no_state_again(build_st2si, limits, monkeypatch):
    parts = build_st2si(**limits)
    model = fill(parts)
    monkeypatch.setattr(model, "states_of", lambda *_: pytest.fail("a state was computed again"))
    for loader in (parts.valid, parts.test):
        for interaction, _ in prefix_rows(loader):
            model.full_sort_predict(interaction)


def test_history_that_was_never_stored_is_computed(build_st2si):
    parts = build_st2si()
    model = parts.model
    interaction = next(iter(parts.train))  # prefixes: most of them are no evaluation window
    expected = model.full_sort_predict(interaction)
    fill(parts)
    torch.testing.assert_close(model.full_sort_predict(interaction), expected, atol=1e-5, rtol=1e-4)


def test_short_histories_take_one_pass_a_user(build_st2si):
    """Nothing is computed twice: a user's training, validation and test queries are read off one pass."""
    parts = build_st2si(alignment=False, MAX_ITEM_LIST_LENGTH=50, max_sequence_tokens=128)
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
def test_windows_of_the_same_items_take_one_pass(build_st2si, window):
    parts = build_st2si(alignment=False, max_items=window)
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


def test_memory_mapped_store_gives_the_same(build_st2si, monkeypatch):
    in_memory = fill(build_st2si())
    plain = feature_store.FeatureStore.__init__
    monkeypatch.setattr(
        feature_store.FeatureStore, "__init__", lambda self, *a, **k: plain(self, *a, **{**k, "in_memory": 0})
    )
    parts = build_st2si()
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
