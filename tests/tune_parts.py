"""What the tests of `tune` share; their fixture is in hyper_search/conftest.py."""

import random
from pathlib import Path

import recbole_llm

ITEMS = [f"i{n}" for n in range(12)]
GRID = "learning_rate choice [0.0001,0.01,0.05]\nhidden_size choice [4,8]\n"
TWO = "learning_rate choice [0.0001,0.05]"
KEPT = ["config.yaml", "trial.json"]
RUN = ["config.yaml", "model.safetensors", "ranks-test.tsv.gz", "ranks-valid.tsv.gz", "result.json", "trial.json"]


def histories(seed=0):
    rng = random.Random(seed)
    drawn = {f"u{user}": rng.sample(ITEMS, rng.randint(5, 9)) for user in range(20)}
    # The first two have every item, so that ids are the same whatever the others are.
    return {"first": [*ITEMS[:-1], "i3"], "second": ["i11", *ITEMS[:4]], **drawn}


def settings(place, **more):
    return {
        "model": "GRU4Rec", "dataset": "small", "data_path": str(place), "checkpoint_dir": str(place / "saved"),
        "use_gpu": False, "show_progress": False, "state": "ERROR", "topk": [1, 5], "valid_metric": "NDCG@5",
        "epochs": 2, "train_batch_size": 16, "embedding_size": 8, "num_layers": 1, **more,
    }  # fmt: skip


def tune(place, given=None, **options):
    return recbole_llm.tune(settings=given or settings(place), **{"params_file": place / "grid.hyper", **options})


def arguments(place, given=None):
    return ["tune", *(f"--{name}={value}" for name, value in (given or settings(place)).items())]


def left(outcome, number):
    folder = Path(outcome["path"]).parent / "trials" / f"{number:04d}"
    return sorted(path.name for path in folder.iterdir())


def assert_only_the_winner_has_weights(outcome):
    for trial in outcome["trials"]:
        assert left(outcome, trial["number"]) == (RUN if trial["number"] == outcome["best"] else KEPT)
