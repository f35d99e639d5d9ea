"""Hard prompts: the tokenizer's own tokens of the whole text, cut as a plain loop would, and clear errors."""

import functools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import HISTORIES, TITLES, build_parts, write_dataset
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from recbole_llm.backbone.special_tokens import special_tokens
from recbole_llm.data.prompt_batches import PromptStyle, pack_prompts
from recbole_llm.data.prompts import PromptLimits, Prompts, PromptTemplate
from recbole_llm.errors import DataError, SettingError

TEXT = "Recommend {noun} the user may like based on their history: {history}."
TEXTS = pd.DataFrame(
    {
        "title": ["", "Toy Story (1995)", "Digital Multimeter", "Zelda", "Super Mario Galaxy 2", "", "Light"],
        "brand": ["", "Pixar", "Fluke", "", "Nintendo", "Nobody", "Black"],
    },
    index=["[PAD]", *"abcdef"],
)
WITHOUT_TEXT = 5


@pytest.fixture(scope="module")
def make(tiny, tmp_path_factory):
    """Prompts of a tiny model's tokenizer."""
    load = functools.cache(lambda kind: kind() if callable(kind) else AutoTokenizer.from_pretrained(tiny[kind]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECBOLE_LLM_CACHE", str(tmp_path_factory.mktemp("cache")))

        def prompts(kind="bert", text=TEXT, item="{title}", noun="games", virtual=0, **limits):
            template = PromptTemplate(text, item, noun)
            sizes = {"items": 50, "tokens": 128, "item_tokens": 32, "positions": 128, **limits}
            return Prompts(template, TEXTS[template.fields], load(kind), PromptLimits(**sizes), virtual), load(kind)

        yield prompts


def sequences_of(prompts, histories, **options):
    """Every history whole, as the model would cut it."""
    lengths = np.array([len(history) for history in histories], dtype=np.int64)
    items = np.array([item for history in histories for item in history], dtype=np.int64)
    return prompts.sequences(items, np.cumsum(lengths), lengths, np.arange(len(histories)) + 1, **options)


def tokens_of(prompts, histories, **options):
    """The token ids of each prompt."""
    sequences = sequences_of(prompts, histories, **options)
    return [prompts.table.gather(sequences.select(np.array([n])).rows)[0].tolist() for n in range(len(sequences))]


def written(history, text=TEXT, noun="games", item="{title}"):
    """The prompt as one text."""
    items = [item.format(**TEXTS.iloc[number]) for number in history]
    return text.format(noun=noun, history=", ".join(items))


# -- the text ----------------------------------------------------------------------------------------------------------

SHAPES = [
    (TEXT, "{title}"),
    ("Your task is to recommend {noun}, say {noun}: {history}. What is next?", "{title}"),
    (TEXT, "{title} by {brand}"),
    ("They bought {history} and want {noun} now", "{title} ({brand}, {title})"),
    ("{history}", "{title}"),
]
WRITTEN = [[1], [4, 3, 1, 6], [2, 2, 2], [6, 4, 1]]


@pytest.mark.parametrize(("text", "item"), SHAPES)
def test_word_pieces_are_those_of_the_whole_text(make, text, item):
    prompts, tokenizer = make("bert", text, item)
    for history, found in zip(WRITTEN, tokens_of(prompts, WRITTEN), strict=True):
        expected = tokenizer(written(history, text, item=item))["input_ids"]
        assert found == expected
        assert (found[0], found[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)


@pytest.mark.parametrize("kind", ["opt", "llama"])
@pytest.mark.parametrize(("text", "item"), SHAPES)
def test_bytes_are_those_of_the_whole_text(make, kind, text, item):
    prompts, tokenizer = make(kind, text, item, tokens=1000, positions=None, item_tokens=100)
    for history, found in zip(WRITTEN, tokens_of(prompts, WRITTEN), strict=True):
        begins = special_tokens(tokenizer)[0]
        assert found[: len(begins)] == begins == ([2] if kind == "opt" else [])
        assert tokenizer.decode(found[len(begins) :]).strip() == written(history, text, item=item)


BEFORE = ("Items:\n", "Items: \n", "Items:\n ", "Items:\t", "Items:  ", "Items: ", "Items:\n\n", "(", "")
BEHIND = (".", "\nWhat is next?", " and more", "\n\nNext:", ")")


def sentence_piece():
    """BPE as Llama 2 has it: a space is written as a character, one stands before every text, and bytes are a last
    resort."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    # no piece is longer than a word, as there
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    every_byte = [f"<0x{number:02X}>" for number in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", *every_byte], show_progress=False)
    tokenizer.train_from_iterator(["Items: " + title for title in TEXTS.title], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<unk>")


def with_a_space_before_all():
    """Byte-level BPE as RoBERTa has it where add_prefix_space is on."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(list(TEXTS.title), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="~")


@pytest.mark.parametrize("kind", ["bert", "opt", "llama", sentence_piece, with_a_space_before_all])
def test_white_space_around_the_history_stays(make, kind):
    for text in [*(f"{start}{{history}}." for start in BEFORE), *(f"Items:\n{{history}}{end}" for end in BEHIND)]:
        prompts, tokenizer = make(kind, text, tokens=1000, positions=None, item_tokens=100)
        histories = [[4, 3, 2], [3], [6, 6]]
        for history, found in zip(histories, tokens_of(prompts, histories), strict=True):
            assert found == tokenizer(written(history, text))["input_ids"], text


def test_a_longer_first_item_keeps_to_the_limit(make):
    for kind in ("opt", "llama", sentence_piece):
        for tokens in range(60, 90):
            prompts, tokenizer = make(kind, "Items:\n{history}.", tokens=tokens, positions=None)
            (found,) = tokens_of(prompts, [[4, 3, 2, 6] * 3])
            assert len(found) <= tokens
            whole = tokenizer(written([4, 3, 2, 6] * 3, "Items:\n{history}."))["input_ids"]
            assert found[-20:] == whole[-20:], "the most recent stay"


def test_braces_of_the_text_itself(make):
    prompts, tokenizer = make(text="Recommend {noun} (of {{these}}): {history}")
    (found,) = tokens_of(prompts, [[3]])
    assert found == tokenizer("Recommend games (of {these}): Zelda")["input_ids"]


def test_placeholders_come_first_where_they_are_wanted(make):
    prompts, tokenizer = make(virtual=3)
    plain = tokens_of(prompts, WRITTEN, virtual=False)
    assert plain == tokens_of(make()[0], WRITTEN)
    for found, rest in zip(tokens_of(prompts, WRITTEN), plain, strict=True):
        assert found == [tokenizer.pad_token_id] * 3 + rest


def test_long_titles_are_cut(make):
    prompts, tokenizer = make(item_tokens=2)
    (found,) = tokens_of(prompts, [[4, 1]])
    cut = [tokenizer(TEXTS.title.iloc[n], add_special_tokens=False)["input_ids"][:2] for n in (4, 1)]
    comma = tokenizer(",", add_special_tokens=False)["input_ids"]
    begin, end = written([3]).split("Zelda")
    begin, end = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (begin, end))
    assert found == [2, *begin, *cut[0], *comma, *cut[1], *end, 3]


@pytest.mark.parametrize(
    ("style", "positions"),
    [
        (PromptStyle(causal=True, pooling="last", absolute=False), [-2, -1, 0, 1, 2]),
        (PromptStyle(causal=False, pooling="mean", absolute=True), [0, 0, 0, 1, 2]),
        (PromptStyle(causal=False, pooling="cls", absolute=True, first_position=2), [2, 2, 2, 3, 4]),
    ],
)
def test_real_tokens_keep_their_positions(make, style, positions):
    prompts, _ = make(virtual=2)
    sequences = sequences_of(prompts, WRITTEN)
    batch = pack_prompts(sequences, prompts.table, style, 2)
    lengths = sequences.tokens(prompts.table)
    assert batch.packed.bounds.lengths == tuple(lengths)
    assert batch.packed.bounds.causal == style.causal
    begins = np.cumsum(lengths) - lengths
    assert batch.virtual_index.tolist() == [place for begin in begins for place in (begin, begin + 1)]
    for part in batch.packed.positions.split(lengths.tolist()):
        assert part[:5].tolist() == positions
        assert (part[2:].diff() == 1).all()
    assert batch.packed.labels.tolist() == [1, 2, 3, 4], "one label a prompt"


# -- the most recent items ---------------------------------------------------------------------------------------------


def plain_cut(prompts, tokenizer, history, items, tokens):
    """The most recent items that fit, one by one from the last."""
    kept = []
    for item in reversed(history):
        longer = [item, *kept]
        if len(longer) > items or len(tokenizer(written(longer))["input_ids"]) > tokens:
            break
        kept = longer
    return kept


WITH_TEXT = [1, 2, 3, 4, 6]
LEAST = 55  # tokens of the instruction and the longest item


@settings(deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(WITH_TEXT), min_size=1, max_size=12), min_size=1, max_size=4),
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(-1, 1),
)
def test_most_recent_items_within_the_limits(make, histories, items, fitting, slack):
    _, tokenizer = make()
    exact = len(tokenizer(written(histories[0][-fitting:]))["input_ids"])
    tokens = min(max(exact + slack, LEAST), 128)  # the last ones of the first history just fit, or just do not
    prompts, _ = make(items=items, tokens=tokens)
    found = tokens_of(prompts, histories)
    for history, ids in zip(histories, found, strict=True):
        expected = plain_cut(prompts, tokenizer, history, items, tokens)
        assert ids == tokenizer(written(expected))["input_ids"]
        assert len(ids) <= tokens


def test_only_a_part_of_a_users_items_is_the_history(make):
    prompts, tokenizer = make()
    items = np.array([1, 2, 3, 4, 6, 1])
    sequences = prompts.sequences(items, np.array([3, 5]), np.array([2, 1]), np.array([4, 1]))
    tokens = [prompts.table.gather(sequences.select(np.array([n])).rows)[0].tolist() for n in (0, 1)]
    assert tokens == [tokenizer(written(history))["input_ids"] for history in ([2, 3], [6])]


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "item", "message"),
    [
        ("Recommend {nuon}: {history}", "{title}", r"prompt has an unknown place \{nuon\}; did you mean 'noun'\?"),
        ("Recommend {title}: {history}", "{title}", "columns of the .item file belong in prompt_item"),
        ("Recommend {}: {history}", "{title}", r"prompt has an unknown place \{\}"),
        ("Recommend {noun}", "{title}", r"prompt must have \{history\} once, but has it 0 times"),
        ("{history} and {history}", "{title}", r"prompt must have \{history\} once, but has it 2 times"),
        ("Recommend {history", "{title}", r"prompt='Recommend \{history' is not understood .* write a brace"),
        (TEXT, "title", r"prompt_item='title' names no column of the .item file, such as \{title\}"),
        (TEXT, "{title", r"prompt_item='\{title' is not understood"),
    ],
)
def test_bad_template(text, item, message):
    with pytest.raises(SettingError, match=message):
        PromptTemplate(text, item, "games")


def test_limits_without_room(make):
    with pytest.raises(SettingError, match="max_prompt_tokens=129 is more than the 128 positions of the backbone"):
        make(tokens=129)
    _, tokenizer = make()
    longest = max(len(tokenizer(written([item]))["input_ids"]) for item in WITH_TEXT)
    make(tokens=longest)
    with pytest.raises(SettingError, match=f"take {longest} tokens, more than max_prompt_tokens={longest - 1}"):
        make(tokens=longest - 1)


def test_histories_that_say_nothing(make):
    prompts, _ = make()
    with pytest.raises(DataError, match="a history is empty: there is nothing to predict from"):
        prompts.sequences(np.array([1, 2]), np.array([1, 1]), np.array([1, 0]), np.array([2, 2]))
    with pytest.raises(DataError, match="an item without text in 'title': set items_without_text=drop"):
        sequences_of(prompts, [[1], [2, WITHOUT_TEXT]])


def adapter_parts(small, tiny, **given_settings):
    quick = {"embedding_size": 8, "epochs": 0}
    given = {
        "model": "IDLEAdapter",
        "backbone": str(tiny["bert"]),
        "max_prompt_tokens": 128,
        "id_model_settings": quick,
        "MAX_ITEM_LIST_LENGTH": 5,
        **given_settings,
    }
    return build_parts(small, **given)


BAD_FIELDS = [
    (
        {"prompt_item": "{titel}"},
        r"no column 'titel'; did you mean 'title'\? Its columns are item_id, title, brand; set prompt_item",
    ),
    ({"prompt_item": "{title} {price}"}, "no column 'price'.* Its columns are item_id, title, brand"),
    (
        {"item_text_fields": ["titel"], "items_without_text": "keep"},
        r"no column 'titel'; did you mean 'title'\?.*set item_text_fields",
    ),
    ({"prompt_item": "{brand}"}, "no item of small has a text in 'brand'"),
]


@pytest.mark.parametrize(("given_settings", "message"), BAD_FIELDS)
def test_template_that_names_what_is_not_there(small, tiny, given_settings, message):
    write_dataset(small, titles={item: [text, ""] for item, text in TITLES.items()}, columns=["title", "brand"])
    with pytest.raises(DataError, match=message):
        adapter_parts(small, tiny, **given_settings)
    assert message.startswith("no item of") or not (small / "saved").exists(), "no ID model is trained before"


def test_item_that_another_column_leaves_without_text(small, tiny):
    brands = {item: [text, "" if item == "h" else "Acme"] for item, text in TITLES.items()}
    write_dataset(small, titles=brands, columns=["title", "brand"])
    parts = adapter_parts(small, tiny, prompt_item="{brand}", mmd_weight=0)
    assert set("h") < set(HISTORIES["u2"])
    with pytest.raises(DataError, match=r"without text in 'brand': set items_without_text=drop.* name 'brand' first"):
        parts.model.full_sort_predict(next(iter(parts.test))[0])
    advised = adapter_parts(small, tiny, prompt_item="{brand}", mmd_weight=0, item_text_fields=["brand"])
    for interaction, *_ in advised.test:
        assert advised.model.full_sort_predict(interaction).shape[1] == len(TITLES)
