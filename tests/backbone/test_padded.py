"""Longformer, which reads padded batches: against transformers one sequence at a time, and its layers by hand."""

import dataclasses

import numpy as np
import pytest
import torch
from plain_longformer import PlainLongformer
from test_packed import packed_batch, random_sequences
from test_tuning import LORA
from tiny_models import MAX_POSITIONS, rough, tiny_longformer
from transformers import LongformerModel
from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

from recbole_llm.backbone.attention import packed_hidden_states, use_packed_attention
from recbole_llm.backbone.loading import first_position, load_backbone
from recbole_llm.backbone.padded import padded_multiple
from recbole_llm.backbone.tuning import prepare_for_tuning
from recbole_llm.errors import SettingError

LENGTHS = [9, 1, 33, 8, MAX_POSITIONS, 2, 16, 1, 31]  # over, at and under the window of 8, and the limit
FULL = dataclasses.replace(LORA, tuning="full")


def loaded(folder, tuning=FULL, **options):
    backbone = load_backbone(str(folder), **options)
    rough(backbone.model)
    use_packed_attention(backbone.model)
    prepare_for_tuning(backbone, tuning)
    return backbone


def batch_of(backbone, sequences):
    batch = packed_batch(sequences, causal=False)
    return dataclasses.replace(batch, positions=batch.positions + first_position(backbone.model))


def alone(model, **tokens):
    """The states of one sequence by transformers' own forward, which counts positions itself; first token global."""
    (given,) = tokens.values()
    first = torch.zeros(1, len(given), dtype=torch.long)
    first[0, 0] = 1
    tokens = {name: each[None] for name, each in tokens.items()}
    output = model(**tokens, attention_mask=torch.ones_like(first), global_attention_mask=first)
    return output.last_hidden_state[0]


@pytest.mark.parametrize("embedded", [False, True])
@torch.no_grad()
def test_states_are_transformers_own_one_sequence_at_a_time(tiny, embedded):
    backbone = loaded(tiny["longformer"])
    assert backbone.max_positions == MAX_POSITIONS
    own = LongformerModel.from_pretrained(tiny["longformer"], add_pooling_layer=False).eval()
    own.load_state_dict(backbone.model.state_dict())
    sequences = random_sequences(LENGTHS, own)
    batch, given = batch_of(backbone, sequences), {}
    if embedded:
        given["inputs_embeds"] = torch.randn(sum(LENGTHS), 32, generator=torch.Generator().manual_seed(0))
        right = [alone(own, inputs_embeds=each) for each in given["inputs_embeds"].split(LENGTHS)]
    else:
        right = [alone(own, input_ids=each) for each in sequences]
    found = packed_hidden_states(backbone.model, batch, **given)
    torch.testing.assert_close(found, torch.cat(right), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_layers_may_have_different_windows(tmp_path):
    """The length of a padded batch is a multiple of all of them; the states are those of layers in numpy."""
    backbone = loaded(tiny_longformer(tmp_path / "model", window=[4, 6]))
    model = backbone.model
    assert padded_multiple(model.config) == 12
    plain = PlainLongformer(model)
    sequences = random_sequences(LENGTHS, model, seed=1)
    found = packed_hidden_states(model, batch_of(backbone, sequences)).split(LENGTHS)
    for sequence, states in zip(sequences, found, strict=True):
        words = plain.weights["embeddings.word_embeddings.weight"][sequence.numpy()]
        right = plain.states(words, [4, 6])
        np.testing.assert_allclose(states.numpy(), right, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_another_window_is_another_model_of_the_same_weights(tiny):
    backbone = loaded(tiny["longformer"], attention_window=4)
    wide = loaded(tiny["longformer"])
    assert padded_multiple(backbone.model.config) == 4
    sequences = random_sequences(LENGTHS, wide.model)
    found, other = (packed_hidden_states(each.model, batch_of(each, sequences)) for each in (backbone, wide))
    plain = PlainLongformer(wide.model)
    words = plain.weights["embeddings.word_embeddings.weight"][torch.cat(sequences).numpy()]
    right = np.concatenate([plain.states(each, [4, 4]) for each in np.split(words, np.cumsum(LENGTHS)[:-1])])
    np.testing.assert_allclose(found.numpy(), right, atol=1e-4, rtol=1e-4)
    assert (found - other)[LENGTHS[0] :].abs().max() > 0.1
    with pytest.raises(SettingError, match=r"attention_window=4 is of a Longformer, but .* is of type 'bert', which"):
        load_backbone(str(tiny["bert"]), attention_window=4)


@pytest.mark.parametrize("tuning", [pytest.param("full", marks=pytest.mark.slow), "lora"])
def test_gradients_are_transformers_own(tiny, tuning):
    """In training mode without dropout, activations computed again; with LoRA at all projections, global ones too."""
    found, computed = [], []
    for checkpointing in (False, True):
        torch.manual_seed(3)
        settings = dataclasses.replace(LORA, tuning=tuning, gradient_checkpointing=checkpointing)
        backbone = loaded(tiny["longformer"], settings)
        model = backbone.model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if isinstance(module, LongformerSelfAttention):
                module.dropout = 0.0
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
        lengths = [9, 1, 17, 8]
        sequences = random_sequences(lengths, model)
        weights = torch.randn(sum(lengths), 32, generator=torch.Generator().manual_seed(2))
        for layer in backbone.layers if checkpointing else []:
            layer.intermediate.register_forward_hook(lambda *_: computed.append(1))
        states = (
            packed_hidden_states(model, batch_of(backbone, sequences))
            if checkpointing
            else torch.cat([alone(model, input_ids=each) for each in sequences])
        )
        (states * weights).sum().backward()
        found.append({name: each.grad for name, each in model.named_parameters() if each.requires_grad})
    assert len(computed) == 2 * 2 * 3  # three padded lengths, two layers, each computed again
    of_global = [grad for name, grad in found[1].items() if "_global" in name]
    assert len(of_global) == 2 * 3 * 2 and all(grad.abs().max() > 0 for grad in of_global)
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["fp32", "bf16"])
@torch.no_grad()
def test_bfloat16_is_float32_within_what_it_resolves(tiny, weights):
    low, high = loaded(tiny["longformer"]), loaded(tiny["longformer"])
    if weights == "bf16":
        low.model.to(torch.bfloat16)
    sequences = random_sequences(LENGTHS, high.model)
    with torch.autocast("cpu", torch.bfloat16, enabled=weights == "fp32"):
        found = packed_hidden_states(low.model, batch_of(low, sequences)).float()
    right = packed_hidden_states(high.model, batch_of(high, sequences))
    assert float((found - right).norm() / right.norm()) < 0.05


def test_a_longformer_is_not_compiled(tiny):
    with pytest.raises(SettingError, match=r"compile=True does not go with .*longformer, a Longformer, whose layers"):
        loaded(tiny["longformer"], dataclasses.replace(FULL, compile=True))
