"""(l) A training step of an item table with each loss, for 10^5 and 10^6 items: time and memory beside the full one.

The states are stored (as with `tuning: ilp`), so that a step is loss, gradients and optimiser of the table alone.
"beside_mib" is the most memory that a way takes above what the process has before, the table itself included. A way
that a device has no memory for is "skipped"; "times_full" is left out where the full softmax is.

    python benchmarks/item_losses.py [--items=100000,1000000] [--queries=400] [--width=64] [--negatives=8192]
                                                        (a CUDA device, or 10^4 and 10^5 items on the CPU)
"""

import ctypes
import gc
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from shapes import print_line
from torch import Tensor

from recbole_llm.model.layers.item_projections import item_projection
from recbole_llm.trainer.row_sparse import ROWS, with_rows

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
PRECISION = torch.bfloat16 if GPU else torch.float32
SIZES, QUERIES, WIDTH = ("100000,1000000", 1_600, 768) if GPU else ("10000,100000", 400, 64)
WARM_UP, STEPS = (3, 10) if GPU else (1, 3)
COMMON = {
    "gbce_calibration": 0.75, "negative_sampling": "mixed", "logq_correction": "corrected", "item_learning_rate": None,
    "item_optimizer": None, "item_codes": None,
}  # fmt: skip
# The full softmax first: the others' times are shares of its.
WAYS: tuple[dict[str, Any], ...] = (
    {"loss_type": "CE"},
    {"loss_type": "SampledCE"},
    {"loss_type": "SampledCE", "item_optimizer": "adamw"},
    {"loss_type": "SampledCE", "item_optimizer": "rowwise_adagrad"},
    {"loss_type": "gBCE", "item_optimizer": "adamw", "num_negatives": 256},
    {"loss_type": "TwoLevel"},
    {"loss_type": "TwoLevel", "item_optimizer": "adamw"},
    {"loss_type": "CE", "item_codes": "8x256"},
)


def resident(peak: bool) -> float:
    """Return the MiB of this process in memory, now or at most since `forget_peak`."""
    name = "VmHWM" if peak else "VmRSS"
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) / 1024


def forget_peak() -> None:
    """Let the peak begin anew."""
    gc.collect()
    if GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed counts as taken else
        Path("/proc/self/clear_refs").write_text("5")


def measure(step: Callable[[], Tensor]) -> float:
    """Return the median milliseconds of a step."""
    times = []
    for _ in range(WARM_UP + STEPS):
        if GPU:
            torch.cuda.synchronize()
        begun = time.perf_counter()
        step()
        if GPU:
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - begun))
    return float(np.median(times[WARM_UP:]))


def run_way(way: dict[str, Any], items: int, queries: int, width: int, negatives: int) -> dict[str, float]:
    """Measure one way: milliseconds of a step, and MiB beside what is there before."""
    forget_peak()
    before = torch.cuda.memory_allocated() / 2**20 if GPU else resident(peak=False)
    torch.manual_seed(0)
    popularity = torch.arange(items, 0, -1)  # labels are drawn evenly: what is trained does not matter here
    popularity = torch.cat([torch.zeros(1, dtype=torch.long), popularity])
    with DEVICE:
        projection = item_projection({**COMMON, "num_negatives": negatives, **way}, width, popularity.to(DEVICE))
    groups = projection.parameter_groups(1e-3)
    kind: Any = torch.optim.AdamW
    if any(ROWS in group for group in groups):
        kind = with_rows(kind)
    optimizer = kind(groups, weight_decay=0.0, fused=True)
    states = torch.randn(queries, width, device=DEVICE).to(PRECISION)
    labels = torch.randint(1, items + 1, (queries,), device=DEVICE)

    def step() -> Tensor:
        loss = projection.loss(states, labels, PRECISION) / queries
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    milliseconds = measure(step)
    peak = torch.cuda.max_memory_allocated() / 2**20 if GPU else resident(peak=True)
    return {"step_ms": milliseconds, "beside_mib": peak - before}


def main() -> None:
    """Print a line for each catalogue size and way."""
    if not GPU:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    given = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:])
    queries, width = int(given.get("queries", QUERIES)), int(given.get("width", WIDTH))
    for items in map(int, given.get("items", SIZES).split(",")):
        full = 0.0
        for way in WAYS:
            found: dict[str, Any] = {}
            try:
                found |= run_way(way, items, queries, width, int(given.get("negatives", "8192")))
            except torch.cuda.OutOfMemoryError:
                found["skipped"] = "does not fit in memory"
            else:
                full = full or (found["step_ms"] if way is WAYS[0] else 0.0)
                found |= {"times_full": found["step_ms"] / full} if full else {}
            print_line(
                name="item_losses", items=items, queries=queries, width=width, device=DEVICE.type,
                loss_type=way["loss_type"], item_optimizer=way.get("item_optimizer") or "~",
                item_codes=way.get("item_codes") or "~", **found,
            )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
