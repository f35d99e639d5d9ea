"""ILP and LoRA tuning of ST2SI on a language model of 7B weights: seconds, tokens per second, memory, matrix rate.

The weights are random numbers in Llama-7B's true shape, written to a temporary folder first (13.2 GB); nothing is
downloaded. What is printed, a JSON line each:

* ``load``: from the folder to the device, once, right after it was written (so out of the host's file cache).
* ``ilp``: the pass that stores the hidden states of a frozen backbone, 2 FLOP a weight of the layers and token, and
  then the optimiser steps of the projection, in which the backbone has no part.
* ``lora``: optimiser steps with adapters; ``lora-compiled``: with torch.compile, too; ``lora-plain``: without
  ``gradient_checkpointing``. The backbone has no gradient of its own, so a token costs 4 FLOP a weight,
  and 6 where activations are computed again (``gradient_checkpointing``); ``share_of_matrix_rate`` counts what is
  computed, ``useful_share`` 4 in any case. Adapters, attention and embeddings are left out of the count.

``first_step_s`` is from nothing to the end of the first optimiser step: data, tokens, weights and (ILP) the states.
``gpu_gib`` is the most that torch had allocated since the line before; ``host_gib`` the process' largest resident
memory, with the pages of the files that it has mapped.

    python benchmarks/seven_b.py [--shape=llama-7b] [--items=100000] [--users=2000] [--samples=80] [--steps=8]
                                                        (one CUDA device; --shape=tiny-llama also on the CPU)
"""

import argparse
import gc
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from shapes import bf16_matrix_rate, build_run, layer_parameters, print_line, write_backbone

from recbole_llm.backbone.loading import load_backbone
from recbole_llm.data.prefetch import prefetch

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
WARM_UP = 2  # steps: libraries, allocator
HISTORY = 7.87


def now() -> float:
    """Return the time once the device has done its work."""
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter()


def start() -> float:
    """Free what earlier cases left, and return the time."""
    gc.collect()
    if GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    status = Path("/proc/self/clear_refs")
    if status.exists():
        status.write_text("5")  # the largest resident memory counts from here
    return now()


def memory() -> dict[str, float]:
    """Return the largest memory since `start`, in GiB."""
    found = {"gpu_gib": torch.cuda.max_memory_allocated() / 2**30} if GPU else {}
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        found["host_gib"] = int(line.split()[1]) / 2**20
    return found


def load(folder: Path) -> dict[str, float]:
    """Measure the loading of the backbone alone."""
    begun = start()
    backbone = load_backbone(str(folder), dtype=torch.bfloat16, device=DEVICE)
    seconds = now() - begun
    bytes_read = sum(weight.numel() * weight.element_size() for weight in backbone.model.parameters())
    return {"load_s": seconds, "gb_per_second": bytes_read / 1e9 / seconds, **memory()}


def ilp(given: argparse.Namespace, folder: Path, rate: float | None) -> dict[str, float]:
    """Measure the pass that stores the states, and the steps of the projection."""
    begun = start()
    parts, trainer = run_of(given, folder, tuning="ilp", train_batch_size=128, stored_states_gb=0)
    model = parts.model
    tokens, states_of_pass = [0], model.query_states

    def counted(batch: Any) -> Any:
        tokens[0] += batch.token_ids.numel()
        return states_of_pass(batch)

    model.query_states = counted
    built = now()
    trainer.precompute(parts.valid)
    filled = now()
    model.train()
    seconds, first = [], 0.0
    for count, passes in trainer._steps(0):
        before = now()
        trainer._step(count, passes)
        seconds.append(now() - before)
        first = first or now()
    flops = 2 * layer_parameters(model.backbone) * tokens[0] / (filled - built)
    return {
        "build_s": built - begun, "first_step_s": first - begun, "fill_s": filled - built, "tokens": float(tokens[0]),
        "tokens_per_second": tokens[0] / (filled - built), "projection_step_ms": 1000 * float(np.median(seconds)),
        **({} if rate is None else {"share_of_matrix_rate": flops / rate}), **memory(),
    }  # fmt: skip


def lora(
    given: argparse.Namespace, folder: Path, rate: float | None, checkpointing: bool, compiled: bool = False
) -> dict[str, float]:
    """Measure optimiser steps with low-rank adapters."""
    begun = start()
    parts, trainer = run_of(
        given, folder, tuning="lora", train_batch_size=given.samples, gradient_checkpointing=checkpointing,
        compile=compiled,
    )  # fmt: skip
    model = parts.model
    model.train()
    built = now()
    epoch = trainer._samples(0)
    order = np.random.default_rng(0).permutation(len(epoch))
    chosen = np.split(order, np.arange(given.samples, len(order), given.samples))[: given.steps + WARM_UP]
    tokens = epoch.tokens(model.inputs.table)
    first = measured = 0.0
    for number, (count, passes) in enumerate(prefetch(lambda step: trainer._prepare(epoch.select(step)), chosen)):
        if number == WARM_UP:
            measured = now()
        trainer._step(count, passes)
        first = first or now()
    seconds = now() - measured
    total = int(tokens[np.concatenate(chosen[WARM_UP:])].sum())
    flops = layer_parameters(model.backbone) * total / seconds
    shares = {}
    if rate is not None:
        shares = {"share_of_matrix_rate": (6 if checkpointing else 4) * flops / rate, "useful_share": 4 * flops / rate}
    return {
        "build_s": built - begun, "first_step_s": first - begun, "tokens_per_second": total / seconds,
        "tokens_per_step": total / (len(chosen) - WARM_UP), "step_ms": 1000 * seconds / (len(chosen) - WARM_UP),
        **shares, **memory(),
    }  # fmt: skip


def run_of(given: argparse.Namespace, folder: Path, **settings: Any) -> tuple[Any, Any]:
    """Return parts and trainer of a run that reads histories alone, whole ones."""
    return build_run(
        given.shape, given.users, given.items, history=HISTORY, backbone=folder, alignment=False, train_window="full",
        precision="bf16", train_batch_tokens=16_384, eval_batch_tokens=32_768, **settings,
    )  # fmt: skip


def main() -> None:
    """Write the weights, measure each case and print its line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llama-7b")
    parser.add_argument("--cases", default="load,ilp,lora,lora-compiled,lora-plain")
    for name, value in (("items", 100_000), ("users", 2_000), ("samples", 80), ("steps", 8)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    rate = bf16_matrix_rate() if GPU else None
    print_line(name="seven_b", device=DEVICE.type, **({} if rate is None else {"bf16_tflops": rate / 1e12}))
    place = Path(tempfile.mkdtemp())
    try:
        begun = start()
        folder = write_backbone(given.shape, place / given.shape, torch.bfloat16, device=DEVICE.type)
        print_line(name="seven_b", case="write", seconds=now() - begun)
        cases = {
            "load": lambda: load(folder),
            "ilp": lambda: ilp(given, folder, rate),
            "lora": lambda: lora(given, folder, rate, checkpointing=True),
            "lora-compiled": lambda: lora(given, folder, rate, checkpointing=True, compiled=True),
            "lora-plain": lambda: lora(given, folder, rate, checkpointing=False),
        }
        for case in given.cases.split(","):
            try:
                result = cases[case]()
            except torch.cuda.OutOfMemoryError:
                print_line(name="seven_b", shape=given.shape, case=case, skipped="does not fit in memory", **memory())
                continue
            print_line(name="seven_b", shape=given.shape, case=case, items=given.items, **result)
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    sys.exit(main())
