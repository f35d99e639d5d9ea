"""The settings of IDLE-Adapter, documented and checked."""

from dataclasses import dataclass
from typing import Any

from recbole_llm.backbone.tuning import TuningSettings
from recbole_llm.data.prompts import PromptTemplate
from recbole_llm.errors import SettingError
from recbole_llm.model.id_model.scores import given_id_weight, max_items


@dataclass(frozen=True)
class IDLEAdapterSettings:
    """The settings of `properties/model/IDLEAdapter.yaml`, checked.

    Attributes:
        backbone: a preset, a folder or a hub id.
        compile: whether every layer is compiled.
        gradient_checkpointing: whether what happens inside of a layer is computed again in the backward pass.
        virtual_tokens: L', virtual tokens a user vector.
        layerwise: whether every layer has an adapter of its own.
        refinement: whether there are prefixes and a gate.
        mmd_weight: lambda of eq. 15.
        mmd_rows: layers or batch: what the rows of eq. 12 are.
        template: the hard prompt.
        max_items: maximum number of items of a history in the prompt; the ID model has its own `MAX_ITEM_LIST_LENGTH`.
        max_prompt_tokens: maximum number of tokens of a prompt.
        max_attribute_tokens: maximum number of tokens of an item's text.
        train_batch_tokens: maximum number of tokens of a packed pass with gradients.
        eval_batch_tokens: maximum number of tokens of a packed pass without.
        learning_rate: of the adapter, and of all else whose own rate is not given.
        head_learning_rate: of the head.
        head_dropout: of the pooled states before the head.
        tuning: how the backbone is trained: not at all in the paper (`frozen`), by low-rank adapters, or all of it.
        backbone_learning_rate: of what is trained of the backbone.
        id_weight: the share of the ID model's own scores in the ranking; None to choose it on validation.

    Raises:
        SettingError: for values that do not go together.
    """

    backbone: str
    compile: bool
    gradient_checkpointing: bool
    virtual_tokens: int
    layerwise: bool
    refinement: bool
    mmd_weight: float
    mmd_rows: str
    template: PromptTemplate
    max_items: int
    max_prompt_tokens: int
    max_attribute_tokens: int
    train_batch_tokens: int
    eval_batch_tokens: int
    learning_rate: float
    head_learning_rate: float
    head_dropout: float
    tuning: TuningSettings
    backbone_learning_rate: float
    id_weight: float | None

    @classmethod
    def from_config(cls, config: Any) -> "IDLEAdapterSettings":
        """Read the settings of a run."""
        fields = config["item_text_fields"]
        if not config["prompt_item"] and not fields:
            raise SettingError("prompt_item names no column of the .item file, such as {title}")
        item = config["prompt_item"] or f"{{{fields[0]}}}"
        return cls(
            backbone=str(config["backbone"]),
            compile=config["compile"],
            gradient_checkpointing=config["gradient_checkpointing"],
            virtual_tokens=config["num_virtual_tokens"],
            layerwise=config["layerwise"],
            refinement=config["refinement"],
            mmd_weight=config["mmd_weight"],
            mmd_rows=config["mmd_rows"],
            template=PromptTemplate(str(config["prompt"]), str(item), str(config["prompt_noun"])),
            max_items=max_items(config),
            max_prompt_tokens=config["max_prompt_tokens"],
            max_attribute_tokens=config["max_attribute_tokens"],
            train_batch_tokens=config["train_batch_tokens"],
            eval_batch_tokens=config["eval_batch_tokens"],
            learning_rate=config["learning_rate"],
            head_learning_rate=_rate(config, "head_learning_rate"),
            head_dropout=config["head_dropout"],
            tuning=_tuning(config),
            backbone_learning_rate=_rate(config, "backbone_learning_rate"),
            id_weight=given_id_weight(config["id_weight"]),
        )


def _rate(config: Any, name: str) -> float:
    """Return a learning rate; None stands for the general one, and 0 for 0."""
    return config["learning_rate"] if config[name] is None else config[name]


def _tuning(config: Any) -> TuningSettings:
    """Return how the backbone is trained; it has no dropout in any case, and is kept in the arithmetic's type."""
    return TuningSettings(
        tuning=config["tuning"],
        lora_rank=config["lora_rank"],
        lora_alpha=config["lora_alpha"],
        lora_dropout=0.0,
        lora_targets=config["lora_targets"],
        weights="bf16",
        gradient_checkpointing=False,  # transformers' own is for training mode alone; see `checkpoint_layers`
        compile=False,
    )
