"""(f) Step time and peak memory of training for 10^4, 10^5 and 10^6 items, beside logits kept whole in float32.

Two kinds of steps with AdamW at the width of opt-125m: "cached" reads stored hidden states and trains the projection
alone (ILP tuning); "full" also trains a backbone of opt-125m's shape on 16,384 tokens.

Four ways to the loss: "pieces" is what a run takes, of some queries or of some items at a time; "queries" always cuts
by queries, as version 0.2.0 did; "whole" keeps the logits; "torch" is torch's own `linear_cross_entropy` (>= 2.13).

    python benchmarks/catalogue_size.py [--items=10000,100000,1000000] [--queries=1600] [--steps=cached,full]
                                                        (a CUDA device, or 10^3 to 10^5 items and width 64 on the CPU)
"""

import copy
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from shapes import SHAPES, print_line
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel

from recbole_llm.backbone.attention import packed_hidden_states, use_packed_attention
from recbole_llm.model.layers import item_linear_projection
from recbole_llm.model.layers.item_linear_projection import ItemLinearProjection
from recbole_llm.packing.batch import PackedBatch, sequence_bounds

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
SHAPE = "opt-125m" if GPU else "tiny"
PRECISION = torch.bfloat16 if GPU else torch.float32
QUERIES, TOKENS, SAMPLES = (1_600, 16_384, 105) if GPU else (100, 512, 4)
WAYS = ("pieces", "queries", "whole", *(("torch",) if hasattr(F, "linear_cross_entropy") else ()))
LEAST_QUERIES = item_linear_projection._LEAST_QUERIES
SIZES = (10_000, 100_000, 1_000_000) if GPU else (1_000, 10_000, 100_000)

Loss = Callable[[Tensor, Tensor], Tensor]


def make_backbone() -> nn.Module:
    """Return a backbone in training mode, float32 weights as in a run."""
    torch.manual_seed(0)
    with DEVICE:
        model = AutoModel.from_config(copy.deepcopy(SHAPES[SHAPE]), dtype=torch.float32)
    use_packed_attention(model)
    return model.train()


def make_batch(queries: int) -> PackedBatch:
    """Return samples of equal length with queries at equal distances."""
    lengths = np.full(SAMPLES, TOKENS // SAMPLES)
    total = int(lengths.sum())
    return PackedBatch(
        token_ids=torch.randint(5, 5_000, (total,)),
        positions=torch.arange(total) % int(lengths[0]),
        bounds=sequence_bounds(lengths, causal=True),
        query_index=torch.linspace(1, total - 1, queries).long(),
    ).to(DEVICE)


def pieces_loss(projection: ItemLinearProjection) -> Loss:
    """Return our mean cross-entropy."""
    return lambda states, labels: projection.loss(states, labels, PRECISION) / len(labels)


def whole_loss(projection: ItemLinearProjection) -> Loss:
    """Return the plain way: all logits in float32, then torch's cross-entropy."""

    def loss(states: Tensor, labels: Tensor) -> Tensor:
        logits = F.linear(states.to(PRECISION), projection.weight.to(PRECISION)).float()
        return F.cross_entropy(logits[:, 1:], labels - 1)

    return loss


def torch_loss(projection: ItemLinearProjection) -> Loss:
    """Return torch's own, which cuts by queries."""

    def loss(states: Tensor, labels: Tensor) -> Tensor:
        found: Tensor = F.linear_cross_entropy(states.to(PRECISION), projection.weight.to(PRECISION)[1:], labels - 1)
        return found.float()

    return loss


LOSSES = {"pieces": pieces_loss, "queries": pieces_loss, "whole": whole_loss, "torch": torch_loss}


def measure(step: Callable[[], Tensor], repeats: int) -> dict[str, float]:
    """Return the median milliseconds of a step and the peak memory in GiB (CUDA alone)."""
    if GPU:
        torch.cuda.reset_peak_memory_stats()
    first, times = 0.0, []
    warm_up = 3 if GPU else 1
    for number in range(warm_up + repeats):
        if GPU:
            torch.cuda.synchronize()
        begun = time.perf_counter()
        loss = step()
        if GPU:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
        first = first if number else float(loss)
    peak = {"peak_gib": torch.cuda.max_memory_allocated() / 2**30} if GPU else {}
    return {"step_ms": 1000 * float(np.median(times[warm_up:])), "first_loss": first, **peak}


def run_case(items: int, queries: int, kind: str, way: str) -> dict[str, float]:
    """Measure one kind of step ("cached" or "full") with one way to the loss."""
    item_linear_projection._LEAST_QUERIES = 0 if way == "queries" else LEAST_QUERIES
    backbone, batch = (make_backbone(), make_batch(queries)) if kind == "full" else (None, None)
    torch.manual_seed(1)
    width = SHAPES[SHAPE].hidden_size
    with DEVICE:
        projection = ItemLinearProjection(width, items + 1)
        labels = torch.randint(1, items + 1, (queries,))
        stored = torch.randn(queries, width).to(PRECISION)
    parameters = [*projection.parameters(), *(backbone.parameters() if backbone is not None else ())]
    optimizer = torch.optim.AdamW(parameters, lr=5e-5, weight_decay=0.0, fused=True)
    loss_of = LOSSES[way](projection)

    def step() -> Tensor:
        states = stored
        if backbone is not None and batch is not None:
            with torch.autocast(DEVICE.type, PRECISION, enabled=GPU):
                states = packed_hidden_states(backbone, batch).index_select(0, batch.query_index)
        loss = loss_of(states, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return measure(step, 10 if GPU else 5)


def main() -> None:
    """Print one line a catalogue size, kind of step and way."""
    if not GPU:
        torch.set_num_threads(1)  # steps this small wait longer for a second thread than it saves
    given = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:])
    sizes = [int(size) for size in given["items"].split(",")] if "items" in given else SIZES
    queries = int(given.get("queries", QUERIES))
    for items in sizes:
        for kind in given.get("steps", "cached,full").split(","):
            ours: dict[str, float] = {}
            for way in WAYS:
                common: dict[str, Any] = {
                    "name": "catalogue_size", "items": items, "step": kind, "logits": way, "queries": queries,
                    "shape": SHAPE, "device": DEVICE.type,
                }  # fmt: skip
                try:
                    result = run_case(items, queries, kind, way)
                except torch.cuda.OutOfMemoryError:
                    print_line(**common, skipped="does not fit in memory")
                    continue
                finally:
                    if GPU:
                        torch.cuda.empty_cache()
                ours = ours or result
                print_line(**common, **result, times_ours=result["step_ms"] / ours["step_ms"])


if __name__ == "__main__":
    sys.exit(main())
