"""A small random data set of RecBole's atomic files."""

from pathlib import Path

import numpy as np
import pandas as pd


def write_atomic_files(folder: Path, users: int = 60, items: int = 80, ties: bool = False, seed: int = 0) -> Path:
    """Write ``<folder>/<folder's name>.inter`` and ``.item``; users have 5 to 20 interactions, without repeats.

    Items have a title, a category of one and of several values, and a number. With `ties` several interactions of a
    user share a time.
    """
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    rows = []
    for user in range(users):
        count = int(random.integers(5, 21))
        chosen = random.choice(items, size=count, replace=False, p=_popularity(items))
        times = np.sort(random.integers(0, 6 if ties else 10**6, size=count)) + 10**6
        rows += [(f"u{user}", f"i{item}", int(random.integers(1, 6)), int(time)) for item, time in zip(chosen, times)]
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
    return folder


def _popularity(items: int) -> np.ndarray:
    weights = 1 / np.arange(3, items + 3)
    return weights / weights.sum()
