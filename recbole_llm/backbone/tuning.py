"""How much of a backbone is trained, and in what form it is kept."""

from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from recbole_llm.backbone.attention import compile_packed_layers
from recbole_llm.backbone.loading import Backbone
from recbole_llm.backbone.padded import reads_padded
from recbole_llm.errors import SettingError

TUNING = ("full", "lora", "frozen")


@dataclass(frozen=True)
class TuningSettings:
    """The settings of a backbone's training.

    Attributes:
        tuning: full, lora (low-rank adapters, the rest frozen) or frozen.
        lora_rank: rank of the adapters.
        lora_alpha: their scale is alpha / rank.
        lora_dropout: dropout before an adapter.
        lora_targets: names of the linear layers that get one; ``all-linear`` for all of them.
        weights: of what is trained: fp32, or bf16 (half the memory; the optimiser keeps float32 masters). What is
            frozen is kept in the type of the arithmetic.
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them.
        compile: compile each layer with torch.compile.
    """

    tuning: str
    lora_rank: int
    lora_alpha: float
    lora_dropout: float
    lora_targets: str | list[str]
    weights: str
    gradient_checkpointing: bool
    compile: bool

    @classmethod
    def from_config(cls, config: Any) -> "TuningSettings":
        """Read the settings of a run; ``ilp``, ST2SI's word for tuning the projection alone, means frozen."""
        return cls(
            tuning="frozen" if config["tuning"] == "ilp" else config["tuning"],
            lora_rank=config["lora_rank"],
            lora_alpha=config["lora_alpha"],
            lora_dropout=config["lora_dropout"],
            lora_targets=config["lora_targets"],
            weights=config["weights"],
            gradient_checkpointing=config["gradient_checkpointing"],
            compile=config["compile"],
        )

    def load_dtype(self, precision: torch.dtype) -> torch.dtype:
        """Return the type that the weights are loaded in: frozen ones in that of the arithmetic."""
        if self.weights == "bf16" or self.tuning != "full":
            return precision
        return torch.float32

    def needs_autocast(self, precision: torch.dtype) -> bool:
        """Tell whether float32 weights, all or the adapters alone, are to be multiplied in bfloat16."""
        return precision == torch.bfloat16 and self.weights == "fp32" and self.tuning != "frozen"


def prepare_for_tuning(backbone: Backbone, settings: TuningSettings) -> None:
    """Freeze, adapt, checkpoint or compile a loaded backbone as `settings` say, in place.

    Raises:
        SettingError: if `lora_targets` names no layer of the backbone, or a Longformer is to be compiled.
    """
    model = backbone.model
    if settings.compile and reads_padded(model.config):
        raise SettingError(
            f"compile=True does not go with {backbone.preset.name}, a Longformer, whose layers ask the device for the "
            f"shapes of their results: leave it out"
        )
    if settings.tuning == "lora":
        _add_adapters(backbone, settings)
    elif settings.tuning == "frozen":
        model.requires_grad_(False)
    if settings.gradient_checkpointing and settings.tuning != "frozen":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        # With all of the first layer's inputs frozen nothing would be computed again, nor differentiated.
        model.enable_input_require_grads()
    if settings.compile:
        compile_packed_layers(model, backbone.layers)


def _add_adapters(backbone: Backbone, settings: TuningSettings) -> None:
    targets = settings.lora_targets
    if targets == "all-linear":
        targets = sorted(
            {
                name.rsplit(".", 1)[-1]
                for name, module in backbone.layers.named_modules()
                if isinstance(module, nn.Linear)
            }
        )
    adapters = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=targets,
    )
    try:
        inject_adapter_in_model(adapters, backbone.model)
    except ValueError as error:
        names = sorted(
            {name.rsplit(".", 1)[-1] for name, m in backbone.model.named_modules() if isinstance(m, nn.Linear)}
        )
        raise SettingError(
            f"lora_targets={targets} names no layer of the backbone, whose linear layers are {names}"
        ) from error
    for name, parameter in backbone.model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_" in name and settings.weights == "fp32":  # peft gives adapters the type of the layer
            parameter.data = parameter.data.float()
    if settings.weights == "fp32":
        for module in backbone.model.modules():
            if isinstance(module, BaseTunerLayer):
                # Else peft makes a float32 copy of every layer's input, which autocast takes back to bfloat16.
                module.cast_input_dtype_enabled = False
