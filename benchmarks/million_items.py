"""(m) Evaluation of 50,000 users among 10^6 items on a CPU, in bounded memory, checked against plain numpy.

The dataset is generated: every item is met at least once, 25 items a user. SASRec, with its first weights or trained in
one pass for some epochs, is evaluated under both answers to `repeatable`, with as many rows at a time as
`eval_batch_size` says and as many items as `eval_memory` has room for. The ranks of some users are then computed again
from their vectors and the item table, in float64 and all items at once: a rank must lie between the places that
rounding in float32 leaves open.

    python benchmarks/million_items.py [--items=1000000] [--users=50000] [--width=32] [--memory=1024] [--epochs=0]
                                       [--check=200] [--batch=4096] [--history=25]
"""

import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from shapes import print_line

from recbole_llm.config.config import Config
from recbole_llm.quick_start.run import build

EPS = 1e-5  # of a score's size: what rounding in float32 may move


def clocks() -> tuple[float, float]:
    """Return the seconds of a clock, and those that the processors were busy with this process."""
    return time.perf_counter(), time.process_time()


def spent(begun: tuple[float, float]) -> dict[str, float]:
    """Return the seconds since `clocks`, and the most memory that this process has had resident, in GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    now = clocks()
    return {"seconds": now[0] - begun[0], "cpu_seconds": now[1] - begun[1], "peak_gib": peak}


def write_data(folder: Path, users: int, items: int, history: int) -> np.ndarray:
    """Write ``bench/bench.inter`` and return who met what, in time order: int64 [users, history]."""
    rng = np.random.default_rng(0)
    met = np.concatenate([rng.permutation(items), rng.integers(0, items, users * history)])[: users * history]
    met = rng.permutation(met).reshape(users, history)
    (folder / "bench").mkdir()
    with (folder / "bench" / "bench.inter").open("w") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user, row in enumerate(met.tolist()):
            file.writelines(f"u{user}\ti{item}\t{place}\n" for place, item in enumerate(row))
    return met


def plain_bounds(scores: np.ndarray, target: int, left_out: np.ndarray) -> tuple[int, int]:
    """Return the best and the worst rank of a target among all items but those left out, a tie against it.

    Args:
        scores: float64 [items], of all items but the padding id.
        target: its place.
        left_out: places of the items that are no candidates.
    """
    ranked = np.ones(len(scores), dtype=bool)
    ranked[left_out] = False
    ranked[target] = False
    own, others = scores[target], scores[ranked]
    near = EPS * np.abs(scores).max()
    return 1 + int((others > own + near).sum()), 1 + int((others >= own - near).sum())


@torch.no_grad()
def check(parts: Any, collected: tuple[np.ndarray, ...], met: np.ndarray, count: int) -> dict[str, Any]:
    """Return how many ranks of `count` users, under both protocols, are possible, and how wide the bounds are."""
    model, dataset = parts.model, parts.dataset
    rows = np.random.default_rng(1).choice(len(parts.test.dataset), count, replace=False)
    interaction = parts.test.dataset[np.sort(rows)]
    vectors = model(interaction["item_id_list"], interaction["item_length"]).double().numpy()
    table = model.item_embedding.weight[1:].double().numpy()
    ids = dataset.field2token_id["item_id"]
    users = dataset.field2id_token["user_id"]
    place = {int(user): number for number, user in enumerate(collected[0])}
    possible, widest = 0, 0
    for vector, user in zip(vectors, interaction["user_id"].tolist(), strict=True):
        known = np.array([ids[f"i{item}"] - 1 for item in met[int(users[user][1:])]])
        scores = table @ vector
        for left_out, ranks in zip((known[:0], known[:-1]), (collected[3], collected[2]), strict=True):
            best, worst = plain_bounds(scores, known[-1], left_out)
            possible += best <= ranks[place[user]] <= worst
            widest = max(widest, worst - best)
    return {"ranks": 2 * count, "possible": int(possible), "widest": widest}


def main() -> None:
    """Print a line for the dataset, for the evaluation, and for the check."""
    given = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:])
    items, users, width = (int(given.get(*pair)) for pair in (("items", 10**6), ("users", 50_000), ("width", 32)))
    memory, batch = int(given.get("memory", 1024)), int(given.get("batch", 4096))
    size = {"name": "million_items", "items": items, "users": users, "width": width, "eval_memory": memory}
    with tempfile.TemporaryDirectory() as root:
        met = write_data(Path(root), users, items, int(given.get("history", 25)))
        begun = clocks()
        settings = {
            "model": "SASRec", "dataset": "bench", "data_path": root, "checkpoint_dir": f"{root}/saved",
            "hidden_size": width, "inner_size": width, "MAX_ITEM_LIST_LENGTH": 20, "train_positions": "all",
            "loss_type": "BCE", "epochs": int(given.get("epochs", 0)), "eval_memory": memory, "eval_batch_size": batch,
            "repeatable": False, "use_gpu": False, "show_progress": False, "state": "ERROR", "topk": [10],
            "valid_metric": "NDCG@10", "metrics": ["NDCG", "Hit"],
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        }  # fmt: skip
        parts = build(Config(config_dict=settings), folder=Path(root) / "run")
        print_line(**size, what="dataset and model", **spent(begun))
        trainer = parts.trainer()
        if settings["epochs"]:
            begun = clocks()
            trainer.model.train()
            loss = trainer._train_epoch(parts.train, 0)
            print_line(**size, what="an epoch", **spent(begun), loss=float(loss))
        trainer.both_protocols = True
        begun = clocks()
        result = trainer.evaluate(parts.test, load_best_model=False)
        print_line(
            **size, what="evaluation", **spent(begun), rows=parts.test.step, in_blocks=parts.test.in_blocks,
            mrr=result["mrr"],
        )  # fmt: skip
        print_line(
            **size, what="check", **check(parts, trainer.eval_collector.collected(), met, int(given.get("check", 200)))
        )


if __name__ == "__main__":
    sys.exit(main())
