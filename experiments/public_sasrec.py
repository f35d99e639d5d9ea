"""SASRec at all positions of one pass on MovieLens 1M with public settings, beside what is published for them.

    python experiments/public_sasrec.py --data_path=DIR --out=saved/public [--seeds=2020,2021,2022] [--widths=64,128]

DIR holds ml-1m/ml-1m.inter (6,040 users, nobody is left out). Histories of 200 items, two layers, one head, dropout .1
for width 64 and .2 for width 128, 128 histories a step, Adam with 1e-3, leave-one-out, patience of 10 epochs on
NDCG@10 over all items but those of the user's history. With `--positions=recent`, every user's last 200 items alone are
trained, as the public implementations do; `all` (the default) trains the older ones, too.

Published for the same data and protocol: .1821 / .3152 NDCG@10 / HR@10 for SASRec with cross-entropy
(antklen/sasrec-bert4rec-recsys23, RecSys 2023), .1772 / .3133 for eSASRec (blondered/transformer_benchmark).

Every run is a folder in `--out` with its result.json; one that is there already is not trained again, so that the
command can be given several times. Prints a JSON line a run, then a table.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from recbole_llm.quick_start.run import run
from recbole_llm.runs import folder as run_folder

PUBLISHED = {"antklen, SASRec with CE": (0.1821, 0.3152), "blondered, eSASRec": (0.1772, 0.3133)}
DROPOUT = {64: 0.1, 128: 0.2}
SETTINGS: dict[str, Any] = {
    "MAX_ITEM_LIST_LENGTH": 200, "n_layers": 2, "n_heads": 1, "learning_rate": 1e-3, "train_batch_size": 128,
    "loss_type": "CE", "epochs": 300, "stopping_step": 10, "valid_metric": "NDCG@10", "topk": [10],
    "metrics": ["NDCG", "Hit"], "show_progress": False, "state": "WARNING", "repeatable": False,
}  # fmt: skip


def settings_of(arguments: argparse.Namespace, width: int, seed: int) -> dict[str, Any]:
    """Return the settings of a run."""
    rate = DROPOUT.get(width, 0.2)
    return {
        **SETTINGS, "data_path": arguments.data_path, "checkpoint_dir": arguments.out,
        "train_positions": arguments.positions, "hidden_size": width, "inner_size": arguments.inner or 4 * width,
        "hidden_dropout_prob": rate, "attn_dropout_prob": rate, "seed": seed,
        **({"epochs": arguments.epochs} if arguments.epochs else {}),
    }  # fmt: skip


def finished(arguments: argparse.Namespace, width: int, seed: int) -> dict[str, Any]:
    """Return what a run found, training it unless it is there."""
    folder = Path(arguments.out) / f"{arguments.dataset}-{arguments.positions}-{width}" / f"seed-{seed}"
    path = folder / run_folder.RESULT
    if not path.is_file():
        begun = time.monotonic()
        folder.parent.mkdir(parents=True, exist_ok=True)
        run("SASRec", arguments.dataset, settings=settings_of(arguments, width, seed), folder=folder)
        (folder / "wall_seconds").write_text(f"{time.monotonic() - begun:.1f}\n", encoding="utf-8")
    found = json.loads(path.read_text(encoding="utf-8"))
    return {
        "width": width, "seed": seed, "ndcg@10": found["test"]["ndcg@10"], "hit@10": found["test"]["hit@10"],
        "valid_ndcg@10": found["valid"]["ndcg@10"], "epochs": len(found["history"]), "best_epoch": found["best_epoch"],
        "fit_s": found["seconds"]["fit"], "fit_s_per_epoch": found["seconds"]["fit"] / len(found["history"]),
        "wall_s": float((folder / "wall_seconds").read_text(encoding="utf-8")), "result": str(path),
    }  # fmt: skip


def row(name: str, runs: list[dict[str, Any]]) -> str:
    """Return the row of the table for the seeds of one width."""
    cells = [name]
    for metric in ("ndcg@10", "hit@10"):
        values = [found[metric] for found in runs]
        spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.4f}{spread}")
    cells += [f"{statistics.mean(found[key] for found in runs):.2f}" for key in ("fit_s_per_epoch", "wall_s")]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Train what is missing and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", default="dataset")
    parser.add_argument("--dataset", default="ml-1m")
    parser.add_argument("--out", default="saved/public")
    parser.add_argument("--widths", default="64,128")
    parser.add_argument("--seeds", default="2020,2021,2022")
    parser.add_argument("--positions", default="all", choices=("all", "recent"))
    parser.add_argument("--inner", type=int, default=0, help="size of the feed-forward layers; 0: four times the width")
    parser.add_argument("--epochs", type=int, default=0, help="at most; 0: 300")
    arguments = parser.parse_args()
    lines = [
        "| model | NDCG@10 | HR@10 | s/epoch, validation included | s of a run |", "| :-- | --: | --: | --: | --: |",
        *(f"| published: {name} | {ndcg:.4f} | {hit:.4f} | | |" for name, (ndcg, hit) in PUBLISHED.items()),
    ]  # fmt: skip
    for width in map(int, arguments.widths.split(",")):
        runs = []
        for seed in map(int, arguments.seeds.split(",")):
            runs.append(finished(arguments, width, seed))
            print(json.dumps(runs[-1]), flush=True)
        name = f"ours: width {width}, dropout {DROPOUT.get(width, 0.2)}, positions {arguments.positions}"
        lines.append(row(f"{name}, {len(runs)} seeds", runs))
    print("\n".join(["", *lines]))


if __name__ == "__main__":
    sys.exit(main())
