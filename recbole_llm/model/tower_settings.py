"""The settings of models with text towers, read and checked once for all of them."""

from dataclasses import dataclass
from typing import Any

from recbole_llm.backbone.tuning import TuningSettings
from recbole_llm.errors import SettingError


@dataclass(frozen=True)
class TowerSettings:
    """What models with text towers have in common; a setting that a model lacks has the value that changes nothing.

    Attributes:
        backbone: a preset, a folder or a hub id.
        tuning: how the backbone is trained.
        attention_window: tokens of a Longformer's window; None for that of its configuration.
        item_pooling: mean, cls or last; None for the backbone's own.
        item_text_fields: columns of the `.item` file.
        max_attribute_tokens: maximum number of tokens of one field.
        max_items: maximum number of items of a history.
        max_sequence_tokens: maximum number of tokens of a history; None for all that the backbone has positions for.
        item_end: the text after every item.
        item_loss: table, full, sampled, in-batch or bce.
        train_negatives: items drawn for every row of a sampled or bce loss.
        popularity_correction: whether an in-batch loss takes out how often an item is a negative.
        similarity: dot or cosine.
        temperature: tau, by which scores are divided.
        two_stage: whether training has a second stage around a table that is never encoded again.
        train_prefixes: all, or one per user and epoch.
        train_batch_size: rows of an optimiser step.
        train_batch_tokens: maximum number of tokens of a packed pass with gradients.
        eval_batch_tokens: maximum number of tokens of a packed pass without.
        learning_rate: of all that is not the backbone, and of the backbone unless it has its own.
        backbone_learning_rate: of the backbone.

    Raises:
        SettingError: for values that do not go together.
    """

    backbone: str
    tuning: TuningSettings
    attention_window: int | None
    item_pooling: Any
    item_text_fields: list[str]
    max_attribute_tokens: int
    max_items: int
    max_sequence_tokens: int | None
    item_end: str
    item_loss: str
    train_negatives: int
    popularity_correction: bool
    similarity: str
    temperature: float
    two_stage: bool
    train_prefixes: str
    train_batch_size: int
    train_batch_tokens: int
    eval_batch_tokens: int
    learning_rate: float
    backbone_learning_rate: float

    def __post_init__(self) -> None:
        if not isinstance(self.item_text_fields, list) or not self.item_text_fields:
            raise SettingError("item_text_fields must be a list of columns of the .item file, such as ['title']")
        if self.two_stage and self.item_loss != "table":
            raise SettingError(
                f"item_loss={self.item_loss} has no table of item vectors, around which two_stage=True trains: take "
                f"item_loss=table, or two_stage=False"
            )

    @classmethod
    def from_config(cls, config: Any) -> "TowerSettings":
        """Read the settings of a run."""
        rate = config["learning_rate"]
        own = config["backbone_learning_rate"]
        return cls(
            backbone=str(config["backbone"]),
            tuning=TuningSettings.from_config(config),
            attention_window=config["attention_window"],
            item_pooling=config["item_pooling"],
            item_text_fields=config["item_text_fields"],
            max_attribute_tokens=config["max_attribute_tokens"],
            max_items=config["MAX_ITEM_LIST_LENGTH"],
            max_sequence_tokens=config["max_sequence_tokens"],
            item_end=config["item_end"] or "",
            item_loss=config["item_loss"],
            train_negatives=config["train_negatives"] if config["item_loss"] in ("sampled", "bce") else 0,
            popularity_correction=bool(config["popularity_correction"]),
            similarity=config["similarity"] or "dot",
            temperature=1.0 if config["temperature"] is None else config["temperature"],
            two_stage=bool(config["two_stage"]),
            train_prefixes=config["train_prefixes"] or "all",
            train_batch_size=config["train_batch_size"],
            train_batch_tokens=config["train_batch_tokens"],
            eval_batch_tokens=config["eval_batch_tokens"],
            learning_rate=rate,
            backbone_learning_rate=rate if own is None else own,
        )
