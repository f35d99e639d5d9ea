"""Prompts with lists of items: pieces laid end to end against the tokenizer's own view of the whole text."""

import numpy as np
import pandas as pd
import pytest
import torch
from testing.model_tests import TITLES
from transformers import AutoTokenizer

from recbole_llm.data.answered_prompts import answered, in_passes, padded_groups
from recbole_llm.data.list_prompts import ListPrompts, ListTemplate, tidy_titles
from recbole_llm.errors import BackboneError, DataError, SettingError

PROMPT = "{history}; next of {count} {noun}: {candidates}: "


@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_tokens_of_a_prompt_are_those_of_its_text(tiny, workdir, kind):
    """Pieces laid end to end say the text that a hosted model would get, and begin as the tokenizer begins a text."""
    tokenizer = AutoTokenizer.from_pretrained(tiny[kind])
    titles = pd.Series(["", "Toy Story", "Comedy's", "3D Printer"], index=["[PAD]", "a", "b", "c"])
    template = ListTemplate("list_prompt", "Met {history}.\nNext of {count} {noun}: {candidates}? Answer: ",
                            ("history", "candidates"), "things")  # fmt: skip
    prompts = ListPrompts(template, titles, tokenizer, item_tokens=20, max_tokens=200, count=2)
    rows = prompts.rows({"history": [1, 2, 3], "candidates": [3, 1]})
    batch = answered(prompts, [rows], [prompts.answer_rows(3)])
    tokens = batch.packed.token_ids.tolist()
    lists = {"history": ["Toy Story", "Comedy's", "3D Printer"], "candidates": ["3D Printer", "Toy Story"]}
    written = template.written(lists, 2)
    assert written == "Met Toy Story, Comedy's, 3D Printer.\nNext of 2 things: 3D Printer, Toy Story? Answer: "
    assert tokens == tokenizer(f"{written}3D Printer\n")["input_ids"]
    learned = tokenizer.decode(batch.packed.labels)
    assert learned == " 3D Printer\n"
    assert torch.equal(batch.packed.token_ids[batch.packed.query_index + 1], batch.packed.labels)
    assert prompts.answer_titles.tolist() == titles.tolist()


def test_chat_template_stands_around_the_prompt(tiny, workdir):
    tokenizer = AutoTokenizer.from_pretrained(tiny["llama"])
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    titles = pd.Series(["", "Toy Story", "Comedy"])
    template = ListTemplate("list_prompt", PROMPT, ("history", "candidates"), "x")
    prompts = ListPrompts(template, titles, tokenizer, item_tokens=20, max_tokens=200, count=1, chat=True)
    rows = prompts.rows({"history": [1, 2], "candidates": [2]})
    tokens = answered(prompts, [rows], [prompts.answer_rows(1)]).packed.token_ids.tolist()
    message = [{"role": "user", "content": "Toy Story, Comedy; next of 1 x: Comedy:"}]
    whole = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(tokens) == f"{whole}Toy Story\n"
    assert tokens[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")


def test_old_items_leave_first_and_a_prompt_that_never_fits_is_refused(tiny, workdir):
    tokenizer = AutoTokenizer.from_pretrained(tiny["llama"])
    template = ListTemplate("list_prompt", PROMPT, ("history", "candidates"), "x")
    titles = pd.Series(["", "Toy Story", "Comedy", "Light"])
    whole = ListPrompts(template, titles, tokenizer, item_tokens=20, max_tokens=500, count=1)
    lists = {"history": [1, 2, 3], "candidates": [1]}
    room = int(whole.table.lengths[whole.rows({"history": [2, 3], "candidates": [1]})].sum())
    tight = ListPrompts(template, titles, tokenizer, item_tokens=20, max_tokens=room, count=1)
    assert tight.rows(lists) == tight.rows({"history": [2, 3], "candidates": [1]})
    tight.max_tokens = 10
    with pytest.raises(DataError, match="without any history, more than the 10 of max_sequence_tokens"):
        tight.rows(lists)


def test_titles_with_the_same_tokens_are_refused(tiny, workdir):
    tokenizer = AutoTokenizer.from_pretrained(tiny["llama"])
    template = ListTemplate("list_prompt", PROMPT, ("history", "candidates"), "x")
    titles = pd.Series(["", "The Legend of Zelda: Ocarina", "The Legend of Zelda: Link", "The Legend of Zelda: Link"])
    with pytest.raises(BackboneError, match="'The Legend of Zelda: Ocarina' and 'The Legend of Zelda: Link' the same"):
        ListPrompts(template, titles, tokenizer, item_tokens=3, max_tokens=200)
    ListPrompts(template, titles, tokenizer, item_tokens=30, max_tokens=200)  # two items of one title are the data's
    with pytest.raises(DataError, match="1 items have no title"):
        ListPrompts(template, pd.Series(["", "a", ""]), tokenizer, item_tokens=30, max_tokens=200)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{history} {candidates} {titles}", "list_prompt has an unknown place {titles}"),
        ("{history}", r"must have \{candidates\} once, but has it 0 times"),
        ("{history} {history} {candidates}", r"must have \{history\} once, but has it 2 times"),
        ("{history", "is not understood"),
    ],
)
def test_templates_that_are_refused(text, message):
    with pytest.raises(SettingError, match=message):
        ListTemplate("list_prompt", text, ("history", "candidates"), "x")


def test_tidy_titles():
    written = pd.Series(["Godfather, The (1972)", "Toy Story", "Il Postino", "Summer, A", "1984", ""])
    assert tidy_titles(written).tolist() == ["The Godfather", "Toy Story", "Il Postino", "A Summer", "1984", ""]


def test_groups_and_passes_hold_all_prompts_within_the_budget(tiny, workdir):
    tokenizer = AutoTokenizer.from_pretrained(tiny["llama"])
    template = ListTemplate("list_prompt", PROMPT, ("history", "candidates"), "x")
    titles = pd.Series(["", *TITLES])
    prompts = ListPrompts(template, titles, tokenizer, item_tokens=20, max_tokens=500)
    rows = [prompts.rows({"history": list(range(1, n)), "candidates": [1, 2]}) for n in (8, 2, 9, 4, 4, 12)]
    tokens = [int(prompts.table.lengths[row].sum()) for row in rows]
    groups = padded_groups(prompts, rows, 130, 8)
    assert sorted(np.concatenate(groups)) == list(range(6))
    assert len(groups) > 1 and all(len(g) == 1 or len(g) * (max(tokens[i] for i in g) + 8) <= 130 for g in groups)
    parts = in_passes(prompts, rows, [prompts.answer_rows(1)] * 6, 130)
    assert sum(len(part.lengths) for part in parts) == 6
    assert all(len(part.packed.token_ids) <= 130 for part in parts)
