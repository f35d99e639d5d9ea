"""Settings of models whose items are frozen text vectors: ZESRec, UniSRec, AlphaFuse, TextInitSASRec, TextSLIT."""

from typing import Any

from recbole_llm.config.kinds import (
    COUNT,
    FROM_ZERO,
    PATH,
    POSITIVE,
    RATE,
    SIZE,
    Choice,
    Flag,
    Items,
    Maybe,
    Number,
    Text,
    Whole,
)
from recbole_llm.config.schema import Role, Section, Setting
from recbole_llm.config.settings import text_models
from recbole_llm.config.settings.recbole_run import NEGATIVE_SAMPLES

_UP_TO_ONE = Number(low=0, high=1)


def _texts(backbone: str) -> Section:
    return Section(
        "Item text vectors: computed once by a frozen language model, and found again by their content",
        (
            text_models.backbone(
                backbone, "A preset of properties/backbone/, a local folder, or a hub ID; encoder or decoder."
            ),
            Setting(
                "item_pooling",
                Maybe(Choice("mean", "cls", "last")),
                None,
                Role.INPUT,
                "How the last hidden states of a text become its vector: their mean, the first (cls) or the last; ~: "
                "the backbone's own way.",
                pretraining=True,
            ),
            Setting(
                "max_attribute_tokens",
                SIZE,
                128,
                Role.INPUT,
                "Maximum number of tokens of one field.",
                pretraining=True,
            ),
            Setting(
                "eval_batch_tokens",
                SIZE,
                65536,
                Role.MACHINE,
                "Maximum number of tokens of one packed pass.",
                pretraining=True,
            ),
        ),
    )


def _training(*entries: tuple[str, Any, Any, str]) -> tuple[Setting, ...]:
    return tuple(
        Setting(name, kind, default, Role.TRAINING, sentence, pretraining=True)
        for name, kind, default, sentence in entries
    )


def _temperature(default: float | None, maybe: bool = True) -> tuple[str, Any, Any, str]:
    sentence = "Items are scored by their cosine with the user vector divided by this" + (
        "; ~: by the dot product." if maybe else "."
    )
    return ("temperature", Maybe(POSITIVE) if maybe else POSITIVE, default, sentence)


def _encoder(size: int, layers: int, inner: int, dropout: float, remark: str = "") -> tuple[Setting, ...]:
    return (
        *_training(
            ("hidden_size", SIZE, size, "Size of item and user vectors."),
            ("inner_size", SIZE, inner, f"Size of the feed-forward layers{remark}."),
            ("n_layers", SIZE, layers, "Layers of the encoder."),
            ("n_heads", SIZE, 2, "Heads of the attention; they divide hidden_size."),
            ("hidden_dropout_prob", RATE, dropout, "Dropout of inputs and hidden states."),
            ("attn_dropout_prob", RATE, dropout, "Dropout of the attention's weights."),
            (
                "hidden_act",
                Choice("gelu", "relu", "swish", "tanh", "sigmoid"),
                "gelu",
                "The function between the feed-forward layers.",
            ),
            ("layer_norm_eps", POSITIVE, 1e-12, "A value added to the denominator for numerical stability."),
            ("initializer_range", POSITIVE, 0.02, "Standard deviation of the initial weights."),
        ),
        Setting(
            "MAX_ITEM_LIST_LENGTH",
            SIZE,
            50,
            Role.INPUT,
            text_models.HISTORY_LENGTH,
            pretraining=True,
        ),
    )


_OPTIMISATION = Section(
    "Optimisation",
    (
        *_training(("learning_rate", FROM_ZERO, 1e-3, "The learning rate of the optimiser.")),
        Setting(
            "train_neg_sample_args",
            NEGATIVE_SAMPLES,
            None,
            Role.TRAINING,
            "Cross-entropy over all items: no negative samples.",
        ),
    ),
)


def pretraining_of_state(epochs: int) -> Section:
    """Return the settings of a pre-training of a whole model on other datasets.

    Args:
        epochs: the default of `pretrain_epochs`.
    """
    return Section(
        "Pre-training on other datasets, with the model's own loss",
        (
            Setting(
                "pretrain_datasets",
                Maybe(Items(Text("the name of a dataset"), single=True)),
                None,
                Role.STAGE,
                "Source datasets, such as Food,Cell; none may have an item (token and text) of the target. ~: none. "
                "Each is read with its own dataset_configs/ file; users and items of different sources are never the "
                "same.",
            ),
            Setting("pretrain_epochs", SIZE, epochs, Role.STAGE, "How long."),
            Setting(
                "pretrain_save_epochs",
                Maybe(Items(SIZE, single=True)),
                None,
                Role.STAGE,
                "After which epochs the weights are stored; training on the target starts from the last. ~: the last.",
            ),
            Setting("pretrain_learning_rate", Maybe(POSITIVE), None, Role.STAGE, "~ takes learning_rate."),
            Setting(
                "pretrain_batch_size",
                Maybe(SIZE),
                None,
                Role.STAGE,
                "Rows of one optimiser step; ~ takes train_batch_size.",
                pretraining=True,
            ),
            Setting(
                "pretrain_seed",
                Whole(0, 2**32 - 1),
                2020,
                Role.STAGE,
                "One pre-training serves all seeds of a target.",
            ),
            Setting(
                "pretrained_state",
                Maybe(PATH),
                None,
                Role.STAGE,
                "The folder of weights that a pre-training gave, to start from; written by the run. With epochs: 0 "
                "they are evaluated on the target as they are (zero-shot).",
            ),
        ),
        remark="It is found again in <checkpoint_dir>/pretrain-<model>-<datasets>-<hash>/, whose state-epoch-<n>/ can "
        "also be given as pretrained_state.",
    )


ZESREC_TITLE = (
    "ZESRec (Ding et al. 2021): frozen text vectors, a learned linear map, an offset per item in training, and a GRU.\n"
    "Nothing is stated by the papers that compare with it; the values are ours, its size that of UniSRec."
)
ZESREC = (
    _texts("sbert-minilm"),
    Section(
        "Items and users",
        (
            *_training(
                ("sequence_encoder", Choice("gru", "sasrec"), "gru", "gru: the paper. sasrec: SASRec's transformer."),
                (
                    "offset_weight",
                    Maybe(FROM_ZERO),
                    1e-4,
                    "lambda_v: half of this times the sum of the squared offsets is added to the loss; ~: no offsets.",
                ),
                (
                    "offsets_in_ranking",
                    Flag(),
                    False,
                    "Whether items that were trained are ranked with their offset. False: by their text alone, as an "
                    "unseen catalogue is.",
                ),
            ),
            *_encoder(300, 1, 300, 0.2, "; of the GRU's state"),
        ),
    ),
    _OPTIMISATION,
    pretraining_of_state(30),
)

UNISREC_TITLE = (
    "UniSRec (Hou et al., KDD 2022): frozen text vectors, a mixture of whitening experts, and SASRec's transformer.\n"
    "The authors' own settings, but for the backbone (theirs is google-bert/bert-base-uncased with item_pooling: cls)."
)
UNISREC = (
    _texts("sbert-minilm"),
    Section(
        "Items",
        _training(
            (
                "item_ids",
                Flag(),
                False,
                "False: items are their texts (inductive). True: each has a learned vector beside (transductive).",
            ),
            ("num_experts", SIZE, 8, "Experts of the adaptor; all are mixed."),
            ("adaptor_dropout", RATE, 0.2, "Dropout of the text vectors before an expert."),
            _temperature(0.07, maybe=False),
        ),
    ),
    Section("Users", _encoder(300, 2, 256, 0.5)),
    Section(
        "What is trained",
        (
            Setting(
                "tuned_parts",
                Maybe(Choice("all", "adaptor")),
                None,
                Role.TRAINING,
                "adaptor: positions and transformer are frozen; adaptor, normalisation and learned item vectors are "
                "trained. ~: adaptor after a pre-training, all without.",
            ),
        ),
    ),
    _OPTIMISATION,
    pretraining_of_state(30),
    Section(
        "The loss of the pre-training",
        _training(
            ("contrast_weight", FROM_ZERO, 1e-3, "lambda: the weight of the contrast with augmented histories."),
            (
                "item_drop_batches",
                _UP_TO_ONE,
                0.9,
                "The share of batches whose histories are augmented by leaving out items; the others by leaving out "
                "words.",
            ),
            ("item_drop", RATE, 0.2, "The share of items that are left out; the first always stays."),
            (
                "word_drop",
                RATE,
                0.2,
                "The share of items that are read with words left out, and the share of their words.",
            ),
        ),
    ),
)

ALPHAFUSE_TITLE = (
    "AlphaFuse (SIGIR 2025): SASRec on a table of text vectors whose null space holds learned ID embeddings.\n"
    "The defaults of the authors' code, but for the backbone and the loss, which is a softmax over all items here."
)
ALPHAFUSE = (
    _texts("sbert-minilm"),
    Section(
        "The item table",
        _training(
            (
                "null_size",
                SIZE,
                64,
                "How many of the hidden_size principal directions, those of the least variance, hold ID embeddings.",
            ),
            ("standardize", Flag(), True, "Whether the text has variance 1 in every direction."),
            (
                "cover_text",
                Flag(),
                False,
                "Whether ID embeddings take the place of the text in the null space; False: they are added to it.",
            ),
            ("id_deviation", POSITIVE, 1.0, "Standard deviation of the initial ID embeddings."),
            _temperature(0.07),
        ),
    ),
    Section("Users", _encoder(128, 2, 256, 0.1)),
    _OPTIMISATION,
)

TEXTINITSASREC_TITLE = (
    "TextInitSASRec: SASRec whose item embeddings start from text vectors; the control of AlphaFuse and UniSRec."
)
TEXTINITSASREC = (
    _texts("sbert-minilm"),
    Section(
        "The item table",
        _training(
            (
                "standardize",
                Flag(),
                False,
                "Whether the start has the same variance in every principal direction; False: the texts' own.",
            ),
            _temperature(None),
        ),
    ),
    Section("Users", _encoder(64, 2, 256, 0.5)),
    _OPTIMISATION,
)

TEXTSLIT_TITLE = (
    "TextSLIT: transitions between items in closed form (SLIT, Choi et al., WWW 2021), and the likeness of texts.\n"
    "The likeness is ours; the values were chosen on Scientific's validation rows."
)
TEXTSLIT = (
    _texts("sbert-minilm"),
    Section(
        "Scores",
        (
            *_training(
                ("history_decay", Number(above=0, high=1), 0.7, "What an item weighs for each that follows it."),
                ("ridge", POSITIVE, 100.0, "lambda: the weight of the sum of squares of the transitions."),
                ("text_similarity", FROM_ZERO, 0.02, "The weight of the history's likeness to an item's text."),
                ("similarity_decay", Number(above=0, high=1), 0.4, "history_decay of that likeness."),
                (
                    "whitening",
                    _UP_TO_ONE,
                    0.3,
                    "How far the variances of the text vectors' directions are made equal: 0 not at all, 1 wholly.",
                ),
                ("temperature", POSITIVE, 0.01, "Scores are divided by it; it matters to a mix with an ID model."),
            ),
            Setting(
                "MAX_ITEM_LIST_LENGTH",
                SIZE,
                50,
                Role.INPUT,
                text_models.HISTORY_LENGTH,
            ),
        ),
    ),
    Section(
        "A small network that orders the best items anew, trained on rows whose user the scores have not seen",
        tuple(
            Setting(name, kind, default, Role.TRAINING, sentence, since="0.3.0")
            for name, kind, default, sentence in (
                ("rerank", COUNT, 0, "How many of the best items, such as 150; 0: none is ordered anew."),
                ("rerank_folds", Whole(low=2), 5, "Parts of the users, each scored by the others' transitions."),
                ("rerank_hidden_size", SIZE, 64, "Size of the hidden layer."),
                ("rerank_epochs", SIZE, 8, "How often each training row is read."),
                ("rerank_learning_rate", POSITIVE, 0.005, "Of AdamW's first step; it falls linearly to zero."),
            )
        ),
    ),
    text_models.id_model(
        None,
        "Another model's scores, mixed into the ranking",
        "A model whose scores are mixed in, such as TextInitSASRec; ~: none.",
        None,
        "Its weight w in (1 - w) log p + w log p_id; ~: the best on validation.",
    ),
    Section(
        "Training",
        (
            Setting(
                "epochs",
                COUNT,
                1,
                Role.TRAINING,
                "1: the equations are solved; more do the same. 0: the texts alone.",
            ),
            Setting(
                "train_neg_sample_args", NEGATIVE_SAMPLES, None, Role.TRAINING, "Closed form: no negative samples."
            ),
        ),
    ),
)
