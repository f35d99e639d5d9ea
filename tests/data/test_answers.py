"""Prompts of IDs as text, and packed answers: tokens, places and words by hand."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from recbole_llm.data.answers import TextRows, pack_answers, word_numbers
from recbole_llm.data.id_prompts import IdPrompts, id_tokens
from recbole_llm.errors import SettingError
from recbole_llm.packing.ragged import RaggedTable

TEMPLATES = ["User_{user} chose {history}. What is next?", "After {history} comes"]


@pytest.fixture(params=["llama", "opt"])
def tokenizer(tiny, request):
    return AutoTokenizer.from_pretrained(tiny[request.param])


def prompts_of(tokenizer, templates=TEMPLATES):
    ids = id_tokens(["", "1001", "1002", "1003"], tokenizer)
    return IdPrompts(list(templates), ids, 30, tokenizer, ",")


def some_texts(prompts):
    items = np.array([1, 2, 3, 3, 1])
    ends, lengths = np.array([3, 5, 1]), np.array([2, 1, 1])
    return prompts.texts(items, ends, lengths, np.array([7, 8, 29]), np.array([1, 0, 1]))


def test_prompts_are_the_tokens_of_their_texts(tokenizer):
    prompts = prompts_of(tokenizer)
    texts = some_texts(prompts).followed_by(np.array([2, 3, 1]))
    tokens, row_tokens = prompts.table.gather(texts.rows)
    owner = np.repeat(np.repeat(np.arange(3), texts.counts), row_tokens)
    expected = [
        "After 1002, 1003 comes 1002", "User_8 chose 1001. What is next? 1003", "After 1001 comes 1001",
    ]  # fmt: skip
    for row, text in enumerate(expected):
        found = tokens[owner == row]
        assert tokenizer.decode(found, skip_special_tokens=True) == text
        assert found.tolist() == tokenizer(text)["input_ids"]
    assert max(texts.tokens(prompts.table)) <= prompts.longest(2)


def test_words_are_counted(tokenizer):
    prompts = prompts_of(tokenizer, ["Say {history} now"])
    texts = prompts.texts(np.array([1, 2]), np.array([2]), np.array([2]), np.array([0]), np.array([0]))
    words = word_numbers(prompts.starts, texts)
    tokens, _ = prompts.table.gather(texts.rows)
    first = len(tokenizer("Say")["input_ids"]) - len(tokenizer("Say", add_special_tokens=False)["input_ids"])
    pieces = [
        tokenizer(piece, add_special_tokens=False)["input_ids"] for piece in ("Say", " 1001", ",", " 1002", " now")
    ]
    expected = [*range(1, first + 1)]
    for word, piece in enumerate(pieces):
        expected += [first + word + 1] * len(piece)
    assert words.tolist() == expected
    assert len(tokens) == len(expected)


def test_answers_are_labelled_at_the_place_before_each_token():
    table = RaggedTable.from_rows([[10, 11], [12], [20, 21, 22], [30]])
    starts = RaggedTable.from_rows([[1, 0], [1], [1, 0, 0], [1]])
    texts = TextRows(np.array([0, 1, 2, 1, 3]), np.array([3, 2]))
    packed = pack_answers(texts, table, starts)
    assert packed.packed.token_ids.tolist() == [10, 11, 12, 20, 21, 22, 12, 30]
    assert packed.packed.positions.tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
    assert packed.packed.query_index.tolist() == [2, 3, 4, 6]
    assert packed.packed.labels.tolist() == [20, 21, 22, 30]
    assert packed.words.tolist() == [1, 1, 2, 3, 3, 3, 1, 2]
    other = pack_answers(texts.select(np.array([1, 0])), table)
    assert other.packed.token_ids.tolist() == [12, 30, 10, 11, 12, 20, 21, 22]
    assert other.words is None


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("What is next?", "must have {history} once"),
        ("{history} and {history}", "must have {history} once"),
        ("{history} of {user}", "{user} at most once, before it"),
        ("{histories} of", "unknown place {histories}.*did you mean 'history'"),
        ("{history", "is not understood"),
    ],
)
def test_templates_are_checked(tokenizer, template, message):
    with pytest.raises(SettingError, match=message):
        prompts_of(tokenizer, [template])
