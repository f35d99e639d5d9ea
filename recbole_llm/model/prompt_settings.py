"""The settings of models that read prompts with lists of items, read and checked once for all of them."""

from dataclasses import dataclass
from typing import Any

from recbole_llm.backbone.tuning import TuningSettings
from recbole_llm.errors import SettingError


@dataclass(frozen=True)
class PromptSettings:
    """What models that answer prompts have in common.

    Attributes:
        backbone: a preset, a folder or a hub id.
        tuning: how the backbone is trained.
        title_field: the column of the `.item` file with the titles.
        tidy_titles: whether they are written as LLaRA writes them.
        max_attribute_tokens: maximum number of tokens of a title.
        max_items: maximum number of items of a history.
        max_sequence_tokens: maximum number of tokens of a prompt with its answer.
        chat: whether prompts stand in the tokenizer's chat template.
        answer: generate or likelihood.
        answer_likelihood: sum or mean over the tokens of a title.
        answer_rule: strict or substring.
        max_answer_tokens: maximum number of generated tokens.
        candidates: of a list; None without lists.
        max_full_sort_prompts: the most prompts of a ranking of all items.
        train_batch_size: rows of an optimiser step.
        train_batch_tokens: maximum number of tokens of a packed pass with gradients.
        eval_batch_tokens: maximum number of tokens of a pass without.
        learning_rate: of all that is trained.

    Raises:
        SettingError: for values that do not go together.
    """

    backbone: str
    tuning: TuningSettings
    title_field: str
    tidy_titles: bool
    max_attribute_tokens: int
    max_items: int
    max_sequence_tokens: int
    chat: bool
    answer: str
    answer_likelihood: str
    answer_rule: str
    max_answer_tokens: int
    candidates: int | None
    max_full_sort_prompts: int
    train_batch_size: int
    train_batch_tokens: int
    eval_batch_tokens: int
    learning_rate: float

    @classmethod
    def from_config(cls, config: Any) -> "PromptSettings":
        """Read the settings of a run. Raises SettingError if no column with titles is named."""
        fields = config["item_text_fields"]
        if not fields:
            raise SettingError(
                f"item_text_fields names no column of the .item file, and {config['model']} reads titles"
            )
        return cls(
            backbone=str(config["backbone"]),
            tuning=TuningSettings.from_config(config),
            title_field=fields[0],
            tidy_titles=bool(config["tidy_titles"]),
            max_attribute_tokens=config["max_attribute_tokens"],
            max_items=config["MAX_ITEM_LIST_LENGTH"],
            max_sequence_tokens=config["max_sequence_tokens"],
            chat=config["chat_template"] == "auto",
            answer=config["answer"],
            answer_likelihood=config["answer_likelihood"],
            answer_rule=config["answer_rule"],
            max_answer_tokens=config["max_answer_tokens"],
            candidates=config["candidates"],
            max_full_sort_prompts=config["max_full_sort_prompts"] or 0,
            train_batch_size=config["train_batch_size"],
            train_batch_tokens=config["train_batch_tokens"],
            eval_batch_tokens=config["eval_batch_tokens"],
            learning_rate=config["learning_rate"] or 0.0,
        )
