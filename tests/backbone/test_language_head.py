"""Heads, tied and not, give transformers' own logits; the loss counts answer tokens alone."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from recbole_llm.backbone.language_head import language_head
from recbole_llm.backbone.loading import load_backbone
from recbole_llm.backbone.tuning import TuningSettings
from recbole_llm.errors import BackboneError
from recbole_llm.model.layers.answer_loss import answer_loss_sum

TUNING = TuningSettings("full", 4, 8, 0.0, "all-linear", "fp32", gradient_checkpointing=False, compile=False)


def untied(folder, target):
    """The model in `folder` with a head that is not its embedding."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.config.tie_word_embeddings = False
    head = torch.nn.Linear(32, model.get_input_embeddings().num_embeddings, bias=False)
    model.set_output_embeddings(head)
    model.save_pretrained(target)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (target / name).write_bytes((folder / name).read_bytes())
    return target


@pytest.mark.parametrize("kind", ["llama", "opt", "untied"])
def test_logits_are_transformers_own(tiny, tmp_path, kind):
    folder = untied(tiny["llama"], tmp_path) if kind == "untied" else tiny[kind]
    loaded = load_backbone(str(folder))
    head = language_head(loaded, TUNING, torch.float32)
    assert len(list(head.parameters())) == (kind == "untied")
    tokens = torch.arange(5, 25)[None]
    with torch.no_grad():
        found = head(loaded.model(tokens).last_hidden_state)
        expected = AutoModelForCausalLM.from_pretrained(folder).eval()(tokens).logits
    torch.testing.assert_close(found, expected)


def test_head_of_its_own_is_trained_with_all_weights_alone(tiny, tmp_path):
    loaded = load_backbone(str(untied(tiny["llama"], tmp_path)))
    assert language_head(loaded, TUNING, torch.float32).own.requires_grad
    adapters = dataclasses.replace(TUNING, tuning="lora")
    assert not language_head(loaded, adapters, torch.float32).own.requires_grad


def test_encoder_is_refused(tiny):
    with pytest.raises(BackboneError, match="writes no text: choose a decoder"):
        language_head(load_backbone(str(tiny["bert"])), TUNING, torch.float32)


def test_changed_logits_are_refused(tiny):
    loaded = load_backbone(str(tiny["llama"]))
    loaded.model.config.final_logit_softcapping = 30.0
    with pytest.raises(BackboneError, match="changes its logits by final_logit_softcapping"):
        language_head(loaded, TUNING, torch.float32)


def test_loss_knows_every_token_from_0():
    generator = torch.Generator().manual_seed(0)
    states, weight = (torch.randn(size, 6, generator=generator, requires_grad=True) for size in (7, 5))
    tokens = torch.tensor([0, 4, 0, 2, 3, 1, 0])
    loss = answer_loss_sum(states, weight, tokens)
    expected = F.cross_entropy(states @ weight.T, tokens, reduction="sum")
    torch.testing.assert_close(loss, expected)
    for found, wanted in zip(
        torch.autograd.grad(loss, (states, weight)), torch.autograd.grad(expected, (states, weight)), strict=True
    ):
        torch.testing.assert_close(found, wanted)
