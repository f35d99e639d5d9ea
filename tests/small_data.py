"""Small datasets in RecBole's atomic files, and the parts of a run built on them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole.utils import init_seed

from recbole_llm.config.config import Config
from recbole_llm.config.declared import has_setting
from recbole_llm.quick_start.run import Parts, build

TITLES = {
    "a": "Toy Story (1995)",
    "b": "Acoustic Guitar Strings, Light Gauge",
    "c": "Digital Multimeter",
    "d": "The Legend of Zelda: Ocarina of Time",
    "e": "Super Mario Galaxy 2",
    "f": "3D Printer Filament 1.75 mm PLA, black",
    "g": "Comedy",
    "h": "Light",
}
# Titles with which every history fits a window of 100 tokens.
SHORT = {
    "a": "Toy",
    "b": "Acoustic",
    "c": "Digital",
    "d": "Zelda",
    "e": "Mario",
    "f": "3D",
    "g": "Comedy",
    "h": "Light",
}
HISTORIES = {
    "u1": "abcde",
    "u2": "cdefgh",
    "u3": "hgf",
    "u4": "abcdefghabcdefgh",
    "u5": "gabhhcd",
    "u6": "ed",  # too short for a held-out target
    "u7": "fedcbafedcb",
}


def write_dataset(
    root: Path,
    histories: Mapping[str, Sequence[str]] = HISTORIES,
    titles: Mapping[str, str | Sequence[str]] | None = TITLES,
    columns: Sequence[str] = ("title",),
    name: str = "small",
) -> Path:
    """Write <root>/<name>/<name>.inter and, with `titles`, <name>.item; return `root`, the run's data_path."""
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user, items in histories.items():
        lines += [f"{user}\t{item}\t{time}" for time, item in enumerate(items, start=1)]
    (folder / f"{name}.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if titles is not None:
        lines = ["\t".join(["item_id:token", *(f"{column}:token_seq" for column in columns)])]
        for item, text in titles.items():
            lines.append("\t".join([item, *([text] if isinstance(text, str) else text)]))
        (folder / f"{name}.item").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def small_settings(data_path: Path, **settings: Any) -> dict[str, Any]:
    """Settings of a quick run in fp32 on the CPU that leaves nothing outside the dataset's folder.

    A default that the model does not have is left out.
    """
    defaults = {
        "model": "ST2SI",
        "dataset": "small",
        "data_path": str(data_path),
        "checkpoint_dir": str(data_path / "saved"),
        "use_gpu": False,
        "precision": "fp32",
        "show_progress": False,
        "state": "ERROR",
        "topk": [1, 3],
        "valid_metric": "NDCG@3",
        "max_sequence_tokens": 100,
        "train_batch_tokens": 4096,
    }
    return {**of_model(str(settings.get("model", "ST2SI")), defaults), **settings}


def of_model(model: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of some settings that a model has: others would be refused."""
    return {name: value for name, value in settings.items() if has_setting(model, name)}


def build_parts(data_path: Path, **settings: Any) -> Parts:
    """The data, loaders and model of a run, seeded."""
    config = Config(config_dict=small_settings(data_path, **settings))
    init_seed(config["seed"], config["reproducibility"])
    return build(config, folder=data_path)
