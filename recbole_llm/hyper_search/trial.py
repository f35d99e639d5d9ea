"""One trial of a study: a run that ends before the test part."""

import gc
import shutil
import time
from collections.abc import Callable
from typing import Any

import torch

from recbole_llm.config.config import Config
from recbole_llm.errors import DataError, RecBoleLLMError, StorageError
from recbole_llm.hyper_search.study import Record, Study
from recbole_llm.quick_start import run as quick_start


class Pruned(Exception):  # noqa: N818 (not an error)
    """Ends a trial that does worse than others did."""


def run_trial(
    study: Study, number: int, drawn: dict[str, Any], after_epoch: Callable[[int, float], None] | None = None
) -> Record:
    """Train with the settings of a trial and store its record.

    Args:
        study: what the trial belongs to.
        number: of the trial; what lies in its folder is removed first.
        drawn: the searched settings.
        after_epoch: called with the epoch and its validation metric; it may raise Pruned.

    Returns:
        The record: complete, pruned, or failed with the reason. Settings that an earlier complete trial has are not run
        again: its numbers are taken, as its seed and so its outcome are the same.

    Raises:
        DataError, StorageError, OSError: what no other settings would mend.
    """
    for other in study.all_stored():
        if other.number != number and other.state == "complete" and other.settings == drawn:
            record = Record(number, "complete", drawn, other.score, other.valid, other.best_epoch, other.history)
            record.reason = f"the settings of trial {other.number}"
            study.store(record)
            return record
    started = time.monotonic()
    record = Record(number, "failed", drawn)
    folder = study.trial_folder(number)

    def evaluated(epoch: int, score: float) -> None:
        record.history.append({"epoch": epoch, "score": float(score)})
        if after_epoch is not None:
            after_epoch(epoch, float(score))

    shutil.rmtree(folder, ignore_errors=True)
    try:
        fitted = quick_start.fit(Config(config_dict=study.settings(drawn)), folder, evaluated)
        record.state, record.score, record.valid = "complete", fitted["score"], fitted["valid"]
        record.best_epoch = fitted["best_epoch"]
    except Pruned as reason:
        record.state, record.reason = "pruned", str(reason)
    except (DataError, StorageError, OSError):
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except Exception as error:  # a combination that RecBole or the device refuses, in whatever words
        record.reason = str(error) if isinstance(error, RecBoleLLMError) else f"{type(error).__name__}: {error}"
        record.reason = record.reason.splitlines()[0]
    if torch.cuda.is_available():  # the next trial's model may need the memory, and in larger pieces
        gc.collect()
        torch.cuda.empty_cache()
    record.seconds = round(time.monotonic() - started, 2)
    study.store(record)
    return record


def progress(study: Study, record: Record, records: list[Record], planned: int) -> str:
    """Return one line about a trial that has ended, and the best so far."""
    score = "" if record.score is None else f" {study.metric} {record.score:.4f}"
    why = f" ({record.reason})" if record.reason else ""
    best = study.best(records)
    so_far = "" if best is None else f"; best {best.score:.4f} in trial {best.number}"
    settings = " ".join(f"{name}={value}" for name, value in record.settings.items())
    done = sum(other.state != "running" for other in records)
    what = f"trial {record.number} {record.state}{score}{why}, {record.seconds:.0f} s, {settings}"
    return f"[{done} of {planned}] {what}{so_far}"
