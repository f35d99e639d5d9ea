"""What identifies the result of a run before it is made: all that it depends on, as one hash."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import recbole_llm
from recbole_llm.config.roles import decides_result
from recbole_llm.runs.folder import plain
from recbole_llm.utils.files import write_text
from recbole_llm.utils.hashing import content_hash

FINGERPRINT = ".fingerprint"
# Settings that may name a folder of weights.
_WEIGHTS = ("backbone", "pretrained_backbone", "id_model_path", "pre_model_path")
_WEIGHT_FILES = ("*.safetensors", "*.bin", "config.json", "tokenizer*")


def run_fingerprint(merged: Mapping[str, Any], files: Mapping[str, str]) -> str:
    """Return 16 hexadecimal digits that two runs share only if they have the same result, on the same machine.

    They are those of the version of this package, the seed, all settings that shape a result (places and the machine do
    not, see `config.roles.shapes_result`), the dataset's files, and the weights in folders that settings name.

    Args:
        merged: `Config.merged` of the run, before its stages added to it.
        files: see `data.build.file_hashes`.
    """
    model = str(merged["model"])
    shaping = {name: value for name, value in merged.items() if decides_result(name, model)}
    weights = {name: _weights(merged[name]) for name in _WEIGHTS if merged.get(name)}
    found = {"version": recbole_llm.__version__, "settings": plain(shaping), "files": dict(files), "weights": weights}
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def kept_fingerprint(
    folder: Path, merged: Mapping[str, Any], stored: Mapping[str, Any], files: Mapping[str, str]
) -> str:
    """Return the fingerprint of a run, which stays the same when it is resumed without a change.

    A run stores its settings with what its stages found, so a resumed one begins with other settings than those that
    started it. Both fingerprints are noted in its folder until it is finished.

    Args:
        folder: of the run.
        merged: the settings that the run was started or resumed with.
        stored: those that it stores.
        files: see `data.build.file_hashes`.
    """
    own, note = run_fingerprint(merged, files), folder / FINGERPRINT
    if note.is_file():  # a broken one is no run's, and is written again
        started, _, resumed = note.read_text(encoding="utf-8", errors="replace").strip().partition(" ")
        own = started if own == resumed else own
    write_text(note, f"{own} {run_fingerprint(stored, files)}\n")
    return own


def _weights(folder: Any) -> dict[str, str]:
    """Return the hashes of the files in a folder that hold weights or say how to use them; none if it is no folder."""
    files = {file for pattern in _WEIGHT_FILES for file in Path(str(folder)).glob(pattern) if file.is_file()}
    return {file.name: content_hash(file) for file in files}
