"""Steps of SASRec on the CPU with glibc's allocator as it is, and as a run's command sets it.

    python benchmarks/cpu_allocator.py

prints one line of JSON: processor seconds and page faults of a step, as it is and as set, each the best of some
processes that take turns, and the ratio of the seconds. The step is RecBole's: 2,048 histories of 50 items, 4,344 items
to rank. `BATCH`, `ITEMS`, `STEPS` and `ROUNDS` in the environment make it smaller.
"""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

_ROOT = Path(__file__).resolve().parents[1]


def _size(name: str, default: int) -> int:
    return int(os.environ.get(name, default))


def _best_step() -> tuple[float, int]:
    """Return the processor seconds and page faults of the fastest step but the first."""
    import torch
    from recbole.model.sequential_recommender import SASRec

    from recbole_llm.config.config import Config

    config = Config("SASRec", "ml-100k", config_dict={"use_gpu": False, "train_neg_sample_args": None})
    batch, items = _size("BATCH", 2048), _size("ITEMS", 4344)
    catalogue = {"item_id": range(items)}
    sizes = {"num": lambda _: items, "item_num": items, "user_num": batch}
    model = SASRec(config, SimpleNamespace(**sizes, iid_field="item_id", field2id_token=catalogue))
    optimizer = torch.optim.Adam(model.parameters())
    rows = {
        model.ITEM_SEQ: torch.randint(1, items, (batch, config["MAX_ITEM_LIST_LENGTH"])),
        model.ITEM_SEQ_LEN: torch.full((batch,), config["MAX_ITEM_LIST_LENGTH"]),
        model.POS_ITEM_ID: torch.randint(1, items, (batch,)),
    }
    found = []
    for _ in range(_size("STEPS", 4)):
        faults, started = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.process_time()
        optimizer.zero_grad()
        model.calculate_loss(rows).backward()
        optimizer.step()
        taken = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        found.append((round(time.process_time() - started, 3), taken))
    return min(found[1:])


def main() -> None:
    """Compare both, in processes that take turns."""
    if len(sys.argv) > 1:
        from recbole_llm.utils.allocator import keep_freed_memory

        if sys.argv[1] == "set" and not keep_freed_memory():
            raise SystemExit("there is no glibc here, or its variables are set: there is nothing to measure")
        print(json.dumps(_best_step()))
        return
    found: dict[str, list[tuple[float, int]]] = {"as it is": [], "set": []}
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))}
    for _ in range(_size("ROUNDS", 2)):
        for name, results in found.items():
            command = [sys.executable, __file__, name]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=paths, check=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
    best = {name: min(results) for name, results in found.items()}
    print(json.dumps({**best, "ratio": round(best["as it is"][0] / best["set"][0], 2)}))


if __name__ == "__main__":
    main()
