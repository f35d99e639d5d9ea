"""Adds finished runs to an archive, as those of `results/runs/` are, and makes one that is not there yet.

    python experiments/keep_runs.py results/runs/Games.parquet new/SASRec/seed-2020 new/SASRec/seed-2021

A run's folder is called ``<label>/seed-<number>``; its `result.json` and the ranks of its test targets are kept
(those of validation targets would take half of the file again, and no table reads them). A run of the archive with
the same label and seed is replaced, and told.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from recbole_llm.errors import RecBoleLLMError
from recbole_llm.runs.archive import read_archive, write_archive


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the archive with the runs; return 1 if one of them cannot be kept, and then leave the archive as it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("folders", nargs="+", type=Path)
    given = parser.parse_args(arguments)
    new = {"/".join(folder.absolute().parts[-2:]) for folder in given.folders}
    try:
        before = read_archive(given.archive) if given.archive.exists() else []
        names = {run: run.path.relative_to(given.archive).as_posix() for run in before}
        write_archive([*(run for run in before if names[run] not in new), *given.folders], given.archive, ["test"])
    except RecBoleLLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name in sorted(new & set(names.values())):
        print(f"replaced {name}")
    print(f"{given.archive} has {len(read_archive(given.archive))} runs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
