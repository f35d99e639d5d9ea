"""Training on several devices of one machine: tokens per second, milliseconds of a step, memory, efficiency.

    python benchmarks/several_devices.py | tee one.jsonl
    torchrun --standalone --nproc_per_node=2 benchmarks/several_devices.py --base=one.jsonl

Models have their true shapes and random weights, catalogues are generated; nothing is downloaded. A step is the
trainer's own, its samples packed in the background as in a run. The cases, by `--cases=`, and what a device has of a
step, so that one process and several are compared:

* full, lora: ST2SI on opt-125m's shape, 105 histories, 27,932 items; full-1m, lora-1m: 10^6 items
* adapter: IDLEAdapter on bge-base's shape, frozen, 512 prompts, its own user vectors and states stored beforehand
* sasrec: SASRec, `train_positions: all`, 128 histories of 150 items on average, 27,932 items; one process replays
  steps from CUDA graphs, several do not, and `efficiency` has that in it
* 7b: ST2SI on llama-7b's shape, `tuning: lora`, `weights: bf16`, `gradient_checkpointing`, `shard: backbone`, 80
  histories, 10^5 items
* projection: the item projection of 10^7 items x 768 alone, its loss and optimiser on 1,600 random states a device

Above 27,932 items the data are those of 27,932, and the projection alone has more rows: they cost the same whatever
their titles are.

`--scaling=weak` gives each device as many samples as one process has, `strong` divides those among them. Work is that
of all processes: tokens (of IDLEAdapter without its virtual ones), labelled positions (sasrec), queries (projection).
Seconds are those of the slowest process, from when all have done the warm-up. `peak_gib` is the most that torch had
allocated on a device in these steps and the warm-up, `build_gib` before them, both of the process with the most.
`efficiency` is (work per second) / (processes x that of one process), by the lines in the file `--base`.
"""

import argparse
import gc
import itertools
import json
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from recbole.utils import init_seed
from shapes import bench_config, print_line, write_backbone, write_catalogue

from recbole_llm.model.layers.item_linear_projection import ItemLinearProjection
from recbole_llm.model.layers.split_item_projection import SplitItemProjection
from recbole_llm.quick_start.run import build
from recbole_llm.trainer.shared_steps import seed_epoch
from recbole_llm.trainer.split_rows import SplitRows
from recbole_llm.utils import processes
from recbole_llm.utils.collectives import max_, object_from_first, sum_
from recbole_llm.utils.processes import world

GPU = torch.cuda.is_available()
PRECISION = torch.bfloat16 if GPU else torch.float32
WARM_UP = 6  # steps: libraries, allocator, clocks; of sasrec an epoch, in which graphs of all widths are recorded
NAME, WRITTEN_ITEMS, WIDTH = "several_devices", 27_932, 768
Work = Iterator["int | torch.Tensor"]  # takes a step with every item, which is what this process did in it


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        model: by name; "" for the projection alone.
        shape: of the language model; "" without one.
        items: how many there are.
        samples: of a step of one process.
        unit: what is counted.
        history: items of a history on average.
        samples_of_user: at least so many a user has.
        settings: of the run.
        dtype: of the language model's stored weights.
        written_items: how many items the data have at most.
        slow: whether steps take so long that a third of them is enough, of the warm-up, too.
    """

    model: str
    shape: str
    items: int
    samples: int
    unit: str = "tokens"
    history: float = 7.87
    samples_of_user: int = 1
    settings: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    written_items: int = WRITTEN_ITEMS
    slow: bool = False


def st2si(tuning: str, items: int) -> Case:
    """Return ST2SI on opt-125m's shape, of whole histories alone."""
    settings = {"tuning": tuning, "alignment": False, "train_window": "full", "train_batch_tokens": 131_072}
    return Case("ST2SI", "opt-125m", items, 105, settings=settings)


CASES = {
    "full": st2si("full", WRITTEN_ITEMS),
    "lora": st2si("lora", WRITTEN_ITEMS),
    "full-1m": st2si("full", 10**6),
    "lora-1m": st2si("lora", 10**6),
    "adapter": Case(
        "IDLEAdapter", "bge-base", WRITTEN_ITEMS, 512, history=11.0, samples_of_user=7,
        settings={
            "id_model": "SASRec", "id_model_settings": {"hidden_size": 64, "epochs": 1, "stopping_step": 1},
            "max_prompt_tokens": 256, "train_batch_tokens": 131_072, "stored_states_gb": 0,
        },
    ),
    "sasrec": Case(
        "SASRec", "", WRITTEN_ITEMS, 128, "positions", history=150.0,
        settings={
            "train_positions": "all", "loss_type": "CE", "MAX_ITEM_LIST_LENGTH": 200, "n_layers": 2, "n_heads": 1,
            "hidden_size": 64, "inner_size": 256, "hidden_dropout_prob": 0.1, "attn_dropout_prob": 0.1,
        },
    ),
    "7b": Case(
        "ST2SI", "llama-7b", 10**5, 80, dtype=torch.bfloat16, slow=True,
        settings={
            "tuning": "lora", "weights": "bf16", "gradient_checkpointing": True, "shard": "backbone",
            "alignment": False, "train_window": "full", "train_batch_tokens": 16_384,
        },
    ),
    "projection": Case("", "", 10**7, 1_600, "queries", slow=True),
}  # fmt: skip
TINY = {"opt-125m": "tiny", "bge-base": "tiny-bert", "llama-7b": "tiny-llama", "": ""}


def tiny(case: Case) -> Case:
    """Return a case that a processor has done in a moment."""
    return replace(
        case, shape=TINY[case.shape], items=case.items // 400, samples=max(case.samples // 16, 2),
        history=min(case.history, 20.0), written_items=WRITTEN_ITEMS // 400,
    )  # fmt: skip


def on_device(*values: float) -> torch.Tensor:
    """Return some numbers where they can be exchanged."""
    return torch.tensor(values, dtype=torch.float64, device="cuda" if GPU else "cpu")


def together() -> float:
    """Return the time when the devices of all processes have done their work."""
    sum_(on_device(0.0)).item()
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter()


def peak() -> float:
    """Return the most GiB that the process with the most had allocated since the last call."""
    if not GPU:
        return 0.0
    most = max_(on_device(torch.cuda.max_memory_allocated() / 2**30)).item()
    torch.cuda.reset_peak_memory_stats()
    return float(most)


def clocked(work: Work, steps: int, warm_up: int) -> tuple[float, float]:
    """Return what all processes did in some steps after others, and the seconds of the slowest."""
    for _ in itertools.islice(work, warm_up):
        pass
    begun = together()
    done = sum(itertools.islice(work, steps))
    if GPU:
        torch.cuda.synchronize()
    seconds = max_(on_device(time.perf_counter() - begun)).item()
    return sum_(on_device(float(done))).item(), float(seconds)


# -- what is run -------------------------------------------------------------------------------------------------------


def written(folder: Path, write: Callable[[Path], Any]) -> Path:
    """Return a folder that process 0 writes unless it is there."""

    def work() -> None:
        if not folder.exists():
            unfinished = folder.with_name(f"{folder.name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            write(unfinished)
            unfinished.rename(folder)
        if GPU:
            torch.cuda.empty_cache()

    processes.only_first(work)
    return folder


def trainer_of(case: Case, samples: int, root: Path, steps: int) -> tuple[Any, Any]:
    """Return parts and trainer of a run with enough users for some steps, as all processes of it share it."""
    items = min(case.items, case.written_items)
    # A user has two items that are not trained, and all items are met.
    users = max(-(-samples * steps // case.samples_of_user), int(1.2 * items / case.history) + 1)
    data = written(
        root / f"data-{users}-{items}-{case.history}", lambda to: write_catalogue(to, users, items, case.history)
    )
    settings = {**case.settings, "train_batch_size": samples, "use_gpu": GPU}
    if case.shape:
        device = "cuda" if GPU else "cpu"
        settings["backbone"] = str(
            written(root / case.shape, lambda to: write_backbone(case.shape, to, case.dtype, device=device))
        )
        settings["precision"] = "bf16" if GPU else "fp32"
    config = bench_config(case.model, data, **settings)
    init_seed(config["seed"], config["reproducibility"])
    if case.model == "IDLEAdapter":  # whose ID model the first process trains
        parts = processes.first(lambda: build(config))
    else:  # a run does so, too, but here it is not that which is measured
        with processes.alone():
            parts = build(config)
    if case.items > items:
        with config["device"]:
            parts.model.projection = ItemLinearProjection(parts.model.projection.width, case.items + 1)
    processes.meet()
    return parts, parts.trainer(data)


def packed_work(parts: Any, trainer: Any) -> Work:
    """Take the steps of a `PackedTrainer`, epoch by epoch."""
    parts.model.train()
    for epoch in itertools.count():
        seed_epoch(parts.config["seed"], epoch)
        for queries, passes in trainer._steps(epoch):
            trainer._step(max(queries, 1), passes)
            yield sum(tokens_of(part) for part in passes if part is not None)


def tokens_of(part: Any) -> int:
    """Return the tokens of a pass, without virtual ones."""
    prompts = getattr(part, "prompts", None)
    if prompts is None:
        return int(part.token_ids.numel())
    return int(prompts.packed.token_ids.numel() - prompts.virtual_index.numel())


def one_pass_work(parts: Any, trainer: Any) -> Work:
    """Take the steps of a `OnePassTrainer`, epoch by epoch."""
    table = trainer.windows(parts.train)
    parts.model.train()
    scaler = torch.amp.GradScaler("cuda", enabled=False)
    for epoch in itertools.count():
        seed_epoch(parts.config["seed"], epoch)
        for width, windows in table.epoch(parts.config["seed"], epoch):
            trainer._step_on(table, width, windows, scaler)
            yield table.labelled(windows[world().rank :: world().size])


def projection_work(items: int, queries: int) -> Work:
    """Return steps of a projection on random states, as with those of a frozen language model that are stored."""
    device = torch.device("cuda" if GPU else "cpu")
    torch.manual_seed(0)
    with device:
        projection = ItemLinearProjection(WIDTH if GPU else 64, items + 1)
        labels = torch.randint(1, items + 1, (queries,))[processes.own_part(queries)]
        states = torch.randn(len(labels), projection.width, dtype=PRECISION)
    if world().is_shared:
        projection = SplitItemProjection(projection.weight, SplitRows(projection.weight))
    optimizer = torch.optim.AdamW(projection.parameters(), lr=1e-3, weight_decay=0.0, fused=True)

    def work() -> Work:
        while True:
            (projection.loss(states, labels, PRECISION) / queries).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            yield len(labels)

    return work()


def measure(case: Case, samples: int, root: Path, steps: int) -> dict[str, float]:
    """Measure one case with so many samples in a step of all processes."""
    begun, warm_up = time.perf_counter(), WARM_UP
    if case.slow:
        steps, warm_up = max(steps // 3, 1), WARM_UP // 3
    if case.model == "":
        work = projection_work(case.items, samples)
    elif case.model == "SASRec":
        parts, trainer = trainer_of(case, samples, root, steps)
        work, warm_up = one_pass_work(parts, trainer), trainer.windows(parts.train).batches
    else:
        parts, trainer = trainer_of(case, samples, root, steps + warm_up)
        trainer.precompute()
        work = packed_work(parts, trainer)
    built, before = together() - begun, peak()
    done, seconds = clocked(work, steps, warm_up)
    memory = {"peak_gib": peak(), "build_gib": before} if GPU else {}
    return {
        f"{case.unit}_per_second": done / seconds, f"{case.unit}_per_step": done / steps,
        "step_ms": 1000 * seconds / steps, **memory, "build_s": built,
    }  # fmt: skip


# -- the command -------------------------------------------------------------------------------------------------------


def lines_of(path: str | None) -> dict[str, dict[str, Any]]:
    """Return the measured lines of one process, by case."""
    if path is None:
        return {}
    lines = [json.loads(line) for line in Path(path).read_text().splitlines() if line.startswith("{")]
    return {line["case"]: line for line in lines if line["processes"] == 1 and "step_ms" in line}


def efficiency(line: dict[str, Any], case: Case, base: dict[str, Any] | None) -> dict[str, float]:
    """Return the efficiency of a measured line; nothing without one of one process that did the same."""
    kept = ("name", "case", "model", "shape", "items", "device")
    if base is None or base["samples"] != case.samples or any(base[key] != line[key] for key in kept):
        return {}
    rate = f"{case.unit}_per_second"
    return {"efficiency": line[rate] / (line["processes"] * base[rate])}


def main() -> None:
    """Measure each case and print its line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES), help="some of them, by commas")
    parser.add_argument("--shape", choices=("papers", "tiny"), default="papers", help="tiny: small, for a processor")
    parser.add_argument("--scaling", default="weak", help="weak, strong or weak,strong")
    parser.add_argument("--steps", type=int, default=20, help="measured of each case; of 7b and projection a third")
    parser.add_argument("--samples", type=int, help="of a step of one process, in the place of the case's own")
    parser.add_argument("--base", help="a file with the lines of one process, for the efficiency")
    parser.add_argument("--folder", help="where models and data are kept; a temporary one by default")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    bases, names = lines_of(given.base), given.cases.split(",")
    if unknown := sorted({*names} - {*CASES}):
        sys.exit(f"error: there is no case {unknown[0]}, but {', '.join(CASES)}")
    with processes.joined() as own:
        root = Path(object_from_first(given.folder or (tempfile.mkdtemp() if own.is_first else "")))
        try:
            for name, scaling in itertools.product(names, given.scaling.split(",") if own.is_shared else ["weak"]):
                case = CASES[name] if given.shape == "papers" else tiny(CASES[name])
                case = case if given.samples is None else replace(case, samples=given.samples)
                run_case(name, case, scaling, root, given.steps, bases.get(name))
        finally:
            if own.is_first and not given.folder:
                shutil.rmtree(root, ignore_errors=True)


def run_case(name: str, case: Case, scaling: str, root: Path, steps: int, base: dict[str, Any] | None) -> None:
    """Measure a case and print its line in process 0. What does not fit in memory is told, in one process."""
    gc.collect()
    if GPU:
        torch.cuda.empty_cache()
    peak()
    own = world()
    samples = case.samples * (own.size if scaling == "weak" else 1)
    line: dict[str, Any] = {
        "name": NAME, "case": name, "processes": own.size, "scaling": scaling, "model": case.model or "projection",
        "shape": case.shape, "items": case.items, "samples": samples,
        "device": torch.cuda.get_device_name() if GPU else "cpu",
    }  # fmt: skip
    try:
        line |= measure(case, samples, root, steps)
    except torch.OutOfMemoryError:
        if own.is_shared:
            raise
        line["skipped"] = "does not fit in memory"
    else:
        line |= efficiency(line, case, base)
    if own.is_first:
        print_line(**line)


if __name__ == "__main__":
    sys.exit(main())
