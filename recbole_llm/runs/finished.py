"""Finished runs wherever they are kept: in a folder of their own, or in an archive of many."""

from pathlib import Path

import pandas as pd

from recbole_llm.runs import folder
from recbole_llm.runs.archive import archived_run, find_archived, split_path
from recbole_llm.runs.ranks import ranks_under, read_ranks
from recbole_llm.runs.result import RESULT, RunResult

_TEST_RANKS = "ranks-test.tsv.gz"


def finished_runs(pattern: str) -> list[Path]:
    """Return the paths of the finished runs that are named, in the order of their names.

    Args:
        pattern: a folder or its `result.json`, an archive or runs in it (`runs.archive`), or a pattern such as
            ``saved/*``, which passes over unfinished runs.

    Raises:
        CheckpointError: if no finished run is there.
        DataError: if an archive cannot be read.
    """
    return find_archived(pattern) if split_path(pattern) else folder.finished_runs(pattern)


def read_result(run: str | Path) -> RunResult:
    """Return the result of a finished run, given by a path as `finished_runs` returns it.

    Raises:
        CheckpointError: if the run is not finished, or its result is broken.
        DataError: if an archive cannot be read.
    """
    if split_path(run):
        return RunResult.from_dict(archived_run(run).result, Path(run) / RESULT)
    return RunResult.read(run)


def read_test_ranks(run: str | Path, own: bool = True) -> pd.DataFrame | None:
    """Return the ranks of a run's test targets, columns user, item and rank; None if it has none.

    Args:
        run: its path.
        own: under the run's own answer to `repeatable`; False: under the other.

    Raises:
        DataError: if they cannot be read.
    """
    if split_path(run):
        found = archived_run(run).ranks("test")
    else:
        path = Path(run) / _TEST_RANKS
        found = read_ranks(path) if path.exists() else None
    return None if found is None else ranks_under(found, own)
