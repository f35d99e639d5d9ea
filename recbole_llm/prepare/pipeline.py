"""The way from raw files to a folder of atomic files: read, filter, order, write, rename."""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from filelock import FileLock, Timeout

from recbole_llm.errors import DataError, StorageError
from recbole_llm.prepare import manifest, read, write
from recbole_llm.prepare.counts import Counts, count
from recbole_llm.prepare.download import find_or_download
from recbole_llm.prepare.filters import ROW, Data
from recbole_llm.prepare.formats.base import ITEM, TIME, USER
from recbole_llm.prepare.raw import RawFile, Tally
from recbole_llm.prepare.spec import Spec
from recbole_llm.utils.files import replacing_folder, write_json

_LOCK_SECONDS = 24 * 3600

Say = Callable[[str], None]


@dataclass(frozen=True)
class PreparedDataset:
    """A folder of atomic files.

    Args:
        dataset: its name.
        folder: holds ``<dataset>.inter`` (or one file per part), ``<dataset>.item`` (if the items have texts) and
            ``manifest.json``.
        counts: users, items and interactions.
        manifest: the content of ``manifest.json``.
        made: False if it was there already.
    """

    dataset: str
    folder: Path
    counts: Counts
    manifest: Mapping[str, Any]
    made: bool


def run(spec: Spec, raw: Path | None, out: Path, say: Say) -> PreparedDataset:
    """Prepare a dataset into ``out/<dataset>``, or take what is there if it is what the settings ask for.

    Raises:
        DataError: if a raw file is missing or wrong, or ``out/<dataset>`` holds something else.
        StorageError: if the folder may not be written, or the disk is full.
    """
    target = out / spec.dataset
    with _locked(target):
        done = manifest.load(target)
        if done is not None and manifest.is_current(done, spec, target):
            say(f"{target} is prepared already")
            return PreparedDataset(spec.dataset, target, Counts(**done["counts"]), done, made=False)
        if target.exists() and any(target.iterdir()):
            raise DataError(
                f"{target} holds other files than these settings make: choose another folder, or remove it and "
                "run again"
            )
        files = find_or_download(spec, raw, say)
        # Outside `replacing_folder`, which takes every OSError for one of writing.
        tables = _tables(spec, files, say)
        with replacing_folder(target) as folder:
            done = _write(spec, tables, folder)
        return PreparedDataset(spec.dataset, target, Counts(**done["counts"]), done, made=True)


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Let one process at a time prepare `target`, and remove what a killed one left."""
    lock = FileLock(target.parent / f".{target.name}.lock", timeout=_LOCK_SECONDS)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise StorageError(
            f"another process has held {lock.lock_file} for a day: end it, or remove that file"
        ) from None
    except OSError as error:
        raise StorageError(
            f"{target.parent} may not be written ({error.strerror or error}): choose another folder"
        ) from None
    try:
        for left in target.parent.glob(f".{target.name}.*.tmp"):
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class _Tables:
    """What is written: ordered interactions, the texts of their items, and how they came about."""

    interactions: pl.DataFrame
    items: pl.DataFrame
    sources: dict[str, Any]
    steps: list[dict[str, Any]]
    tally: Tally


def _tables(spec: Spec, files: Mapping[str, RawFile], say: Say) -> _Tables:
    sources = manifest.inputs(spec, files)
    tally = Tally()
    say("reading interactions")
    interactions = read.interactions(spec, files, tally)
    if tally.time_format:
        say(f"times are dates of the form {tally.time_format}, written as seconds since 1970")
    steps = [{"step": "raw", **count(interactions).as_dict()}]
    say("reading items")
    occurring = interactions[ITEM].unique()
    catalogue = spec.benchmark is not None and spec.benchmark.all_items
    if catalogue:
        occurring = read.all_items(spec, files, occurring)
    texts = read.items(spec, files, occurring, tally)
    title = read.title_field(spec)
    titles = texts.select(ITEM, pl.col(title).alias("title")) if title else texts.select(ITEM, title=pl.lit(""))
    data = Data(interactions, titles.filter(pl.col("title") != ""), spec.seed)
    del interactions
    for step in spec.filters:
        say(f"filter {step.name}")
        data = step.apply(data)
        steps.append({"step": step.settings(), **count(data.interactions).as_dict()})
        if data.interactions.is_empty():
            raise DataError(
                f"no interaction of {spec.dataset} is left after the filter {step.settings()}: check the raw files"
            )
    ordered = _ordered(data.interactions)
    items = ordered.select(pl.col(ITEM).unique(maintain_order=True))
    if catalogue:
        items = pl.concat([items, texts.select(ITEM)]).unique(maintain_order=True)
    texts = items.join(texts, on=ITEM, how="left", maintain_order="left")
    return _Tables(ordered, texts, sources, steps, tally)


def _ordered(interactions: pl.DataFrame) -> pl.DataFrame:
    """Return users in the order in which they first come in the raw file, each one's interactions by time.

    Ties in time keep the raw file's order. RecBole sorts by user and time with a stable sort of 32-bit numbers, in
    which near times are equal: it then keeps this order, too.
    """
    first = pl.col(ROW).min().over(USER).alias("first")
    return interactions.with_columns(first).sort("first", TIME, ROW).drop("first", ROW)


def _write(spec: Spec, tables: _Tables, folder: Path) -> dict[str, Any]:
    if spec.benchmark is None:
        name = f"{spec.dataset}.inter"
        outputs = {name: write.inter_file(folder / name, tables.interactions)}
    else:
        outputs = write.benchmark_files(folder, spec.dataset, tables.interactions, spec.benchmark.history)
    if spec.item_fields:
        name = f"{spec.dataset}.item"
        outputs[name] = write.item_file(folder / name, tables.items, spec.item_fields)
    counts = count(tables.interactions)
    done = manifest.build(spec, tables.sources, outputs, counts, tables.steps, tables.tally)
    write_json(folder / manifest.NAME, done)
    return done
