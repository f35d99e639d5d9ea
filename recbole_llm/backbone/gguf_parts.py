"""A GGUF file in parts, as large models are split to be passed on: joined, compared with its sha256, converted once."""

import hashlib
import importlib.util
from pathlib import Path

from recbole_llm.backbone.gguf import convert_gguf, converted_of_digest
from recbole_llm.backbone.preset import GgufPart, GgufParts
from recbole_llm.errors import BackboneError
from recbole_llm.utils.files import replacing
from recbole_llm.utils.paths import cache_folder

_PIECE = 1 << 22


def converted(name: str, parts: GgufParts) -> Path | None:
    """Return the folder of an earlier conversion of the backbone `name`, None if there is none."""
    folder = converted_of_digest(name, parts.sha256)
    return folder if folder.is_dir() else None


def located(parts: GgufParts) -> list[Path] | None:
    """Return where all parts lie, in their order, None if one is missing. Packages are found, never imported."""
    found = [_path(part) for part in parts.files]
    return None if None in found else [path for path in found if path is not None]


def _path(part: GgufPart) -> Path | None:
    if part.module is None:
        path = Path(part.file).expanduser()
        return path if path.is_file() else None
    spec = importlib.util.find_spec(part.module)
    for root in (spec.submodule_search_locations or []) if spec else []:
        if (Path(root) / part.file).is_file():
            return Path(root) / part.file
    return None


def convert_parts(name: str, parts: GgufParts) -> Path:
    """Return the folder with the converted model, after joining its parts if it is not there yet.

    The joined file is removed once it is converted.

    Raises:
        BackboneError: if a part is missing, or the joined file is another than the preset names.
        StorageError: if the cache is full or may not be written.
    """
    found = converted(name, parts)
    if found is not None:
        return found
    files = located(parts)
    if files is None:
        missing = next(part for part in parts.files if _path(part) is None)
        raise BackboneError(f"the backbone '{name}' lacks its part {missing.words()}: {missing.advice()}")
    joined = cache_folder("gguf") / f"{name}-{parts.sha256[:16]}.gguf"
    _join(name, parts, files, joined)
    try:
        return convert_gguf(name, joined)
    finally:
        joined.unlink(missing_ok=True)


def _join(name: str, parts: GgufParts, files: list[Path], joined: Path) -> None:
    digest = hashlib.sha256()
    with replacing(joined) as temporary, temporary.open("wb") as out:
        for path in files:
            with path.open("rb") as part:
                while piece := part.read(_PIECE):
                    digest.update(piece)
                    out.write(piece)
        if digest.hexdigest() != parts.sha256:
            raise BackboneError(
                f"the {len(files)} parts of the backbone '{name}' make a file with the sha256 {digest.hexdigest()[:16]}"
                f"..., and its preset says {parts.sha256[:16]}...: a part is cut short, changed or out of order"
            )
