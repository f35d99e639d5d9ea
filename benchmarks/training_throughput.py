"""(a) Training tokens per second against a plain reference in the same run; (b) the share of the measured matrix rate.

The reference is the common way: padded batches of 16, fp16 autocast, transformers' own model with sdpa, logits at every
position. Both read the same samples; tokens are those of the samples, padding does not count.

    python benchmarks/training_throughput.py            (one CUDA device; prints one JSON line a setting)
"""

import sys
import time
from typing import Any

import numpy as np
import torch
from shapes import bf16_matrix_rate, build_run, layer_parameters, print_line
from torch import nn
from transformers import AutoModel

from recbole_llm.data.prefetch import prefetch

ITEMS, USERS = 27_932, 101_362


def ours(samples: int, steps: int, **settings: Any) -> dict[str, float]:
    """Measure optimiser steps of `samples` samples each."""
    torch.cuda.empty_cache()
    parts, trainer = build_run(
        "opt-125m", USERS, ITEMS, train_batch_size=samples, train_batch_tokens=131_072, train_window="full", **settings
    )
    model = parts.model
    model.train()
    epoch = trainer._samples(0)
    order = np.random.default_rng(0).permutation(len(epoch))
    chosen = np.split(order, np.arange(samples, len(order), samples))[: steps + 12]
    tokens = epoch.tokens(model.inputs.table)
    queries = epoch.queries()
    begun = 0.0
    for number, (count, passes) in enumerate(prefetch(lambda step: trainer._prepare(epoch.select(step)), chosen)):
        if number == 12:  # warm-up: compiled code, allocator, clocks
            torch.cuda.synchronize()
            begun = time.perf_counter()
        trainer._step(count, passes)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - begun
    measured = np.concatenate(chosen[12:])
    total, read = int(tokens[measured].sum()), int(queries[measured].sum())
    flops = 6 * layer_parameters(model.backbone) * total + 6 * model.projection.weight.numel() * read
    return {
        "tokens_per_second": total / seconds, "tokens_per_step": total / steps, "flops_per_second": flops / seconds,
        "step_ms": 1000 * seconds / steps, "gpu_gib": torch.cuda.max_memory_allocated() / 2**30,
    }  # fmt: skip


def reference(steps: int) -> float:
    """Return the tokens per second of padded batches of 16 with logits at every position."""
    parts, trainer = build_run("opt-125m", USERS, ITEMS, train_window="full")
    inputs, folder = parts.model.inputs, parts.config["backbone"]
    epoch = trainer._samples(0)
    order = np.random.default_rng(0).permutation(len(epoch))
    del trainer, parts
    torch.cuda.empty_cache()
    backbone = AutoModel.from_pretrained(folder, attn_implementation="sdpa").cuda().train()
    head = nn.Linear(768, ITEMS + 1, bias=False).cuda()
    parameters = [*backbone.parameters(), *head.parameters()]
    optimizer, scaler = torch.optim.AdamW(parameters, lr=5e-5, weight_decay=0.0), torch.amp.GradScaler("cuda")
    total, begun = 0, 0.0
    for step in range(steps + 5):
        if step == 5:
            torch.cuda.synchronize()
            begun = time.perf_counter()
        batch = epoch.select(order[step * 16 : step * 16 + 16])
        ids, row_tokens = inputs.table.gather(batch.rows)
        ends = np.cumsum(row_tokens) - 1
        labels = np.full(len(ids), -100)
        labels[ends[batch.query_mask]] = batch.labels[batch.query_mask]
        lengths = batch.tokens(inputs.table).tolist()
        pieces = zip(torch.from_numpy(ids).split(lengths), torch.from_numpy(labels).split(lengths), strict=True)
        sequences, targets = zip(*pieces, strict=True)
        padded = nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=1).cuda()
        target = nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=-100).cuda()
        mask = (torch.arange(padded.shape[1])[None] < torch.tensor(lengths)[:, None]).long().cuda()
        with torch.autocast("cuda", torch.float16):
            logits = head(backbone(input_ids=padded, attention_mask=mask).last_hidden_state)
            loss = nn.functional.cross_entropy(logits.view(-1, logits.shape[-1]), target.view(-1))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        total += sum(lengths) if step >= 5 else 0
    torch.cuda.synchronize()
    return total / (time.perf_counter() - begun)


def main() -> None:
    """Measure the reference, then each setting, and print the ratios."""
    rate = bf16_matrix_rate()
    plain = reference(60)
    print_line(name="reference", tokens_per_second=plain, bf16_tflops=rate / 1e12)
    fast = {"weights": "bf16", "compile": True}
    settings: list[tuple[str, int, dict[str, Any]]] = [
        ("default", 105, {}),
        ("bf16 weights, compiled", 105, fast),
        ("default", 420, {}),
        ("bf16 weights, compiled", 420, fast),
    ]
    for name, samples, more in settings:
        result = ours(samples, 3000 // samples + 20, **more)
        print_line(
            name=name, samples=samples, ratio=result["tokens_per_second"] / plain,
            share_of_matrix_rate=result.pop("flops_per_second") / rate, **result,
        )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
