"""A small random dataset of RecBole's atomic files."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

EMBEDDING_SIZE = 16


def write_atomic_files(folder: Path, users: int = 60, items: int = 80, ties: bool = False, seed: int = 0) -> Path:
    """Write ``<folder>/<folder's name>.inter`` and ``.item``; users have 5 to 20 interactions, without repeats.

    Items have a title, a category of one and of several values, and a number. With `ties` several interactions of a
    user share a time. The files ``.kg``, ``.link``, ``.ent`` and
    ``.rel`` hold what KSR and GRU4RecKG read.
    """
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    rows = []
    for user in range(users):
        count = int(random.integers(5, 21))
        chosen = random.choice(items, size=count, replace=False, p=_popularity(items))
        times = np.sort(random.integers(0, 6 if ties else 10**6, size=count)) + 10**6
        rows += [
            (f"u{user}", f"i{item}", int(random.integers(1, 6)), int(time))
            for item, time in zip(chosen, times, strict=True)
        ]
    inter = pd.DataFrame(rows, columns=["user_id:token", "item_id:token", "rating:float", "timestamp:float"])
    inter = inter.sample(frac=1, random_state=seed)  # RecBole must sort
    inter.to_csv(folder / f"{folder.name}.inter", sep="\t", index=False)
    item = pd.DataFrame(
        {
            "item_id:token": [f"i{i}" for i in range(items)],
            "title:token_seq": [f"Thing number {i}" for i in range(items)],
            "category:token": [f"c{i % 5}" for i in range(items)],
            "class:token_seq": [f"k{i % 7} k{i % 4 + 7}" for i in range(items)],
            "price:float": random.random(items).round(2),
        }
    )
    item.to_csv(folder / f"{folder.name}.item", sep="\t", index=False)
    _write_knowledge(folder, items, random)
    return folder


def _popularity(items: int) -> np.ndarray:
    weights = 1 / np.arange(3, items + 3)
    return weights / weights.sum()


def _write_knowledge(folder: Path, items: int, random: np.random.Generator) -> None:
    def write(suffix: str, columns: dict[str, list[str]]) -> None:
        pd.DataFrame(columns).to_csv(folder / f"{folder.name}.{suffix}", sep="\t", index=False)

    entities, relations = [f"e{i}" for i in range(items)], ["r0", "r1", "r2"]
    write("link", {"item_id:token": [f"i{i}" for i in range(items)], "entity_id:token": entities})
    triples = {"head_id:token": entities, "relation_id:token": [relations[i % 3] for i in range(items)]}
    write("kg", {**triples, "tail_id:token": entities[1:] + entities[:1]})
    for kind, ids in (("ent", entities), ("rel", relations)):
        vectors = random.normal(size=(len(ids), EMBEDDING_SIZE)).round(3)
        write(kind, {f"{kind}_id:token": ids, f"{kind}_emb:float_seq": [" ".join(map(str, row)) for row in vectors]})


def quick_settings(folder: Path, **settings: Any) -> dict[str, Any]:
    """Settings of a run of seconds on the dataset in `folder`, made by `write_atomic_files`."""
    return {
        "dataset": folder.name,
        "data_path": str(folder.parent),
        "checkpoint_dir": "saved",
        "load_col": {
            "inter": ["user_id", "item_id", "rating", "timestamp"],
            "item": ["item_id", "category", "class"],
        },
        "epochs": 1,
        "train_batch_size": 256,
        "MAX_ITEM_LIST_LENGTH": 8,
        "use_gpu": False,
        "show_progress": False,
        "state": "ERROR",
        **settings,
    }


# What KSR and GRU4RecKG ask for.
KNOWLEDGE = {
    "load_col": {
        "inter": ["user_id", "item_id", "timestamp"],
        "kg": ["head_id", "relation_id", "tail_id"],
        "link": ["item_id", "entity_id"],
        "ent": ["ent_id", "ent_emb"],
        "rel": ["rel_id", "rel_emb"],
    },
    "additional_feat_suffix": ["ent", "rel"],
    "alias_of_entity_id": ["ent_id"],
    "alias_of_relation_id": ["rel_id"],
    "preload_weight": {"ent_id": "ent_emb", "rel_id": "rel_emb"},
    "embedding_size": EMBEDDING_SIZE,
}
