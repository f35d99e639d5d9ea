"""P5 on a T5, as in its paper: loss and scores against transformers' own forward, and who cannot use a T5."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_data import build_parts, small_settings
from test_p5 import P5, stirred, written
from tiny_models import tiny_t5
from torch.nn import functional as F
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, T5Tokenizer

from recbole_llm.config.config import Config
from recbole_llm.errors import BackboneError, SettingError
from recbole_llm.quick_start.run import fit


def parts_of(small, folder, **settings):
    return build_parts(small, **{**P5, "backbone": str(folder), **settings})


class Plain:
    """transformers' own T5 with a larger vocabulary, reading one prompt and one answer at a time."""

    def __init__(self, model, folder):
        self.whole = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
        missing, unexpected = self.whole.load_state_dict(model.backbone.state_dict(), strict=False)
        assert not unexpected
        assert all("embed_tokens" in name or "lm_head" in name for name in missing)
        self.weight = model.vocabulary().detach()
        self.inputs = torch.cat([self.whole.shared.weight, model.id_embedding.weight]).detach()
        self.words = model.word_embedding

    @torch.no_grad()
    def log_probabilities(self, tokens, words, path):
        """log p of every token at each place of an answer: [tokens, vocabulary with IDs]."""
        embedded = F.embedding(torch.tensor(tokens), self.inputs)
        if self.words is not None:
            embedded = embedded + self.words(torch.tensor(words))
        fed = F.embedding(torch.tensor([0, *path[:-1]]), self.inputs)
        output = self.whole(inputs_embeds=embedded[None], decoder_inputs_embeds=fed[None], output_hidden_states=True)
        hidden = output.decoder_hidden_states[-1][0]
        scale = 32**-0.5 if self.whole.config.scale_decoder_outputs else 1.0
        return (hidden * scale @ self.weight.T).log_softmax(-1)


def read(model, texts):
    """The tokens of every prompt and P5's word ids: from 1, and 0 for what ends it."""
    return [(tokens, [*words[:-1], 0]) for tokens, words in written(model, texts)]


def path_of(model, item):
    return [token for token in model.ids[item].tolist() if token >= 0]


SETTINGS = [{}, {"indexing": "sequential"}, {"indexing": "independent", "whole_word_embeddings": False}]


@pytest.mark.parametrize("own_head", [False, True])
@pytest.mark.parametrize("settings", SETTINGS)
def test_scores_are_sums_of_transformers_log_probabilities(small, tmp_path, settings, own_head):
    folder = tiny_t5(tmp_path / "t5", own_head=own_head)
    parts = parts_of(small, folder, **settings)
    model = stirred(parts.model)
    plain = Plain(model, folder)
    rows = next(iter(parts.test))[0]
    found = model.full_sort_predict(rows)
    assert (found[:, 0] == -torch.inf).all()
    items, ends, lengths, _ = model.histories.rows(rows, model.ITEM_SEQ, model.ITEM_SEQ_LEN)
    prompts = model.prompts(items, ends, lengths, rows["user_id"].numpy(), np.zeros(len(ends), dtype=np.int64))
    for row, (tokens, words) in enumerate(read(model, prompts)[:4]):
        assert tokens[-1] == 1  # </s>
        for item in range(1, model.n_items, 2):
            path = path_of(model, item)
            logs = plain.log_probabilities(tokens, words, path)
            expected = sum(float(logs[place, token]) for place, token in enumerate(path))
            assert float(found[row, item]) == pytest.approx(expected, abs=1e-3, rel=1e-5)


def test_loss_is_the_cross_entropy_of_the_answers_tokens(small, tiny):
    parts = parts_of(small, tiny["t5"], train_batch_tokens=120, indexing="sequential")
    model = stirred(parts.model)
    plain = Plain(model, tiny["t5"])
    samples = model.training_samples(np.random.default_rng(0)).select(np.arange(3, 11))
    count, passes = model.prepared_step(samples)
    assert len(passes) > 1
    targets = samples.targets
    users = parts.train._dataset.inter_feat["user_id"].numpy()[3:11]
    lengths = np.minimum(targets.lengths, 6)
    prompts = model.prompts(model.histories.flat, targets.ends, lengths, users, samples.prompts)
    expected, tokens_of_answers = 0.0, 0
    for (tokens, words), item in zip(read(model, prompts), targets.labels.tolist(), strict=True):
        path = path_of(model, item)
        logs = plain.log_probabilities(tokens, words, path)
        expected -= sum(float(logs[place, token]) for place, token in enumerate(path))
        tokens_of_answers += len(path)
    assert count == tokens_of_answers
    found = sum(float(model.pass_loss_sum(part)) for part in passes)
    assert found == pytest.approx(expected, rel=1e-4)


def test_answers_are_t5s_own_tokens_of_the_numbers(small, tiny):
    """Several digits in one piece, no special token, and no </s>: no ID begins another.

    Tokens that IDs add to the vocabulary come behind the rows of T5's embeddings that no token has.
    """
    model = parts_of(small, tiny["t5"], indexing="random").model
    tokenizer = AutoTokenizer.from_pretrained(tiny["t5"])
    assert type(tokenizer) is T5Tokenizer and tokenizer.convert_ids_to_tokens(1) == "</s>"
    assert tokenizer.convert_tokens_to_ids("<extra_id_0>") == len(tokenizer) - 1
    paths = [path_of(model, item) for item in range(1, model.n_items)]
    for path in paths:
        whole = tokenizer(tokenizer.decode(path))["input_ids"]
        assert whole == [*path, 1]
        assert not set(path) & set(tokenizer.all_special_ids)
        assert sum(path == other[: len(path)] for other in paths) == 1
    assert min(map(len, paths)) < 4  # digits
    added = parts_of(small, tiny["t5"]).model
    assert added.ids[added.ids >= 0].min() == len(tokenizer) + 3


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_beam_as_wide_as_the_catalogue_is_the_exact_ranking(small, tiny, settings):
    parts = parts_of(small, tiny["t5"], id_probability="children", **settings)
    model = stirred(parts.model)
    rows = next(iter(parts.test))[0]
    expected = model.full_sort_predict(rows)
    torch.testing.assert_close(expected.exp().sum(dim=1), torch.ones(len(expected)))
    model._beam = model.n_items - 1
    torch.testing.assert_close(model.full_sort_predict(rows), expected, atol=1e-4, rtol=1e-4)


def test_only_adapters_and_what_ids_add_are_tuned_with_lora(small, tiny):
    """In the encoder and in the decoder; the rest stays as it was loaded."""
    config = Config(config_dict=small_settings(small, **P5, backbone=str(tiny["t5"]), epochs=1, tuning="lora"))
    parts = build_parts(small, **P5, backbone=str(tiny["t5"]), tuning="lora")
    trained = [name for name, each in parts.model.named_parameters() if each.requires_grad]
    for part in ("backbone.encoder", "backbone.decoder", "id_embedding", "word_embedding"):
        assert any(name.startswith(part) for name in trained), part
    assert all("lora_" in name for name in trained if name.startswith("backbone"))
    assert fit(config, Path("run").resolve())["history"]


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "ST2SI", "tuning": "ilp"},
        {"model": "ST2SI", "tuning": "full"},
        {"model": "GPT4Rec"},
        {"model": "MoRec"},
        {"model": "UniSRec"},
        {"model": "IDLEAdapter", "id_model": "SASRec"},
        {"model": "LLMPrompt", "candidates": 3, "valid_metric": "Hit@1"},
    ],
)
def test_other_models_refuse_a_t5(small, tiny, settings):
    with pytest.raises(BackboneError, match="has an encoder and a decoder, which P5 alone can use: choose a decoder"):
        build_parts(small, **{"backbone": str(tiny["t5"]), **settings})


def test_a_compiled_t5_is_refused(small, tiny):
    with pytest.raises(SettingError, match="compile=True does not go with the encoder-decoder"):
        parts_of(small, tiny["t5"], compile=True)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_gradients_are_those_without_checkpointing(small, tiny, tuning):
    """Activations that are computed again, in encoder and decoder."""
    found = []
    for checkpointing in (False, True):
        model = parts_of(small, tiny["t5"], tuning=tuning, gradient_checkpointing=checkpointing, lora_dropout=0.0).model
        stirred(model).train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        _, (part,) = model.prepared_step(model.training_samples(np.random.default_rng(0)).select(np.arange(6)))
        model.pass_loss_sum(part).backward()
        found.append({name: each.grad for name, each in model.named_parameters() if each.requires_grad})
    assert all(grad is not None for grad in found[1].values())
    torch.testing.assert_close(found[1], found[0])


def test_bfloat16_weights_are_trained(small, tiny):
    settings = small_settings(small, **P5, backbone=str(tiny["t5"]), epochs=2, weights="bf16", precision="bf16")
    fitted = fit(Config(config_dict={**settings, "learning_rate": 0.01}), Path("run").resolve())
    losses = [entry["train_loss"] for entry in fitted["history"]]
    assert losses[1] < losses[0]
