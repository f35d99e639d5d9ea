"""Training of the models with text towers: tokens per second, and the share of the measured bf16 matrix rate.

Each trains on a generated catalogue of Scientific's size (8,317 users, 4,344 items) with a random language model of 12
layers and 768 wide (MoRec and Recformer: BERT; LLM-Rec: OPT), packed, the distinct items of a step encoded once. The
work counted is 6 operations per weight of the layers and token of a step, histories and items; attention, embeddings,
MoRec's own transformer and what is computed again are not counted, so the share is a lower bound. `table_seconds` is
what encoding all items takes, once per validation and, with ``item_loss: table``, once per epoch. Compiled layers are
measured with FlashAttention alone and with texts in blocks (`recbole_llm.backbone.short_sequences`), after batches of
the papers' sizes with some that fill the device. With `graphs_compiled_while_measured` above 0 the time of a step is
that of the compiler, too.

    python benchmarks/text_towers.py [--shapes=bge-base,opt-125m] [--steps=30] [--cases=MoRec,Recformer,LLMRec]
                                     [--names=plain,compiled,flex] [--batches=papers,large]
                                                             (one CUDA device; prints one JSON line a setting)
"""

import argparse
import math
import time
from typing import Any

import numpy as np
import torch
import torch._dynamo
from shapes import bf16_matrix_rate, build_run, layer_parameters, print_line

from recbole_llm.backbone import short_sequences
from recbole_llm.data.prefetch import prefetch

USERS, ITEMS = 8_317, 4_344
FAST = {"weights": "bf16", "compile": True}
# By what --names picks: the name, the settings, how many steps go before the measured ones (torch compiles each layer's
# passes at the first batches that need them), and up to how many tokens a text on average they are put in blocks.
WAYS: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "plain": ("plain", {}, 8, 0),
    "compiled": ("bf16 weights, compiled", FAST, 24, 0),
    "flex": ("bf16 weights, compiled, flex attention", FAST, 24, short_sequences.LONGEST_MEAN),
}
TABLE = {"item_loss": "table", "two_stage": True, "train_prefixes": "one", "similarity": "cosine", "temperature": 0.05}


def tokens_of(step: Any) -> int:
    """Return the tokens that one pass encodes with gradients."""
    users = getattr(step, "users", [])  # MoRec reads no text of a history
    return sum(len(texts.packed.token_ids) for texts in (*users, *step.items))


def graphs_compiled() -> int:
    """Return how many graphs torch.compile has made in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def measure(model: str, shape: str, steps: int, warm_up: int, **settings: Any) -> dict[str, float]:
    """Measure `steps` optimiser steps after `warm_up` ones, and one table of all items."""
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
    chosen = np.split(order, np.arange(size, len(order), size))[: steps + warm_up]
    total, begun, graphs = 0, 0.0, 0
    for number, (rows, passes) in enumerate(prefetch(lambda step: trainer._prepare(epoch.select(step)), chosen)):
        if number == warm_up:
            wait()
            begun, graphs = time.perf_counter(), graphs_compiled()
        total += sum(map(tokens_of, passes)) if number >= warm_up else 0
        trainer._step(rows, passes)
    wait()
    seconds, graphs = time.perf_counter() - begun, graphs_compiled() - graphs
    net.item_table()
    wait()
    begun = time.perf_counter()
    net.item_table()
    wait()
    return {
        "train_batch_size": size,
        "tokens_per_second": total / seconds,
        "flops_per_second": 6 * layer_parameters(net.tower.backbone) * total / seconds,
        "tokens_per_step": total / steps,
        "step_ms": 1000 * seconds / steps,
        "epoch_seconds": seconds / steps * math.ceil(len(epoch) / size),
        "graphs_compiled_while_measured": graphs,
        "table_seconds": time.perf_counter() - begun,
        "gpu_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0,
    }


def add_list(parser: argparse.ArgumentParser, name: str, choices: list[str], text: str) -> None:
    """Add an argument that takes some of the `choices`, separated by commas; all if it is not given."""

    def some(given: str) -> list[str]:
        unknown = set(given.split(",")) - set(choices)
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown.pop()} is none of {','.join(choices)}")
        return given.split(",")

    parser.add_argument(name, type=some, default=choices, metavar=",".join(choices), help=text)


def main() -> None:
    """Measure every model in every way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="bge-base,opt-125m", help="of the encoder and the decoder")
    parser.add_argument("--steps", type=int, default=30)
    add_list(parser, "--cases", ["MoRec", "Recformer", "LLMRec"], "models")
    add_list(parser, "--names", list(WAYS), "ways to train")
    add_list(parser, "--batches", ["papers", "large"], "the papers' sizes, and what fills the device")
    options = parser.parse_args()
    encoder, decoder = options.shapes.split(",")
    rate = bf16_matrix_rate() if torch.cuda.is_available() else math.nan
    histories = {**TABLE, "MAX_ITEM_LIST_LENGTH": 50}
    plans: dict[str, list[tuple[str, str, dict[str, Any]]]] = {
        "papers": [
            ("MoRec", encoder, {"item_loss": "bce", "train_batch_size": 32}),
            ("MoRec", encoder, {"item_loss": "in-batch", "train_batch_size": 128}),
            ("Recformer", encoder, {"item_text_fields": ["title"]}),
            ("LLMRec", decoder, {"item_loss": "sampled"}),
            ("LLMRec", decoder, {**histories, "train_batch_size": 128}),
        ],
        "large": [
            ("MoRec", encoder, {"item_loss": "in-batch", "train_batch_size": 512}),
            ("Recformer", encoder, {"item_text_fields": ["title"], "train_batch_size": 512}),
            ("LLMRec", decoder, {**histories, "train_batch_size": 512}),
        ],
    }
    for batches, (model, shape, settings) in [(name, plan) for name in options.batches for plan in plans[name]]:
        for way in WAYS:
            if model not in options.cases or way not in options.names or (batches, way) == ("large", "plain"):
                continue
            name, more, warm_up, longest_mean = WAYS[way]
            short_sequences.LONGEST_MEAN = longest_mean
            torch._dynamo.reset()  # else one setting's graphs count towards the next one's limit
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            found = measure(model, shape, options.steps, warm_up, **settings, **more)
            share = found.pop("flops_per_second") / rate
            print_line(model=model, shape=shape, name=name, item_loss=settings.get("item_loss", "table"),
                       share_of_matrix_rate=share, **found)  # fmt: skip


if __name__ == "__main__":
    main()
