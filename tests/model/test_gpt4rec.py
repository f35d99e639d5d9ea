"""GPT4Rec: its loss against transformers' own, its queries, and what is ranked of what they find."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from small_data import TITLES, build_parts, write_dataset
from tiny_models import rough
from transformers import AutoModelForCausalLM

from recbole_llm.data.title_search import words
from recbole_llm.errors import BackboneError, DataError, SettingError

GPT4REC = {
    "model": "GPT4Rec", "query_prompt": "Bought: {history}. Next:", "max_prompt_tokens": 100, "warmup_steps": 0,
    "max_attribute_tokens": 26, "num_queries": 3,
}  # fmt: skip


def parts_of(small, tiny, backbone="llama", **settings):
    return build_parts(small, **{**GPT4REC, "backbone": str(tiny[backbone]), **settings})


def test_training_text_is_the_prompt_and_the_title(small, tiny):
    model = parts_of(small, tiny).model
    samples = model.training_samples(np.random.default_rng(0)).select(np.array([1, 4]))
    count, (part,) = model.prepared_step(samples)
    tokens, offsets = part.packed.token_ids, part.packed.bounds.offsets
    texts = [
        model._tokenizer.decode(tokens[begin:end])
        for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    ]
    assert texts[0] == f"Bought: {TITLES['a']}. {TITLES['b']}. Next: {TITLES['c']}<|im_end|>"
    answers = [model._tokenizer.decode(part.packed.labels)]
    assert answers[0].startswith(f" {TITLES['c']}<|im_end|>")
    assert count == len(part.packed.labels)


def test_special_tokens_stand_before_a_prompt_alone(small, tiny, monkeypatch):
    """An answer follows a prompt: what a tokenizer puts behind a text must not be between them."""
    monkeypatch.setattr("recbole_llm.data.prompts.special_tokens", lambda tokenizer: ([0], [1]))
    model = parts_of(small, tiny).model
    _, (part,) = model.prepared_step(model.training_samples(np.random.default_rng(0)).select(np.array([0])))
    text = model._tokenizer.decode(part.packed.token_ids)
    assert text == f"<|im_start|>Bought: {TITLES['a']}. Next: {TITLES['b']}<|im_end|>"


def test_loss_is_transformers_loss_on_the_title_alone(small, tiny):
    parts = parts_of(small, tiny, train_batch_tokens=60)
    model = parts.model
    rough(model).eval()
    causal = AutoModelForCausalLM.from_pretrained(tiny["llama"]).eval()
    causal.base_model.load_state_dict(model.backbone.state_dict())
    samples = model.training_samples(np.random.default_rng(0)).select(np.arange(6))
    count, passes = model.prepared_step(samples)
    assert len(passes) > 1
    expected = 0.0
    for part in passes:
        offsets = part.packed.bounds.offsets.tolist()
        for begin, end in itertools.pairwise(offsets):
            tokens = part.packed.token_ids[begin:end]
            places = part.packed.query_index[(part.packed.query_index >= begin) & (part.packed.query_index < end)]
            labels = torch.full_like(tokens, -100)
            labels[places - begin + 1] = tokens[places - begin + 1]
            with torch.no_grad():
                expected += float(causal(tokens[None], labels=labels[None]).loss) * len(places)
    found = sum(float(model.pass_loss_sum(part)) for part in passes)
    assert found == pytest.approx(expected, rel=1e-4)
    assert sum(len(part.packed.query_index) for part in passes) == count


@pytest.mark.parametrize("retrieval", ["paper", "sum"])
def test_a_model_that_writes_the_title_ranks_it_first(small, tiny, monkeypatch, retrieval):
    parts = parts_of(small, tiny, retrieval=retrieval)
    rows = next(iter(parts.test))[0]
    tokens = np.asarray(parts.dataset.field2id_token["item_id"])
    for row, item in enumerate(rows["item_id"].tolist()):
        queries = [(TITLES[tokens[item]], -1.0), ("light", -9.0)]
        monkeypatch.setattr(parts.model, "queries", lambda prompts, given=queries: [given] * len(prompts.lengths))
        scores = parts.model.full_sort_predict(rows[row : row + 1])
        assert int(scores.argmax()) == item
        assert (scores[0].isfinite() == torch.from_numpy(expected_items(tokens, queries))).all()


def expected_items(tokens, queries):
    """Which items share a word with a query."""
    asked = {word for query, _ in queries for word in words(query)}
    return np.array([bool(asked & set(words(TITLES.get(token, "")))) for token in tokens])


def test_queries_are_those_of_transformers_beams(small, tiny):
    """Greedy is the narrowest beam; wider ones are checked in tests/backbone/decoding/test_trie.py."""
    parts = parts_of(small, tiny, num_queries=1)
    model = rough(parts.model).eval()
    causal = AutoModelForCausalLM.from_pretrained(tiny["llama"]).eval()
    causal.base_model.load_state_dict(model.backbone.state_dict())
    rows = next(iter(parts.test))[0]
    items, ends, lengths, _ = model.histories.rows(rows, model.ITEM_SEQ, model.ITEM_SEQ_LEN)
    texts = model.prompts(items, ends, lengths, lengths, lengths)
    found = model.queries(model.padded(texts))
    tokens, _ = model.table.gather(texts.rows)
    begin = 0
    for row, count in enumerate(texts.tokens(model.table).tolist()):
        prompt = torch.from_numpy(tokens[begin : begin + count])[None]
        begin += count
        answer = causal.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=26, do_sample=False, eos_token_id=1,
            pad_token_id=1,
        )[0, count:]  # fmt: skip
        expected = model._tokenizer.decode(answer, skip_special_tokens=True).strip()
        assert [query for query, _ in found[row]] == [expected]


def test_what_is_not_found_is_not_ranked(small, tiny):
    model = parts_of(small, tiny, retrieved_items=2).model
    scores = {}
    for retrieval in (False, True):
        model._by_sum = retrieval
        scores[retrieval] = model.retrieved([("Super Mario light", -1.0), ("the light of a 3D printer", -2.0)])
    assert len(scores[False][0]) == len(scores[True][0]) == 2
    assert model.retrieved([("nothing here", -1.0)]) == ([], [])
    assert model.retrieved([]) == ([], [])
    assert model.extra_results() == {"ranked_items": 2}


def test_sum_is_of_probabilities_and_scores(small, tiny):
    model = parts_of(small, tiny, retrieval="sum").model
    queries = [("Super Mario light", -30.0), ("acoustic light", -30.5)]
    chances = np.exp([0, -0.5]) / np.exp([0, -0.5]).sum()
    total = sum(p * model.search.scores(query) for p, (query, _) in zip(chances, queries, strict=True))
    items, values = model.retrieved(queries)
    assert items == [i + 1 for i in sorted(range(len(total)), key=lambda i: (-total[i], i)) if total[i] > 0]
    assert values == sorted(values, reverse=True)


def test_new_items_are_found_and_read(small, tiny):
    parts = parts_of(small, tiny)
    model, new = parts.model, pd.DataFrame({"title": ["Quantum Cookery", "Bread"]}, index=["n1", "n2"])
    before = model.full_sort_predict(next(iter(parts.test))[0])
    model.add_items(new)
    assert model.retrieved([("quantum bread", -1.0)])[0] == [10, 9]  # behind the eight items of the catalogue
    rows = next(iter(parts.test))[0]
    assert model.full_sort_predict(rows).shape[1] == before.shape[1] + 2
    texts = model.prompts(np.array([9, 10]), np.array([2]), np.array([2]), np.array([0]), np.array([0]))
    tokens, _ = model.table.gather(texts.rows)
    assert model._tokenizer.decode(tokens) == "Bought: Quantum Cookery. Bread. Next:"
    with pytest.raises(DataError, match="the new item 'x' has no text in 'title'"):
        model.add_items(pd.DataFrame({"title": [""]}, index=["x"]))


def test_settings_that_cannot_be_are_refused(small, tiny, tmp_path):
    with pytest.raises(BackboneError, match="writes no text"):
        parts_of(small, tiny, backbone="bert")
    with pytest.raises(SettingError, match="positions"):
        parts_of(small, tiny, max_prompt_tokens=120)
    with pytest.raises(SettingError, match=r"query_prompt must have .history. once"):
        parts_of(small, tiny, query_prompt="What is next?")
    write_dataset(tmp_path, titles={**TITLES, "a": ""})
    with pytest.raises(DataError, match=r"1 items of small have no text in 'title'.*items_without_text=drop"):
        parts_of(tmp_path, tiny, items_without_text="keep")
