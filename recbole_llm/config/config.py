"""The settings of a run: RecBole's Config with this package's properties, data set files and checks.

Precedence, as in RecBole: command line > dict > files > our properties > RecBole's properties.
"""

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole.config import Config as RecBoleConfig
from recbole.utils import ModelType

from recbole_llm.compat.repairs import alias_numpy_names
from recbole_llm.config import attributes, registry
from recbole_llm.config.names import dataset_files, dataset_folders, general_names, require_dataset, require_setting
from recbole_llm.errors import SettingError, nearest, require_flag, require_one_of, require_whole
from recbole_llm.evaluation import candidates
from recbole_llm.trainer.weight_average import check_decay
from recbole_llm.utils.files import read_yaml
from recbole_llm.utils.paths import shipped
from recbole_llm.utils.values import parse_literal, parse_value

# Settings of all models that are counts, and the least that makes sense.
_WHOLE_NUMBERS = {
    "epochs": 0,
    "train_batch_size": 1,
    "eval_batch_size": 1,
    "stopping_step": 0,
    "MAX_ITEM_LIST_LENGTH": 1,
    "warmup_steps": 0,
    "seed": 0,
    "candidates": 2,
    "candidate_seeds": 1,
}
# Keys of dataset_configs/*.yaml that are not settings of a run.
_NOT_SETTINGS = ("prepare",)


def parse_command_line(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the settings in ``--name=value`` arguments.

    Raises:
        SettingError: for an argument of another form, and for a name given twice with different values.
    """
    settings: dict[str, Any] = {}
    for argument in arguments:
        name, separator, text = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not separator or not name:
            raise SettingError(f"'{argument}' is not understood: settings are written --name=value")
        value = parse_value(text)
        if name in settings and settings[name] != value:
            raise SettingError(f"--{name} is given twice, as {settings[name]!r} and {value!r}")
        settings[name] = value
    return settings


class Config(RecBoleConfig):
    """RecBole's Config for the models of RecBole and of this package.

    Args:
        model: a model name or class.
        dataset: a data set name: a folder in `data_path`, or one that ships with RecBole.
        config_file_list: YAML files with settings.
        config_dict: settings.
        command_line: ``--name=value`` arguments. RecBole reads ``sys.argv`` itself; here nothing is read that was not
            handed in, so that a notebook or a test can build a Config.

    Attributes:
        given: the settings that are not defaults: files, dict and command line merged.
        merged: all settings before RecBole derives others from them; handing them in again gives the same run.
        is_new_dataset: whether no file in RecBole or in dataset_configs/ describes the data set.

    Raises:
        SettingError: for unknown names (the nearest is named) and values that cannot be.
    """

    def __init__(
        self,
        model: str | type | None = None,
        dataset: str | None = None,
        config_file_list: Sequence[str | Path] | None = None,
        config_dict: dict[str, Any] | None = None,
        command_line: Sequence[str] = (),
    ) -> None:
        self._command_line = command_line
        self.given: dict[str, Any] = {}
        self.merged: dict[str, Any] = {}
        try:
            super().__init__(model, dataset, config_file_list, dict(config_dict or {}))
        except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
            raise SettingError(str(error)) from error
        require_one_of("items_without_text", self["items_without_text"], ("drop", "error", "keep"))
        require_one_of("precision", self["precision"], ("auto", "bf16", "fp32"))
        require_flag("device_table", self["device_table"])
        for name, least in _WHOLE_NUMBERS.items():
            if self[name] is not None:
                require_whole(name, self[name], least)
        for name in ("learning_rate", "ilp_learning_rate", "backbone_learning_rate"):
            rate = self[name]
            if rate is not None and not (isinstance(rate, (int, float)) and rate >= 0):
                raise SettingError(f"{name}={rate} must be a number from 0")
        if self["weight_average"] is not None:
            check_decay(self["weight_average"])
        _check_valid_metric(self)
        _check_loss_type(self)
        candidates.check_settings(self)

    def compatibility_settings(self) -> None:
        """Set numpy's old names, see `recbole_llm.compat.repairs`."""
        alias_numpy_names()

    def _load_config_files(self, file_list: Sequence[str | Path] | None) -> dict[str, Any]:
        settings: dict[str, Any] = {}
        for file in file_list or ():
            settings.update(read_yaml(file))
        return settings

    def _load_cmd_line(self) -> dict[str, Any]:
        return parse_command_line(self._command_line)

    def _convert_config_dict(self, config_dict: dict[str, Any]) -> dict[str, Any]:
        # HyperTuning hands lists over as text.
        return {name: parse_literal(value) if isinstance(value, str) else value for name, value in config_dict.items()}

    def _get_model_and_dataset(self, model: str | type | None, dataset: str | None) -> tuple[str, type, str]:
        model = model if model is not None else self.external_config_dict.get("model")
        dataset = dataset if dataset is not None else self.external_config_dict.get("dataset")
        if model is None:
            raise SettingError("no model is named: add --model=ST2SI, or any model of RecBole")
        if dataset is None:
            raise SettingError("no data set is named: add --dataset=ml-100k, or the name of a folder in data_path")
        model_class = registry.model_class(model)
        return model_class.__name__, model_class, str(dataset)

    def _load_internal_config_dict(self, model: str, model_class: type, dataset: str) -> None:
        super()._load_internal_config_dict(model, model_class, dataset)
        properties, datasets = shipped("properties"), shipped("dataset_configs")
        ours = [properties / "overall.yaml", datasets / f"{dataset}.yaml", properties / "model" / f"{model}.yaml"]
        for path in ours:
            if path.is_file():
                settings = {k: v for k, v in read_yaml(path).items() if k not in _NOT_SETTINGS}
                self.internal_config_dict.update(settings)
        self.is_new_dataset = not dataset_files(dataset)

    def _get_final_config_dict(self) -> dict[str, Any]:
        self._check_names()
        settings = super()._get_final_config_dict()
        full_softmax = settings["MODEL_TYPE"] == ModelType.SEQUENTIAL and settings.get("loss_type") == "CE"
        if full_softmax and self.external_config_dict.get("train_neg_sample_args") is None:
            # A full softmax takes no negative samples; RecBole's own default asks for some and then refuses the run.
            settings["train_neg_sample_args"] = None
        if self.is_new_dataset and "load_col" not in self.external_config_dict:
            # RecBole's default loads users and items alone, without the time that its own protocol sorts by.
            settings["load_col"] = {"inter": [settings[f"{name}_FIELD"] for name in ("USER_ID", "ITEM_ID", "TIME")]}
        attributes.fill(settings, self.model, self.external_config_dict)
        fields = settings.get("item_text_fields")
        if isinstance(fields, str):
            settings["item_text_fields"] = [field.strip() for field in fields.split(",")]
        if settings.get("use_gpu") is False:
            settings["gpu_id"] = ""
        self.given = copy.deepcopy(self.external_config_dict)
        self.merged = copy.deepcopy({k: v for k, v in settings.items() if k != "MODEL_TYPE"})
        self.merged.update(model=self.model, dataset=self.dataset)
        return settings

    def _set_default_parameters(self) -> None:
        data_path = Path(self.final_config_dict["data_path"])
        super()._set_default_parameters()
        self.final_config_dict["data_path"] = str(_dataset_folder(self.dataset, data_path))

    def _check_names(self) -> None:
        own = set(self.internal_config_dict) | general_names()
        if self.model not in registry.known_models():
            return  # somebody's own model class: only it knows its settings
        for name in self.external_config_dict:
            require_setting(name, own)
            if name not in own:
                logging.getLogger().warning("the setting '%s' is not one of %s and has no effect", name, self.model)


def _check_valid_metric(config: Config) -> None:
    # `mrr` is always there; value metrics such as AUC have no cut-off.
    known = ["mrr", *(f"{metric}@{cut}" for metric in config["metrics"] for cut in config["topk"]), *config["metrics"]]
    metric = str(config["valid_metric"])
    if metric.lower() not in {name.lower() for name in known}:
        raise SettingError(
            f"valid_metric={metric} is not computed{nearest(metric, known)} Metrics are {', '.join(config['metrics'])} "
            f"at topk={config['topk']}, and mrr"
        )


def _check_loss_type(config: Config) -> None:
    # RecBole takes from it what a training row holds, and fails at the first sample of a loss that it does not know.
    if config["MODEL_INPUT_TYPE"] is None and config["train_neg_sample_args"]["distribution"] != "none":
        raise SettingError(f"loss_type={config['loss_type']} of {config['model']} is not one of CE, BPR")


def _dataset_folder(dataset: str, data_path: Path) -> Path:
    """Return the folder of a data set's atomic files: in `data_path`, else among RecBole's examples, else made anew.

    Raises:
        SettingError: if no such data set is known; the nearest name is told.
        DataError: if it is known but can neither be found nor be made here; the files to put in place are named.
    """
    require_dataset(dataset, data_path)
    for folder in dataset_folders(dataset, data_path):
        if folder.is_dir():
            return folder
    from recbole_llm.prepare import ensure

    return ensure(dataset, data_path)
