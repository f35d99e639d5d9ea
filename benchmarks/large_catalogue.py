"""(k) Latency of the ten best of 10^6 and 10^7 items from hidden states, exact, in blocks of items and as a whole.

"whole" makes the scores of all items for as many users as 256 MiB hold, as for a model that cannot score some items;
"blocks" reads the projection once a batch. Both leave 50 items of each history out and end on the host.

    python benchmarks/large_catalogue.py [--items=1000000,10000000] [--width=768] [--rows=1,64]
                                                        (a CUDA device, or 10^6 items of width 64 on the CPU)
"""

import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from shapes import print_line

from recbole_llm.inference.best_items import best_in_blocks, best_items
from recbole_llm.model.layers.item_linear_projection import ItemLinearProjection

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
SIZES, WIDTH, K, SEEN = ("1000000,10000000", 768, 10, 50) if GPU else ("1000000", 64, 10, 50)
Answer = tuple[np.ndarray, np.ndarray]


@torch.no_grad()
def measure(answer: Callable[[], Answer], repeats: int) -> dict[str, float]:
    """Return the median and the 95th percentile of milliseconds, and the peak memory in GiB (CUDA alone)."""
    for _ in range(2):
        answer()
    before = 0
    if GPU:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        answer()  # its result is on the host
        times.append(1000 * (time.perf_counter() - begun))
    found = {"median_ms": float(np.median(times)), "p95_ms": float(np.percentile(times, 95))}
    if GPU:
        found["beside_gib"] = (torch.cuda.max_memory_allocated() - before) / 2**30
    return found


def ways(
    projection: ItemLinearProjection, states: torch.Tensor, seen: list[np.ndarray]
) -> dict[str, Callable[[], Answer]]:
    """Return both ways to the answer."""
    items = len(projection.weight)

    def blocks() -> Answer:
        found = best_in_blocks(
            lambda begin, end: lambda items: projection.of_items(states[begin:end], items),
            len(states), items, K, seen,
        )  # fmt: skip
        assert found is not None
        return found

    def whole() -> Answer:
        return best_items(lambda begin, end: projection(states[begin:end]), len(states), items, K, seen)

    return {"blocks": blocks, "whole": whole}


def main() -> None:
    """Print one line a catalogue size, number of users and way."""
    given = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:])
    width, rows_given = int(given.get("width", WIDTH)), given.get("rows", "1,64")
    for items in map(int, given.get("items", SIZES).split(",")):
        torch.manual_seed(0)
        with DEVICE:
            projection = ItemLinearProjection(width, items + 1)
        for rows in map(int, rows_given.split(",")):
            states = torch.randn(rows, width, device=DEVICE)
            rng = np.random.default_rng(0)
            seen = [rng.integers(1, items + 1, SEEN) for _ in range(rows)]
            answers = {}
            for way, answer in ways(projection, states, seen).items():
                with torch.no_grad():
                    answers[way] = answer()[1]
                print_line(
                    name="large_catalogue", items=items, width=width, rows=rows, way=way, device=DEVICE.type,
                    **measure(answer, 100 if GPU else 5),
                )  # fmt: skip
            same = float((answers["blocks"] == answers["whole"]).mean())
            print_line(name="large_catalogue", items=items, width=width, rows=rows, same_places=same)


if __name__ == "__main__":
    sys.exit(main())
