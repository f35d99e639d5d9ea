"""Training of the models with text towers: tokens per second, and the share of the measured bf16 matrix rate.

Each trains on a generated catalogue of Scientific's size (8,317 users, 4,344 items) with a random language model of 12
layers and 768 wide (MoRec and Recformer: BERT; LLM-Rec: OPT), packed, the distinct items of a step encoded once. The
work counted is 6 operations per weight of the layers and token of a step, histories and items; attention, embeddings,
MoRec's own transformer and what is computed again are not counted, so the share is a lower bound. `table_seconds` is
what encoding all items takes, once per validation and, with ``item_loss: table``, once per epoch.

    python benchmarks/text_towers.py [--shapes=bge-base,opt-125m]    (one CUDA device; prints one JSON line a setting)
"""

import argparse
import math
import time
from typing import Any

import numpy as np
import torch
from shapes import bf16_matrix_rate, build_run, layer_parameters, print_line

from recbole_llm.data.prefetch import prefetch

USERS, ITEMS = 8_317, 4_344
WARM_UP = 8
FAST = {"weights": "bf16", "compile": True}
TABLE = {"item_loss": "table", "two_stage": True, "train_prefixes": "one", "similarity": "cosine", "temperature": 0.05}


def tokens_of(step: Any) -> int:
    """Return the tokens that one pass encodes with gradients."""
    users = getattr(step, "users", [])  # MoRec reads no text of a history
    return sum(len(texts.packed.token_ids) for texts in (*users, *step.items))


def measure(model: str, shape: str, steps: int, **settings: Any) -> dict[str, float]:
    """Measure `steps` optimiser steps after the warm-up, and one table of all items."""
    on_gpu = torch.cuda.is_available()
    wait = torch.cuda.synchronize if on_gpu else (lambda: None)
    parts, trainer = build_run(
        shape, USERS, ITEMS, model, framed=True, train_batch_tokens=262_144, topk=[10], **settings
    )
    net = parts.model
    net.before_epoch(0)
    net.train()
    epoch = trainer._samples(0)
    size = parts.config["train_batch_size"]
    order = np.concatenate([np.random.default_rng(seed).permutation(len(epoch)) for seed in range(20)])
    chosen = np.split(order, np.arange(size, len(order), size))[: steps + WARM_UP]
    total, begun = 0, 0.0
    for number, (rows, passes) in enumerate(prefetch(lambda step: trainer._prepare(epoch.select(step)), chosen)):
        if number == WARM_UP:
            wait()
            begun = time.perf_counter()
        total += sum(map(tokens_of, passes)) if number >= WARM_UP else 0
        trainer._step(rows, passes)
    wait()
    seconds = time.perf_counter() - begun
    net.item_table()
    wait()
    begun = time.perf_counter()
    net.item_table()
    wait()
    return {
        "tokens_per_second": total / seconds,
        "flops_per_second": 6 * layer_parameters(net.tower.backbone) * total / seconds,
        "tokens_per_step": total / steps,
        "step_ms": 1000 * seconds / steps,
        "epoch_seconds": seconds / steps * math.ceil(len(epoch) / size),
        "table_seconds": time.perf_counter() - begun,
        "gpu_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0,
    }


def main() -> None:
    """Measure every model, plain and with bf16 weights and compiled layers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="bge-base,opt-125m", help="of the encoder and the decoder")
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    encoder, decoder = options.shapes.split(",")
    rate = bf16_matrix_rate() if torch.cuda.is_available() else math.nan
    plans: list[tuple[str, str, dict[str, Any]]] = [
        ("MoRec", encoder, {"item_loss": "bce", "train_batch_size": 32}),
        ("MoRec", encoder, {"item_loss": "in-batch", "train_batch_size": 128}),
        ("Recformer", encoder, {"item_text_fields": ["title"]}),
        ("LLMRec", decoder, {"item_loss": "sampled"}),
        ("LLMRec", decoder, {**TABLE, "train_batch_size": 128, "MAX_ITEM_LIST_LENGTH": 50}),
    ]
    for model, shape, settings in plans:
        for name, more in (("plain", {}), ("bf16 weights, compiled", FAST)):
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            found = measure(model, shape, options.steps, **settings, **more)
            share = found.pop("flops_per_second") / rate
            print_line(model=model, shape=shape, name=name, item_loss=settings.get("item_loss", "table"),
                       share_of_matrix_rate=share, **found)  # fmt: skip


if __name__ == "__main__":
    main()
