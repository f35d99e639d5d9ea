"""Recformer's four-fold sum of embeddings by hand, and its attention against transformers' Longformer."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from plain_longformer import PlainLongformer
from recbole.data.interaction import Interaction
from small_data import build_parts, write_dataset
from st2si_parts import prefix_rows
from tiny_models import rough, tiny_bert
from torch.nn import functional as F
from transformers import AutoTokenizer, LongformerConfig, LongformerModel, RobertaConfig, RobertaModel

from recbole_llm.errors import BackboneError, DataError, SettingError

TITLES = {
    "a": ["Toy Story", "Disney"], "b": ["Guitar", ""], "c": ["Multimeter", "Fluke"], "d": ["Zelda", "Nintendo"],
    "e": ["Mario", "Nintendo"], "f": ["Filament", "PLA"], "g": ["Comedy", ""], "h": ["Light", "Gauge"],
}  # fmt: skip
FIELDS = ["title", "brand"]


@pytest.fixture
def data(small):
    return write_dataset(small, titles=TITLES, columns=FIELDS)


def build_eval(data, backbone, **settings):
    parts = build_parts(
        data, model="Recformer", backbone=str(backbone), item_text_fields=FIELDS, max_attribute_tokens=6, **settings
    )
    torch.manual_seed(4)
    with torch.no_grad():  # kinds begin at 0: what is left out would not show
        parts.model.tower.kinds.weight.normal_(std=0.5)
        parts.model.tower.places.weight.normal_(std=0.5)
    parts.model.eval()
    return parts


def by_hand(parts, items):
    """Tokens, kinds and places of a history of item ids, the oldest first, written out."""
    tokenizer = AutoTokenizer.from_pretrained(parts.model.settings.backbone)

    space = " " if tokenizer.mask_token == "<mask>" else ""  # which RoBERTa's tokenizer keeps

    def encode(text):
        return tokenizer(space + text, add_special_tokens=False)["input_ids"]

    tokens, kinds, places = [tokenizer.cls_token_id], [0], [0]
    for place, item in enumerate(reversed(items), start=1):
        values = TITLES[parts.dataset.id2token("item_id", item)]
        for name, value in zip(FIELDS, values, strict=True):
            if not value:
                continue
            written = [(token, 1) for token in encode(name)] + [(token, 2) for token in encode(value)]
            for token, kind in written[:6]:
                tokens.append(token)
                kinds.append(kind)
                places.append(place)
    return tokens, kinds, places


def test_the_first_layer_reads_four_embeddings_newest_item_first(data, rough_models):
    """Word, position, kind and place are added, with the backbone's own row of token types, and normalised."""
    parts = build_eval(data, rough_models["bert"])
    model, seen = parts.model, []
    embedding = model.tower.backbone.embeddings
    embedding.register_forward_hook(lambda module, given, output: seen.append(output[0]))
    items = [3, 1, 2]
    history = Interaction({model.ITEM_SEQ: torch.tensor([[*items, 0]]), model.ITEM_SEQ_LEN: torch.tensor([3])})
    vector = model.row_vectors(history)
    tokens, kinds, places = (torch.tensor(each) for each in by_hand(parts, items))
    assert kinds.tolist().count(1) >= 4
    summed = (
        embedding.word_embeddings.weight[tokens]
        + embedding.position_embeddings.weight[: len(tokens)]
        + embedding.token_type_embeddings.weight[0]
        + model.tower.kinds.weight[kinds]
        + model.tower.places.weight[places]
    )
    expected = F.layer_norm(
        summed, summed.shape[-1:], embedding.LayerNorm.weight, embedding.LayerNorm.bias, embedding.LayerNorm.eps
    )
    torch.testing.assert_close(seen[0], expected, atol=1e-5, rtol=1e-5)
    # An item alone is a history of one item: the same vector, and so a cosine of 1 over tau.
    one = Interaction({model.ITEM_SEQ: torch.tensor([[2]]), model.ITEM_SEQ_LEN: torch.tensor([1])})
    torch.testing.assert_close(model.full_sort_predict(one)[0, 2].item(), 1 / 0.05, atol=1e-4, rtol=1e-5)
    assert not torch.allclose(vector, model.row_vectors(one), atol=1e-2)


@pytest.fixture(scope="module")
def longformer(tmp_path_factory):
    """A tiny Longformer that sees everything, and the RoBERTa of the same weights as a backbone's folder."""
    folder = tmp_path_factory.mktemp("roberta")
    tiny_bert(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sizes = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 260, "type_vocab_size": 1, "pad_token_id": 1,
        "layer_norm_eps": 1e-5,
    }  # fmt: skip
    torch.manual_seed(0)
    long = rough(LongformerModel(LongformerConfig(attention_window=256, **sizes), add_pooling_layer=False)).eval()
    state = long.state_dict()
    for name in state:
        if "_global" in name:
            state[name].copy_(state[name.replace("_global", "")])
    short = RobertaModel(RobertaConfig(**sizes), add_pooling_layer=False).eval()
    wanted = set(short.state_dict())
    short.load_state_dict({name: weight for name, weight in state.items() if name in wanted})
    short.save_pretrained(folder)
    return long, folder


def test_full_attention_is_a_longformer_whose_window_sees_all(data, longformer):
    """Every user vector is transformers' own, in padded form: half the window is no less than the text."""
    long, folder = longformer
    parts = build_eval(data, folder)
    model = parts.model
    for rows, _ in prefix_rows(parts.test):
        found = model.row_vectors(rows)
        for row, vector in enumerate(found):
            items = rows["item_id_list"][row][: rows["item_length"][row]].tolist()
            tokens, kinds, places = (torch.tensor(each) for each in by_hand(parts, items))
            if len(tokens) > 100:  # max_sequence_tokens: the oldest items are left out
                continue
            embedded = long.embeddings.word_embeddings.weight[tokens]
            embedded = embedded + model.tower.kinds.weight[kinds] + model.tower.places.weight[places]
            first = torch.zeros(1, len(tokens), dtype=torch.long)
            first[0, 0] = 1
            with torch.no_grad():
                output = long(
                    inputs_embeds=embedded[None], attention_mask=torch.ones_like(first), global_attention_mask=first
                )
            torch.testing.assert_close(vector, output.last_hidden_state[0, 0], atol=1e-4, rtol=1e-4)


def test_a_longformer_reads_histories_in_windows(data, rough_models):
    """Every user vector by layers in numpy: the four-fold sum, windows shorter than the text, <s> global."""
    parts = build_eval(
        data, rough_models["longformer"], attention_window=4, max_sequence_tokens=128, eval_batch_tokens=300
    )
    model = parts.model
    plain = PlainLongformer(model.tower.backbone)
    words = plain.weights["embeddings.word_embeddings.weight"]
    kinds_of, places_of = (each.weight.detach().double().numpy() for each in (model.tower.kinds, model.tower.places))
    longest = 0
    for rows, _ in prefix_rows(parts.test):
        for row, vector in enumerate(model.row_vectors(rows)):
            items = rows["item_id_list"][row][: rows["item_length"][row]].tolist()
            while len(by_hand(parts, items)[0]) > 128:
                items = items[1:]
            tokens, kinds, places = by_hand(parts, items)
            states = plain.states(words[tokens] + kinds_of[kinds] + places_of[places], [4, 4])
            np.testing.assert_allclose(vector.detach().numpy(), states[0], atol=1e-4, rtol=1e-4)
            longest = max(longest, len(tokens))
    assert longest > 100


def test_passes_of_a_longformer_hold_texts_of_like_length(data, rough_models):
    """Bounded with their padding; a step in one pass and one in many have the same loss and gradient."""
    model = build_eval(data, rough_models["longformer"], max_sequence_tokens=128, two_stage=False).model
    samples = model.training_samples(np.random.default_rng(0))
    for item_loss in ("full", "table"):
        found = []
        for budget in (4096, 64):
            model.settings = replace(model.settings, item_loss=item_loss, train_batch_tokens=budget)
            rows, steps = model.prepared_step(samples)
            users = [texts for step in steps for texts in step.users]
            padded = [-(-np.array(texts.packed.bounds.lengths) // 8) * 8 for texts in users]
            assert all(lengths.sum() <= budget or len(lengths) == 1 for lengths in padded)
            assert (len(users) > 1) == (budget == 64) and (np.diff(np.concatenate(padded)) >= 0).all()
            model.zero_grad()
            loss = torch.stack([model.pass_loss_sum(step) for step in steps]).sum() / rows
            loss.backward()
            gradients = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
            found.append({"": loss.detach(), **gradients})
        torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-4)


def test_kinds_begin_where_the_authors_code_begins_and_places_at_random(data, tiny):
    """At first every kind has the backbone's own row of token types: the table of kinds adds nothing."""
    model = build_parts(data, model="Recformer", backbone=str(tiny["bert"]), MAX_ITEM_LIST_LENGTH=7).model
    assert (model.tower.kinds.weight == 0).all()
    assert model.tower.places.weight.shape == (8, 32)
    assert 0.01 < model.tower.places.weight.std() < 0.03
    assert model.tower.kinds.weight.requires_grad


def test_an_empty_history_is_the_first_token_alone(data, rough_models):
    parts = build_eval(data, rough_models["bert"])
    model = parts.model
    empty = {model.ITEM_SEQ: torch.zeros(1, 4, dtype=torch.long), model.ITEM_SEQ_LEN: torch.zeros(1, dtype=torch.long)}
    found = model.full_sort_predict(Interaction(empty))
    assert found[:, 1:].isfinite().all()
    (texts,) = model.texts.passes(model.texts.histories(np.zeros(0, dtype=np.int64), np.array([0]), np.array([0])), 50)
    assert texts.packed.token_ids.tolist() == [2]


def test_too_long_a_history_loses_its_oldest_items_whole(data, tiny):
    """Of u4, whose 14 training items are more than 40 tokens, the newest that fit are read, the first written first."""
    parts = build_eval(data, tiny["bert"], max_sequence_tokens=40)
    model = parts.model
    flat, last = model.histories.flat, int(model.histories.last.max())
    longest = int((model.histories.last - model.histories.users).argmax())
    end, start = int(model.histories.last[longest]), int(model.histories.users[longest])
    assert end <= last
    (texts,) = model.texts.passes(model.texts.histories(flat, np.array([end]), np.array([end - start])), 99)
    for count in range(1, end - start):
        if len(by_hand(parts, flat[end - count - 1 : end].tolist())[0]) > 40:
            break
    expected = by_hand(parts, flat[end - count : end].tolist())
    assert 1 < count < end - start
    found = [texts.packed.token_ids.tolist(), texts.kinds.tolist(), texts.places.tolist()]
    assert found == list(expected)


def test_bad_input_is_one_sentence(data, tiny):
    def refused(error, match, **settings):
        given = {"model": "Recformer", "backbone": str(tiny["bert"]), "item_text_fields": FIELDS, **settings}
        with pytest.raises(error, match=match) as caught:
            build_parts(data, **given)
        assert "\n" not in str(caught.value)

    refused(
        BackboneError, "Recformer reads a history in both directions, but .*opt is a decoder", backbone=str(tiny["opt"])
    )
    refused(SettingError, "attention_window=64 is of a Longformer, but .* is of type 'bert'", attention_window=64)
    refused(SettingError, "attention_window=7 must be an even whole number from 2", attention_window=7)
    refused(
        SettingError, "max_sequence_tokens=129 is more than the 128 positions of .*longformer",
        backbone=str(tiny["longformer"]), max_sequence_tokens=129,
    )  # fmt: skip
    refused(
        BackboneError, "is a Longformer, whose attention has no packed form, so IDLEAdapter cannot reach into",
        model="IDLEAdapter", id_model="SASRec", backbone=str(tiny["longformer"]), item_text_fields=["title"],
    )  # fmt: skip
    refused(DataError, "has no column 'colour'", item_text_fields=["title", "colour"])
    refused(SettingError, "item_loss=in-batch has no table of item vectors", item_loss="in-batch")
    refused(SettingError, "max_sequence_tokens=200 is more than the 128 positions", max_sequence_tokens=200)
    refused(SettingError, "max_sequence_tokens=6 is less than the longest item text", max_sequence_tokens=6)
    write_dataset(data, titles={item: ["Same", "brand"] for item in "abcdefgh"}, columns=FIELDS)
    refused(DataError, "all 8 items of small have the same text in 'title', so nothing tells them apart")
    refused(DataError, "all 8 items of small have the same text", model="LLMRec", item_text_fields=["title"])
    refused(BackboneError, "TwinBERT has towers of a BERT type, but", model="TwinBERT", backbone=str(tiny["llama"]))
    refused(SettingError, "crossing=residual has no product with a table", model="TwinBERT", crossing="residual",
            item_loss="table", item_text_fields=["title", "brand"])  # fmt: skip
