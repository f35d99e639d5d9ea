"""Settings that ST2SI and IDLEAdapter have in common: the backbone's training, an ID model, packed batches."""

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
    Matching,
    Maybe,
    Number,
    Pairs,
    Text,
)
from recbole_llm.config.schema import Role, Section, Setting
from recbole_llm.config.settings.recbole_run import CLIP_GRAD_NORM, NEGATIVE_SAMPLES

ANY_VALUE = Matching("a value", lambda value: True, type="any")
HISTORY_LENGTH = "Maximum number of items of a history; the most recent stay."
AVERAGE = Maybe(Number(above=0, below=1))


def lora(dropout: float | None) -> tuple[Setting, ...]:
    """Return the settings of low-rank adapters, with a rate of dropout if the model has that setting."""
    rate = () if dropout is None else (("lora_dropout", RATE, dropout, "Dropout before an adapter."),)
    return tuple(
        Setting(name, kind, default, Role.TRAINING, sentence)
        for name, kind, default, sentence in (
            ("lora_rank", SIZE, 16, "The rank of the adapters."),
            ("lora_alpha", POSITIVE, 32, "The adapters are scaled by lora_alpha / lora_rank."),
            *rate,
            (
                "lora_targets",
                Items(Text("the name of a layer"), least=1, single=True),
                "all-linear",
                "Names of the layers that get an adapter.",
            ),
        )
    )


def backbone(default: str, sentence: str) -> Setting:
    """Return the setting that names the language model."""
    return Setting("backbone", Text("a preset, a folder or a hub ID"), default, Role.INPUT, sentence)


WEIGHTS = Setting(
    "weights",
    Choice("fp32", "bf16"),
    "fp32",
    Role.TRAINING,
    "What is trained of the backbone, in memory; with bf16 the optimiser has float32 masters. "
    "What is frozen is kept in the arithmetic of `precision`.",
    pretraining=True,
)
CHECKPOINTING = Setting(
    "gradient_checkpointing",
    Flag(),
    False,
    Role.MACHINE,
    "Compute activations again instead of storing them: less memory, a third slower.",
    pretraining=True,
)
SHARD = Setting(
    "shard",
    Choice("auto", "none", "backbone"),
    "auto",
    Role.MACHINE,
    "Of a run in several processes. none: each has the whole backbone; backbone: they split its weights, gradients and "
    "optimiser state; auto: if these take more than a quarter of a GPU's memory.",
    pretraining=True,
    since="0.3.0",
)
SHARD_WITHIN = Setting(
    "shard_within",
    Choice("all", "machine"),
    "all",
    Role.MACHINE,
    "Which processes split a backbone. all: all of the run; machine: those of each machine, and machines have copies.",
    pretraining=True,
    since="0.3.0",
)
COMPILE = Setting(
    "compile",
    Flag(),
    False,
    Role.MACHINE,
    "torch.compile of every layer: pays on a GPU after some hundred steps.",
    pretraining=True,
)


def id_model(model: str | None, title: str, which: str, weight: float | None, weight_means: str) -> Section:
    """Return the settings of the ID model.

    Args:
        model: the default of `id_model`.
        title: of the section.
        which: the sentence of `id_model`.
        weight: the default of `id_weight`.
        weight_means: the sentence of `id_weight`; empty for a model without it.
    """
    name = Text("the name of a model")
    weights = (Setting("id_weight", Maybe(Number(low=0, high=1)), weight, Role.TRAINING, weight_means),)
    return Section(
        title,
        (
            Setting("id_model", name if model else Maybe(name), model, Role.STAGE, which),
            Setting(
                "id_model_path",
                Maybe(PATH),
                None,
                Role.STAGE,
                "The folder of its finished run. ~: it is trained first, or found again by the settings and data that "
                "made it, in <checkpoint_dir>/id-<model>-<dataset>-<hash>/.",
            ),
            Setting(
                "id_model_settings",
                Maybe(Pairs(ANY_VALUE, "{epochs: 100, learning_rate: 0.001}")),
                {},
                Role.STAGE,
                "Settings of its training, such as {learning_rate: 0.001, epochs: 100}; those of the data and the "
                "protocol are this run's.",
            ),
            *(weights if weight_means else ()),
        ),
    )


PROJECTION_INIT = Setting(
    "projection_init",
    Choice("random", "texts"),
    "random",
    Role.TRAINING,
    "Where the projection starts. texts (ours): an item's row is the state of its own text, whitened, so that before "
    "training items are ranked by the likeness of texts. random: the paper.",
    since="0.3.0",
)


def optimisation(values: dict[str, Any], sentences: dict[str, str]) -> tuple[Setting, ...]:
    """Return the settings of the optimiser that both models have.

    Args:
        values: the defaults, by name, in the order of the file.
        sentences: what is said of some of them, where it is not what is said here.
    """
    known = {
        "epochs": (COUNT, "Maximum number of passes over the training data.", False),
        "learning_rate": (Maybe(FROM_ZERO) if values["learning_rate"] is None else FROM_ZERO, "AdamW.", False),
        "head_learning_rate": (Maybe(FROM_ZERO), "The projection's own rate (ours); ~ takes learning_rate.", False),
        "head_dropout": (RATE, "", False),
        "weight_decay": (FROM_ZERO, "AdamW's weight decay.", True),
        "warmup_steps": (COUNT, "Optimiser steps of linear warm-up.", True),
        "lr_scheduler": (Choice("cosine", "linear", "constant"), "The learning rate after the warm-up.", True),
        "clip_grad_norm": (CLIP_GRAD_NORM, "Arguments of torch's clip_grad_norm_; ~ clips nothing.", True),
        "weight_average": (
            AVERAGE,
            "Evaluate and store the moving average of the trained weights over the steps, with this decay (0.99, or "
            "0.999 for long runs; less in the first steps); ~: the weights themselves.",
            False,
        ),
        "train_batch_size": (SIZE, "", True),
        "stopping_step": (
            COUNT,
            "RecBole stops one step later: after 5 epochs without a better validation metric.",
            False,
        ),
        "train_neg_sample_args": (NEGATIVE_SAMPLES, "Full softmax: no negative samples.", False),
    }
    return tuple(
        Setting(
            name,
            known[name][0],
            default,
            Role.TRAINING,
            sentences.get(name, known[name][1]),
            pretraining=known[name][2],
        )
        for name, default in values.items()
    )


def budgets(train_tokens: int, role: Role, remark: str) -> tuple[Setting, ...]:
    """Return the settings of packed passes; `role` says whether the size of a training pass can change the result."""
    return (
        Setting(
            "train_batch_tokens",
            SIZE,
            train_tokens,
            role,
            f"Maximum number of tokens of one packed pass; larger steps are accumulated{remark}.",
            pretraining=True,
        ),
        Setting(
            "eval_batch_tokens",
            SIZE,
            65536,
            Role.MACHINE,
            "Maximum number of tokens of one packed pass without gradients.",
            pretraining=True,
        ),
        Setting(
            "stored_states_gb",
            FROM_ZERO,
            20,
            Role.MACHINE,
            "Gigabytes that hidden states of backbones that are not trained may take in the cache, where other runs "
            "find them; the least recently used leave first; 0 stores none.",
            since="0.3.0",
        ),
    )
