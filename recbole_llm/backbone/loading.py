"""Loading a backbone: its base model without a head, its tokenizer, and what a user of both must know."""

import hashlib
import inspect
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import (
    MODEL_MAPPING,
    AutoModel,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from recbole_llm.backbone.gguf import quiet_transformers
from recbole_llm.backbone.padded import set_attention_window
from recbole_llm.backbone.preset import BackbonePreset, read_config
from recbole_llm.backbone.resolve import Resolved, require_whole, resolve, weight_files
from recbole_llm.errors import BackboneError
from recbole_llm.utils.hashing import content_hash

_SENTENCEPIECE_FILES = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model")


@dataclass
class Backbone:
    """A loaded language model.

    Attributes:
        model: transformers' base model (AutoModel, without a head), in eval mode, on the device asked for.
        tokenizer: its fast tokenizer; it pads on the preset's side, and cuts only when asked to.
        preset: how the model is used.
        folder: where it was loaded from.
        width: width of `last_hidden_state`, which may differ from that of the layers (opt-350m: 512, its layers 1024).
        layers: the attention layers, first to last.
        max_positions: how many tokens the model has positions for, None if there is no bound.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    preset: BackbonePreset
    folder: Path
    width: int
    layers: torch.nn.ModuleList
    max_positions: int | None

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that identify the weight files; the files are read when it is first asked for."""
        return fingerprint(self.folder)


def load_backbone(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    device: torch.device | None = None,
    encoder_decoder: bool = False,
    attention_window: int | None = None,
) -> Backbone:
    """Load the backbone `name`: a preset, a folder, or a hub id.

    Args:
        name: what the setting `backbone` holds.
        dtype: type of the weights in memory.
        seed: draws what the weights file does not hold (an encoder's pooler, if its class insists on one); the caller's
            random state is left as it was, so that other random numbers do not depend on the backbone.
        device: a GPU whose memory the weights are read into, file by file, so that the host never holds all of them;
            by default, and for a CPU, they are on the CPU.
        encoder_decoder: whether one with an encoder and a decoder (T5) will do.
        attention_window: the window of all layers of a Longformer, in tokens; None for that of its configuration.

    Raises:
        SettingError: if no such backbone is known, or one that is no Longformer is given a window.
        BackboneError: if it cannot be had, is broken or cut short, or its files belong to different models.
    """
    found = resolve(name, encoder_decoder=encoder_decoder)
    require_whole(found.folder)
    config = read_config(found.folder)
    if attention_window is not None:
        set_attention_window(config, attention_window, name)
    model = _load_model(found, config, dtype, seed, device)
    tokenizer = _load_tokenizer(found)
    known, rows = max(tokenizer.get_vocab().values(), default=-1) + 1, model.get_input_embeddings().num_embeddings
    if known > rows:
        raise BackboneError(
            f"the tokenizer in {found.folder} has token ids up to {known - 1} but the model embeds {rows}: they "
            f"belong to two models"
        )
    _check_sizes(model, found.folder)
    return Backbone(
        model=model,
        tokenizer=tokenizer,
        preset=found.preset,
        folder=found.folder,
        width=getattr(model.config, "word_embed_proj_dim", model.config.hidden_size),
        layers=_layers(model, found),
        max_positions=_max_positions(model),
    )


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Load only the tokenizer of the backbone `name`, as `load_backbone` does. Raises the same errors."""
    found = resolve(name)
    require_whole(found.folder)
    return _load_tokenizer(found)


def fingerprint(folder: Path) -> str:
    """Return 16 hexadecimal digits of the sha256 over the weight files in `folder`. Raises BackboneError."""
    digest = hashlib.sha256()
    for file in weight_files(folder):
        digest.update(content_hash(file).encode())
    return digest.hexdigest()[:16]


def _load_model(
    found: Resolved, config: PretrainedConfig, dtype: torch.dtype, seed: int, device: torch.device | None
) -> PreTrainedModel:
    has_safetensors = weight_files(found.folder)[0].suffix == ".safetensors"
    try:
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, report = AutoModel.from_pretrained(
                found.folder,
                config=config,
                dtype=dtype,
                use_safetensors=has_safetensors,
                weights_only=True,  # a .bin file is read as tensors, never as a pickle that may run code
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                **({"device_map": {"": device}} if device is not None and device.type != "cpu" else {}),
                **({"add_pooling_layer": False} if _has_optional_pooler(config) else {}),
            )
    except Exception as error:  # safetensors, torch and transformers each have their own types for a broken file
        reason = " ".join(str(error).split())[:200]
        raise BackboneError(
            f"the weights in {found.folder} are broken or belong to another model; fetch them again ({reason})"
        ) from error
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise BackboneError(
            f"the weights in {found.folder} lack {len(missing)} of the model's parameters ({missing[0]}): "
            "they belong to another model than config.json"
        )
    return model.eval()


def _has_optional_pooler(config: PretrainedConfig) -> bool:
    """Return whether the model's class can leave out its pooler, which nothing here reads."""
    model_class = MODEL_MAPPING[type(config)]
    if isinstance(model_class, tuple):
        model_class = model_class[0]
    return "add_pooling_layer" in inspect.signature(model_class.__init__).parameters


def _load_tokenizer(found: Resolved) -> PreTrainedTokenizerFast:
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(found.folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # as for the weights
        file = next((name for name in _SENTENCEPIECE_FILES if (found.folder / name).is_file()), None)
        if file and not (found.folder / "tokenizer.json").is_file() and find_spec("sentencepiece") is None:
            raise BackboneError(
                f"the tokenizer in {found.folder} is {file} alone, which the package sentencepiece reads: pip install "
                f"sentencepiece, or put the model's tokenizer.json beside it"
            ) from error
        reason = " ".join(str(error).split())[:200]
        raise BackboneError(f"the tokenizer in {found.folder} cannot be loaded; fetch it again ({reason})") from error
    if not tokenizer.is_fast:
        raise BackboneError(
            f"the tokenizer in {found.folder} has no fast version (tokenizer.json): choose another backbone"
        )
    # MiniLM's file says: cut to 128 tokens and pad to 128, always. How long a text may be is a setting of ours.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.padding_side = found.preset.padding_side
    if tokenizer.pad_token is None:  # Llama has none; padding is masked, so any token will do
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _layers(model: PreTrainedModel, found: Resolved) -> torch.nn.ModuleList:
    preset = found.preset
    try:
        layers = model.get_submodule(preset.layers)
    except AttributeError:
        layers = None
    if not isinstance(layers, torch.nn.ModuleList) or len(layers) != preset.num_layers:
        raise BackboneError(
            f"the model in {found.folder} ({type(model).__name__}) has no {preset.num_layers} layers at "
            f"'{preset.layers}': it is not the model that '{preset.name}' names"
        )
    return layers


def _max_positions(model: PreTrainedModel) -> int | None:
    """Return how many tokens have a position; RoBERTa's table also holds rows that no token ever gets."""
    bound = getattr(model.config, "max_position_embeddings", None)
    return None if bound is None else bound - first_position(model)


def _check_sizes(model: PreTrainedModel, folder: Path) -> None:
    """Refuse what a model is built with and cannot compute with. Raises BackboneError."""
    positions = _max_positions(model)
    if positions is not None and positions < 1:
        raise BackboneError(f"config.json in {folder} has positions for {positions} tokens: fetch it again")
    for name, value in model.named_buffers():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise BackboneError(
                f"config.json in {folder} makes {name} no number: fetch it again, or see its rope values"
            )
    for name, value in model.config.to_dict().items():
        if "dropout" in name and isinstance(value, int | float) and not 0 <= value <= 1:
            raise BackboneError(f"config.json in {folder} has {name}={value}, which must be from 0 to 1")


def first_position(model: torch.nn.Module) -> int:
    """Return the position of a text's first token: RoBERTa types count from behind their padding token's row."""
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return 0 if padding is None else padding + 1
