"""Settings of this package that every run has, written to properties/overall.yaml."""

from recbole_llm.config.kinds import (
    COLUMN,
    FROM_ZERO,
    PATH,
    SHARE,
    SIZE,
    Choice,
    Either,
    Flag,
    Items,
    Maybe,
    Text,
    Whole,
)
from recbole_llm.config.schema import Role, Section, Setting
from recbole_llm.config.settings.one_pass import ONE_PASS
from recbole_llm.config.settings.recbole_run import EVAL_ARGS, METRICS, TOPK, VALID_METRIC

TITLE = "Defaults of every run, on top of RecBole's own overall.yaml. One protocol for every model of a table."

OVERALL = (
    Section(
        "Protocol",
        (
            Setting(
                "eval_args",
                EVAL_ARGS,
                {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
                Role.PROTOCOL,
                "Leave-one-out in time order, ranked among all items. Where some parts are set, the others stay.",
            ),
            Setting(
                "repeatable",
                Either(Flag(), Choice("auto")),
                "auto",
                Role.PROTOCOL,
                "Whether items that a user met before are ranked with the others, for every model. False leaves the "
                "whole known history out of the ranking, not only what the model reads of it; a target always stays. "
                "auto: False where no user of the dataset meets an item twice, else True. result.json has both.",
                since="0.3.0",
            ),
            Setting(
                "metrics",
                METRICS,
                ["Recall", "NDCG", "Hit", "MRR"],
                Role.METRIC,
                "RecBole's metrics; `mrr` over the whole ranking is always added.",
            ),
            Setting("topk", TOPK, [5, 10], Role.PROTOCOL, "The cut-offs of the metrics."),
            Setting("valid_metric", VALID_METRIC, "NDCG@10", Role.METRIC, "The metric that chooses the best epoch."),
            Setting(
                "valid_users",
                Maybe(SIZE),
                None,
                Role.METRIC,
                "Validate on this many users alone, drawn once by the seed, where an evaluation takes long; the test "
                "has all. ~: all.",
                shared=False,
                since="0.3.0",
            ),
            Setting(
                "candidates",
                Maybe(Whole(2)),
                None,
                Role.PROTOCOL,
                "Also rank each target among this many candidates, itself one of them and the others drawn from the "
                "items outside the history, for any sequential model; ~ does not.",
                shared=False,
            ),
            Setting(
                "candidate_seeds",
                SIZE,
                20,
                Role.PROTOCOL,
                "How often candidates are drawn, with the seeds 0, 1, ...; result.json has HitRatio@1 as mean and "
                "standard deviation over the draws.",
                shared=False,
            ),
        ),
    ),
    Section(
        "Text and attributes of items",
        (
            Setting(
                "item_text_fields",
                Items(COLUMN, single=True),
                ["title"],
                Role.INPUT,
                "Columns of the .item file; the first is the text, others follow as ' name: value'.",
                shared=True,
            ),
            Setting(
                "items_without_text",
                Choice("drop", "error", "keep"),
                "drop",
                Role.DATA,
                "What to do with items whose first text field is empty, for every model, whether it reads text or "
                "not, so that all rank the same items.",
            ),
            Setting(
                "prompt",
                Text(),
                "Your task is to recommend {noun} the user may be interested in based on their history: {history}.",
                Role.INPUT,
                "The instruction of models that read prompts (IDLEAdapter), with {history} and {noun}.",
                text=True,
            ),
            Setting(
                "prompt_item",
                Maybe(Text(empty=True)),
                None,
                Role.INPUT,
                "How an item is written in it, such as '{title} by {brand}'; ~: its first text field.",
                text=True,
            ),
            Setting(
                "prompt_noun", Text(), "products", Role.INPUT, "What the items of the dataset are called.", text=True
            ),
            Setting(
                "attribute_field",
                Maybe(Items(COLUMN, single=True)),
                None,
                Role.FORMAT,
                "Item columns that models with item attributes read (FDSA, GRU4RecF, SASRecF; S3Rec the first), "
                "unless their own setting names some; a dataset's file sets it.",
            ),
            Setting(
                "attribute_separator",
                Maybe(Text()),
                None,
                Role.FORMAT,
                "What separates the values of an item in these columns; ~: a space.",
            ),
        ),
    ),
    Section(
        "Places",
        (
            Setting(
                "data_path",
                PATH,
                "dataset/",
                Role.PLACE,
                "Folder with one folder per dataset: <data_path>/<dataset>/<dataset>.inter",
            ),
            Setting("checkpoint_dir", PATH, "saved", Role.PLACE, "Each run makes a folder here."),
            Setting(
                "resume_seconds",
                FROM_ZERO,
                20,
                Role.PLACE,
                "Minimum time between two stored states from which an interrupted run resumes, in seconds.",
            ),
        ),
    ),
    Section(
        "Training",
        (
            Setting(
                "train_share",
                Maybe(SHARE),
                None,
                Role.TRAINING,
                "Train on this share of the rows alone, drawn once by the seed, to search settings in less time; "
                "validation and test are whole. ~: all of them.",
            ),
            Setting(
                "precision",
                Choice("auto", "bf16", "fp32"),
                "auto",
                Role.TRAINING,
                "The arithmetic of language models. auto takes bf16 where the hardware multiplies it faster (CUDA "
                "with bf16, CPUs with AMX).",
                pretraining=True,
                text=True,
            ),
            Setting(
                "device_table",
                Flag(),
                True,
                Role.MACHINE,
                "Put a sequential model's batches together on its device, from interactions that are moved there once "
                "(on the CPU where they do not fit): the same batches in the same order, in a fraction of the time. "
                "False takes RecBole's own dataset and loader.",
            ),
            Setting(
                "eval_memory",
                SIZE,
                4096,
                Role.MACHINE,
                "The most that the scores of one batch of an evaluation and what is computed of them may take, in MiB: "
                "in a large catalogue its items are scored a block at a time where the model can, elsewhere fewer rows "
                "are ranked at once than eval_batch_size says. The ranks are the same.",
                since="0.3.0",
            ),
        ),
    ),
    ONE_PASS,
)
