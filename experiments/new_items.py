"""How well models rank items that they were never trained on.

    python experiments/new_items.py --hold=Scientific --data_path=dataset/ [--share=0.1] [--seed=0]
    recbole-llm run --model=UniSRec --dataset=Scientific-new --data_path=dataset/ ...
    python experiments/new_items.py --runs=saved/<run>,saved/<run> [--out=FILE.json]

The first writes the dataset <data_path>/Scientific-new: a share of the items, drawn by the seed, is held out. Their
interactions are left out of all histories, but where one is the last of its user: there it is the test target of
leave-one-out. So no model is trained or chosen on them, and all rank them. They are listed in `held-out-items.txt`.

The last prints a JSON line a run: metrics over the test targets among these items, how often a random ranking would hit
them among the first ten, and the same metrics over all other targets.
"""

import csv
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from probing import Lines, call, parser, rank_metrics

from recbole_llm.errors import DataError, SettingError
from recbole_llm.runs.ranks import read_ranks
from recbole_llm.runs.result import RunResult
from recbole_llm.utils.files import replacing_folder, write_text

LIST = "held-out-items.txt"
_COLUMNS = ("user_id", "item_id", "timestamp")


def main() -> None:
    """Hold items out of a dataset, or tell how runs rank them."""
    arguments = parser(__doc__)
    arguments.add_argument("--hold", metavar="DATASET", help="the dataset whose items are held out")
    arguments.add_argument("--share", type=float, default=0.1)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--runs", help="finished runs on such a dataset, separated by commas")
    given = arguments.parse_args()
    if (given.hold is None) == (given.runs is None):
        raise SettingError("give --hold=DATASET to hold items out of it, or --runs=RUN,RUN to see how they are ranked")
    data_path = Path(given.data_path or "dataset")
    lines = Lines("new_items")
    if given.hold is not None:
        lines.add(**hold_out(data_path / given.hold, given.share, given.seed))
    else:
        for run in given.runs.split(","):
            lines.add(**ranked(Path(run), given.data_path))
    lines.write(given.out)


def hold_out(source: Path, share: float, seed: int) -> dict[str, object]:
    """Write the dataset beside `source` with some items held out of all histories; return its counts.

    Args:
        source: the folder of a dataset with the columns user_id, item_id and timestamp, and an `.item` file.
        share: of the items.
        seed: draws them.

    Raises:
        DataError: if a file cannot be read, or the dataset is there already.
    """
    name = f"{source.name}-new"
    target = source.parent / name
    if target.exists():
        raise DataError(f"{target} is there already: remove it to hold out other items")
    try:
        frame = pd.read_csv(source / f"{source.name}.inter", sep="\t", dtype=str, quoting=csv.QUOTE_NONE)
    except (OSError, ValueError) as error:
        raise DataError(f"the interactions of {source} cannot be read: {error}") from error
    frame.columns = [column.split(":")[0] for column in frame.columns]
    if missing := [column for column in _COLUMNS if column not in frame]:
        raise DataError(f"{source}/{source.name}.inter has no column '{missing[0]}'")
    items = np.sort(frame["item_id"].unique())
    held = set(np.random.default_rng(seed).choice(items, round(share * len(items)), replace=False))
    # RecBole sorts by time in a stable way, so the last of equal times is the last in the file.
    ordered = frame.assign(time=frame["timestamp"].astype(float)).sort_values("time", kind="stable")
    last = ~ordered.duplicated("user_id", keep="last")
    kept = frame.loc[sorted(ordered.index[last | ~ordered["item_id"].isin(held)])]
    kept = kept[kept.groupby("user_id")["item_id"].transform("size") >= 3]  # one of each part
    with replacing_folder(target) as folder:
        kept[list(_COLUMNS)].set_axis(["user_id:token", "item_id:token", "timestamp:float"], axis=1).to_csv(
            folder / f"{name}.inter", sep="\t", index=False, quoting=csv.QUOTE_NONE
        )
        shutil.copyfile(source / f"{source.name}.item", folder / f"{name}.item")
        write_text(folder / LIST, "".join(f"{item}\n" for item in sorted(held)))
    new = kept["item_id"].isin(held)
    return {
        "dataset": name,
        "held_out": len(held),
        "users": int(kept["user_id"].nunique()),
        "items": int(kept["item_id"].nunique()),
        "new_items": int(kept["item_id"][new].nunique()),
        "new_targets": int(new.sum()),
    }


def ranked(run: Path, data_path: str | None) -> dict[str, object]:
    """Return how a run ranks the held-out items that are test targets, and all others.

    Args:
        run: the folder of a finished run.
        data_path: where its dataset is, if not where the run had it.

    Raises:
        DataError: if nothing was held out of its dataset.
    """
    result = RunResult.read(run)
    path = Path(data_path or str(result.settings["data_path"])) / result.dataset / LIST
    try:
        held = set(path.read_text(encoding="utf-8").split())
    except OSError:
        raise DataError(f"{path} does not exist: nothing was held out of {result.dataset}") from None
    ranks = read_ranks(run / "ranks-test.tsv.gz")
    new = ranks["item"].isin(held).to_numpy()
    if not new.any():
        raise DataError(f"no test target of {run} is an item that was held out")
    chance = 10 / result.counts["items"]
    of_new = rank_metrics(ranks["rank"].to_numpy()[new])
    of_others = rank_metrics(ranks["rank"].to_numpy()[~new])
    return {
        "model": result.model,
        "run": run.name,
        "new_targets": int(new.sum()),
        **{f"new_{metric}": value for metric, value in of_new.items()},
        "chance_hit10": chance,
        "times_chance": of_new["hit10"] / chance,
        **{f"other_{metric}": value for metric, value in of_others.items()},
    }


if __name__ == "__main__":
    call(main)
