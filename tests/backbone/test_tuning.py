"""What is trained of a backbone, and the types that its weights are kept in."""

import dataclasses

import pytest
import torch

from recbole_llm.backbone.loading import load_backbone
from recbole_llm.backbone.tuning import TuningSettings, prepare_for_tuning

LORA = TuningSettings("lora", 4, 8, 0.0, "all-linear", "fp32", False, False)
BF16, FP32 = torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("tuning", "weights", "frozen", "trained", "autocast"),
    [
        ("full", "fp32", None, FP32, True),
        ("full", "bf16", None, BF16, False),
        ("lora", "fp32", BF16, FP32, True),
        ("lora", "bf16", BF16, BF16, False),
        ("frozen", "fp32", BF16, None, False),
    ],
)
def test_what_is_frozen_is_kept_in_the_type_of_the_arithmetic(tiny, tuning, weights, frozen, trained, autocast):
    settings = dataclasses.replace(LORA, tuning=tuning, weights=weights)
    backbone = load_backbone(str(tiny["llama"]), dtype=settings.load_dtype(BF16))
    prepare_for_tuning(backbone, settings)
    types = {True: set(), False: set()}
    for parameter in backbone.model.parameters():
        types[parameter.requires_grad].add(parameter.dtype)
    assert types[False] == ({frozen} if frozen else set())
    assert types[True] == ({trained} if trained else set())
    assert settings.needs_autocast(BF16) == autocast
    assert settings.load_dtype(FP32) == FP32 and not settings.needs_autocast(FP32)


def test_adapters_on_a_bfloat16_base_have_the_gradients_of_a_float32_base(tiny):
    """Equal within what bfloat16 resolves, for the states and for every adapter."""
    found = []
    tokens = torch.arange(5, 29)[None]
    for base in (BF16, FP32):
        torch.manual_seed(0)
        backbone = load_backbone(str(tiny["llama"]), dtype=base)
        prepare_for_tuning(backbone, LORA)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(1)
            for name, parameter in backbone.model.named_parameters():
                if "lora_" in name:
                    parameter.normal_(0, 0.1, generator=generator)
        with torch.autocast("cpu", BF16, enabled=base == BF16):
            states = backbone.model(input_ids=tokens).last_hidden_state.float()
        (states * torch.linspace(-1, 1, states.shape[-1])).sum().backward()
        gradients = [p.grad for name, p in backbone.model.named_parameters() if "lora_" in name]
        assert all(gradient.dtype == FP32 and gradient.abs().max() > 0 for gradient in gradients)
        found.append([states.detach(), torch.cat([gradient.flatten() for gradient in gradients])])
    for low, high in zip(*found, strict=True):
        assert float((low - high).norm() / high.norm()) < 0.03


def test_adapters_of_float32_read_the_bfloat16_inputs_of_their_layers(tiny):
    """No float32 copy is made of them."""
    backbone = load_backbone(str(tiny["llama"]), dtype=BF16)
    prepare_for_tuning(backbone, dataclasses.replace(LORA, lora_dropout=0.1))
    types = set()
    for name, module in backbone.model.named_modules():
        if name.endswith("lora_dropout.default"):
            module.register_forward_pre_hook(lambda _, inputs: types.add(inputs[0].dtype))
    with torch.autocast("cpu", BF16):
        backbone.model.train()(input_ids=torch.arange(5, 29)[None])
    assert types == {BF16}
