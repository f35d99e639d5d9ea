"""Settings of RecBole's models: the common ones by name, all others by the type of their default in RecBole's files.

Nothing of RecBole's ~100 models is unchecked by type. What is said of a name here holds for every model whose default
is of that kind; `reg_weight`, a number for most, is a list of two for HGN and SHAN.
"""

import functools
from pathlib import Path
from typing import Any

from recbole_llm.config.kinds import (
    ANY_WHOLE,
    ANYTHING,
    COLUMN,
    COLUMNS,
    COUNT,
    FROM_ZERO,
    NUMBER,
    PATH,
    POSITIVE,
    RATE,
    SIZE,
    Choice,
    Either,
    Flag,
    Items,
    Kind,
    Matching,
    Maybe,
    Number,
    Text,
)
from recbole_llm.config.schema import Role, Setting
from recbole_llm.config.settings.one_pass import ONE_PASS_LOSSES
from recbole_llm.utils.files import read_yaml
from recbole_llm.utils.paths import recbole_folder

FOLDER = recbole_folder() / "properties"

_UP_TO_ONE = Number(low=0, high=1)
_SIZES = Items(SIZE)
_RATES = Items(RATE)
_WEIGHTS = Items(FROM_ZERO)
_POOLING = Choice("mean", "sum", "max")
_ACTIVATION = Choice("gelu", "relu", "swish", "tanh", "sigmoid")  # recbole/model/layers.py:503

# By name: what it may be, and what it is.
_COMMON: dict[str, tuple[tuple[Kind, ...], str]] = {
    "embedding_size": ((SIZE,), "Size of the embeddings."),
    "kg_embedding_size": ((SIZE,), "Size of the embeddings of the knowledge graph."),
    "hidden_size": ((SIZE,), "Size of the hidden states."),
    "inner_size": ((SIZE,), "Size of the feed-forward layers."),
    "attention_size": ((SIZE,), "Size of the attention's vectors."),
    "latent_dimension": ((SIZE,), "Size of the latent vectors."),
    "mlp_hidden_size": ((_SIZES,), "Sizes of the layers of the perceptron."),
    "hidden_size_list": ((_SIZES,), "Sizes of the hidden layers."),
    "n_layers": ((SIZE,), "How many layers the model has."),
    "num_layers": ((SIZE,), "How many layers the model has."),
    "n_heads": ((SIZE,), "Heads of the attention; they divide hidden_size."),
    "num_heads": ((SIZE,), "Heads of the attention."),
    "hidden_dropout_prob": ((RATE,), "Dropout of the hidden states."),
    "attn_dropout_prob": ((RATE,), "Dropout of the attention's weights."),
    "dropout_prob": ((RATE,), "The rate of dropout."),
    "dropout_probs": ((_RATES,), "The rates of dropout."),
    "hidden_act": ((_ACTIVATION,), "The function between the feed-forward layers."),
    "layer_norm_eps": ((POSITIVE,), "A value added to the denominator for numerical stability."),
    "initializer_range": ((FROM_ZERO,), "Standard deviation of the initial weights."),
    "loss_type": (
        (Choice("BCE", "MSE"), Choice("CE", "BPR", *ONE_PASS_LOSSES)),
        "The loss; CE: softmax over all items, BPR: one sampled item; with train_positions: all also BCE, gBCE (k "
        "sampled items), SampledCE and TwoLevel (clusters of items, then the items of one).",
    ),
    "reg_weight": ((FROM_ZERO, _WEIGHTS), "The weight of the regularisation."),
    "reg_weights": ((_WEIGHTS,), "The weights of the regularisation."),
    "mask_ratio": ((_UP_TO_ONE,), "The share of items that are masked."),
    "ft_ratio": ((_UP_TO_ONE,), "The share of rows whose last item alone is masked."),
    "temperature": ((POSITIVE,), "The temperature of the softmax."),
    "selected_features": ((COLUMNS,), "Item columns that the model reads."),
    "item_attribute": ((COLUMN,), "The item column that the model reads."),
    "pooling_mode": ((_POOLING,), "How the values of a column with several are pooled."),
    "pretrain_epochs": ((COUNT,), "How many epochs pre-training takes."),
    "save_step": ((SIZE,), "Pre-trained weights are stored after every so many epochs."),
    "knn_method": ((Choice("item", "user"),), "Whose neighbours count."),
}
# RecBole's files have no type for these (~ or a whole number where any number serves).
_TYPES: dict[str, Kind] = {
    "fields": Maybe(COLUMNS),
    "pretrain_path": Maybe(PATH),
    "mf_pretrain_path": Maybe(PATH),
    "mlp_pretrain_path": Maybe(PATH),
    "xgb_model": Maybe(PATH),
    "xgb_silent": Maybe(Flag()),
    "xgb_nthread": Maybe(SIZE),
    "lgb_early_stopping_rounds": Maybe(SIZE),
    "global_ratio": _UP_TO_ONE,
    "spatial_ratio": _UP_TO_ONE,
    "topk_factor": POSITIVE,
    "negative_weight": FROM_ZERO,
    "resolution": POSITIVE,
    "w_max": FROM_ZERO,
    "q": NUMBER,
    "inter_matrix_type": Choice("01", "rating"),
}
# Settings that say what a run starts from, not how the model is.
_STAGES = (
    "train_stage",
    "pre_model_path",
    "pretrain_path",
    "mf_pretrain_path",
    "mlp_pretrain_path",
    "phase",
    "warm_up",
)
# What a pre-training of S3Rec does not read, or what changes nothing of its weights.
_NO_PRETRAINING = ("save_step", "loss_type", *_STAGES)


def common() -> list[tuple[str, Kind, str]]:
    """Return the names that several models have, each with what it must be and what it is."""
    return [(name, kinds[0] if len(kinds) == 1 else Either(*kinds), words) for name, (kinds, words) in _COMMON.items()]


@functools.cache
def recbole_defaults() -> dict[str, Any]:
    """Return RecBole's own defaults of the settings that every run has."""
    return {**read_yaml(FOLDER / "overall.yaml"), **read_yaml(FOLDER / "dataset" / "sample.yaml")}


@functools.cache
def recbole_model(model: str) -> tuple[Setting, ...]:
    """Return the settings of one of RecBole's models; none for a model that RecBole does not have."""
    return of_file(FOLDER / "model" / f"{model}.yaml")


def of_file(path: Path) -> tuple[Setting, ...]:
    """Return settings with the names and the defaults of a file, checked as those of RecBole's; none without a file."""
    return tuple(_setting(name, default) for name, default in read_yaml(path).items()) if path.is_file() else ()


def _setting(name: str, default: Any) -> Setting:
    kinds, sentence = _COMMON.get(name, ((), ""))
    kind = next((kind for kind in kinds if kind.accepts(default)), None) or _TYPES.get(name) or kind_of(name, default)
    role = Role.STAGE if name in _STAGES else Role.TRAINING
    return Setting(name, kind, default, role, sentence, pretraining=name not in _NO_PRETRAINING)


def kind_of(name: str, default: Any) -> Kind:
    """Return what a value must be that has the type of `default`; a rate of dropout also has its range."""
    if isinstance(default, bool):
        return Flag()
    if isinstance(default, int | float) and "dropout" in name:
        return RATE
    if isinstance(default, int):
        return SIZE if name.endswith(("size", "dim", "dimension")) else ANY_WHOLE
    if isinstance(default, float):
        return NUMBER
    if isinstance(default, str):
        return Text(empty=True)
    if isinstance(default, list):
        return _list_of(name, default)
    if isinstance(default, dict):
        return Matching("a mapping", lambda value: isinstance(value, dict), type="dict")
    return ANYTHING


def _list_of(name: str, default: list[Any]) -> Kind:
    kinds = [kind_of(name, entry) for entry in default]
    wider = next((kind for kind in kinds if all(kind.accepts(entry) for entry in default)), None)
    return Items(wider if wider is not None else ANY_WHOLE)
