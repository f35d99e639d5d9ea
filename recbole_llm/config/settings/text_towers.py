"""The settings of models that compare vectors of texts, written to properties/model/: LLMRec, MoRec, ..."""

from dataclasses import replace
from typing import Any

from recbole_llm.config.kinds import FROM_ZERO, POSITIVE, RATE, SHARE, SIZE, Choice, Flag, Matching, Maybe, Text
from recbole_llm.config.schema import Role, Section, Setting
from recbole_llm.config.settings import text_models
from recbole_llm.config.settings.vector_models import pretraining_of_state

_LOSSES = {
    "table": "table: all, from vectors made once per epoch.",
    "full": "full: all, encoded in every step.",
    "sampled": "sampled: train_negatives random ones.",
    "in-batch": "in-batch: the other rows' targets, but for what the user has met.",
    "bce": "bce: binary cross-entropy against train_negatives random ones.",
}


def backbone(
    default: str,
    remark: str,
    tuning: str,
    tunings: tuple[str, ...],
    pooling: str | None,
    more: tuple[Setting, ...] = (),
) -> Section:
    """Return the section of the language model.

    Args:
        default: of `backbone`.
        remark: what is said of `tuning`.
        tuning: its default.
        tunings: its values.
        pooling: the default of `item_pooling`.
        more: further settings.
    """
    return Section(
        "The language model",
        (
            text_models.backbone(default, "A preset of properties/backbone/, a local folder, or a hub ID."),
            Setting("tuning", Choice(*tunings), tuning, Role.TRAINING, remark),
            *text_models.lora(0.1),
            text_models.WEIGHTS,
            text_models.CHECKPOINTING,
            text_models.COMPILE,
            Setting(
                "item_pooling",
                Maybe(Choice("mean", "cls", "last")),
                pooling,
                Role.TRAINING,
                "How the last hidden states of a text become its vector; ~: as the backbone asks.",
            ),
            *more,
        ),
    )


def inputs(*entries: tuple[str, Any, Any, str]) -> Section:
    """Return the section of what is read: (name, kind, default, sentence) of each setting."""
    return Section(
        "Input", tuple(Setting(name, kind, default, Role.INPUT, text) for name, kind, default, text in entries)
    )


def loss(
    kinds: tuple[str, ...], default: str, negatives: int, more: tuple[Setting, ...] = (), title: str = "Loss"
) -> Section:
    """Return the section of the loss.

    Args:
        kinds: the values of `item_loss`.
        default: one of them.
        negatives: the default of `train_negatives`.
        more: further settings.
        title: of the section.
    """
    among = " ".join(_LOSSES[kind] for kind in kinds)
    entries: list[tuple[str, Any, Any, str]] = [
        ("item_loss", Choice(*kinds), default, f"Among which items the target is. {among}")
    ]
    if {"sampled", "bce"} & set(kinds):
        entries.append(("train_negatives", SIZE, negatives, "Random items per row of a sampled or bce loss."))
    if "in-batch" in kinds:
        entries.append(
            (
                "popularity_correction",
                Flag(),
                True,
                "In-batch: subtract log p(item), its share of all targets; else popular items are pushed down.",
            )
        )
    settings = (Setting(name, kind, value, Role.TRAINING, text) for name, kind, value, text in entries)
    return Section(title, (*settings, *more))


def similarity(kind: str, temperature: float) -> tuple[Setting, ...]:
    """Return the settings of the score."""
    return (
        Setting("similarity", Choice("dot", "cosine"), kind, Role.TRAINING, "Of user and item vector."),
        Setting("temperature", POSITIVE, temperature, Role.TRAINING, "tau, by which scores are divided."),
    )


def stages(two: bool) -> tuple[Setting, ...]:
    """Return the settings of Recformer's two stages."""
    return (
        Setting(
            "two_stage",
            Flag(),
            two,
            Role.TRAINING,
            "Two stages around the table of item vectors, with item_loss=table: made again for every epoch; then, from "
            "the best weights of the first stage, never again.",
        ),
        Setting(
            "first_stage_epochs",
            Maybe(SIZE),
            None,
            Role.TRAINING,
            "Maximum number of epochs of the first stage, which also ends by stopping_step; ~: half of epochs.",
        ),
    )


def prefixes(default: str) -> Setting:
    """Return the setting of the rows of an epoch."""
    return Setting(
        "train_prefixes",
        Choice("all", "one"),
        default,
        Role.TRAINING,
        "all: every prefix of a history is a row; one: one random target per user and epoch, the first item included.",
    )


def optimisation(values: dict[str, Any], own_rate: float | None, sentences: dict[str, str]) -> Section:
    """Return the section of the optimiser.

    Args:
        values: defaults, by name, in the order of the file.
        own_rate: the default of `backbone_learning_rate`.
        sentences: what is said of some of them.
    """
    every = {
        "epochs": 30,
        "learning_rate": 5e-5,
        "weight_decay": 0.0,
        "warmup_steps": 100,
        "lr_scheduler": "linear",
        "clip_grad_norm": None,
        "weight_average": None,
        "train_batch_size": 128,
        "stopping_step": 4,
        "train_neg_sample_args": None,
        **values,
    }
    said = {
        "train_batch_size": "Rows of one optimiser step.",
        "train_neg_sample_args": "RecBole draws none; train_negatives says how many the model draws itself.",
        **sentences,
    }
    return Section(
        "Optimisation",
        (
            *text_models.optimisation(every, said),
            Setting(
                "backbone_learning_rate",
                Maybe(FROM_ZERO),
                own_rate,
                Role.TRAINING,
                "The backbone's own rate; ~ takes learning_rate.",
            ),
            *text_models.budgets(16384, Role.MACHINE, ", with equal results"),
        ),
    )


def _read_by_pretraining(sections: tuple[Section, ...]) -> tuple[Section, ...]:
    """Return the sections with all that shapes weights marked as read by a pre-training on other datasets.

    The rate and the size of a step are its own; averages, patience and the number of epochs are the target's.
    """
    own = {"epochs", "learning_rate", "train_batch_size", "stopping_step", "weight_average", "train_neg_sample_args"}
    own |= {"backbone", "two_stage", "first_stage_epochs", "backbone_learning_rate"}
    return tuple(
        replace(
            section,
            settings=tuple(
                setting if setting.name in own else replace(setting, pretraining=True) for setting in section.settings
            ),
        )
        for section in sections
    )


_TOKENS = ("max_attribute_tokens", SIZE, 32, "Maximum number of tokens of one field.")
_LENGTH = ("max_sequence_tokens", SIZE, 512, "Maximum number of tokens of a history; the most recent items stay.")
_END = Text("text", empty=True)

LLMREC_TITLE = (
    "LLM-Rec (Tang et al. 2023): one language model encodes histories and items; an item's score is their product.\n"
    "The defaults are those of the authors' code; item_loss: table and two_stage: True are how ST2SI's paper ran it."
)
_LLMREC = (
    backbone("opt-125m", "full: all weights. lora: low-rank adapters (peft) alone.", "full", ("full", "lora"), None),
    inputs(
        ("max_attribute_tokens", SIZE, 40, "Maximum number of tokens of one field, item_end included."),
        ("MAX_ITEM_LIST_LENGTH", SIZE, 10, text_models.HISTORY_LENGTH),
        _LENGTH,
        ("item_end", _END, ";", "The text after every item."),
    ),
    loss(
        ("table", "full", "sampled", "in-batch", "bce"),
        "sampled",
        10,
        (*similarity("dot", 1.0), *stages(two=False), prefixes("all")),
    ),
    optimisation({"weight_decay": 1e-3, "train_batch_size": 96}, None, {}),
)
LLMREC = (*_read_by_pretraining(_LLMREC), pretraining_of_state(50))

MOREC_TITLE = (
    "MoRec (Yuan et al., SIGIR 2023): SASRec whose items are the vectors of their texts, trained end to end.\n"
    "The authors' settings; theirs for in-batch is train_batch_size: 128."
)
MOREC = (
    backbone(
        "sbert-minilm",
        "full: all weights. lora: low-rank adapters (peft). frozen: not at all, its vectors are computed once.",
        "full",
        ("full", "lora", "frozen"),
        None,
    ),
    inputs(
        ("max_attribute_tokens", SIZE, 30, "Maximum number of tokens of one field."),
        ("MAX_ITEM_LIST_LENGTH", SIZE, 20, text_models.HISTORY_LENGTH),
    ),
    Section(
        "The transformer that reads a history",
        tuple(
            Setting(name, kind, default, Role.TRAINING, sentence)
            for name, kind, default, sentence in (
                ("hidden_size", SIZE, 512, "Size of item and user vectors."),
                ("inner_size", SIZE, 2048, "Of the feed-forward layers."),
                ("n_layers", SIZE, 2, "Layers."),
                ("n_heads", SIZE, 2, "Heads of the attention; they divide hidden_size."),
                ("hidden_dropout_prob", RATE, 0.1, "Of inputs and hidden states."),
                ("attn_dropout_prob", RATE, 0.1, "Of the attention's weights."),
                (
                    "hidden_act",
                    Choice("relu", "gelu", "swish", "tanh", "sigmoid"),
                    "relu",
                    "Of the feed-forward layers.",
                ),
                ("layer_norm_eps", POSITIVE, 1e-6, "A value added to the denominator for numerical stability."),
                ("initializer_range", POSITIVE, 0.02, "Standard deviation of its initial weights (ours)."),
            )
        ),
    ),
    loss(
        ("bce", "in-batch", "sampled", "full"),
        "bce",
        1,
        (
            *similarity("dot", 1.0),
            Setting(
                "train_window",
                Choice("full", "recent"),
                "full",
                Role.TRAINING,
                "full: the whole history, in consecutive windows; recent: the last of these alone.",
            ),
        ),
    ),
    optimisation(
        {
            "epochs": 50,
            "learning_rate": 1e-4,
            "weight_decay": 0.01,
            "warmup_steps": 0,
            "lr_scheduler": "constant",
            "train_batch_size": 32,
            "stopping_step": 5,
        },
        5e-5,
        {"train_batch_size": "Windows of one optimiser step."},
    ),
)

TWINBERT_TITLE = (
    "TwinBERT (Lu et al., CIKM 2020) as a recommender: the history as text is the query, an item's text the document.\n"
    "The IDLE-Adapter paper, which compares with it, states no settings: these are ours."
)
TWINBERT = (
    backbone(
        "sbert-minilm", "full: all weights. lora: low-rank adapters (peft) alone.", "full", ("full", "lora"), None
    ),
    inputs(
        _TOKENS,
        ("MAX_ITEM_LIST_LENGTH", SIZE, 20, text_models.HISTORY_LENGTH),
        _LENGTH,
        ("item_end", _END, ",", "The text after every item."),
    ),
    loss(
        ("in-batch", "sampled", "bce", "full", "table"),
        "in-batch",
        10,
        (
            Setting(
                "crossing",
                Choice("cosine", "residual"),
                "cosine",
                Role.TRAINING,
                "cosine: cos(u, v) / tau. residual: with x = max(u, v), a logistic regression on relu(W x + b) + x.",
            ),
            Setting("temperature", POSITIVE, 0.05, Role.TRAINING, "tau of the cosine."),
            Setting(
                "learned_temperature", Flag(), True, Role.TRAINING, "Whether log tau is trained, from temperature."
            ),
            Setting("shared_towers", Flag(), True, Role.TRAINING, "Whether both towers have the same weights."),
            prefixes("all"),
        ),
    ),
    optimisation({"train_batch_size": 256}, None, {}),
)

RECFORMER_TITLE = (
    "Recformer (Li et al., KDD 2023): a bidirectional encoder of names and values, and two stages around a table.\n"
    "The authors' settings, but for the backbone and 512 tokens for 1,024; theirs are backbone: longformer-base-4096,\n"
    "attention_window: 64 and max_sequence_tokens: 1024."
)
_EVEN = Matching(
    "an even whole number from 2", lambda value: type(value) is int and value > 0 and value % 2 == 0, type="int"
)
_WINDOW = Setting(
    "attention_window",
    Maybe(_EVEN),
    None,
    Role.TRAINING,
    "Tokens of a Longformer's window, half of them to either side of a token (the authors: 64); ~: as the backbone "
    "has it. Shorter windows are quicker: texts are padded to a multiple.",
    since="0.3.0",
)
_RECFORMER = (
    backbone(
        "sbert-minilm",
        "full: all weights. lora: low-rank adapters (peft) alone.",
        "full",
        ("full", "lora"),
        "cls",
        (_WINDOW,),
    ),
    inputs(
        ("max_attribute_tokens", SIZE, 32, "Maximum number of tokens of one field, its name included."),
        ("MAX_ITEM_LIST_LENGTH", SIZE, 50, text_models.HISTORY_LENGTH),
        _LENGTH,
    ),
    loss(
        ("table", "full", "sampled", "in-batch", "bce"),
        "table",
        10,
        (*similarity("cosine", 0.05), *stages(two=True), prefixes("one")),
    ),
    optimisation({"epochs": 256, "stopping_step": 5}, None, {}),
)
RECFORMER = (
    *_read_by_pretraining(_RECFORMER),
    pretraining_of_state(32),
    *_read_by_pretraining(
        (
            Section(
                "The loss of the pre-training: a contrast within the batch, and masked words",
                (
                    Setting(
                        "mlm_weight",
                        FROM_ZERO,
                        0.1,
                        Role.TRAINING,
                        "The weight of masked words in the history, and of those in the items.",
                    ),
                    Setting("mlm_share", SHARE, 0.15, Role.TRAINING, "The share of words that are hidden."),
                ),
            ),
        )
    ),
)
