"""Items and histories as texts: what is written in which order, and what each token is said to be."""

import numpy as np
import pandas as pd
import pytest
from transformers import AutoTokenizer

from recbole_llm.data.history_texts import (
    NAME,
    VALUE,
    HistoryTexts,
    TextStyle,
    around_texts,
    named_texts,
    plain_texts,
)
from recbole_llm.data.windows import WindowLimits
from recbole_llm.errors import DataError, SettingError

TEXTS = pd.DataFrame(
    {"title": ["", "Toy Story", "Guitar Strings, Light", "Zelda"], "brand": ["", "Disney", "", "Nintendo"]}
)


@pytest.mark.parametrize("backbone", ["bert", "opt"])
def test_plain_items_end_with_their_end_within_the_limit(tiny, backbone):
    """Where the tokenizer keeps spaces, a history reads as the titles with `; ` between them do."""
    tokenizer = AutoTokenizer.from_pretrained(tiny[backbone])
    items = plain_texts(TEXTS[["title"]], tokenizer, 40, ";")
    written = "".join(f" {title};" for title in TEXTS["title"][1:])
    expected = tokenizer(written, add_special_tokens=False)["input_ids"]
    found, _ = items.table.gather(np.array([1, 2, 3]))
    assert found.tolist() == expected
    assert set(items.kinds) == {VALUE}
    short = plain_texts(TEXTS[["title"]], tokenizer, 3, ";").table
    assert short.lengths.tolist()[0] == 0
    assert short.lengths.max() == 3
    end = tokenizer(";", add_special_tokens=False)["input_ids"]
    assert all(short.row(item).tolist()[-1:] == end for item in (1, 2, 3))
    with pytest.raises(SettingError, match="max_attribute_tokens=1 leaves no room beside item_end=';': raise it"):
        plain_texts(TEXTS[["title"]], tokenizer, 1, ";")


def test_named_items_say_what_is_name_and_what_value(tiny):
    """A field without a value is left out; the limit counts the name; an item without its first field has no text."""
    tokenizer = AutoTokenizer.from_pretrained(tiny["bert"])
    items = named_texts(TEXTS, tokenizer, 4)
    for item, (title, brand) in enumerate(TEXTS.itertuples(index=False)):
        tokens, kinds = [], []
        for name, value in (("title", title), ("brand", brand)):
            if title and value:
                pieces = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (name, value)]
                tokens += [*pieces[0], *pieces[1]][:4]
                kinds += ([NAME] * len(pieces[0]) + [VALUE] * len(pieces[1]))[:4]
        assert items.table.row(item).tolist() == tokens
        begin, end = items.table.offsets[item : item + 2]
        assert items.kinds[begin:end].tolist() == kinds


@pytest.mark.parametrize("newest_first", [False, True])
def test_histories_are_their_newest_whole_items(tiny, newest_first):
    tokenizer = AutoTokenizer.from_pretrained(tiny["bert"])
    items = plain_texts(TEXTS[["title"]], tokenizer, 40)
    style = TextStyle(causal=False, pooling="mean", first_position=2, marked=True)
    texts = HistoryTexts(items, ([2], [3]), WindowLimits(3, 1000), style, newest_first)
    flat = np.array([1, 2, 3, 1, 3, 2])
    packed = texts.packed(texts.histories(flat, np.array([5, 2, 0]), np.array([4, 2, 0])))
    histories = [[3, 1, 3], [1, 2], []]
    tokens, places, positions = [], [], []
    for history in histories:
        shown = history[::-1] if newest_first else history
        rows = [[2], *(items.table.row(item).tolist() for item in shown), [3]]
        tokens += [token for row in rows for token in row]
        places += [place for place, row in enumerate(rows) for _ in row]
        positions += range(2, 2 + sum(map(len, rows)))
    assert packed.packed.token_ids.tolist() == tokens
    assert packed.places.tolist() == places
    assert packed.packed.positions.tolist() == positions
    assert [place == 0 for place in packed.places.tolist()].count(True) == 3
    assert len(packed) == 3
    singles = texts.packed(texts.singles(np.array([3, 1])))
    alone = texts.packed(texts.histories(np.array([3, 1]), np.array([1, 2]), np.array([1, 1])))
    assert singles.packed.token_ids.tolist() == alone.packed.token_ids.tolist()
    with pytest.raises(DataError, match="a history holds an item without text: set items_without_text=drop"):
        texts.histories(np.array([0]), np.array([1]), np.array([1]))


def test_what_stands_around_a_text():
    """A decoder is read at a token that is no item's; BERT's frame stays."""
    assert around_texts([2], [3], 9, causal=False) == ([2], [3])
    assert around_texts([2], [], 9, causal=True) == ([2], [9])
    assert around_texts([], [], 9, causal=True) == ([], [9])
    assert around_texts([2], [3], 9, causal=True) == ([2], [3])
