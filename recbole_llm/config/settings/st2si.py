"""The settings of ST2SI, written to properties/model/ST2SI.yaml."""

import re
from typing import Any

from recbole_llm.config.kinds import PATH, POSITIVE, SIZE, Choice, Flag, Items, Matching, Maybe, Text, Whole
from recbole_llm.config.schema import Role, Section, Setting
from recbole_llm.config.settings import text_models
from recbole_llm.config.settings.one_pass import ONE_PASS_LOSSES

TITLE = (
    "ST2SI: sequence of item texts to sequence of item ids.\n"
    "The paper's own settings (section 4, appendix A.3; where it is silent, the authors' logs)."
)

_BACKBONE = Section(
    "The language model",
    (
        text_models.backbone("opt-125m", "A preset of properties/backbone/, a local folder, or a hub ID."),
        Setting(
            "tuning",
            Choice("full", "lora", "frozen", "ilp"),
            "full",
            Role.TRAINING,
            "full: all weights. lora: low-rank adapters (peft) and the projection. ilp, or frozen: the item linear "
            "projection alone, on a frozen backbone; the run folder then also gets scenario.safetensors, which "
            "recbole_llm.model.sequential_recommender.st2si.scenario puts onto a loaded backbone.",
        ),
        *text_models.lora(0.05),
        text_models.WEIGHTS,
        text_models.CHECKPOINTING,
        text_models.SHARD,
        text_models.SHARD_WITHIN,
        text_models.COMPILE,
    ),
)

_INPUT = Section(
    "Input (eq. 2)",
    (
        *(
            Setting(name, kind, default, Role.INPUT, sentence, pretraining=name != "max_items")
            for name, kind, default, sentence in (
                ("max_attribute_tokens", SIZE, 32, "Maximum number of tokens of one field."),
                ("MAX_ITEM_LIST_LENGTH", SIZE, 50, text_models.HISTORY_LENGTH),
                (
                    "max_items",
                    Maybe(SIZE),
                    None,
                    "Maximum number of items that the language model reads, where an ID model reads more (ours); ~ "
                    "takes MAX_ITEM_LIST_LENGTH.",
                ),
                (
                    "max_sequence_tokens",
                    SIZE,
                    1024,
                    "Maximum number of tokens of a history; the most recent items stay.",
                ),
                (
                    "query_token",
                    Text("a token", numbers=True),
                    ".",
                    "The token after every item text; one that the tokenizer lacks is added to it.",
                ),
                ("multi_query", Flag(), True, "False: one query, after the last item (Table 3, without multi-query)."),
            )
        ),
        Setting(
            "train_window",
            Maybe(Choice("random", "full", "recent")),
            None,
            Role.TRAINING,
            "random: one random sub-window per user and epoch (the authors' code); full: the whole history, in "
            "consecutive windows that never change; recent: the last of these alone. ~ takes random for full tuning "
            "and full for ILP tuning, whose frozen hidden states are then computed once.",
        ),
        Setting(
            "alignment",
            Flag(),
            True,
            Role.INPUT,
            "Whether every item's text is also mapped to its own id, once per epoch (eq. 6).",
            pretraining=True,
        ),
        Setting(
            "alignment_instruction",
            Text("text", empty=True),
            "Please give the index of the following item: ",
            Role.INPUT,
            "The text before the item in an alignment input.",
            pretraining=True,
        ),
        Setting(
            "alignment_token",
            Maybe(Text("a token", numbers=True)),
            None,
            Role.INPUT,
            "The token after the item in an alignment input, as the authors' code can have one of its own; one that "
            "the tokenizer lacks is added to it. ~: query_token, as in the paper and its logs.",
            pretraining=True,
            since="0.3.0",
        ),
    ),
)


def _are_codes(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[1-9]\d{0,3}x[1-9]\d{0,5}", value) is not None


_OPTIMISATION = Section(
    "Optimisation",
    (
        Setting(
            "loss_type",
            Choice("CE", *ONE_PASS_LOSSES),
            "CE",
            Role.TRAINING,
            "CE: softmax over all items (eq. 7). For large catalogues (ours): SampledCE, softmax over the target and "
            "drawn items; BCE and gBCE, drawn items against each prediction; TwoLevel, softmax over clusters of items, "
            "and over the items of one. Ranking is over all items in any case.",
            since="0.3.0",
        ),
        Setting(
            "item_codes",
            Maybe(Matching("two whole numbers such as 8x256", _are_codes)),
            None,
            Role.TRAINING,
            "MxB: the projection is put together from M codes an item, of B values each, which are chosen by the texts "
            "of the items before training (ours; RecJPQ): B rows are trained instead of one an item. M divides the "
            "width of the backbone. ~: a row of its own for each item.",
            since="0.3.0",
        ),
        text_models.PROJECTION_INIT,
        *text_models.optimisation(
            {
                "epochs": 30,
                "learning_rate": None,
                "warmup_steps": 100,
                "lr_scheduler": "cosine",
                "clip_grad_norm": None,
                "head_dropout": 0.0,
                "weight_average": None,
                "train_batch_size": 128,
                "stopping_step": 4,
                "train_neg_sample_args": None,
            },
            {
                "learning_rate": "AdamW; ~ takes 5e-5 for full tuning, 3e-4 for LoRA and ILP tuning, and 1e-4 for ILP "
                "tuning of a pre-trained backbone.",
                "head_dropout": "Dropout of the hidden states before the projection, in training. Not in the paper.",
                "train_batch_size": "Samples (users and alignment items) of one optimiser step: 16 x 2 GPUs x 4 in the "
                "logs.",
            },
        ),
        *text_models.budgets(16384, Role.MACHINE, ", with equal results"),
    ),
)

_ID_MODEL = text_models.id_model(
    None,
    "Both papers' evidence in one ranking (ours): (1 - w) log p(item) + w log p_id(item)",
    "A model whose scores are mixed in: SASRec, FDSA, FPMC, IDLEAdapter, ...; ~: none.",
    None,
    "w, from 0 to 1. ~: after every epoch, that of 0, .05, ..., 1 with the best NDCG@10 on validation; the weights of "
    "the best epoch hold it.",
)

_PRETRAINING = Section(
    "Pre-training on other datasets (3.4.2, Appendix B)",
    (
        Setting(
            "pretrain_datasets",
            Maybe(Items(Text("the name of a dataset"), single=True)),
            None,
            Role.STAGE,
            "Source datasets, such as Food,Cell; none may have an item (token and text) of the target. ~: none. Each "
            "is read with its own dataset_configs/ file; users and items of different sources are never the same.",
        ),
        Setting("pretrain_epochs", SIZE, 15, Role.STAGE, "How long; the schedule of the learning rate ends here."),
        Setting(
            "pretrain_save_epochs",
            Maybe(Items(SIZE, single=True)),
            None,
            Role.STAGE,
            "After which epochs the backbone is stored; the last of them is tuned. ~: the last.",
        ),
        Setting("pretrain_learning_rate", Maybe(POSITIVE), None, Role.STAGE, "~ takes 5e-5."),
        Setting(
            "pretrain_seed",
            Whole(0, 2**32 - 1),
            2020,
            Role.STAGE,
            "One pre-training serves all seeds of a target.",
        ),
        Setting(
            "pretrained_backbone",
            Maybe(PATH),
            None,
            Role.STAGE,
            "The folder that pre-training gave; written by the run, so that it is loaded without its sources.",
        ),
    ),
    remark="Always with full tuning. It is found again in <checkpoint_dir>/pretrain-<datasets>-<hash>/, whose "
    "backbone-epoch-<n>/ can also be given as backbone.",
)

ST2SI = (_BACKBONE, _INPUT, _OPTIMISATION, _ID_MODEL, _PRETRAINING)
