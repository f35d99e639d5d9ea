"""The settings of ST2SI, documented and checked."""

from dataclasses import dataclass
from typing import Any

from recbole_llm.backbone.preset import BackbonePreset
from recbole_llm.backbone.pretrained import read_record
from recbole_llm.backbone.tuning import TUNING, TuningSettings
from recbole_llm.config.settings.one_pass import TWO_LEVEL
from recbole_llm.errors import BackboneError, SettingError
from recbole_llm.model.id_model.scores import max_items

# Appendix A.3 of the paper; LoRA is not in the paper, its rate is ours.
_LEARNING_RATES = {"full": 5e-5, "lora": 3e-4, "frozen": 3e-4}
_AFTER_PRETRAINING = {**_LEARNING_RATES, "frozen": 1e-4}


@dataclass(frozen=True)
class ST2SISettings:
    """The settings of `properties/model/ST2SI.yaml`, checked.

    Attributes:
        backbone: a preset, a folder or a hub id; after a pre-training, the folder that it gave.
        pretraining: what is known of the backbone's pre-training, None without one.
        tuning: how the backbone is trained.
        item_text_fields: columns of the `.item` file.
        max_attribute_tokens: maximum number of tokens of one field.
        max_items: maximum number of items of a window; an ID model reads `MAX_ITEM_LIST_LENGTH`.
        max_sequence_tokens: maximum number of tokens of a window.
        query_token: the token after every item text.
        multi_query: whether a query follows every item (eq. 2), or the last one alone (Table 3, without multi-query).
        train_window: random, full or recent.
        alignment: whether alignment inputs are trained too.
        alignment_instruction: the text before the item in an alignment input.
        alignment_token: the token after it; None for the query token.
        train_batch_tokens: maximum number of tokens of a packed pass with gradients.
        eval_batch_tokens: maximum number of tokens of a packed pass without.
        stored_states_gb: gigabytes that hidden states may take on the disk.
        learning_rate: of the backbone and the projection.
        id_model: the model whose scores are mixed in, or the folder of its run; None without one.
        head_dropout: of the hidden states before the projection.

    Raises:
        SettingError: for values that do not go together.
    """

    backbone: str
    pretraining: dict[str, Any] | None
    tuning: TuningSettings
    item_text_fields: list[str]
    max_attribute_tokens: int
    max_items: int
    max_sequence_tokens: int
    query_token: str
    multi_query: bool
    train_window: str
    alignment: bool
    alignment_instruction: str
    alignment_token: str | None
    train_batch_tokens: int
    eval_batch_tokens: int
    stored_states_gb: float
    learning_rate: float
    id_model: str | None
    head_dropout: float

    def __post_init__(self) -> None:
        if not isinstance(self.item_text_fields, list) or not self.item_text_fields:
            raise SettingError("item_text_fields must be a list of columns of the .item file, such as ['title']")

    @classmethod
    def from_config(cls, config: Any, backbone: str | None = None) -> "ST2SISettings":
        """Read the settings of a run; what is not given follows from `tuning` and `multi_query`.

        Args:
            config: the settings of the run.
            backbone: takes the place of the setting, such as the folder that a pre-training gave.
        """
        tuning = TuningSettings.from_config(config)
        _check_id_settings(config)
        if config["projection_init"] == "texts":
            if config["item_codes"] is not None:
                raise SettingError("item_codes has no row of an item to start from its text: leave out projection_init")
            if config["loss_type"] == TWO_LEVEL:
                raise SettingError("loss_type=TwoLevel starts its clusters at random: leave out projection_init")
        # Without multi-query a window has one query: only new windows in every epoch reach all positions.
        drawn = tuning.tuning != "frozen" or not config["multi_query"]
        backbone = str(backbone or config["pretrained_backbone"] or config["backbone"])
        pretraining = read_record(backbone)
        rates = _LEARNING_RATES if pretraining is None else _AFTER_PRETRAINING
        rate = config["learning_rate"]
        return cls(
            backbone=backbone,
            pretraining=pretraining,
            tuning=tuning,
            item_text_fields=config["item_text_fields"],
            max_attribute_tokens=config["max_attribute_tokens"],
            max_items=max_items(config),
            max_sequence_tokens=config["max_sequence_tokens"],
            query_token=str(config["query_token"]),
            multi_query=config["multi_query"],
            train_window=config["train_window"] or ("random" if drawn else "full"),
            alignment=config["alignment"],
            alignment_instruction=config["alignment_instruction"],
            alignment_token=None if config["alignment_token"] is None else str(config["alignment_token"]),
            train_batch_tokens=config["train_batch_tokens"],
            eval_batch_tokens=config["eval_batch_tokens"],
            stored_states_gb=config["stored_states_gb"],
            learning_rate=rates[tuning.tuning] if rate is None else rate,
            id_model=config["id_model_path"] or config["id_model"] or None,
            head_dropout=config["head_dropout"],
        )

    @property
    def frozen(self) -> bool:
        """Whether the projection alone is trained."""
        return self.tuning.tuning == "frozen"

    @property
    def states_never_change(self) -> bool:
        """Whether every query has the same hidden state in all epochs, so that it can be computed once.

        Without multi-query the queries of one window need a pass each, so nothing would be shared.
        """
        return self.frozen and self.train_window != "random" and self.multi_query


def _check_id_settings(config: Any) -> None:
    for name in ("id_weight", "id_model_settings"):
        if config[name] not in (None, {}) and not (config["id_model"] or config["id_model_path"]):
            raise SettingError(f"{name}={config[name]} has no effect: no id_model is named, such as SASRec")


def require_decoder(backbone: str, preset: BackbonePreset) -> None:
    """Refuse an encoder. Raises BackboneError.

    Args:
        backbone: as the settings name it.
        preset: what is known of it.
    """
    if preset.kind != "decoder":
        raise BackboneError(
            f"ST2SI needs a decoder, but {backbone} is an encoder, whose query tokens would see the items that they "
            f"should predict: choose a decoder such as smollm2-135m or opt-125m"
        )


def require_positions(settings: ST2SISettings, positions: int | None) -> None:
    """Refuse windows of more tokens than the backbone has positions for. Raises SettingError.

    Args:
        settings: of the run.
        positions: how many the backbone has; None if there is no bound.
    """
    if positions is not None and settings.max_sequence_tokens > positions:
        raise SettingError(
            f"max_sequence_tokens={settings.max_sequence_tokens} is more than the {positions} positions of "
            f"{settings.backbone}: lower it"
        )


assert set(_LEARNING_RATES) == set(TUNING)
