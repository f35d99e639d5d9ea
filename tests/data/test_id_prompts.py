"""Prompts of IDs, laid from pieces, against the tokenizer's own of the whole text."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from recbole_llm.data.answers import word_numbers
from recbole_llm.data.id_prompts import IdPrompts, id_tokens
from recbole_llm.data.item_indexing import numbers

TEMPLATES = [
    "User_{user} chose {history}. What is next?",
    "Given the following purchase history of user_{user}: {history} predict next possible item",
    "What comes after {history}?",
    "The user {user} has {history}",
    "{user}: {history}, and then",
]
USERS = np.array([5, 12, 0, 17, 4])
TEXTS = numbers(np.arange(1, 60))
HISTORY = np.array([3, 11, 58, 2])


def prompts_of(folder, separator):
    """The tokens and words of the same history by every template, and their tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = IdPrompts(TEMPLATES, id_tokens(TEXTS, tokenizer), 20, tokenizer, separator, closed=True)
    ways = np.arange(len(TEMPLATES))
    texts = prompts.texts(np.tile(HISTORY, len(ways)), 4 * (ways + 1), np.full(len(ways), 4), USERS, ways)
    tokens, words = prompts.table.gather(texts.rows)[0], word_numbers(prompts.starts, texts)
    ends = np.cumsum(texts.tokens(prompts.table))[:-1]
    return zip(np.split(tokens, ends), np.split(words, ends), strict=True), tokenizer


@pytest.mark.parametrize("separator", [",", " , ", "; then "])
@pytest.mark.parametrize("backbone", ["t5", "llama", "opt"])
def test_tokens_are_the_tokenizers_own_of_the_whole_text(tiny, backbone, separator):
    """With T5, P5's words too: one begins with each "▁", so what stands right behind an ID belongs to its word."""
    found, tokenizer = prompts_of(tiny[backbone], separator)
    between = separator.removesuffix(" ") + " "
    for way, (tokens, words) in enumerate(found):
        text = TEMPLATES[way].format(user=USERS[way], history=between.join(TEXTS[item] for item in HISTORY))
        whole = tokenizer(text)
        assert tokens.tolist() == whole["input_ids"], text
        if backbone == "t5":
            begins = [token.startswith("▁") for token in whole.tokens()[:-1]]
            assert words[:-1].tolist() == np.cumsum(begins).tolist(), text
            assert tokens[-1] == tokenizer.eos_token_id and words[-1] == words[-2] + 1
        assert words[0] == 1 and set(np.diff(words).tolist()) <= {0, 1}


def test_an_id_is_one_word_of_byte_pairs(tiny):
    """GPT-2's splitting has a word for each mark; all tokens of a number are one, with its space."""
    found, tokenizer = prompts_of(tiny["llama"], ",")
    tokens, words = next(iter(found))
    spelt = tokenizer.convert_ids_to_tokens(tokens.tolist())
    by_word = [""] * int(words[-1])
    for token, word in zip(spelt, words, strict=True):
        by_word[word - 1] += token
    assert by_word == [
        "User", "_5", "Ġchose", "Ġ1003", ",", "Ġ1011", ",", "Ġ1058", ",", "Ġ1002", ".", "ĠWhat", "Ġis", "Ġnext", "?",
    ]  # fmt: skip
