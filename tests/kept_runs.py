"""The runs that results/runs/ keeps, and copies of them as ordinary run folders."""

import gzip
import json
from pathlib import Path

from recbole_llm.runs.archive import archived_run, read_archive

KEPT_RUNS = Path(__file__).resolve().parents[1] / "results" / "runs"
ML_100K = KEPT_RUNS / "ml-100k.parquet"
ARCHIVES = sorted(KEPT_RUNS.glob("*.parquet"))


def kept_result(dataset, label, seed=2020):
    return archived_run(KEPT_RUNS / f"{dataset}.parquet" / label / f"seed-{seed}").result


def all_kept():
    return [run for archive in ARCHIVES for run in read_archive(archive)]


def write_ranks_of(frame, path):
    """Write a table of ranks as a run does."""
    path.write_bytes(gzip.compress(frame.to_csv(sep="\t", index=False).encode(), mtime=0))


def unpack(path, folder):
    """Write the files of the archived run at `path` into a new folder."""
    run = archived_run(path)
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(run.result, indent=2))
    ranks = run.ranks("test")
    if ranks is not None:
        write_ranks_of(ranks, folder / "ranks-test.tsv.gz")
    return folder
