"""The settings of IDLE-Adapter, written to properties/model/IDLEAdapter.yaml."""

from dataclasses import replace

from recbole_llm.config.kinds import FROM_ZERO, SIZE, Choice, Flag, Maybe
from recbole_llm.config.schema import Role, Section, Setting
from recbole_llm.config.settings import text_models

TITLE = (
    "IDLE-Adapter: the user vector of an ID model enters every layer of a frozen language model as gated "
    "virtual tokens.\n"
    "The paper's own settings (section 5.1); what it does not state is ours, as the comment says."
)

_BACKBONE = Section(
    "The language model",
    (
        text_models.backbone(
            "sbert-minilm", "A preset of properties/backbone/, a local folder, or a hub ID; encoder or decoder."
        ),
        text_models.SHARD,
        text_models.SHARD_WITHIN,
        text_models.COMPILE,
        replace(text_models.CHECKPOINTING, since="0.3.0"),
    ),
)

_ID_MODEL = text_models.id_model(
    "ComiRec",
    "The ID model (eq. 2 to 4)",
    "Any sequential model with a user vector: ComiRec, SASRec, GRU4Rec, BERT4Rec, Caser, ...",
    0.0,
    "w: items are ranked by (1 - w) log p(item) + w log p_id(item), p_id being the ID model's own scores (ours). 0: "
    "the paper. ~: after every epoch, that of 0, .05, ..., 1 with the best NDCG@10 on validation; the weights of the "
    "best epoch hold it.",
)

_TUNING = Section(
    "Training the language model too (ours)",
    (
        Setting(
            "tuning",
            Choice("frozen", "lora", "full"),
            "frozen",
            Role.TRAINING,
            "frozen: the paper. lora: low-rank adapters (peft). full: all weights. Without dropout; the states that "
            "eq. 12 aligns with are those from before, where they fit in memory.",
        ),
        Setting("backbone_learning_rate", Maybe(FROM_ZERO), None, Role.TRAINING, "~ takes learning_rate."),
        *text_models.lora(None),
    ),
)

_ADAPTER = Section(
    "The adapter (eq. 5 to 11)",
    (
        Setting(
            "num_virtual_tokens",
            SIZE,
            2,
            Role.TRAINING,
            "L', virtual tokens per user vector. Not stated; the paper finds 1 to 2 enough (5.5).",
        ),
        Setting(
            "layerwise",
            Flag(),
            True,
            Role.TRAINING,
            "False: one adapter for all layers (Table 4, without LayerWise).",
        ),
        Setting(
            "refinement",
            Flag(),
            True,
            Role.TRAINING,
            "False: D = P, without prefixes and gate (Table 4, without Refinement).",
        ),
    ),
)

_ALIGNMENT = Section(
    "Alignment (eq. 12, 15)",
    (
        Setting(
            "mmd_weight",
            FROM_ZERO,
            0.1,
            Role.TRAINING,
            "lambda, from {0.1, 0.2, 0.5, 1.0}; 0: none (Table 4, without Distribution).",
        ),
        Setting(
            "mmd_rows",
            Choice("layers", "batch"),
            "layers",
            Role.TRAINING,
            "layers: a user's rows are the layers. batch: a layer's rows are the users of a pass. The kernel's width, "
            "which the paper does not state, is the median of a pass's distances.",
        ),
    ),
)

_PROMPT = Section(
    "The hard prompt (4.1)",
    (
        Setting(
            "max_items",
            Maybe(SIZE),
            None,
            Role.INPUT,
            "Maximum number of items in the prompt, the most recent ones, where the ID model reads more (ours); ~ "
            "takes MAX_ITEM_LIST_LENGTH.",
        ),
        Setting(
            "max_prompt_tokens",
            SIZE,
            256,
            Role.INPUT,
            "Maximum number of tokens of a prompt; the most recent items stay. Not stated.",
        ),
        Setting(
            "max_attribute_tokens", SIZE, 32, Role.INPUT, "Maximum number of tokens of an item's text. Not stated."
        ),
    ),
    remark="prompt, prompt_item and prompt_noun are in overall.yaml and dataset_configs/, and so is "
    "MAX_ITEM_LIST_LENGTH, the maximum number of items of a history (20 on the paper's Amazon data, 50 on ML-1M).",
)

_OPTIMISATION = Section(
    "Optimisation",
    (
        text_models.PROJECTION_INIT,
        *text_models.optimisation(
            {
                "epochs": 30,
                "learning_rate": 0.0005,
                "head_learning_rate": None,
                "head_dropout": 0.0,
                "weight_decay": 0.01,
                "warmup_steps": 0,
                "lr_scheduler": "linear",
                "clip_grad_norm": {"max_norm": 1.0},
                "weight_average": None,
                "train_batch_size": 256,
                "stopping_step": 4,
                "train_neg_sample_args": None,
            },
            {
                "epochs": "Maximum number of passes over the training data. Not stated.",
                "head_dropout": "Dropout of the pooled state before the projection, in training (ours).",
                "weight_decay": "AdamW's own default; not stated.",
                "train_batch_size": "Prefixes of one optimiser step. Not stated.",
            },
        ),
        # The median distance and rows of the alignment are those of one pass, so its size can change the result.
        *text_models.budgets(32768, Role.TRAINING, ""),
    ),
)

IDLEADAPTER = (_BACKBONE, _ID_MODEL, _TUNING, _ADAPTER, _ALIGNMENT, _PROMPT, _OPTIMISATION)
