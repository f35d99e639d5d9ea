"""The folder of a study: its definition, a folder a trial, the best settings so far, and the winner's test metrics.

* ``study.yaml``: what is searched, and how
* ``trials/<number>/``: a run folder; `trial.json` and `config.yaml` stay, weights only while nothing is better
* ``tune.json``: all trials and the best, rewritten after every trial; the test metrics of the winner at the end
* ``best.yaml``: the best settings, for ``--config_files``
"""

import dataclasses
import hashlib
import json
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from recbole_llm.config.config import Config
from recbole_llm.config.roles import in_same_place
from recbole_llm.errors import DataError, SettingError, TrainingError
from recbole_llm.hyper_search.space import Space
from recbole_llm.quick_start import run as quick_start
from recbole_llm.runs import checkpoint
from recbole_llm.runs import folder as run_folder
from recbole_llm.runs.result import RunResult
from recbole_llm.utils.files import (
    read_json_object,
    read_yaml,
    replacing_folder,
    storage_errors,
    write_json,
    write_text,
)

TUNE = "tune.json"
BEST = "best.yaml"
_STUDY = "study.yaml"
_TRIAL = "trial.json"


@dataclass
class Record:
    """What is kept of a trial.

    Attributes:
        number: of the trial; its folder has the same.
        state: complete, pruned, failed or running.
        settings: the searched ones.
        score: the best validation metric, None where there is none.
        valid: all validation metrics of the best epoch.
        best_epoch: the epoch of `score`.
        history: "epoch" and "score" of every evaluated epoch.
        seconds: how long the trial took.
        reason: why it was pruned or failed, or of which trial it has the settings.
        instead_of: the number of the trial whose worker ended, which this one repeats.
    """

    number: int
    state: str
    settings: dict[str, Any]
    score: float | None = None
    valid: dict[str, float] | None = None
    best_epoch: int | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    reason: str | None = None
    instead_of: int | None = None


class Study:
    """A study and its folder.

    Args:
        base: the settings that all trials share.
        space: what is searched.
        method: how: "engine" (hyperopt or optuna), "algo", and what else the choice of trials depends on.
        folder: where it is kept; None takes ``<checkpoint_dir>/tune-<model>-<dataset>-<hash of the definition>``, so
            that the same command goes on with the same study.

    Attributes:
        base, space, method, folder: as given.
        name: of the study, from its definition.
        identity: of the folder: no two have the same.
        metric: what is compared, on validation.
        bigger: whether more of it is better.

    Raises:
        SettingError: if the folder holds another study.
        StorageError: if the folder cannot be written.
    """

    def __init__(self, base: Config, space: Space, method: dict[str, Any], folder: Path | None = None) -> None:
        self.base, self.space, self.method = base, space, method
        self.metric, self.bigger = str(base["valid_metric"]), bool(base["valid_metric_bigger"])
        definition = run_folder.plain(self._definition())
        digest = hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()[:8]
        self.name = f"{base['model']}-{base['dataset']}-{digest}"
        self.folder = folder or Path(base["checkpoint_dir"]) / f"tune-{self.name}"
        if not self.folder.exists() or _is_empty(self.folder):
            with replacing_folder(self.folder) as temporary:
                text = yaml.safe_dump({**definition, "identity": uuid.uuid4().hex}, allow_unicode=True, sort_keys=False)
                write_text(temporary / _STUDY, text)
        stored = read_yaml(self.folder / _STUDY) if (self.folder / _STUDY).is_file() else {}
        self.identity = stored.pop("identity", None)
        if stored != definition:
            differing = [key for key in definition if stored.get(key) != definition[key]]
            raise SettingError(
                f"{self.folder} is not the folder of this study (its {differing[0] if stored else _STUDY} differs): "
                f"name another with --out"
            )

    def _definition(self) -> dict[str, Any]:
        # Place and machine may differ between the workers of one study.
        given = {k: v for k, v in self.base.given.items() if not (in_same_place(k) or k in ("model", "dataset"))}
        return {
            "model": self.base["model"],
            "dataset": self.base["dataset"],
            "metric": self.metric,
            "seed": self.base["seed"],
            **self.method,
            "space": self.space.plain(),
            "settings": given,
        }

    def lock(self) -> FileLock:
        """Return the lock of the folder. The system frees it when its process ends, in whatever way."""
        return FileLock(self.folder / ".lock")

    def settings(self, drawn: dict[str, Any]) -> dict[str, Any]:
        """Return all settings that a trial with these searched ones gives to a Config."""
        named = {"model": self.base["model"], "dataset": self.base["dataset"]}
        return {**self.base.given, **named, **drawn}

    # -- trials --------------------------------------------------------------------------------------------------------

    def trial_folder(self, number: int) -> Path:
        """Return the folder of a trial; it need not be there."""
        return self.folder / "trials" / f"{number:04d}"

    def store(self, record: Record) -> None:
        """Write the record of a trial into its folder, and remove its weights unless it is complete."""
        folder = self.trial_folder(record.number)
        write_json(folder / _TRIAL, run_folder.plain(dataclasses.asdict(record)))
        if record.state != "complete":
            self.strip(record.number)

    def stored(self, number: int) -> Record | None:
        """Return the record of a trial, None if it has none."""
        path = self.trial_folder(number) / _TRIAL
        if not path.is_file():
            return None
        found = read_json_object(path, "record of a trial")
        if fault := _fault_in(found, number):
            raise DataError(f"{path} is not the record of a trial: {fault}; remove {path.parent}, and it is run again")
        return Record(**found)

    def all_stored(self) -> list[Record]:
        """Return the records of all trials in the order of their numbers."""
        found = (path.parent.name for path in (self.folder / "trials").glob(f"*/{_TRIAL}"))
        numbers = sorted(int(name) for name in found if name.isdecimal())
        return [record for number in numbers if (record := self.stored(number)) is not None]

    def strip(self, number: int) -> None:
        """Remove all of a trial but its record and its settings."""
        for path in self.trial_folder(number).glob("*"):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in (_TRIAL, run_folder.CONFIG):
                path.unlink(missing_ok=True)

    def discard(self, number: int) -> None:
        """Remove a trial."""
        with storage_errors(self.trial_folder(number)):
            shutil.rmtree(self.trial_folder(number), ignore_errors=True)

    def best(self, records: list[Record]) -> Record | None:
        """Return the complete trial with the best validation metric, the first of equals; None if none is complete."""
        scored = [
            (r.score if self.bigger else -r.score, -r.number, r) for r in complete(records) if r.score is not None
        ]
        return max(scored, key=lambda entry: entry[:2])[2] if scored else None

    # -- what is written -----------------------------------------------------------------------------------------------

    def write(self, records: list[Record]) -> None:
        """Write `tune.json` and `best.yaml`, and remove the weights of all complete trials but the best."""
        best = self.best(records)
        for record in complete(records):
            if record is not best:
                self.strip(record.number)
        if best is not None:
            chosen = run_folder.plain(self.settings(best.settings))
            header = f"# {self.metric} {best.score} on validation: the best of {len(records)} trials\n"
            write_text(self.folder / BEST, header + yaml.safe_dump(chosen, allow_unicode=True, sort_keys=False))
        self._write_json(records, best, None)

    def finish(self, records: list[Record]) -> dict[str, Any]:
        """Evaluate the winner on the test part, once, and return what `tune.json` holds, and under "path" where it is.

        Raises:
            TrainingError: if no trial is complete.
        """
        self.write(records)
        best = self.best(records)
        if best is None:
            reasons = [f"trial {record.number}: {record.reason}" for record in records if record.reason]
            raise TrainingError(f"none of {len(records)} trials is complete; {'; '.join(reasons[:1])}")
        folder = self.trial_folder(best.number)
        if not (folder / run_folder.RESULT).is_file():
            if not all((folder / name).is_file() for name in (checkpoint.WEIGHTS, checkpoint.RESUME)):
                quick_start.fit(Config(config_dict=self.settings(best.settings)), folder)  # its weights were removed
            here = {name: value for name, value in self.base.merged.items() if in_same_place(name)}
            quick_start.run(resume=folder, settings=here)  # the trial may have run on another machine
        return {**self._write_json(records, best, RunResult.read(folder)), "path": str(self.folder / TUNE)}

    def _write_json(self, records: list[Record], best: Record | None, result: RunResult | None) -> dict[str, Any]:
        content = {
            **run_folder.plain(self._definition()),
            "bigger": self.bigger,
            "trials": [run_folder.plain(dataclasses.asdict(record)) for record in records],
            "best": None if best is None else best.number,
            "finished": result is not None,
            "test": None if result is None else result.test,
            "result": None,
            "commit": run_folder.git_commit(),
        }
        if best is not None and result is not None:
            path = self.trial_folder(best.number) / run_folder.RESULT
            content["result"] = str(path.relative_to(self.folder))
        write_json(self.folder / TUNE, content)
        return content


def _fault_in(record: dict[str, Any], number: int) -> str | None:
    """Return what is wrong with the fields of a trial's record, or None."""
    fields = {field.name: field for field in dataclasses.fields(Record)}
    for name in ("number", "state", "settings"):
        if name not in record:
            return f"it lacks '{name}'"
    for name, value in record.items():
        if name not in fields:
            return f"it has an unknown field '{name}'"
        if not _KINDS[name](value):
            return f"'{name}' cannot be {str(value)[:60]!r}"
    return None if record["number"] == number else f"it is of trial {record['number']}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_history(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(e, dict) and {"epoch", "score"} <= e.keys() for e in value)


_KINDS: dict[str, Callable[[Any], bool]] = {
    "number": lambda value: type(value) is int,
    "state": lambda value: value in ("complete", "pruned", "failed", "running"),
    "settings": lambda value: isinstance(value, dict),
    "score": lambda value: value is None or _is_number(value),
    "valid": lambda value: value is None or (isinstance(value, dict) and all(map(_is_number, value.values()))),
    "best_epoch": lambda value: value is None or type(value) is int,
    "history": _is_history,
    "seconds": _is_number,
    "reason": lambda value: value is None or isinstance(value, str),
    "instead_of": lambda value: value is None or type(value) is int,
}


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def complete(records: list[Record]) -> list[Record]:
    """Return the trials that were trained to their end."""
    return [record for record in records if record.state == "complete"]
