"""Settings of training at all positions of one pass over a history, written to properties/overall.yaml."""

from recbole_llm.config.kinds import FROM_ZERO, POSITIVE, SIZE, Choice, Maybe, Number
from recbole_llm.config.schema import Role, Section, Setting

ONE_PASS_BATCH = 16  # histories of an optimiser step; RecBole's 2048 are rows
# Losses that RecBole's models do not have: they need the states of all positions.
TWO_LEVEL = "TwoLevel"
ONE_PASS_LOSSES = ("BCE", "gBCE", "SampledCE", TWO_LEVEL)
_SINCE = "0.3.0"

ONE_PASS = Section(
    "One pass over a history",
    (
        Setting(
            "train_positions",
            Choice("last", "all", "recent"),
            "last",
            Role.TRAINING,
            "last: RecBole's rows, a prefix each. all: every position of one pass over a history (SASRec, "
            f"GRU4Rec, ...); train_batch_size then counts histories, {ONE_PASS_BATCH} unless given. recent: the same, "
            "the last MAX_ITEM_LIST_LENGTH items alone.",
            since=_SINCE,
        ),
        Setting(
            "batches_of",
            Choice("histories", "positions"),
            "histories",
            Role.TRAINING,
            "histories: every step has train_batch_size of them, of similar length, and those of long ones have many "
            "positions. positions: every step has about as many positions, those of train_batch_size histories of mean "
            "length.",
            since=_SINCE,
        ),
        Setting(
            "sasrec_layers",
            Choice("recbole", "authors"),
            "recbole",
            Role.TRAINING,
            "Of SASRec. recbole: RecBole's, those of BERT. authors: those of the authors' own code, which public "
            "implementations have: item vectors scaled by the square root of hidden_size, normalised queries.",
            since=_SINCE,
        ),
        Setting(
            "position_scale",
            FROM_ZERO,
            1.0,
            Role.TRAINING,
            "Of RecBole's transformers, what positions are multiplied by before they are added to items. SASRec's "
            "authors have 1 / sqrt(hidden_size).",
            since=_SINCE,
        ),
        Setting(
            "num_negatives",
            SIZE,
            256,
            Role.TRAINING,
            "With loss_type BCE and gBCE, how many items are drawn against every prediction; with SampledCE, how many "
            "are drawn for all predictions of a step.",
            since=_SINCE,
        ),
        Setting(
            "gbce_calibration",
            Number(low=0, high=1),
            0.75,
            Role.TRAINING,
            "With loss_type gBCE, its t: 0 is BCE, 1 calibrates the scores as a softmax over all items.",
            since=_SINCE,
        ),
        Setting(
            "negative_sampling",
            Choice("uniform", "popularity", "mixed"),
            "mixed",
            Role.TRAINING,
            "With loss_type SampledCE, what items are drawn from: all alike, by how often they are a training target, "
            "or half and half; the logits are corrected for it.",
            since=_SINCE,
        ),
        Setting(
            "logq_correction",
            Choice("corrected", "plain"),
            "corrected",
            Role.TRAINING,
            "With loss_type SampledCE, how the logits are corrected. corrected: the target, which is not drawn, is no "
            "part of the sum over drawn items, and the loss is weighed by 1 - p(target), as in the full softmax's "
            "gradient; plain: the logit of the target is corrected as if it had been drawn.",
            since=_SINCE,
        ),
        Setting(
            "item_optimizer",
            Maybe(Choice("adamw", "rowwise_adagrad")),
            None,
            Role.TRAINING,
            "With losses on some of the items, how the item table is trained. ~: as all other weights, by a step over "
            "all items. adamw: the rows that a step has read alone, whose moments rest between; rowwise_adagrad: the "
            "same with one number a row to remember.",
            since=_SINCE,
        ),
        Setting(
            "item_learning_rate",
            Maybe(POSITIVE),
            None,
            Role.TRAINING,
            "With item_optimizer, the item table's own rate; ~ takes learning_rate.",
            since=_SINCE,
        ),
    ),
    "With train_positions: all, and for ST2SI; sasrec_layers and position_scale also without. `loss_type` may then "
    "also be BCE, gBCE, SampledCE or TwoLevel.",
)
