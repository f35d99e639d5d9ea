"""Settings of RecBole that say how every run is trained, measured and stored; their defaults are RecBole's own."""

from recbole_llm.config.kinds import (
    ANYTHING,
    COUNT,
    FROM_ZERO,
    PATH,
    POSITIVE,
    SIZE,
    Choice,
    Either,
    Flag,
    Items,
    Keys,
    Matching,
    Maybe,
    Text,
    Whole,
)
from recbole_llm.config.schema import RECBOLE, Role, Section, Setting

_MAX_SEED = 2**32 - 1  # of numpy's and RecBole's generators


def _is_mode(value: object) -> bool:
    if value in ("full", "labeled"):
        return True
    return isinstance(value, str) and value[:3] in ("uni", "pop") and value[3:].isdigit() and int(value[3:]) > 0


def _is_gpu_id(value: object) -> bool:
    parts = value if isinstance(value, list | tuple) else str(value).split(",")
    return not isinstance(value, bool) and (value == "" or all(str(part).strip().isdigit() for part in parts))


_MODE = Matching("full, labeled, or uni or pop with a number behind it such as uni100", _is_mode)
_RATIOS = Items(FROM_ZERO, least=1, example="[0.8, 0.1, 0.1]")
_SPLIT = Keys(
    {"LS": Choice("valid_and_test", "valid_only", "test_only"), "RS": _RATIOS, "TS": _RATIOS},
    one=True,
)
EVAL_ARGS = Keys(
    {
        "split": _SPLIT,
        "order": Choice("TO", "RO"),
        "group_by": Maybe(Choice("user", "none")),
        "mode": Either(_MODE, Keys({"valid": _MODE, "test": _MODE})),
    }
)
CLIP_GRAD_NORM = Maybe(
    Keys({"max_norm": POSITIVE, "norm_type": POSITIVE, "error_if_nonfinite": Flag()}, required=("max_norm",))
)
NEGATIVE_SAMPLES = Maybe(
    Either(
        Choice("None"),
        Keys(
            {
                "distribution": Maybe(Choice("uniform", "popularity", "None")),
                "sample_num": SIZE,
                "alpha": FROM_ZERO,
                "dynamic": Flag(),
                "candidate_num": COUNT,
            }
        ),
    )
)
# RecBole's (recbole/evaluator/register.py): of a ranking, and of scores.
_METRICS = (
    *("ndcg", "mrr", "map", "hit", "recall", "precision", "gauc"),
    *("itemcoverage", "averagepopularity", "giniindex", "shannonentropy", "tailpercentage"),
    *("auc", "logloss", "mae", "rmse"),
)
METRICS = Items(Choice(*_METRICS, any_case=True), least=1, single=True)
TOPK = Items(SIZE, least=1, single=True)
VALID_METRIC = Text("the name of a metric, such as NDCG@10")


def _of(role: Role, *entries: tuple) -> tuple[Setting, ...]:
    return tuple(Setting(name, kind, RECBOLE, role, sentence, **more) for name, kind, sentence, more in entries)


RUN = (
    Section(
        "Training",
        (
            *_of(
                Role.TRAINING,
                ("epochs", COUNT, "Maximum number of passes over the training data.", {}),
                ("train_batch_size", SIZE, "Rows of one optimiser step.", {"pretraining": True}),
                (
                    "learner",
                    Choice("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam", any_case=True),
                    "The optimiser.",
                    {"pretraining": True},
                ),
                ("learning_rate", FROM_ZERO, "The learning rate of the optimiser.", {"pretraining": True}),
                ("weight_decay", FROM_ZERO, "The optimiser's weight decay.", {"pretraining": True}),
                (
                    "clip_grad_norm",
                    CLIP_GRAD_NORM,
                    "Arguments of torch's clip_grad_norm_; ~ clips nothing.",
                    {"pretraining": True},
                ),
                (
                    "train_neg_sample_args",
                    NEGATIVE_SAMPLES,
                    "How negative samples are drawn; ~ draws none, as a full softmax needs.",
                    {},
                ),
                ("shuffle", Flag(), "Whether rows are shuffled before every epoch.", {"pretraining": True}),
                (
                    "transform",
                    Maybe(Choice("mask_itemseq", "inverse_itemseq", "crop_itemseq", "reorder_itemseq", "user_defined")),
                    "What is done to the rows of a batch before the model reads them.",
                    {"pretraining": True},
                ),
                ("eval_step", COUNT, "Validation follows after every so many epochs.", {}),
                (
                    "stopping_step",
                    COUNT,
                    "How many validations without a better result are allowed; the next one ends the training.",
                    {},
                ),
                ("require_pow", Flag(), "Whether the embedding loss is squared.", {}),
                ("enable_amp", Flag(), "Mixed precision, in RecBole's own trainers.", {}),
                ("enable_scaler", Flag(), "Scaled gradients for mixed precision, in RecBole's own trainers.", {}),
            ),
        ),
    ),
    Section(
        "Chance",
        _of(
            Role.CHANCE,
            ("seed", Whole(0, _MAX_SEED), "The seed of all random numbers.", {}),
            ("reproducibility", Flag(), "Whether cuDNN is kept to algorithms that give the same numbers again.", {}),
        ),
    ),
    Section(
        "Protocol",
        (
            *_of(
                Role.METRIC,
                (
                    "valid_metric_bigger",
                    Flag(),
                    "Whether more of valid_metric is better; it follows from the metric.",
                    {},
                ),
                ("metric_decimal_place", COUNT, "Decimal places of metrics.", {}),
            ),
        ),
    ),
    Section(
        "Places and what is shown",
        _of(
            Role.PLACE,
            (
                "state",
                Maybe(Choice("info", "debug", "error", "warning", "critical", any_case=True)),
                "How much is logged.",
                {},
            ),
            ("show_progress", Flag(), "Whether progress bars are shown.", {}),
            ("loss_decimal_place", COUNT, "Decimal places of losses in the log.", {}),
            ("log_wandb", Flag(), "Whether the run is also logged with Weights & Biases.", {}),
            ("wandb_project", Text(), "The project there.", {}),
            ("save_dataset", Flag(), "Not supported: RecBole stores a pickle.", {}),
            ("dataset_save_path", Maybe(PATH), "Not supported: RecBole reads a pickle.", {}),
            ("save_dataloaders", Flag(), "Not supported: RecBole stores a pickle.", {}),
            ("dataloaders_save_path", Maybe(PATH), "Not supported: RecBole reads a pickle.", {}),
            ("config_files", ANYTHING, "Files with settings, as the command line names them.", {}),
            ("config_file", ANYTHING, "RecBole's older name of config_files; not read.", {}),
        ),
    ),
    Section(
        "Machine",
        _of(
            Role.MACHINE,
            ("use_gpu", Flag(), "Whether a CUDA device is used if there is one.", {}),
            (
                "gpu_id",
                Matching("the number of a CUDA device, such as 0, or empty for the CPU", _is_gpu_id),
                "The number of the CUDA device, among those that are visible to the process.",
                {},
            ),
            ("worker", COUNT, "Processes that load rows; 0 loads them in the run's own process.", {}),
            (
                "eval_batch_size",
                SIZE,
                "Rows that are ranked at once; of general models users, where RecBole counts scores.",
                {},
            ),
            ("nproc", Maybe(Whole(None)), "Processes as RecBole starts them; only 1, see torchrun.", {}),
            ("world_size", Maybe(Whole(None)), "The same on all hosts; only 1, see torchrun.", {}),
            ("offset", Maybe(Whole(None)), "The first rank of this host; only 0, see torchrun.", {}),
            ("local_rank", Maybe(Whole(None)), "The rank of this process; only 0, see torchrun.", {}),
            ("ip", Maybe(Text()), "The first host of RecBole's processes; not supported, see torchrun.", {}),
            (
                "port",
                Maybe(Either(Whole(0), Text())),
                "The port of RecBole's processes; not supported, see torchrun.",
                {},
            ),
        ),
    ),
)
