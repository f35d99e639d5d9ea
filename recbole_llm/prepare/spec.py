"""The settings under `prepare:` in ``dataset_configs/<dataset>.yaml``, read and checked."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from recbole_llm.errors import SettingError, nearest
from recbole_llm.prepare.filters import FILTERS, Filter
from recbole_llm.prepare.formats import FORMATS, RawFormat
from recbole_llm.utils.files import read_yaml
from recbole_llm.utils.paths import shipped

_KEYS = frozenset(
    {
        "format",
        "options",
        "sources",
        "inter_fields",
        "item_fields",
        "filters",
        "seed",
        "paper_counts",
        "notes",
        "terms",
        "benchmark",
        "time_format",
    }
)
_COUNTS = ("users", "items", "interactions")
# What a column of an atomic file may be called: a colon ends the name there, a tab the column.
_COLUMN = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Source:
    """One raw file of the publisher.

    Args:
        file: its name on disk.
        url: where it is published; None if it has no stable address.
        sha256: of the published file; None where it is not known, and then only recorded.
        member: name inside the archive.
        packaged: where RecBole's own `dataset_example` folder has it; taken if it is not among the raw files.
    """

    file: str
    url: str | None = None
    sha256: str | None = None
    member: str | None = None
    packaged: str | None = None


@dataclass(frozen=True)
class Benchmark:
    """A dataset whose files give the split, see `write.benchmark_files`.

    Args:
        history: maximum number of items of a history.
        all_items: whether items without an interaction belong to the catalogue.
    """

    history: int
    all_items: bool = False


@dataclass(frozen=True)
class Spec:
    """What `prepare` does for one dataset.

    Args:
        dataset: its name; also the name of its folder and files.
        format: name of the raw format.
        sources: role -> raw file.
        item_fields: column written -> text that the format gives, in the order written.
        inter_fields: further columns of the interactions; only ``rating`` is known.
        filters: applied in this order.
        seed: of the sampling of users.
        paper_counts: paper -> users, items, interactions.
        notes: known discrepancies, printed with the counts.
        options: settings of the format.
        benchmark: set where the split is the publisher's; None: one file, to be split by the run.
        time_format: of dates, in the letters of strftime; None: found by looking at all of them.
    """

    dataset: str
    format: str
    sources: Mapping[str, Source]
    item_fields: Mapping[str, str]
    inter_fields: tuple[str, ...] = ()
    filters: tuple[Filter, ...] = ()
    seed: int = 0
    paper_counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    benchmark: Benchmark | None = None
    time_format: str | None = None

    @property
    def reader(self) -> RawFormat:
        """The format's module."""
        return FORMATS[self.format]

    def settings(self) -> dict[str, Any]:
        """Everything besides raw files and version that decides the bytes of the atomic files, as plain values."""
        settings: dict[str, Any] = {
            "format": self.format,
            "options": dict(self.options),
            "inter_fields": list(self.inter_fields),
            "item_fields": dict(self.item_fields),
            "filters": [step.settings() for step in self.filters],
            "seed": self.seed,
        }
        if self.benchmark is not None:
            settings["benchmark"] = asdict(self.benchmark)
        if self.time_format is not None:
            settings["time_format"] = self.time_format
        # As they are when read back from a manifest: lists for tuples.
        plain: dict[str, Any] = json.loads(json.dumps(settings))
        return plain


def known_datasets() -> list[str]:
    """Return the datasets that ship with preparation settings."""
    return sorted(path.stem for path in shipped("dataset_configs").glob("*.yaml") if "prepare" in read_yaml(path))


def load_spec(dataset: str) -> Spec:
    """Return the settings of a dataset: a name under ``dataset_configs/``, or the path of a YAML file of one's own.

    Raises:
        DataError: if the YAML file is missing or broken.
        SettingError: if no such dataset is known, or a setting is unknown or wrong.
    """
    path = Path(dataset) if dataset.endswith((".yaml", ".yml")) else shipped("dataset_configs") / f"{dataset}.yaml"
    if path.name == f"{dataset}.yaml" and not path.is_file():
        known = known_datasets()
        raise SettingError(
            f"no dataset '{dataset}' is known{nearest(dataset, known)}; known are {', '.join(known)}, and the path of "
            "a YAML file of your own is taken as well"
        )
    settings = read_yaml(path).get("prepare")
    if not isinstance(settings, dict):
        raise SettingError(f"{path} has no settings under 'prepare:': write them as docs/add_a_dataset.md shows")
    try:
        return _spec(path.stem, settings)
    except SettingError as error:
        raise SettingError(f"{path}: {error}") from None


def _spec(dataset: str, settings: Mapping[str, Any]) -> Spec:
    _only(settings, _KEYS, "prepare")
    name = settings.get("format")
    if name not in FORMATS:
        raise SettingError(f"format '{name}' is unknown{nearest(str(name), FORMATS)}; known are {', '.join(FORMATS)}")
    reader = FORMATS[name]
    options = dict(settings.get("options") or {})
    _only(options, reader.options, "prepare.options")
    sources = _sources(settings.get("sources") or {}, reader)
    return Spec(
        dataset=dataset,
        format=name,
        sources=sources,
        item_fields=_item_fields(settings.get("item_fields") or {}, reader, sources),
        inter_fields=_inter_fields(settings.get("inter_fields") or []),
        filters=tuple(_filter(step) for step in settings.get("filters") or []),
        seed=_whole(settings.get("seed", 0), "prepare.seed"),
        paper_counts=_paper_counts(settings.get("paper_counts") or {}),
        notes=tuple(str(note) for note in settings.get("notes") or []),
        options=options,
        benchmark=_benchmark(settings.get("benchmark")),
        time_format=_time_format(settings.get("time_format")),
    )


def _only(settings: Mapping[str, Any], known: frozenset[str], where: str) -> None:
    for name in settings:
        if name not in known:
            raise SettingError(f"setting '{name}' under {where} is unknown{nearest(name, known)}")


def _whole(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise SettingError(f"{where} must be a whole number, not {value!r}")
    return value


def _sources(settings: Mapping[str, Any], reader: RawFormat) -> dict[str, Source]:
    _only(settings, frozenset(reader.roles), "prepare.sources")
    sources = {}
    for role in reader.roles:
        entry = settings.get(role)
        if entry is None:
            if role in reader.optional_roles:
                continue
            raise SettingError(f"prepare.sources lacks '{role}'")
        _only(entry, frozenset({"file", "url", "sha256", "member", "packaged"}), f"prepare.sources.{role}")
        url = entry.get("url")
        file = entry.get("file") or (url or entry.get("packaged") or "").rpartition("/")[2]
        if not file:
            raise SettingError(f"prepare.sources.{role} needs a 'url' or a 'file', or a 'packaged' one")
        sources[role] = Source(file, url, entry.get("sha256"), entry.get("member"), entry.get("packaged"))
    return sources


def _benchmark(settings: Any) -> Benchmark | None:
    if settings is None:
        return None
    if not isinstance(settings, dict):
        raise SettingError(f"prepare.benchmark is written as 'history: 10', not {settings!r}")
    _only(settings, frozenset(Benchmark.__dataclass_fields__), "prepare.benchmark")
    history = _whole(settings.get("history"), "prepare.benchmark.history")
    if history < 1:
        raise SettingError(f"prepare.benchmark.history={history} must be a whole number from 1")
    return Benchmark(history, bool(settings.get("all_items", False)))


def _time_format(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or "%" not in value:
        raise SettingError(f"prepare.time_format={value} must be written in the letters of strftime, such as %d-%m-%Y")
    return value


def _item_fields(settings: Any, reader: RawFormat, sources: Mapping[str, Source]) -> dict[str, str]:
    if not isinstance(settings, dict | list):
        raise SettingError(f"prepare.item_fields is a list of texts, or 'column: text' pairs, not {settings!r}")
    pairs = settings.items() if isinstance(settings, dict) else [(name, name) for name in settings]
    fields = {str(written): str(name) for written, name in pairs}
    if fields and "items" in reader.roles and "items" not in sources:
        raise SettingError(
            "prepare.item_fields asks for texts of items, but prepare.sources has no 'items': name that file, or leave "
            "item_fields out"
        )
    for written in fields:
        if not _COLUMN.fullmatch(written) or written == "item_id":
            raise SettingError(
                f"prepare.item_fields cannot write a column called {written!r}: take letters, digits, '_', '-' and '.' "
                f"alone, and not item_id"
            )
    for name in fields.values():
        if reader.fields and name not in reader.fields:
            known = sorted(reader.fields)
            raise SettingError(
                f"item field '{name}' is not given by this format{nearest(name, known)}: {', '.join(known)}"
            )
    return fields


def _inter_fields(settings: Any) -> tuple[str, ...]:
    for name in settings:
        if name != "rating":
            raise SettingError(f"prepare.inter_fields knows 'rating' only, not '{name}'")
    return tuple(settings)


def _filter(step: Any) -> Filter:
    if not isinstance(step, dict) or len(step) != 1:
        raise SettingError(f"each entry of prepare.filters is one 'name: {{settings}}', not {step!r}")
    ((name, values),) = step.items()
    if name not in FILTERS:
        raise SettingError(f"filter '{name}' is unknown{nearest(str(name), FILTERS)}; known are {', '.join(FILTERS)}")
    values = values or {}
    _only(values, frozenset(FILTERS[name].__dataclass_fields__), f"prepare.filters.{name}")
    return FILTERS[name](**values)


def _paper_counts(settings: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    for paper, counts in settings.items():
        _only(counts, frozenset(_COUNTS), f"prepare.paper_counts.{paper}")
    return {paper: {name: counts[name] for name in _COUNTS if name in counts} for paper, counts in settings.items()}
