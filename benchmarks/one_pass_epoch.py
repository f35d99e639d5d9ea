"""An epoch of SASRec at all positions of one pass, in RecBole's rows, and in the public implementations' way.

    python benchmarks/one_pass_epoch.py --data_path=data --dataset=ml-1m

All three train the same layers of RecBole's with cross-entropy over all items, in one process, one after the other:

* `one_pass`: this project's `train_positions: all` (and `recent`: the last `--longest` items of every user alone);
* `rows`: this project's `train_positions: last`, RecBole's rows, put together on the device; `--steps` of an epoch are
  measured and scaled to the whole epoch, 0 measures all;
* `public`: one pass over the last `--longest` items of every user, histories padded on the CPU to the longest of a
  batch by a torch DataLoader, one kernel at a time, logits at padding, too, as in antklen/sasrec-bert4rec-recsys23.

The first epoch of a way, with whatever it compiles or records, is told by itself; the others' median counts. Prints one
JSON line.
"""

import argparse
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from id_model_epoch import FirstSteps, scaled, synchronise
from recbole.utils import init_seed
from shapes import print_line
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from recbole_llm.config.config import Config
from recbole_llm.data.position_windows import LabelledWindows, labelled_windows
from recbole_llm.quick_start.run import Parts, build


def parts_of(arguments: argparse.Namespace, folder: str, positions: str, batch_size: int) -> Parts:
    """Return data and model of a run."""
    config = Config(
        "SASRec", arguments.dataset,
        config_dict={
            "data_path": arguments.data_path, "checkpoint_dir": folder, "state": "ERROR", "show_progress": False,
            "use_gpu": torch.cuda.is_available(), "loss_type": "CE", "train_positions": positions,
            "train_batch_size": batch_size, "MAX_ITEM_LIST_LENGTH": arguments.longest, "n_layers": 2, "n_heads": 1,
            "hidden_size": arguments.width, "inner_size": 4 * arguments.width, "hidden_dropout_prob": 0.1,
            "attn_dropout_prob": 0.1,
        },
    )  # fmt: skip
    init_seed(config["seed"], config["reproducibility"])
    return build(config)


def seconds(epoch: Callable[[int], Any], epochs: int) -> tuple[float, float]:
    """Return the seconds of the first epoch, and the median of those after it."""
    found = []
    for number in range(epochs + 1):
        synchronise()
        begun = time.perf_counter()
        epoch(number)
        synchronise()
        found.append(time.perf_counter() - begun)
    return found[0], statistics.median(found[1:])


def one_pass(arguments: argparse.Namespace, folder: str, positions: str) -> dict[str, float]:
    """Measure this project's one pass."""
    parts = parts_of(arguments, folder, positions, arguments.batch_size)
    trainer = parts.trainer(Path(folder))
    first, later = seconds(lambda epoch: trainer._train_epoch(parts.train, epoch), arguments.epochs)
    table = trainer.windows(parts.train)
    return {
        "first_epoch_s": first, "epoch_s": later, "batches": table.batches, "predictions": table.predictions,
        "ms_per_step": 1000 * later / table.batches,
    }  # fmt: skip


def rows(arguments: argparse.Namespace, folder: str) -> dict[str, float]:
    """Measure RecBole's rows, some steps of an epoch scaled up."""
    parts = parts_of(arguments, folder, "last", arguments.rows)
    trainer = parts.trainer(Path(folder))
    whole = len(parts.train)
    steps = min(arguments.steps or whole, whole)
    trainer._train_epoch(FirstSteps(parts.train, min(5, steps)), 0)  # kernels are loaded, the graph is recorded
    synchronise()
    begun = time.perf_counter()
    batches = FirstSteps(parts.train, steps)
    trainer._train_epoch(batches, 1)
    return {"epoch_s": scaled(begun, batches), "batches": whole, "steps_measured": steps}


class RecentHistories:
    """What the public way reads: every user's last items, as a tensor of inputs and one of labels."""

    def __init__(self, labelled: LabelledWindows) -> None:
        self.items, self.labels = torch.from_numpy(labelled.items), torch.from_numpy(labelled.labels)
        self.windows = labelled.windows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        part = slice(int(self.windows.starts[index]), int(self.windows.ends[index]))
        return self.items[part], self.labels[part]


def padded(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
    """Return inputs and labels [batch, longest], zeros on the right."""
    return tuple(pad_sequence(list(part), batch_first=True) for part in zip(*samples, strict=True))


def public(arguments: argparse.Namespace, folder: str) -> dict[str, float]:
    """Measure one pass, eager and padded."""
    parts = parts_of(arguments, folder, "recent", arguments.batch_size)
    model, device = parts.model.train(), parts.config["device"]
    windows = RecentHistories(labelled_windows(parts.train._dataset, arguments.longest, recent=True))
    loader: Any = DataLoader(
        windows, arguments.batch_size, shuffle=True, collate_fn=padded, pin_memory=device.type == "cuda",  # type: ignore[arg-type]
        num_workers=arguments.workers, persistent_workers=arguments.workers > 0,
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def epoch(_: int) -> None:
        for histories, labels in loader:
            states = model.states_at_all_positions(histories.to(device, non_blocking=True))
            logits = states @ model.item_embedding.weight.T
            following = labels.to(device, non_blocking=True).flatten()
            loss = F.cross_entropy(logits.flatten(0, 1), following, ignore_index=0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    first, later = seconds(epoch, arguments.epochs)
    return {"first_epoch_s": first, "epoch_s": later, "batches": len(loader)}


def main() -> None:
    """Measure all ways and print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ml-1m")
    parser.add_argument("--data_path", default="dataset")
    parser.add_argument("--longest", type=int, default=200, help="items of a history")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=128, help="histories of a step")
    parser.add_argument("--rows", type=int, default=2048, help="RecBole's rows of a step")
    parser.add_argument("--epochs", type=int, default=5, help="measured after the first")
    parser.add_argument("--steps", type=int, default=60, help="measured of RecBole's rows; 0: all")
    parser.add_argument("--workers", type=int, default=4, help="of the public way's DataLoader")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        ours = one_pass(arguments, folder, "all")
        recent = one_pass(arguments, folder, "recent")
        theirs = public(arguments, folder)
        of_rows = rows(arguments, folder)
    print_line(
        name="one_pass_epoch", dataset=arguments.dataset, longest=arguments.longest, width=arguments.width,
        one_pass=ours, recent=recent, public=theirs, rows=of_rows,
        times_rows=of_rows["epoch_s"] / ours["epoch_s"], times_public=theirs["epoch_s"] / ours["epoch_s"],
        times_public_of_recent=theirs["epoch_s"] / recent["epoch_s"],
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
