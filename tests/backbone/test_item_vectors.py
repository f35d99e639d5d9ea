"""Item text vectors against transformers itself, one text at a time."""

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import TITLES, rough
from transformers import AutoModel, AutoTokenizer

from recbole_llm.backbone import item_vectors as module
from recbole_llm.backbone.item_vectors import framed_rows, item_vectors
from recbole_llm.backbone.loading import load_tokenizer
from recbole_llm.data.item_text import tokenize_items, without_words
from recbole_llm.errors import SettingError
from recbole_llm.packing.ragged import RaggedTable

# Row 0 is the padding item; an item in the middle has no text.
TEXTS = pd.DataFrame({"title": ["", *TITLES[:3], "", *TITLES[3:]]})


@pytest.fixture
def folder(request, tiny, tmp_path, workdir):
    """A copy of a tiny model with weights that a fresh one does not have."""
    path = tmp_path / request.param
    rough(AutoModel.from_pretrained(tiny[request.param])).save_pretrained(path)
    AutoTokenizer.from_pretrained(tiny[request.param]).save_pretrained(path)
    return path


def vectors_of(folder, **options):
    tokenizer = load_tokenizer(str(folder))
    table = tokenize_items(TEXTS, tokenizer, 100)
    options = {"device": "cpu", "precision": torch.float32, "budget": 40, **options}
    return item_vectors(str(folder), tokenizer, table, **options)


def alone(folder, pooling):
    """Each title through transformers' own model, with its tokenizer's own special tokens."""
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for text in TEXTS["title"]:
        if not text:
            rows.append(torch.zeros(rows[-1].shape if rows else model.config.hidden_size))
            continue
        tokens = tokenizer(text, return_tensors="pt")
        if model.config.model_type == "longformer":  # <s> sees all and is seen by all
            tokens["global_attention_mask"] = (torch.arange(tokens["input_ids"].shape[1]) == 0)[None].long()
        with torch.no_grad():
            states = model(**tokens).last_hidden_state[0]
        rows.append({"mean": states.mean(dim=0), "cls": states[0], "last": states[-1]}[pooling])
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("folder", "pooling", "own"),
    [
        ("bert", None, "mean"),
        ("bert", "cls", "cls"),
        ("opt", None, "last"),
        ("llama", "mean", "mean"),
        ("longformer", None, "mean"),
    ],
    indirect=["folder"],
)
def test_vectors_are_those_of_transformers_alone(folder, pooling, own):
    """Packing, special tokens and pooling change no number; padding and an item without text are zero."""
    found = vectors_of(folder, pooling=pooling)
    torch.testing.assert_close(found, alone(folder, own), atol=1e-5, rtol=1e-5)
    assert not found[[0, 4]].any()


@pytest.mark.parametrize("folder", ["bert"], indirect=True)
def test_vectors_are_computed_once_by_content(folder, monkeypatch):
    """The same texts are found again; other pooling, other texts and other weights are computed."""
    computed = []
    plain = module.load_backbone
    monkeypatch.setattr(module, "load_backbone", lambda *a, **k: computed.append(1) or plain(*a, **k))
    first = vectors_of(folder)
    assert torch.equal(vectors_of(folder, budget=4096), first)
    assert len(computed) == 1
    vectors_of(folder, pooling="cls")
    model = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight.mul_(2)
    model.save_pretrained(folder)
    assert not torch.allclose(vectors_of(folder), first)
    assert len(computed) == 3


@pytest.mark.parametrize("folder", ["bert"], indirect=True)
def test_a_broken_store_is_made_again(folder, workdir):
    """A file that was cut short is replaced."""
    first = vectors_of(folder)
    (path,) = (workdir / "cache" / "item_vectors").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:50])
    assert torch.equal(vectors_of(folder), first)


@pytest.mark.parametrize("folder", ["bert"], indirect=True)
def test_a_text_that_is_too_long_is_refused(folder):
    """One sentence that names the two lengths and what to do."""
    tokenizer = load_tokenizer(str(folder))
    table = RaggedTable.from_rows([[], [7] * 127])
    with pytest.raises(SettingError, match=r"takes 129 tokens, more than the 128 positions .* lower max_attribute"):
        item_vectors(str(folder), tokenizer, table, device="cpu", precision=torch.float32, budget=64)


def test_frames_stand_around_filled_rows_alone():
    """By hand."""
    framed = framed_rows(RaggedTable.from_rows([[], [5], [], [6, 7]]), [1, 2], [3])
    assert [framed.row(index).tolist() for index in range(4)] == [[], [1, 2, 5, 3], [], [1, 2, 6, 7, 3]]


def test_dropped_words_are_drawn_by_the_seed():
    """A share of the words goes, one is always left, and a seed gives the same words."""
    texts = pd.DataFrame({"title": ["", *["one", "two", "three", "four", "five", "six", "seven", "eight"]]})
    whole = pd.DataFrame({"title": [" ".join(texts["title"][1:])] * 500})
    found = without_words(whole, 0.25, seed=3)
    words = found["title"].str.split(" ").map(len)
    assert abs(words.mean() - 6) < 0.2
    assert without_words(whole, 0.25, seed=3).equals(found)
    assert not without_words(whole, 0.25, seed=4).equals(found)
    assert without_words(texts, 1.0, seed=3).equals(texts)  # one word, or none, stays as it is
    order = np.array(whole["title"][0].split(" "))
    assert all((np.diff([np.flatnonzero(order == w)[0] for w in row.split(" ")]) > 0).all() for row in found["title"])
