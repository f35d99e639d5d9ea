"""Archives: the results and ranks of many finished runs in one Parquet file, as `results/runs/` keeps them.

An archive stands for a folder with the run folders ``<label>/seed-<number>``, and a run in it has a path as if it were
one: ``Scientific.parquet/SASRec/seed-2020``. The file has one row per run, with these columns:

* ``label``, ``seed``, and ``result``: the JSON text of `result.json`;
* ``test_targets``: the number of the row (from 0) that holds the users and items of this run's test targets, since most
  runs on a dataset have the same; null for a run without ranks;
* ``test_users``, ``test_items``: these users and items, in the rows that ``test_targets`` names, null in all others;
* ``test_ranks_0`` to ``test_ranks_3``: the bytes of each target's rank, the lowest first. Apart, they compress to three
  quarters of what whole numbers do: the higher bytes repeat, the lowest hardly does;
* ``test_other_ranks_0`` to ``test_other_ranks_3``: those of its rank under the other protocol, null for a run that does
  not have it. Archives of version 0.2 have no such columns.

Columns that begin with ``valid`` hold the same of the validation targets.
"""

import fnmatch
import functools
import glob
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl

from recbole_llm.errors import CheckpointError, DataError
from recbole_llm.runs.ranks import OTHER, read_ranks
from recbole_llm.runs.result import RESULT
from recbole_llm.utils.files import json_object, read_json_object, replacing

SUFFIX = ".parquet"
SPLITS = ("test", "valid")
_RANK = np.dtype("<u4")
_LEVEL = 19  # of zstd; an archive is written once and read often
_CACHED_READS = 8


@dataclass(frozen=True)
class ArchivedRun:
    """One run of an archive.

    Attributes:
        label: names the run's settings.
        seed: of the run.
        archive: the file that holds it.
        text: what its `result.json` holds, as JSON.
    """

    label: str
    seed: int
    archive: Path
    text: str = field(repr=False)

    @property
    def path(self) -> Path:
        """The run's path in the archive."""
        return self.archive / _name(self.label, self.seed)

    @property
    def result(self) -> dict[str, Any]:
        """What its `result.json` holds. Raises DataError."""
        return json_object(self.text, self.path, "result of a run")

    def ranks(self, split: str = "test") -> pd.DataFrame | None:
        """Return what `read_ranks` gives for the run's ``ranks-<split>.tsv.gz``, None if it had no such file.

        Args:
            split: ``test`` or ``valid``.

        Raises:
            DataError: if the archive's ranks cannot be read.
        """
        frame = _read(self.archive, ("label", "seed", *_rank_names(split)), _version(self.archive))
        row = frame.select("label", "seed").rows().index((self.label, self.seed))
        targets = frame[f"{split}_targets"][row]
        if targets is None:
            return None
        found: dict[str, Any] = dict(_targets_of(self.archive, split, targets, _version(self.archive)))
        for part, column in ((split, "rank"), (f"{split}_other", OTHER)):
            planes = [frame[name][row] for name in _plane_names(part) if name in frame.columns]
            if planes and planes[0] is not None:
                found[column] = _ranks_of(planes)
        return pd.DataFrame(found)


def _ranks_of(planes: list[bytes]) -> np.ndarray:
    separate = [np.frombuffer(plane, np.uint8) for plane in planes]
    return np.stack(separate, axis=1).view(_RANK)[:, 0].astype(np.int64)


def read_archive(path: str | Path) -> list[ArchivedRun]:
    """Return the runs of an archive, in the order of their paths.

    Raises:
        DataError: if the file is missing or is no archive.
    """
    return list(_runs(Path(path)).values())


def write_archive(runs: Iterable[Path | ArchivedRun], path: str | Path, splits: Sequence[str] = SPLITS) -> None:
    """Write runs into one archive; the same runs give the same archive, in whatever order they come.

    Args:
        runs: folders of finished runs, each ``<label>/seed-<number>``, and runs of other archives.
        path: ending in ``.parquet``; what it held is replaced.
        splits: of ``test`` and ``valid``, whose ranks are written.

    Raises:
        DataError: if a folder has another name or an unreadable file, or two runs have one label and seed.
        StorageError: if the file cannot be written.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise DataError(f"the archive {path} must have a name that ends in {SUFFIX}")
    rows: dict[str, dict[str, Any]] = {}
    for run in runs:
        row = _row_of_archived(run) if isinstance(run, ArchivedRun) else _row_of_folder(run)
        name = _name(row["label"], row["seed"])
        if rows.setdefault(name, row) is not row:
            raise DataError(f"two of the runs for {path} are called {name}: leave one of them out")
    ordered = [rows[name] for name in sorted(rows)]
    frame = pl.DataFrame({name: [row[name] for row in ordered] for name in ("label", "seed", "result")}, _schema())
    columns = [
        pl.Series(name, values, dtype=dtype, strict=True)
        for split in SPLITS
        for name, dtype, values in _rank_columns(split, [row[split] if split in splits else None for row in ordered])
    ]
    with replacing(path) as temporary:
        frame.with_columns(columns).write_parquet(
            temporary, compression="zstd", compression_level=_LEVEL, statistics=False
        )


def _name(label: str, seed: int) -> str:
    return f"{label}/seed-{seed}"


def _schema() -> dict[str, Any]:
    return {"label": pl.String, "seed": pl.Int64, "result": pl.String}


def _row_of_archived(run: ArchivedRun) -> dict[str, Any]:
    return {"label": run.label, "seed": run.seed, "result": run.text, **{split: run.ranks(split) for split in SPLITS}}


def _row_of_folder(folder: Path) -> dict[str, Any]:
    folder = folder.absolute()
    result = read_json_object(folder / RESULT, "result of a run")
    seed = result.get("seed")
    if not isinstance(seed, int) or folder.name != f"seed-{seed}":
        raise DataError(f"{folder} must be a run's folder with the name seed-<number>, where its seed is {seed}")
    text = json.dumps(result, ensure_ascii=False, separators=(",", ":"))
    files = {split: folder / f"ranks-{split}.tsv.gz" for split in SPLITS}
    ranks = {split: read_ranks(file) if file.exists() else None for split, file in files.items()}
    return {"label": folder.parent.name, "seed": seed, "result": text, **ranks}


def _rank_columns(split: str, frames: list[pd.DataFrame | None]) -> Iterator[tuple[str, Any, list[Any]]]:
    """Yield name, type and values (one per run) of the columns with the ranks of a split."""
    targets: list[int | None] = []
    kept: list[tuple[int, pd.DataFrame]] = []
    for number, frame in enumerate(frames):
        same = None if frame is None else _same_targets(frame, kept)
        if frame is not None and same is None:
            kept.append((number, frame))
            same = number
        targets.append(same)
    yield f"{split}_targets", pl.Int64, targets
    own = dict(kept)
    for name in ("user", "item"):
        values = [own[number][name].tolist() if number in own else None for number in range(len(frames))]
        yield f"{split}_{name}s", pl.List(pl.String), values
    for part, column in ((split, "rank"), (f"{split}_other", OTHER)):
        planes = [None if frame is None or column not in frame else _bytes_of(frame[column]) for frame in frames]
        for place, name in enumerate(_plane_names(part)):
            yield name, pl.Binary, [None if each is None else each[:, place].tobytes() for each in planes]


def _same_targets(frame: pd.DataFrame, kept: list[tuple[int, pd.DataFrame]]) -> int | None:
    names = ["user", "item"]
    return next((number for number, other in kept if other[names].equals(frame[names])), None)


def _bytes_of(column: pd.Series) -> np.ndarray:
    """Return the bytes of each rank, uint8 [targets, 4], the lowest first."""
    ranks = column.to_numpy()
    if len(ranks) and not 0 < ranks.min() <= ranks.max() <= np.iinfo(_RANK).max:
        raise DataError(f"ranks must lie between 1 and {np.iinfo(_RANK).max}, but are {ranks.min()} to {ranks.max()}")
    return ranks.astype(_RANK).view(np.uint8).reshape(-1, _RANK.itemsize)


def _plane_names(split: str) -> list[str]:
    return [f"{split}_ranks_{place}" for place in range(_RANK.itemsize)]


def _rank_names(split: str) -> list[str]:
    names = [f"{split}_targets", f"{split}_users", f"{split}_items", *_plane_names(split)]
    return [*names, *_plane_names(f"{split}_other")]


# -- reading -----------------------------------------------------------------------------------------------------------


@functools.lru_cache(_CACHED_READS)
def _targets_of(path: Path, split: str, row: int, version: tuple[int, int]) -> dict[str, pd.Series]:
    """Return the users and items of the targets in a row; the frame that a caller makes of them is a copy."""
    frame = _read(path, ("label", "seed", *_rank_names(split)), version)
    return {name: pd.Series(frame[f"{split}_{name}s"][row].to_list(), dtype=str) for name in ("user", "item")}


def _version(path: Path) -> tuple[int, int]:
    """Return what tells a file from the one that it was when it was read last."""
    try:
        state = path.stat()
    except OSError as error:
        raise DataError(f"the archive {path} cannot be read: {error.strerror}") from None
    return state.st_mtime_ns, state.st_size


def _runs(path: Path) -> dict[str, ArchivedRun]:
    """Return the runs of an archive by their names."""
    return _runs_of(path, _version(path))


@functools.lru_cache(_CACHED_READS)
def _runs_of(path: Path, version: tuple[int, int]) -> dict[str, ArchivedRun]:
    frame = _read(path, tuple(_schema()), version)
    return {_name(label, seed): ArchivedRun(label, seed, path, text) for label, seed, text in frame.rows()}


@functools.lru_cache(_CACHED_READS)
def _read(path: Path, names: tuple[str, ...], version: tuple[int, int]) -> pl.DataFrame:
    """Return columns of an archive; `version` makes a file that has changed another one to the cache."""
    try:
        there = pl.read_parquet_schema(path)
        columns = [name for name in names if name in there or "_other_" not in name]
        return pl.read_parquet(path, columns=columns, glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path} is not an archive of runs: {str(error).splitlines()[0]}") from None


# -- paths of runs in archives -----------------------------------------------------------------------------------------


def split_path(path: str | Path) -> tuple[str, str] | None:
    """Return the archive in a path or pattern, and what follows it; None if no part of it is an archive's name.

    ``a/X.parquet/SASRec/*`` gives ``a/X.parquet`` and ``SASRec/*``.
    """
    parts = Path(path).parts
    place = next((place for place, part in enumerate(parts) if part.endswith(SUFFIX)), None)
    if place is None:
        return None
    inside = [part for part in parts[place + 1 :] if part != RESULT]
    return str(Path(*parts[: place + 1])), "/".join(inside)


def find_archived(pattern: str) -> list[Path]:
    """Return the paths of runs in archives, those of one archive in their order.

    Args:
        pattern: an archive, which stands for all of its runs, or a run in one; ``*`` stands for any name in both.

    Raises:
        CheckpointError: if there is no such archive, or no such run in it.
        DataError: if a file is no archive.
    """
    archive, inside = split_path(pattern) or (pattern, "")
    files = sorted(glob.glob(archive)) if glob.has_magic(archive) else [archive]  # noqa: PTH207 (may be absolute)
    if not any(Path(file).is_file() for file in files):
        raise CheckpointError(f"no archive of runs is at {archive}")
    found = [run.path for file in files for run in read_archive(file) if _matches(run, inside)]
    if not found:
        raise CheckpointError(f"no finished run is at {pattern}")
    return found


def _matches(run: ArchivedRun, inside: str) -> bool:
    """Whether label and folder of a run match the parts of a pattern; parts that are not given match all."""
    parts = inside.split("/") if inside else []
    names = (run.label, f"seed-{run.seed}")
    given = zip(names, parts, strict=False)
    return len(parts) <= len(names) and all(name == part or fnmatch.fnmatchcase(name, part) for name, part in given)


def archived_run(path: str | Path) -> ArchivedRun:
    """Return the run with this path in an archive.

    Raises:
        CheckpointError: if the archive has no such run.
        DataError: if the file is missing or is no archive.
    """
    archive, inside = split_path(path) or (str(path), "")
    run = _runs(Path(archive)).get(inside)
    if run is None:
        raise CheckpointError(f"the archive {archive} has no run {inside}")
    return run
