"""The settings of this package's models without a language model, written to properties/model/."""

from recbole_llm.config.kinds import (
    COLUMNS,
    FROM_ZERO,
    POSITIVE,
    RATE,
    SIZE,
    Choice,
    Flag,
)
from recbole_llm.config.schema import Role, Section, Setting

_LOSS = Choice("CE", "BPR")


def _section(*entries: tuple) -> tuple[Section]:
    return (Section("", tuple(Setting(n, kind, default, Role.TRAINING, s) for n, kind, default, s in entries)),)


_DEVIATION = ("initializer_range", POSITIVE, 0.02, "Standard deviation of the initial weights.")
_LOSS_TYPE = ("loss_type", _LOSS, "CE", "CE: softmax over all items. BPR: one sampled item.")
_RATE = ("learning_rate", FROM_ZERO, 1e-3, "The learning rate of the optimiser.")

COMIREC_TITLE = (
    "ComiRec (Cen et al., KDD 2020): interest vectors extracted from a history of item ids.\n"
    "One interest and 64 numbers are the IDLE-Adapter paper's; the rest is ours where the papers are silent."
)
COMIREC = _section(
    ("extraction", Choice("SA", "DR"), "SA", "SA: self-attentive extraction. DR: dynamic routing."),
    ("num_interests", SIZE, 1, "Interest vectors of a user."),
    ("embedding_size", SIZE, 64, "Size of item and interest vectors."),
    ("attention_size", SIZE, 256, "Rows of W_1 (SA); the authors' code has 4 x embedding_size."),
    ("routing_iterations", SIZE, 3, "Of dynamic routing (DR)."),
    ("dropout_prob", RATE, 0.2, "Of the history's item vectors."),
    _DEVIATION,
    _LOSS_TYPE,
    _RATE,
)

MLP4REC_TITLE = "MLP4Rec (Li et al., IJCAI 2022): perceptrons that mix along sequence, channels and item attributes."
MLP4REC = _section(
    ("n_layers", SIZE, 8, "How often the mixers are applied, as in the authors' settings."),
    ("share_layers", Flag(), True, "One set of weights for all layers, as in the authors' code; False: one per layer."),
    ("hidden_size", SIZE, 64, "Size of item and user vectors."),
    ("expansion", SIZE, 4, "Hidden units of a mixer, as a multiple of its axis."),
    ("hidden_dropout_prob", RATE, 0.5, "Of the inputs and of both layers of every mixer."),
    ("layer_norm_eps", POSITIVE, 1e-12, "A value added to the denominator for numerical stability."),
    _DEVIATION,
    (
        "selected_features",
        COLUMNS,
        [],
        "Columns of the .item file mixed with the item's own embedding; none: the sequence and the channels alone.",
    ),
    ("pooling_mode", Choice("mean", "sum", "max"), "mean", "How the values of a column with several are pooled."),
    _LOSS_TYPE,
    _RATE,
)

S3REC_TITLE = (
    "S3Rec (Zhou et al., CIKM 2020) is RecBole's; here one run goes through both of its stages. "
    "See recbole_llm/stages/s3rec.py."
)
S3REC = (
    Section(
        "",
        (
            Setting(
                "train_stage",
                Choice("both", "pretrain", "finetune"),
                "both",
                Role.STAGE,
                "both: pre-trains, or finds its pre-training again in "
                "<checkpoint_dir>/pretrain-S3Rec-<dataset>-<hash>/, and fine-tunes. pretrain, finetune: one stage, "
                "as in RecBole; finetune starts from pre_model_path.",
            ),
        ),
    ),
)
