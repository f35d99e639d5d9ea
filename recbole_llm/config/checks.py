"""What the values of several settings must be together, and what the chosen model would not do."""

from collections.abc import Mapping
from typing import Any

from recbole.utils import EvaluatorType, InputType, ModelType

from recbole_llm.config import declared, renamed
from recbole_llm.config.hooks import hooks_of_class
from recbole_llm.config.registry import known_models
from recbole_llm.config.settings.one_pass import ONE_PASS_LOSSES
from recbole_llm.errors import SettingError, nearest
from recbole_llm.utils.processes import world

# RecBole's settings of several processes, with the values that mean one.
_ONE_PROCESS: dict[str, tuple[Any, ...]] = {
    "nproc": (None, 1),
    "world_size": (None, 1),
    "offset": (None, 0),
    "local_rank": (None, 0),
    "ip": (None,),
    "port": (None,),
}
# The endings of the files that RecBole reads by itself.
_SUFFIXES = ("inter", "user", "item", "kg", "link")
# Models that say that they read pairs, and read each user's whole row instead.
_READ_USERS = ("MacridVAE", "MultiDAE", "MultiVAE", "RaCT", "RecVAE")
_PICKLES = ("save_dataset", "save_dataloaders", "dataset_save_path", "dataloaders_save_path")


def check_given(settings: Mapping[str, Any], model: str, strictly: bool) -> set[str]:
    """Check the names of settings that were given, and whether `model` does what they say.

    A setting of another model is a mistake on the command line and in a dict, which are for this run alone. A file may
    serve several models (``compare --config_files``): there it is passed over with a warning.

    Args:
        settings: from one source.
        model: the name of the model.
        strictly: whether what has no effect on the model is refused; False: it is returned.

    Returns:
        The names without effect.

    Raises:
        SettingError: for an unknown name (the nearest is named), an old one, or one without effect.
    """
    own, everywhere = declared.settings_of(model), declared.names_of_all_models()
    without_effect = set()
    for name, value in settings.items():
        renamed.refuse(name, value)
        if name not in own and name not in everywhere:
            close = nearest(name, own) or nearest(name, everywhere)
            raise SettingError(f"there is no setting '{name}'{close}")
        fault = declared.ignored(model, name, value)
        if name not in own:
            fault = f"the setting '{name}' is not one of {model} and has no effect: leave it out"
        if fault is not None:
            if strictly:
                raise SettingError(fault)
            without_effect.add(name)
    return without_effect


def check_id_model_settings(settings: Mapping[str, Any]) -> None:
    """Check the settings of the ID model as those of the run itself. Raises SettingError."""
    own, model = settings.get("id_model_settings"), settings.get("id_model")
    if not isinstance(own, Mapping) or model not in known_models():
        return  # an unknown model is named when it is looked up
    try:
        check_given(own, str(model), strictly=True)
        declared.validate(own, str(model))
        check_id_model_settings(own)
    except SettingError as error:
        raise SettingError(f"id_model_settings: {error}") from None


def check_together(config: Any) -> None:
    """Check what single values do not tell, in a Config that is whole.

    Raises:
        SettingError: the first thing that cannot be.
    """
    _check_one_process(config.merged)
    if world().is_shared:
        _check_several_processes(config)
    for name in _PICKLES:
        if config[name]:
            raise SettingError(f"{name} is not supported: RecBole stores it as a pickle, which is not safe to load")
    _check_valid_metric(config)
    _check_positions(config)
    _check_loss_type(config)
    _check_item_optimizer(config)
    _check_negatives(config)
    _check_candidates(config)
    _check_split(config)
    _check_labels(config)
    _check_columns(config)
    if config["train_share"] is not None and not hooks_of_class(config.model_class).trains_on_rows:
        raise SettingError(f"{config['model']} trains on whole histories: train_share is for models of rows")


def _check_one_process(settings: Mapping[str, Any]) -> None:
    for name, values in _ONE_PROCESS.items():
        if settings.get(name) not in values:
            raise SettingError(
                f"{name}={settings[name]} is for several processes as RecBole starts them: leave it out, and start the "
                f"run with torchrun --nproc_per_node=2 -m recbole_llm run ..., which says all of it"
            )
    gpu_id = settings.get("gpu_id")
    if isinstance(gpu_id, list | tuple) or "," in str(gpu_id):
        several = ",".join(map(str, gpu_id)) if isinstance(gpu_id, list | tuple) else gpu_id
        raise SettingError(
            f"gpu_id={several} names several devices, but a process has one: name one, such as gpu_id=0, or start the "
            f"run with torchrun --nproc_per_node=2 -m recbole_llm run ..."
        )


def _check_several_processes(config: Any) -> None:
    """Refuse what only a run in one process does."""
    if str(config.given.get("gpu_id", "")).strip() not in ("", "0"):  # which a resumed run is given
        raise SettingError(
            f"gpu_id={config.given['gpu_id']} names one device for all processes: leave it out, torchrun gives each "
            f"its own; CUDA_VISIBLE_DEVICES chooses among them"
        )
    modes = config["eval_args"]["mode"]
    if set(modes.values()) != {"full"}:
        raise SettingError(f"mode={modes} of eval_args is for one process: set it to full, or run without torchrun")
    hooks_of_class(config.model_class).check_processes(config)


def _check_valid_metric(config: Any) -> None:
    # `mrr` is always there; value metrics such as AUC have no cut-off.
    known = ["mrr", *(f"{metric}@{cut}" for metric in config["metrics"] for cut in config["topk"]), *config["metrics"]]
    metric = str(config["valid_metric"])
    if hooks_of_class(config.model_class).chooses(config):
        if metric.lower() != "hit@1":
            raise SettingError(
                f"valid_metric={metric} is that of a ranking, and {config['model']} chooses one candidate: set it to "
                f"Hit@1"
            )
        return
    if metric.lower() not in {name.lower() for name in known}:
        raise SettingError(
            f"valid_metric={metric} is not computed{nearest(metric, known)} Metrics are {', '.join(config['metrics'])} "
            f"at topk={config['topk']}, and mrr"
        )


def _check_positions(config: Any) -> None:
    """Refuse what only one pass over a history can do without it, and what it cannot do with it."""
    loss, positions = config["loss_type"], config["train_positions"]
    sequential = config["MODEL_TYPE"] == ModelType.SEQUENTIAL
    if positions == "last":
        if sequential and loss in ONE_PASS_LOSSES and not hooks_of_class(config.model_class).has_position_losses:
            raise SettingError(f"loss_type={loss} needs train_positions=all: rows of RecBole have CE and BPR")
        return
    if config["benchmark_filename"] is not None:
        raise SettingError(
            f"train_positions={positions} cuts its histories from all interactions, but benchmark_filename gives one "
            f"to every row: leave one of them out"
        )
    if config["train_neg_sample_args"]["distribution"] != "none":
        raise SettingError(
            f"train_neg_sample_args has no effect with train_positions={positions}, which draws its own items: leave "
            f"it out, and see num_negatives"
        )


def _check_loss_type(config: Any) -> None:
    # RecBole takes from it what a training row holds, and fails at the first sample of a loss that it does not know.
    if config["MODEL_INPUT_TYPE"] is None and config["train_neg_sample_args"]["distribution"] != "none":
        raise SettingError(f"loss_type={config['loss_type']} of {config['model']} is not one of CE, BPR")


def _check_item_optimizer(config: Any) -> None:
    """Refuse a row-sparse optimiser where a step reads all rows of the item table, and codes with another loss."""
    if config["item_codes"] is not None and config["loss_type"] != "CE":
        raise SettingError(
            f"item_codes={config['item_codes']} goes with loss_type=CE, not {config['loss_type']}: leave one out"
        )
    chosen = config["item_optimizer"]
    if chosen is None:
        if config["item_learning_rate"] is not None:
            raise SettingError(
                f"item_learning_rate={config['item_learning_rate']} has no effect without item_optimizer: name one, "
                f"such as adamw"
            )
        return
    start = f"item_optimizer={chosen}"
    if config["train_positions"] == "last" and not hooks_of_class(config.model_class).has_position_losses:
        raise SettingError(f"{start} is for train_positions=all and for ST2SI: leave it out")
    if config["loss_type"] not in (*ONE_PASS_LOSSES, "BPR"):
        raise SettingError(
            f"{start} updates the items that a step has read, but loss_type={config['loss_type']} reads all of them: "
            f"take SampledCE or gBCE"
        )
    for name, why in (
        ("clip_grad_norm", "needs the gradient of all items in one"),
        ("weight_average", "averages all items after every step"),
        ("enable_scaler", "scales the gradients of all items"),
    ):
        if config[name]:
            raise SettingError(f"{start} leaves most items alone, and {name} {why}: leave one of them out")
    if config["learner"] not in ("adam", "adamw"):
        raise SettingError(f"{start} stands beside Adam or AdamW: set learner to adam, not {config['learner']}")


def _check_negatives(config: Any) -> None:
    """Refuse a loss of pairs without the negative item that each pair needs."""
    if config["train_neg_sample_args"]["distribution"] != "none" or config["model"] in _READ_USERS:
        return
    if config["train_positions"] != "last":  # one pass draws its negatives on the device
        return
    reason = None
    if (
        config["MODEL_INPUT_TYPE"] == InputType.PAIRWISE and config["loss_type"] != "CE"
    ):  # SINE reads pairs with BPR alone
        loss = "" if config["loss_type"] is None else f" with loss_type={config['loss_type']}"
        reason = f"{config['model']}{loss} compares each item with a negative one"
    elif config["MODEL_TYPE"] == ModelType.KNOWLEDGE:
        reason = f"{config['model']} compares each triple of the knowledge graph with a negative one"
    if reason is not None:
        raise SettingError(
            f"{reason}, but train_neg_sample_args draws none: leave it out, or set "
            f"train_neg_sample_args={{'distribution': 'uniform', 'sample_num': 1}}"
        )


def _check_candidates(config: Any) -> None:
    """Refuse candidates that cannot be drawn for this model or this kind of evaluation."""
    if config["candidates"] is None:
        return
    if config["MODEL_TYPE"] != ModelType.SEQUENTIAL:
        raise SettingError(
            f"candidates={config['candidates']} needs a sequential model, which {config['model']} is not"
        )
    modes = config["eval_args"]["mode"]
    for part in ("valid", "test"):
        mode = modes[part] if isinstance(modes, dict) else modes
        if mode != "full":
            raise SettingError(
                f"candidates={config['candidates']} are drawn from the scores of all items: set the mode of eval_args "
                f"to full, not {mode}"
            )


def _check_split(config: Any) -> None:
    """Refuse what cannot be ordered and cut so; files that give the split are not."""
    if config["benchmark_filename"] is not None:
        return
    args, model = config["eval_args"], config["model"]
    (kind, parts), *_ = args["split"].items()
    if args["order"] != "TO" and config["MODEL_TYPE"] == ModelType.SEQUENTIAL:
        raise SettingError(
            f"order={args['order']} of eval_args is not that of time, in which {model} reads histories: set it to TO"
        )
    if args["order"] != "TO" and kind == "TS":
        raise SettingError(f"split={args['split']} of eval_args cuts rows in the order of time: set order to TO")
    if kind != "LS" and sum(parts) == 0:
        raise SettingError(f"split={args['split']} of eval_args has no part above 0")
    if kind == "TS" and (len(parts) != 3 or sum(parts[:2]) == 0):
        raise SettingError(
            f"split={args['split']} of eval_args must name three parts, such as [0.8, 0.1, 0.1], of which the first "
            f"two are not 0"
        )


def _check_labels(config: Any) -> None:
    """Refuse labels that nothing reads, and metrics that labels do not give.

    A target below the threshold could be no target, but RecBole also trains on its row as on any other: with negative
    samples and with a full softmax every row is a positive one. What does leave low ratings out is `val_interval`.
    """
    modes = config["eval_args"]["mode"]
    if "labeled" in modes.values() and config["eval_type"] == EvaluatorType.RANKING:
        raise SettingError(
            f"mode=labeled of eval_args ranks no items, which the metrics {', '.join(config['metrics'])} need: set "
            f"mode to full, or metrics to such as AUC and LogLoss"
        )
    if config.given.get("threshold") and set(modes.values()) != {"labeled"}:
        column, value = next(iter(config["threshold"].items()))
        raise SettingError(
            f"threshold={config['threshold']} has no effect where items are ranked or drawn: leave rows below it out "
            f"with val_interval={{{column}: '[{value},inf)'}}, or set the mode of eval_args to labeled"
        )


def _check_columns(config: Any) -> None:
    """Refuse columns of files that are not read, and columns that are both loaded and left out."""
    load, leave = config["load_col"] or {}, config["unload_col"] or {}
    known = (*_SUFFIXES, *(config["additional_feat_suffix"] or ()))
    for setting, by_file in (("load_col", load), ("unload_col", leave), ("unused_col", config["unused_col"] or {})):
        for suffix in by_file:
            if suffix not in known:
                raise SettingError(
                    f"{setting} names columns of '{suffix}', but files end with {', '.join(known)} (others are named "
                    f"in additional_feat_suffix){nearest(suffix, known)}"
                )
    for suffix in leave:
        if leave[suffix] and load.get(suffix, "*") not in ("*", []):
            raise SettingError(
                f"load_col and unload_col both name columns of '{suffix}': leave one of them out, or set "
                f"load_col.{suffix} to '*'"
            )
