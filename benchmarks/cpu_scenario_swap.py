"""Putting another catalogue onto a loaded backbone, against building the model of that catalogue anew.

28,000 items of 20 tokens, as Office has them. The backbone is tiny, which favours building anew: a real one takes
longer to load, and as long to swap.

    python benchmarks/cpu_scenario_swap.py
"""

import sys
import time
from typing import Any

import numpy as np
import torch
from shapes import build_run, print_line

from recbole_llm.model.sequential_recommender.st2si.scenario import Scenario, scenario_of, swap
from recbole_llm.packing.ragged import RaggedTable
from recbole_llm.quick_start.run import build

ITEMS, TOKENS = 28_000, 20


def best_seconds(function: Any, repeats: int = 3) -> float:
    """Return the least wall-clock time of a call."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        function()
        times.append(time.perf_counter() - begun)
    return min(times)


def main() -> None:
    """Time swapping a loaded scenario, and building a model, and print the ratio."""
    parts, _ = build_run("tiny", 3_000, 1_000, tuning="ilp")
    own = scenario_of(parts.model, parts.dataset)
    other = Scenario(
        **{
            **vars(own),
            "tokens": [f"other{n}" for n in range(ITEMS)],
            "text": RaggedTable(np.full(TOKENS * ITEMS, 7), np.arange(ITEMS + 1) * TOKENS),
            "weight": torch.rand(ITEMS, own.weight.shape[1]),
        }
    )
    swap(parts.model, other)  # the first swap also hashes the backbone
    swapping = best_seconds(lambda: swap(parts.model, other))
    building = best_seconds(lambda: build(parts.config))
    print_line(name="scenario_swap", items=ITEMS, swap_s=swapping, build_s=building, ratio=building / swapping)


if __name__ == "__main__":
    sys.exit(main())
