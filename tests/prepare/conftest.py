"""A small Amazon pair, and settings that read it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from raw_files import METADATA, REVIEWS, SETTINGS, pack


@pytest.fixture
def amazon(tmp_path: Path) -> Path:
    """A folder with the two files of `SETTINGS`."""
    folder = tmp_path / "raw"
    pack(folder / "reviews_5.json.gz", [json.dumps(review) for review in REVIEWS])
    pack(folder / "meta.json.gz", METADATA)
    return folder


@pytest.fixture
def settings_file(tmp_path: Path) -> Callable[..., str]:
    """Write a dataset's YAML file; return its path, which `prepare` takes for a name."""

    def write(name: str = "toy", **changes: object) -> str:
        path = tmp_path / "configs" / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump({"item_text_fields": ["title"], "prepare": SETTINGS | changes}, sort_keys=False))
        return str(path)

    return write
