"""Training of IDLE-Adapter: tokens per second, and the share of the device's measured bf16 matrix rate.

The language model is frozen but its activations carry gradients, so a token costs 4 x parameters of the layers (2 for
the forward pass, 2 for the gradient of its inputs); the head costs 6 x its weights a prompt. Virtual tokens, attention
and the adapter are left out of the count.

    python benchmarks/adapter_training.py [--shape=bge-base]            (one CUDA device; one JSON line a setting)
"""

import argparse
import sys
import time
from typing import Any

import numpy as np
import torch
from shapes import bf16_matrix_rate, build_run, layer_parameters, print_line

from recbole_llm.data.prefetch import prefetch

_WARM_UP = 12  # steps: compiled code, allocator, clocks
_ID_MODEL = {"hidden_size": 64, "epochs": 1, "stopping_step": 1}


def measure(shape: str, prompts: int, steps: int, users: int, items: int, **settings: Any) -> dict[str, Any]:
    """Measure optimiser steps of `prompts` prompts each, H~ stored beforehand."""
    parts, trainer = build_run(
        shape, users, items, "IDLEAdapter", 11.0, train_batch_size=prompts, train_batch_tokens=131_072, seed=1,
        id_model="SASRec", id_model_settings=_ID_MODEL, max_prompt_tokens=256, learning_rate=1e-4, **settings,
    )  # fmt: skip
    model = parts.model
    trainer.precompute()
    model.train()
    epoch = trainer._samples(0)
    order = np.random.default_rng(0).permutation(len(epoch))
    chosen = np.split(order, np.arange(prompts, len(order), prompts))[: steps + _WARM_UP]
    begun = 0.0
    for number, (count, passes) in enumerate(prefetch(lambda step: trainer._prepare(epoch.select(step)), chosen)):
        if number == _WARM_UP:
            synchronise()
            begun = time.perf_counter()
        trainer._step(count, passes)
    synchronise()
    seconds = time.perf_counter() - begun
    rows = np.concatenate(chosen[_WARM_UP:])
    sequences = model.inputs._sequences(rows, virtual=False)
    total = int(sequences.tokens(model.inputs.prompts.table).sum())
    flops = 4 * layer_parameters(model.backbone) * total + 6 * model.projection.weight.numel() * len(rows)
    return {
        "tokens_per_second": total / seconds, "tokens_per_step": total / steps,
        "prompts_per_second": len(rows) / seconds,
        "step_ms": 1000 * seconds / steps, "flops_per_second": flops / seconds,
        "gpu_gib": torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0,
    }  # fmt: skip


def synchronise() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    """Measure each setting and print its line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="bge-base")
    arguments = parser.parse_args()
    rate = bf16_matrix_rate()
    print_line(name="adapter_training", bf16_tflops=rate / 1e12)
    for prompts, more in ((128, {}), (512, {}), (512, {"compile": True})):
        result = measure(arguments.shape, prompts, 40, users=8000, items=10_000, **more)
        print_line(
            name="adapter_training", shape=arguments.shape, prompts=prompts, **more,
            share_of_matrix_rate=result.pop("flops_per_second") / rate, **result,
        )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
