"""A small dataset in which the next item is mostly the one after the last."""

from pathlib import Path

import numpy as np
from small_data import write_dataset

ITEMS, USERS = 24, 60
WORDS = ["Toy", "Story", "Guitar", "Light", "Meter", "Zelda", "Mario", "Galaxy", "Print", "Black", "Comedy"]
NAMES = [f"i{n:02}" for n in range(ITEMS)]


def write_learnable(folder: Path) -> Path:
    """Write the dataset `small` into `folder`, and return `folder`."""
    random = np.random.default_rng(0)
    histories = {}
    for user in range(USERS):
        steps = random.choice([1, 1, 1, 2, 5], random.integers(3, 8))
        histories[f"u{user}"] = [NAMES[n] for n in (random.integers(ITEMS) + np.cumsum(steps)) % ITEMS]
    titles = {name: " ".join(random.choice(WORDS, random.integers(1, 5))) for name in NAMES}
    return write_dataset(folder, histories, titles)
