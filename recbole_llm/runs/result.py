"""The one schema of `result.json`: what a finished run found, read, checked and written here alone."""

import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from recbole_llm.errors import CheckpointError, DataError
from recbole_llm.utils.files import read_json_object, write_json

RESULT = "result.json"
_RUN_AGAIN = "run it again"
_SEQUENTIAL = "sequential"
# RecBole's folders of models that know a user by an id; those of all other models read histories.
_FOLDERS_OF_USER_MODELS = ("general", "context_aware", "knowledge_aware", "exlib")
_LONGEST_SHOWN = 60  # characters of a name or a value in a message


# -- what a field must hold --------------------------------------------------------------------------------------------

Check = Callable[[str, Any], str | None]  # from a field's name and value to what is wrong with it, or None


def _of_kind(is_right: Callable[[Any], bool], expected: str) -> Check:
    def check(name: str, value: Any) -> str | None:
        if is_right(value):
            return None
        return f"{_quoted(name)} must be {expected}, but is {_shortened(repr(value))}"

    return check


def _quoted(name: str) -> str:
    printable = "".join(character if character.isprintable() else " " for character in name)
    return f"'{_shortened(printable)}'"


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _is_number(value: Any) -> bool:
    largest = sys.float_info.max  # NaN and infinity compare false
    return isinstance(value, int | float) and not isinstance(value, bool) and -largest <= value <= largest


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _or_null(check: Check) -> Check:
    return lambda name, value: None if value is None else check(name, value)


def _mapping(check_value: Check, needed: tuple[str, ...] = (), known: Mapping[str, Check] | None = None) -> Check:
    """Check a mapping: that it has the `needed` names, and each value by the check of its name or by `check_value`."""

    def check(name: str, value: Any) -> str | None:
        if not isinstance(value, dict):
            return _of_kind(lambda _: False, "a mapping of names to values")(name, value)
        for key in needed:
            if key not in value:
                return f"{_quoted(name)} lacks {_quoted(key)}"
        found = ((known or {}).get(key, check_value)(f"{name}.{key}", one) for key, one in value.items())
        return next(filter(None, found), None)

    return check


def _list(check_entry: Check) -> Check:
    def check(name: str, value: Any) -> str | None:
        if not isinstance(value, list):
            return _of_kind(lambda _: False, "a list")(name, value)
        return next(filter(None, (check_entry(f"{name}[{n}]", entry) for n, entry in enumerate(value))), None)

    return check


_ANY: Check = lambda _, __: None  # noqa: E731
_TEXT = _of_kind(lambda value: isinstance(value, str) and bool(value), "text")
_NUMBER = _of_kind(_is_number, "a number")
_COUNT = _of_kind(_is_count, "a whole number from 0")
_METRICS = _or_null(_mapping(_NUMBER))
_EPOCH = _mapping(
    _ANY, needed=("epoch", "train_loss"), known={"epoch": _COUNT, "train_loss": _NUMBER, "valid": _METRICS}
)
_MEAN = _mapping(_NUMBER, needed=("mean", "std"))
_NEEDED: dict[str, Check] = {
    "model": _TEXT,
    "dataset": _TEXT,
    "backbone": _or_null(_TEXT),
    "tuning": _or_null(_TEXT),
    "seed": _COUNT,
    "valid": _METRICS,
    "test": _METRICS,
    "epochs": _COUNT,
    "best_epoch": _or_null(_COUNT),
    "seconds": _mapping(_NUMBER, needed=("prepare", "fit", "evaluate")),
    "parameters": _mapping(_COUNT, needed=("trained", "frozen")),
    "device": _TEXT,
    "counts": _mapping(_COUNT, needed=("users", "items", "train", "valid", "test")),
    "history": _list(_EPOCH),
    "settings": _mapping(_ANY, known={"eval_args": _or_null(_mapping(_ANY)), "data_path": _or_null(_TEXT)}),
    "commit": _or_null(_TEXT),
}
_OPTIONAL: dict[str, Check] = {
    "peak_memory_bytes": _or_null(_COUNT),
    "peak_gpu_memory_bytes": _or_null(_COUNT),
    "processes": _COUNT,
    "candidates": _mapping(
        _ANY,
        needed=("size", "seeds", "hit@1"),
        known={"size": _COUNT, "seeds": _COUNT, "hit@1": _MEAN, "valid_ratio": _MEAN, "rule": _TEXT},
    ),
    "kind": _TEXT,
    "fingerprint": _TEXT,
    "valid_other": _METRICS,
    "test_other": _METRICS,
    "protocol": _mapping(
        _ANY,
        needed=("repeatable",),
        known={
            "repeatable": _of_kind(lambda value: isinstance(value, bool), "true or false"),
            "repeats": _COUNT,
            "repeated_targets": _mapping(_COUNT),
        },
    ),
}
_BEFORE_EXTRAS = (
    *("model", "dataset", "backbone", "tuning", "seed", "valid", "test", "valid_other", "test_other", "protocol"),
    *("epochs", "best_epoch", "seconds"),
    *("parameters", "peak_memory_bytes", "peak_gpu_memory_bytes", "device", "processes", "counts"),
)
_AFTER_EXTRAS = ("history", "settings", "commit", "candidates", "kind", "fingerprint")


def fault_in(values: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    """Return what is wrong with the first of these fields of a result that is wrong, or None.

    Args:
        values: fields by name, of a `result.json` or of a comparison's finished cell.
        names: the fields to check; one that is missing is wrong unless it is optional.
    """
    for name in names:
        if name in _NEEDED and name not in values:
            return f"it lacks {_quoted(name)}"
        if name in values and (found := (_NEEDED.get(name) or _OPTIONAL[name])(name, values[name])):
            return found
    return None


# -- the result --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What `result.json` holds.

    Attributes:
        model, dataset, seed: which run.
        backbone, tuning: the language model and how it is trained; None for a model without one.
        valid, test: metrics of the epoch that was best on validation, as fractions; None if nothing was evaluated.
        valid_other, test_other: the same of the same scores with the other answer to `repeatable`; None where there is
            none.
        protocol: ``repeatable``, whether items that a user met before were ranked with the others in `valid` and
            `test`; ``repeats``, how many interactions of the data are with such an item, and ``repeated_targets``, how
            many targets. None in results of version 0.2.
        epochs: how many were trained.
        best_epoch: the one whose weights were tested, from 0; None without validation.
        seconds: of each stage: ``prepare``, ``fit``, ``evaluate``, and ``pretrain`` if there was one.
        parameters: numbers ``trained`` and ``frozen``.
        peak_memory_bytes, peak_gpu_memory_bytes: the maximum of the process and of its GPU tensors; None if unknown.
        device: the GPU's name, or ``cpu``.
        counts: ``users``, ``items``, and the rows of ``train``, ``valid`` and ``test``.
        history: one entry per epoch: ``epoch`` from 0, ``train_loss``, ``valid``.
        settings: all settings of the run.
        commit: of the checkout; None outside one.
        candidates: HitRatio@1 and the ratio of valid choices among few candidates; None without the setting
            `candidates`.
        processes: how many shared the run; None for one.
        kind: RecBole's type of the model, such as ``sequential`` or ``general``; None in results of version 0.1.
        fingerprint: of all that the result depends on, see `data.fingerprint`; None in results of version 0.2.0.
        extras: what only some models record, such as ``id_model``.
    """

    model: str
    dataset: str
    backbone: str | None
    tuning: str | None
    seed: int
    valid: dict[str, float] | None
    test: dict[str, float] | None
    epochs: int
    best_epoch: int | None
    seconds: dict[str, float]
    parameters: dict[str, int]
    peak_memory_bytes: int | None = None
    peak_gpu_memory_bytes: int | None = None
    device: str
    processes: int | None = None
    counts: dict[str, int]
    history: list[dict[str, Any]]
    settings: dict[str, Any]
    commit: str | None
    valid_other: dict[str, float] | None = None
    test_other: dict[str, float] | None = None
    protocol: dict[str, Any] | None = None
    candidates: dict[str, Any] | None = None
    kind: str | None = None
    fingerprint: str | None = None
    extras: dict[str, Any]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str | Path) -> "RunResult":
        """Check what a `result.json` holds.

        Args:
            values: fields by name.
            source: the file or run, for messages.

        Raises:
            CheckpointError: if a field is missing or wrong; it names the first.
        """
        names = (*_BEFORE_EXTRAS, *_AFTER_EXTRAS)
        if fault := fault_in(values, names):
            raise CheckpointError(f"{source} is not the result of a run: {fault}; {_RUN_AGAIN}")
        extras = {name: value for name, value in values.items() if name not in names}
        return cls(**{name: values[name] for name in names if name in values}, extras=extras)

    @classmethod
    def read(cls, run: str | Path) -> "RunResult":
        """Read the result of the finished run in a folder, given by itself or by its `result.json`.

        Raises:
            CheckpointError: if the run is not finished, or the file is broken or was changed by hand to what no run
                writes.
        """
        path = _file_of(run)
        if not path.is_file():
            raise CheckpointError(f"{path.parent} is not a finished run: it has no {RESULT}")
        try:
            values = read_json_object(path, "result of a run")
        except DataError as error:
            raise CheckpointError(f"{error}; {_RUN_AGAIN}") from None
        return cls.from_dict(values, path)

    def write(self, run: str | Path) -> None:
        """Write the result into the folder of its run. Raises StorageError."""
        write_json(_file_of(run), self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return the fields in the order of the file."""
        first = {name: getattr(self, name) for name in _BEFORE_EXTRAS}
        last = {name: getattr(self, name) for name in _AFTER_EXTRAS}
        values = {**first, **self.extras, **last}
        return {name: value for name, value in values.items() if value is not None or name not in _OPTIONAL}

    # -- what its readers ask ------------------------------------------------------------------------------------------

    @property
    def repeatable(self) -> bool:
        """Whether items that a user met before were ranked with the others; until 0.2: unless `mask_history`."""
        return not self.settings.get("mask_history") if self.protocol is None else self.protocol["repeatable"]

    def metrics(self, part: str, repeatable: bool) -> dict[str, float] | None:
        """Return the metrics of ``valid`` or ``test`` under one answer to `repeatable`; None if they are not known."""
        found: dict[str, float] | None = getattr(self, part if repeatable == self.repeatable else f"{part}_other")
        return found

    @property
    def is_sequential(self) -> bool:
        """Whether the model reads histories; every target of a user then has a ranked list of its own."""
        return is_sequential(self.model) if self.kind is None else self.kind == _SEQUENTIAL

    @property
    def reads_text(self) -> bool:
        """Whether a language model is a part of the model: it reads item texts, or with P5 the IDs of items."""
        return self.backbone is not None

    @property
    def label(self) -> str:
        """The model with its language model and how that is trained: ``ST2SI, smollm2-135m, ilp``."""
        parts = (self.model, Path(self.backbone).name if self.backbone else None, self.tuning)
        return ", ".join(part for part in parts if part)

    def given_settings(self, defaults: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the settings of the run that are not `defaults`, without model, dataset and seed.

        Args:
            defaults: values by name; None: unknown, so that all settings are returned.
        """
        own = {name: value for name, value in self.settings.items() if name not in ("model", "dataset", "seed")}
        if defaults is None:
            return own
        return {name: value for name, value in own.items() if value != defaults.get(name)}


def has_result(run: Path) -> bool:
    """Tell whether the run in the folder `run` is finished: it has a `result.json`, which need not be readable."""
    return (run / RESULT).is_file()


@functools.cache
def is_sequential(model: str) -> bool:
    """Tell whether a model reads histories, from where RecBole keeps the model of that name; no model is imported.

    Args:
        model: a name; one that RecBole does not have is taken to be sequential, as all models of this package are.
    """
    recbole = find_spec("recbole")
    roots = [] if recbole is None else list(recbole.submodule_search_locations or ())
    files = (
        Path(root) / "model" / f"{kind}_recommender" / f"{model.lower()}.py"
        for root in roots
        for kind in _FOLDERS_OF_USER_MODELS
    )
    return not any(file.is_file() for file in files)


def _file_of(run: str | Path) -> Path:
    path = Path(run)
    return path if path.name == RESULT else path / RESULT
