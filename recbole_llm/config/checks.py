"""What the values of several settings must be together, and what the chosen model would not do."""

from collections.abc import Mapping
from typing import Any

from recbole.utils import ModelType

from recbole_llm.config import declared, renamed
from recbole_llm.config.hooks import hooks_of_class
from recbole_llm.config.registry import known_models
from recbole_llm.config.settings.one_pass import ONE_PASS_LOSSES
from recbole_llm.errors import SettingError, nearest

# RecBole's settings of several processes, with the values that mean one.
_ONE_PROCESS: dict[str, tuple[Any, ...]] = {
    "nproc": (None, 1),
    "world_size": (None, 1),
    "offset": (None, 0),
    "local_rank": (None, 0),
    "ip": (None,),
    "port": (None,),
}
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
    for name in _PICKLES:
        if config[name]:
            raise SettingError(f"{name} is not supported: RecBole stores it as a pickle, which is not safe to load")
    _check_valid_metric(config)
    _check_positions(config)
    _check_loss_type(config)
    _check_candidates(config)
    if config["train_share"] is not None and not hooks_of_class(config.model_class).trains_on_rows:
        raise SettingError(f"{config['model']} trains on whole histories: train_share is for models of rows")


def _check_one_process(settings: Mapping[str, Any]) -> None:
    for name, values in _ONE_PROCESS.items():
        if settings.get(name) not in values:
            raise SettingError(
                f"{name}={settings[name]} is for several processes, which a run does not have yet: leave it out, and "
                f"start one run per device with gpu_id=0, gpu_id=1, ..."
            )
    gpu_id = settings.get("gpu_id")
    if isinstance(gpu_id, list | tuple) or "," in str(gpu_id):
        several = ",".join(map(str, gpu_id)) if isinstance(gpu_id, list | tuple) else gpu_id
        raise SettingError(
            f"gpu_id={several} names several devices, but a run has one process on one device: name one, such as "
            f"gpu_id=0"
        )


def _check_valid_metric(config: Any) -> None:
    # `mrr` is always there; value metrics such as AUC have no cut-off.
    known = ["mrr", *(f"{metric}@{cut}" for metric in config["metrics"] for cut in config["topk"]), *config["metrics"]]
    metric = str(config["valid_metric"])
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
        if sequential and loss in ONE_PASS_LOSSES:
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
