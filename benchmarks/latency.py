"""(e) Latency of one user: from item ids on the host to the ten best items on the host, and the memory that it takes.

Random weights of the true shapes in bf16; 27,932 items with titles of 18 to 32 tokens; histories of about 8 items. In
one run: transformers' own model (sdpa, logits at every position), our plain path, and our CUDA graphs.

    python benchmarks/latency.py [--shapes=opt-125m,llama-7b] [--requests=200] [--seconds=90]
                                                        (a CUDA device, or shape "tiny" on the CPU)
"""

import copy
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from shapes import SHAPES, build_run, print_line
from transformers import AutoModel

from recbole_llm.backbone.attention import packed_hidden_states, use_packed_attention
from recbole_llm.backbone.single_sequence import SingleSequence
from recbole_llm.model.layers.item_linear_projection import ItemLinearProjection
from recbole_llm.packing.ragged import RaggedTable
from recbole_llm.packing.sequences import Sequences, pack

ITEMS, HISTORY, K = 27_932, 7.87, 10
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MEASURED = ("opt-125m", "opt-350m", "opt-1.3b", "opt-2.7b", "llama-7b")

Answer = tuple[np.ndarray, np.ndarray]


def catalogue(vocabulary: int) -> RaggedTable:
    """Return item texts of random tokens, each with its query token; row 0 is the padding item."""
    rng = np.random.default_rng(0)
    lengths = np.append(0, rng.integers(19, 34, ITEMS))
    offsets = np.append(0, np.cumsum(lengths))
    return RaggedTable(rng.integers(5, vocabulary, int(offsets[-1])), offsets)


def requests(count: int) -> list[np.ndarray]:
    """Return histories of item ids, most of 4 to 13 items."""
    rng = np.random.default_rng(1)
    return [rng.integers(1, ITEMS + 1, 1 + length) for length in rng.poisson(HISTORY - 1, count)]


def last_queries(history: np.ndarray) -> Sequences:
    """Return one history, read at its last query."""
    read = np.zeros(len(history), dtype=bool)
    read[-1] = True
    return Sequences(history, np.array([len(history)]), read, np.zeros_like(history))


def transformers_path(model: Any, head: torch.nn.Module, table: RaggedTable) -> Callable[[np.ndarray], Answer]:
    """Return the common way: a mask of ones, logits at every position, the last one sorted out."""

    def answer(history: np.ndarray) -> Answer:
        ids = torch.from_numpy(table.gather(history)[0])[None].to(DEVICE)
        hidden = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).last_hidden_state
        best = head(hidden)[0, -1, 1:].topk(K)
        return best.values.float().cpu().numpy(), best.indices.cpu().numpy() + 1

    return answer


def plain_path(model: Any, projection: ItemLinearProjection, table: RaggedTable) -> Callable[[np.ndarray], Answer]:
    """Return our way without a graph: packed, the head at the last query alone."""

    def answer(history: np.ndarray) -> Answer:
        batch = pack(last_queries(history), table).to(DEVICE)
        state = packed_hidden_states(model, batch).index_select(0, batch.query_index).float()
        best = projection(state)[0].topk(K)
        return best.values.cpu().numpy(), best.indices.cpu().numpy()

    return answer


def graph_path(model: Any, projection: ItemLinearProjection, table: RaggedTable) -> Callable[[np.ndarray], Answer]:
    """Return our way with the graphs of all lengths captured."""
    single = SingleSequence(model, projection, max_positions=model.config.max_position_embeddings)
    single.prepare(K)
    return lambda history: single.top(table.gather(history)[0], K)


def measure(answer: Callable[[Any], Any], histories: list[Any]) -> dict[str, float]:
    """Return median and 99th percentile in milliseconds, and memory in GiB, weights and both heads included.

    What a graph works in is not among the allocated memory between its calls, so the reserved memory is shown too.
    """
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()  # what earlier paths have left behind; graphs keep theirs
    for history in histories[:20]:
        answer(history)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    times = []
    for history in histories:
        begun = time.perf_counter()
        answer(history)
        times.append(time.perf_counter() - begun)
    peak = torch.cuda.max_memory_allocated() / 2**30 if DEVICE.type == "cuda" else 0.0
    reserved = torch.cuda.memory_reserved() / 2**30 if DEVICE.type == "cuda" else 0.0
    return {
        "median_ms": 1000 * float(np.median(times)), "p99_ms": 1000 * float(np.percentile(times, 99)),
        "peak_gib": peak, "reserved_gib": reserved,
    }  # fmt: skip


@torch.no_grad()
def measure_shape(shape: str, histories: list[np.ndarray]) -> None:
    """Print one line a path for a model of `shape`, built where it runs."""
    config = copy.deepcopy(SHAPES[shape])  # a model writes its type and attention into it
    torch.manual_seed(0)
    with DEVICE:
        model = AutoModel.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
        width = getattr(config, "word_embed_proj_dim", config.hidden_size)
        projection = ItemLinearProjection(width, ITEMS + 1)
        head = torch.nn.Linear(width, ITEMS + 1, bias=False, dtype=torch.bfloat16)
        head.weight.copy_(projection.weight)
    table = catalogue(min(config.vocab_size, 30_000))
    common: dict[str, Any] = {"name": "latency", "shape": shape, "items": ITEMS, "requests": len(histories)}
    common["median_tokens"] = float(np.median([table.lengths[history].sum() for history in histories]))
    answers: dict[str, Answer] = {}
    base = 0.0
    for path in ("transformers", "plain", "cuda graph") if DEVICE.type == "cuda" else ("transformers", "plain"):
        if path == "transformers":
            answer = transformers_path(model, head, table)
        elif path == "plain":
            use_packed_attention(model)
            answer = plain_path(model, projection, table)
        else:
            begun = time.perf_counter()
            answer = graph_path(model, projection, table)
            common["prepare_s"] = time.perf_counter() - begun
        result = measure(answer, histories)
        base = base or result["median_ms"]
        answers[path] = answer(histories[0])
        same = len(np.intersect1d(answers[path][1], answers.get("plain", answers[path])[1]))
        print_line(**common, path=path, **result, times_faster=base / result["median_ms"], same_items_of_10=same)


def measure_recommend(shape: str, count: int) -> None:
    """Print the latency of `Recommender.recommend` itself, from item tokens to item tokens, with a whole ST2SI."""
    from recbole_llm.inference.recommender import Recommender

    parts, _ = build_run(shape, 4_000, ITEMS, tuning="ilp", alignment=False)
    known = parts.dataset.field2id_token[parts.dataset.iid_field]
    rng = np.random.default_rng(1)
    histories = [rng.choice(known[1:], 1 + length).tolist() for length in rng.poisson(HISTORY - 1, count)]
    for graph in (False, True) if DEVICE.type == "cuda" else (False,):
        recommender = Recommender(parts.model, parts.train._dataset, cuda_graph=graph)
        recommender.recommend(histories[:64], K)
        for history in histories:  # every length meets its bucket once
            recommender.recommend(history, K)
        result = measure(lambda history, to=recommender: to.recommend(history, K), histories)
        begun = time.perf_counter()
        recommender.recommend(histories, K)
        batch = len(histories) / (time.perf_counter() - begun)
        print_line(
            name="latency", shape=shape, items=len(known) - 1, path=f"recommend{', cuda graph' if graph else ''}",
            **result, users_per_second_in_a_batch=batch,
        )  # fmt: skip


def main() -> None:
    """Measure every shape that fits in memory and time."""
    given = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:])
    shapes = given.get("shapes", ",".join(MEASURED) if DEVICE.type == "cuda" else "tiny").split(",")
    histories = requests(int(given.get("requests", 200)))
    until = time.monotonic() + float(given.get("seconds", 90))
    for number, shape in enumerate(shapes):
        if time.monotonic() > until:
            print_line(name="latency", shape=shape, skipped="time is up")
            continue
        try:
            measure_shape(shape, histories)
            if number == 0:
                measure_recommend(shape, len(histories))
        except torch.cuda.OutOfMemoryError:
            print_line(name="latency", shape=shape, skipped="does not fit in memory")
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
