"""(c) An epoch of ILP tuning on stored hidden states against one that computes them again; (d) evaluation of all users.

python benchmarks/ilp_cache.py                      (a CUDA device, or a small case on the CPU)
"""

import sys
import time
from typing import Any

import torch
from shapes import build_run, print_line


def seconds(function: Any, *arguments: Any, **named: Any) -> float:
    """Return the wall-clock time of a call, the device's work included."""
    synchronise = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    synchronise()
    begun = time.perf_counter()
    function(*arguments, **named)
    synchronise()
    return time.perf_counter() - begun


def main() -> None:
    """Time one epoch each way, after one that warms up, and print the ratio."""
    gpu = torch.cuda.is_available()
    shape, users, items = ("smollm2-135m", 8_317, 4_344) if gpu else ("tiny", 300, 200)
    parts, trainer = build_run(shape, users, items, tuning="ilp", train_batch_tokens=65_536)
    model = parts.model
    seconds(trainer._train_epoch, None, 0)
    uncached = seconds(trainer._train_epoch, None, 1)
    fill = seconds(trainer.precompute, parts.valid, parts.test)
    seconds(trainer._train_epoch, None, 2)
    cached = min(seconds(trainer._train_epoch, None, epoch) for epoch in (3, 4, 5))
    trainer.eval_collector.data_collect(parts.train)
    trainer.evaluate(parts.test, load_best_model=False)
    evaluation = seconds(trainer.evaluate, parts.test, load_best_model=False)
    model.state_cache = None
    recomputed = seconds(trainer.evaluate, parts.test, load_best_model=False)
    print_line(
        name="ilp_cache", shape=shape, users=users, items=items, uncached_epoch_s=uncached, cached_epoch_s=cached,
        ratio=uncached / cached, fill_s=fill, evaluate_cached_s=evaluation, evaluate_s=recomputed,
        users_per_second=users / recomputed, device=str(parts.config["device"]),
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
