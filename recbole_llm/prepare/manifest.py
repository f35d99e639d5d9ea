"""``manifest.json``: where a prepared dataset comes from, what was done to it, and the hashes of both ends.

It holds no date, folder or machine, so the same preparation has the same manifest everywhere.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole_llm import __version__
from recbole_llm.errors import DataError
from recbole_llm.prepare.counts import Counts
from recbole_llm.prepare.raw import RawFile, Tally
from recbole_llm.prepare.spec import Spec

NAME = "manifest.json"
PREPARATION = 1
"""Raised whenever the same settings begin to give other bytes."""


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, read as a stream."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} could not be read: {error.strerror or error}") from None


def inputs(spec: Spec, files: Mapping[str, RawFile]) -> dict[str, dict[str, Any]]:
    """Return for each role its address, file name and SHA-256.

    Raises:
        DataError: if the published hash is known and a file has another one.
    """
    result = {}
    hashes: dict[Path, str] = {}
    for role, raw in files.items():
        source = spec.sources[role]
        found = hashes.setdefault(raw.path, "") or sha256(raw.path)
        hashes[raw.path] = found
        # An unpacked file cannot be compared with the hash of its archive.
        if source.sha256 and raw.path.name == source.file and found != source.sha256:
            raise DataError(
                f"{raw.path} is not the published file (its sha256 is {found}, the publisher's is {source.sha256}): "
                "remove it and download it again"
            )
        entry = {"url": source.url, "file": raw.path.name, "sha256": found}
        result[role] = entry | ({"member": raw.member} if raw.member else {})
    return result


def build(
    spec: Spec,
    sources: Mapping[str, Any],
    outputs: Mapping[str, str],
    counts: Counts,
    steps: list[dict[str, Any]],
    tally: Tally,
) -> dict[str, Any]:
    """Return the manifest as plain values."""
    return {
        "dataset": spec.dataset,
        "version": {"recbole_llm": __version__, "preparation": PREPARATION},
        "sources": dict(sources),
        "settings": spec.settings(),
        "read": dict(sorted(tally.read.items())),
        "skipped": dict(sorted(tally.skipped.items())),
        "steps": steps,
        "counts": counts.as_dict(),
        "paper_counts": {paper: dict(numbers) for paper, numbers in spec.paper_counts.items()},
        "notes": list(spec.notes),
        **({"time_format": tally.time_format} if tally.time_format else {}),
        "outputs": {name: {"sha256": digest} for name, digest in outputs.items()},
    }


def load(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a prepared folder, or None if it has none that can be read."""
    try:
        value = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def is_current(manifest: Mapping[str, Any], spec: Spec, folder: Path) -> bool:
    """Whether `folder` holds what the settings ask for, unchanged since it was written."""
    version = manifest.get("version")
    if manifest.get("settings") != spec.settings() or not isinstance(version, dict):
        return False
    outputs = manifest.get("outputs", {})
    if not isinstance(outputs, dict) or not all(isinstance(entry, dict) for entry in outputs.values()):
        return False
    whole = all(
        (folder / name).is_file() and sha256(folder / name) == entry.get("sha256") for name, entry in outputs.items()
    )
    return version.get("preparation") == PREPARATION and whole
