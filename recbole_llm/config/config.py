"""The settings of a run: RecBole's Config with this package's properties, dataset files and checks.

Precedence: command line > dict > files > the dataset's own file > the model's > what every run has, and last RecBole's
files. As in RecBole, what a dataset says of itself wins against the default of a model. Of `eval_args` and
`train_neg_sample_args` a source overrides the parts that it names (`config/parts.py`).
"""

import copy
import functools
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from recbole.config import Config as RecBoleConfig
from recbole.utils import ModelType

from recbole_llm.config import attributes, checks, names, parts, registry
from recbole_llm.config.declared import validate
from recbole_llm.config.given_dataset import GivenDataset, given_dataset, run_settings
from recbole_llm.config.settings.one_pass import ONE_PASS_BATCH
from recbole_llm.errors import SettingError
from recbole_llm.utils.files import read_yaml
from recbole_llm.utils.paths import shipped
from recbole_llm.utils.processes import started
from recbole_llm.utils.values import parse_literal, parse_value

_FLOAT = re.compile(r"^[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+$")  # 1e-3, which YAML 1.1 reads as text


class _Loader(yaml.FullLoader):
    """What RecBole reads its own files with; it adds the resolver to yaml's class, for everybody in the process."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


@functools.cache
def _of_recbole(file: str) -> Any:
    """Return what a YAML file of RecBole's own holds, which never changes; the caller copies it."""
    return yaml.load(Path(file).read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 (RecBole's own)


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
        dataset: a dataset's name (a folder in `data_path`, or one that ships with RecBole), the path of its folder, or
            a YAML file with its settings.
        config_file_list: YAML files with settings, or settings that stand in the place of a file.
        config_dict: settings.
        command_line: ``--name=value`` arguments. RecBole reads ``sys.argv`` itself; here nothing is read that was not
            given, so that a notebook or a test can build a Config. A Config changes nothing of the process.

    Attributes:
        given: the settings that are not defaults: files, dict and command line merged, without what has no effect.
        merged: all settings before RecBole derives others from them; they give the same run again.
        named: the dataset as it was named.
        of_dataset: the settings that follow from a path that names the dataset; they are among `given`.
        is_new_dataset: whether no file in RecBole or in dataset_configs/ describes the dataset.

    Raises:
        SettingError: for unknown names (the nearest is named) and values that cannot be.
    """

    def __init__(
        self,
        model: str | type | None = None,
        dataset: str | None = None,
        config_file_list: Sequence[str | Path | Mapping[str, Any]] | None = None,
        config_dict: dict[str, Any] | None = None,
        command_line: Sequence[str] = (),
    ) -> None:
        self._command_line = command_line
        self.given: dict[str, Any] = {}
        self.merged: dict[str, Any] = {}
        self.of_dataset: dict[str, Any] = {}
        try:
            super().__init__(model, dataset, config_file_list, copy.deepcopy(dict(config_dict or {})))
        except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
            raise SettingError(str(error)) from error
        checks.check_together(self)

    def compatibility_settings(self) -> None:
        """Set nothing: RecBole aliases old names in numpy itself, `compat.repairs` in RecBole's modules alone."""

    def _init_parameters_category(self) -> None:
        super()._init_parameters_category()
        # RecBole adds names to its own module's lists, for every Config that follows.
        parameters: dict[str, list[str]] = vars(self)["parameters"]
        self.parameters = {category: list(names) for category, names in parameters.items()}

    def _build_yaml_loader(self) -> type[yaml.FullLoader]:
        return _Loader

    def _init_device(self) -> None:
        """Choose the device by `gpu_id` without CUDA_VISIBLE_DEVICES, which would be set for the whole process.

        Repairs `recbole/config/configurator.py:490`. The number is that of a device which the process sees; where
        several processes share a run, that of the process among those of its machine.
        """
        settings = self.final_config_dict
        gpu_id = settings["gpu_id"] = str(settings["gpu_id"]).strip()
        settings["single_spec"], settings["local_rank"] = True, 0
        if not gpu_id or not torch.cuda.is_available():
            settings["device"] = torch.device("cpu")
            return
        count = torch.cuda.device_count()
        own = started()  # an ID model that one process makes for all is on its device, too
        if own.is_shared:
            gpu_id = str(own.local_rank)
            if int(gpu_id) >= count:
                raise SettingError(
                    f"process {own.rank} has no CUDA device of its own: start at most {count} on this machine "
                    f"(--nproc_per_node={count}), or set use_gpu=False"
                )
        if int(gpu_id) >= count:
            raise SettingError(f"gpu_id={gpu_id} must be below {count}, the number of visible CUDA devices")
        settings["device"] = torch.device("cuda", int(gpu_id))

    def _load_config_files(self, file_list: Sequence[str | Path | Mapping[str, Any]] | None) -> dict[str, Any]:
        settings: dict[str, Any] = {}
        for file in file_list or ():
            settings = parts.merged(settings, file if isinstance(file, Mapping) else read_yaml(file))
        return settings

    def _load_cmd_line(self) -> dict[str, Any]:
        return parse_command_line(self._command_line)

    def _convert_config_dict(self, config_dict: dict[str, Any]) -> dict[str, Any]:
        # HyperTuning hands lists over as text.
        return {name: parse_literal(value) if isinstance(value, str) else value for name, value in config_dict.items()}

    def _merge_external_config_dict(self) -> None:
        sources = (self.file_config_dict, self.variable_config_dict, self.cmd_config_dict)
        self.external_config_dict = parts.merged(*sources)

    def _get_model_and_dataset(self, model: str | type | None, dataset: str | None) -> tuple[str, type, str]:
        model = model if model is not None else self.external_config_dict.get("model")
        dataset = dataset if dataset is not None else self.external_config_dict.get("dataset")
        if model is None:
            raise SettingError("no model is named: add --model=ST2SI, or any model of RecBole")
        if dataset is None:
            raise SettingError("no dataset is named: add --dataset=ml-100k, or the name of a folder in data_path")
        model_class = registry.model_class(model)
        self.named = given_dataset(str(dataset))
        self._take_dataset(self.named)
        return model_class.__name__, model_class, self.named.name

    def _take_dataset(self, named: GivenDataset) -> None:
        """Put what a dataset's path says below all other settings that are given."""
        given: dict[str, Any] = vars(self)["external_config_dict"]
        if named.file is not None:
            self.of_dataset = named.settings()
        if named.folder is not None:
            place = str(named.folder.parent)
            other = given.get("data_path", place)
            if Path(str(other)).resolve() != Path(place).resolve():
                raise SettingError(f"dataset={named.folder} and data_path={other} name two places: leave out data_path")
            self.of_dataset = {"data_path": place}
        if named.file is None and named.folder is None:
            return
        merged = {**self.of_dataset, **given, "dataset": named.name}
        self.external_config_dict = merged
        self.of_dataset = {name: merged[name] for name in self.of_dataset}

    def _update_internal_config_dict(self, file: str) -> dict[str, Any] | None:
        # To read them takes nearly all the time of a Config: once is enough.
        found: dict[str, Any] | None = copy.deepcopy(_of_recbole(file))
        self.internal_config_dict.update(found or {})
        return found

    def _load_internal_config_dict(self, model: str, model_class: type, dataset: str) -> None:
        super()._load_internal_config_dict(model, model_class, dataset)
        properties, datasets = shipped("properties"), shipped("dataset_configs")
        ours = [properties / "overall.yaml", properties / "model" / f"{model}.yaml", datasets / f"{dataset}.yaml"]
        for path in ours:
            if path.is_file():
                self.internal_config_dict.update(parts.merged(self.internal_config_dict, run_settings(path)))
        self.is_new_dataset = not names.dataset_files(dataset)

    def _get_final_config_dict(self) -> dict[str, Any]:
        self._check_given()
        given = self.external_config_dict
        settings = parts.merged(self.internal_config_dict, given)
        if "train_neg_sample_args" in given:
            settings["train_neg_sample_args"] = given["train_neg_sample_args"]  # RecBole adds its own defaults later
        known = self.model if self.model in registry.known_models() else None
        validate(given, known)  # before the whole, so that an error shows what was given
        validate(settings, known)
        checks.check_id_model_settings(settings)
        full_softmax = settings["MODEL_TYPE"] == ModelType.SEQUENTIAL and settings.get("loss_type") == "CE"
        if full_softmax and self.external_config_dict.get("train_neg_sample_args") is None:
            # A full softmax takes no negative samples; RecBole's own default asks for some and then refuses the run.
            settings["train_neg_sample_args"] = None
        if self.is_new_dataset and "load_col" not in self.external_config_dict:
            # RecBole's default loads users and items alone, without the time that its own protocol sorts by.
            settings["load_col"] = {"inter": [settings[f"{name}_FIELD"] for name in ("USER_ID", "ITEM_ID", "TIME")]}
        if settings.get("unload_col") and settings.get("load_col") and "load_col" not in self.external_config_dict:
            # All other columns of these files: with a default of load_col, RecBole refuses both.
            settings["load_col"] = {**settings["load_col"], **dict.fromkeys(settings["unload_col"], "*")}
        attributes.fill(settings, self.model, self.external_config_dict)
        fields = settings.get("item_text_fields")
        if isinstance(fields, str):
            settings["item_text_fields"] = [field.strip() for field in fields.split(",")]
        if settings.get("use_gpu") is False:
            settings["gpu_id"] = ""
        self._choose_positions(settings)
        self.given = copy.deepcopy(self.external_config_dict)
        self.merged = copy.deepcopy({k: v for k, v in settings.items() if k != "MODEL_TYPE"})
        self.merged.update(model=self.model, dataset=self.dataset)
        return settings

    def _choose_positions(self, settings: dict[str, Any]) -> None:
        """Take the class of `sasrec_layers` and `train_positions`, and what the latter needs where nothing is given."""
        if settings["sasrec_layers"] == "authors":
            self.model_class = registry.authors_class(vars(self)["model_class"])
        if settings["train_positions"] == "last":
            return
        rows: type = vars(self)["model_class"]
        self.model_class = registry.one_pass_class(rows, settings.get("loss_type"))
        if self.external_config_dict.get("train_neg_sample_args") is None:
            settings["train_neg_sample_args"] = None  # they are drawn on the device
        if "train_batch_size" not in self.external_config_dict:
            settings["train_batch_size"] = ONE_PASS_BATCH

    def _set_default_parameters(self) -> None:
        data_path = Path(self.final_config_dict["data_path"])
        repeatable = self.final_config_dict["repeatable"]
        # `recbole/config/configurator.py:378` refuses False for sequential models, whose histories RecBole never masks.
        self.final_config_dict["repeatable"] = True
        super()._set_default_parameters()
        self.final_config_dict["repeatable"] = repeatable
        self.final_config_dict["data_path"] = str(_dataset_folder(self.named, data_path))

    def _check_given(self) -> None:
        """Check the names of given settings; leave out what a file gives that the model does not read."""
        known = self.model in registry.known_models()
        if not known:
            return  # somebody's own model class: only it knows its settings
        self._check_of_dataset()
        for source in (self.cmd_config_dict, self.variable_config_dict):
            checks.check_given(source, self.model, strictly=True)
        for name in sorted(checks.check_given(self.file_config_dict, self.model, strictly=False)):
            if self.external_config_dict[name] == self.file_config_dict[name]:
                del self.external_config_dict[name]
                logging.getLogger().warning("the setting '%s' has no effect on %s", name, self.model)

    def _check_of_dataset(self) -> None:
        """Check the names in a dataset's own file, which serves all models: what this one does not read is left out."""
        try:
            without_effect = checks.check_given(self.of_dataset, self.model, strictly=False)
        except SettingError as error:
            raise SettingError(f"{self.named.file}: {error}") from None
        elsewhere = {*self.cmd_config_dict, *self.variable_config_dict, *self.file_config_dict}
        for name in without_effect:
            del self.of_dataset[name]
            if name not in elsewhere:
                del self.external_config_dict[name]


def _dataset_folder(dataset: GivenDataset, data_path: Path) -> Path:
    """Return the folder of a dataset's atomic files: in `data_path`, else among RecBole's examples, else where they go.

    Nothing is made here: whoever reads the data asks `data.folder.ensure_files` for it.

    Raises:
        SettingError: if no such dataset is known; the nearest name is given.
    """
    names.require_given(dataset, data_path)
    folders = names.dataset_folders(dataset.name, data_path)
    return next((folder for folder in folders if folder.is_dir()), folders[0])
