"""Recformer's pre-training: hidden words, and its loss against transformers' own layers."""

import numpy as np
import pytest
import torch
from small_data import build_parts, write_dataset
from torch.nn import functional as F
from transformers import BertForMaskedLM, BertModel

from recbole_llm.errors import BackboneError
from recbole_llm.model.layers.masked_tokens import TokenMasker

TITLES = {
    "a": ["Toy Story", "Disney"], "b": ["Guitar", "Fender"], "c": ["Multimeter", "Fluke"], "d": ["Zelda", "Nintendo"],
    "e": ["Mario", "Nintendo"], "f": ["Filament", "PLA"], "g": ["Comedy", "BBC"], "h": ["Light", "Gauge"],
}  # fmt: skip


@pytest.fixture
def model(small, rough_models):
    """A Recformer that is to be pre-trained, in eval mode, with a head whose weights show."""
    write_dataset(small, titles=TITLES, columns=["title", "brand"])
    built = build_parts(
        small, model="Recformer", backbone=str(rough_models["bert"]), item_text_fields=["title", "brand"],
        max_attribute_tokens=8, mlm_share=0.5, train_batch_size=100,
    )  # fmt: skip
    model = built.model
    model.before_pretraining(built.train._dataset)
    torch.manual_seed(2)
    with torch.no_grad():
        model.mlm_head.bias.normal_()
        model.tower.places.weight.normal_(std=0.3)
    return model.eval()


def test_words_are_hidden_whole_and_in_the_shares_of_bert(model):
    """A word's tokens are hidden together, none of another item or kind with them; the first token never."""
    masker, flat = TokenMasker(model.item_texts.tokenizer, 0.3), model.histories.flat
    ends = np.tile(model.histories.last, 40)
    sequences = model.texts.histories(flat, ends, ends - np.tile(model.histories.users, 40))
    texts = model.texts.packed(sequences)
    found = masker(texts, np.random.default_rng(0))
    tokens, kinds, places = (t.numpy() for t in (texts.packed.token_ids, texts.kinds, texts.places))
    hidden = np.zeros(len(tokens), dtype=bool)
    hidden[found.index.numpy()] = True
    assert not hidden[kinds == 0].any()
    assert found.labels.tolist() == tokens[hidden].tolist()
    read = found.texts.packed.token_ids.numpy()
    assert (read[~hidden] == tokens[~hidden]).all()
    written = model.item_texts.tokenizer.convert_ids_to_tokens(tokens)
    words, current = [], []
    for place, text in enumerate(written):
        same = current and text.startswith("##") and kinds[place] == kinds[place - 1]
        if same and places[place] == places[place - 1]:
            current.append(place)
        else:
            current = [place]
            words.append(current)
    shares = [hidden[word].mean() for word in words if kinds[word[0]] > 0]
    assert set(shares) == {0.0, 1.0}
    assert sum(len(word) > 1 for word in words) > 20
    assert np.mean(shares) == pytest.approx(0.3, abs=0.03)
    mask = model.item_texts.tokenizer.mask_token_id
    assert (read[hidden] == mask).mean() == pytest.approx(0.8, abs=0.03)
    assert (read[hidden] == tokens[hidden]).mean() == pytest.approx(0.1, abs=0.03)


def test_the_loss_is_a_contrast_and_two_masked_language_models(model):
    """Every text by itself through transformers' BERT, and masked words through its own prediction head."""
    rows, (step,) = model.prepared_step(model.training_samples(np.random.default_rng(0)))
    found = model.pass_loss_sum(step)
    backbone = model.settings.backbone
    bert = BertModel.from_pretrained(backbone, add_pooling_layer=False).eval()
    head = BertForMaskedLM(bert.config).cls.predictions.eval()
    own = model.mlm_head
    head.transform.dense.load_state_dict(own.dense.state_dict())
    head.transform.LayerNorm.load_state_dict(own.norm.state_dict())
    head.decoder.weight = bert.embeddings.word_embeddings.weight
    head.decoder.bias = own.bias

    def states(texts):
        embedded = bert.embeddings.word_embeddings(texts.packed.token_ids)
        embedded = embedded + model.tower.kinds(texts.kinds) + model.tower.places(texts.places)
        each = embedded.split(list(texts.packed.bounds.lengths))
        return [bert(inputs_embeds=part[None]).last_hidden_state[0] for part in each]

    users, items = (torch.stack([s[0] for part in parts for s in states(part)]) for parts in (step.users, step.items))
    labels = step.candidates.labels.tolist()
    distinct = sorted(set(labels))
    cosines = F.normalize(users, dim=1) @ F.normalize(items, dim=1).T / 0.05
    expected = 0.0
    for row, label in enumerate(labels):
        met = set(step.candidates.known[row].tolist())
        others = [other for other in labels if other != label and other not in met]
        scores = torch.stack([cosines[row, distinct.index(item)] for item in [label, *others]])
        expected = expected + scores.logsumexp(0) - scores[0]
    for masked in (step.masked_users, step.masked_items):
        (one,) = masked
        logits = head(torch.cat(states(one.texts)))[one.index]
        assert len(one.labels) > 3
        expected = expected + 0.1 * rows * F.cross_entropy(logits, one.labels)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-5)


def test_what_is_trained_and_what_is_handed_on(model):
    """Not the word embeddings; and neither the head nor a table serves another catalogue."""
    rows, (step,) = model.prepared_step(model.training_samples(np.random.default_rng(0)))
    model.pass_loss_sum(step).backward()
    words = model.tower.backbone.get_input_embeddings().weight
    assert words.grad is None
    assert model.mlm_head.dense.weight.grad.abs().max() > 0
    assert set(model.stored_state()) - set(model.transferred_state()) == {
        "stage", "frozen_table", *(f"mlm_head.{name}" for name, _ in model.mlm_head.named_parameters())
    }  # fmt: skip
    assert rows == len(model.histories.users)


def test_targets_are_of_the_second_half(model):
    histories, drawn = model.histories, {}
    for epoch in range(60):
        targets = model.training_samples(np.random.default_rng(epoch))
        for user, end in zip(histories.users, targets.ends, strict=True):
            drawn.setdefault(int(user), set()).add(int(end))
    for user, last in zip(histories.users, histories.last, strict=True):
        count = last - user + 1
        assert drawn[int(user)] == set(range(user + count // 2, last + 1))


def test_a_tokenizer_without_a_mask_is_refused(model):
    tokenizer = model.item_texts.tokenizer
    tokenizer.mask_token = None
    with pytest.raises(BackboneError, match=r"the tokenizer has no mask token, .* or set mlm_weight=0"):
        TokenMasker(tokenizer, 0.1)
