"""The rows of the papers' tables and the points of their figures: how each is run, and what the paper prints for it.

One file, ``properties/paper/<paper>/<table>.yaml``, holds a table or figure::

    settings: {...}                 # of all rows
    datasets:
      Scientific: {...}             # of all rows on this dataset
    rows:
      sasrec: {method: SASRec, settings: {...}, without: [...]}
      zesrec: {method: ZESRec, implemented: False}
      gpt-4: {method: GPT-4, hosted: True, settings: {...}}
    printed:
      metrics: [ndcg@10, mrr]
      values: {Scientific: {sasrec: [0.0797, 0.0696], zesrec: [0.0843, 0.0745]}}
      improvement: {Scientific: {...}}   # in per cent, as the paper prints it

A row has the settings of its table, dataset and own, a later one in place of an earlier one, but for those that it is
`without`. `method` is the row's name beside our models in a comparison; a row without one is not shown there. A row
that is not `implemented` has printed values alone; one that is `hosted` is not run but asked for: ``recbole-llm prompts
export`` takes its settings. A row's full name is ``<paper>/<table>/<dataset>/<row>``.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_llm.errors import DataError, SettingError, nearest
from recbole_llm.utils.files import read_yaml
from recbole_llm.utils.paths import shipped

_LEVELS = ("paper", "table or figure", "dataset", "row")
_LIST = "--paper=list"


@dataclass(frozen=True)
class PaperRow:
    """A row of a table on all of its datasets.

    Attributes:
        settings: the row's own.
        without: names of settings of the table or the dataset that the row does not have.
        method: what a comparison calls it; None if it shows no such row.
        implemented: whether the row can be run.
        hosted: whether its model is behind an address, so that its prompts are exported.
    """

    settings: dict[str, Any]
    without: tuple[str, ...]
    method: str | None
    implemented: bool
    hosted: bool


@dataclass(frozen=True)
class PaperTable:
    """A table or figure of a paper.

    Attributes:
        settings: of all rows.
        datasets: by dataset, the settings of all rows on it.
        rows: by name.
        metrics: names of the printed values, in their order.
        values: by dataset and row, the printed values.
        improvement: by dataset and row, the printed improvement in per cent, by metric as `values`.
    """

    settings: dict[str, Any]
    datasets: dict[str, dict[str, Any]]
    rows: dict[str, PaperRow]
    metrics: tuple[str, ...]
    values: dict[str, dict[str, list[float]]]
    improvement: dict[str, dict[str, list[float]]]

    def settings_of(self, dataset: str, row: str) -> dict[str, Any]:
        """Return all settings of a row on a dataset, `dataset` among them."""
        own = self.rows[row]
        merged = {"dataset": dataset, **self.settings, **self.datasets[dataset], **own.settings}
        return {name: value for name, value in merged.items() if name not in own.without}

    def printed(self, dataset: str, row: str) -> dict[str, float]:
        """Return the values that the paper prints for a row on a dataset, by metric; empty if there are none."""
        values = self.values.get(dataset, {}).get(row)
        return dict(zip(self.metrics, values, strict=True)) if values else {}


def row_settings(name: str, hosted: bool = False) -> dict[str, Any]:
    """Return the settings of a row, `model` and `dataset` among them.

    Args:
        name: such as ``st2si/table2/Scientific/st2si``.
        hosted: whether the row's prompts are exported; else it is run.

    Raises:
        SettingError: if there is no such row, or the row's model is not implemented, or hosted where it is to be run.
        DataError: if the table's file is malformed.
    """
    table, dataset, row = _find(name)
    if table.rows[row].hosted and not hosted:
        raise SettingError(
            f"paper={name}: its model is behind an address: recbole-llm prompts export --paper={name} writes prompts"
        )
    if not table.rows[row].implemented:
        raise SettingError(f"paper={name}: its model is not implemented; {_LIST}:{_parent(name, 2)} prints the others")
    return table.settings_of(dataset, row)


def list_rows(prefix: str = "") -> list[str]:
    """Return the full names of the rows that can be run.

    Args:
        prefix: a paper, table, dataset or row, such as ``st2si/table2``; empty for all.

    Raises:
        SettingError: if no row that can be run has a name that begins so.
        DataError: if a table's file is malformed.
    """
    prefix = prefix.strip("/")
    _check_levels([*filter(None, prefix.split("/"))], prefix)
    rows = [
        f"{name}/{dataset}/{row}"
        for name in _table_names()
        if _begins_with(name, prefix) or _begins_with(prefix, name)
        for table in [read_table(name)]
        for dataset, row in _runs(table)
        if _begins_with(f"{name}/{dataset}/{row}", prefix) and not table.rows[row].hosted
    ]
    if not rows:
        raise SettingError(f"paper={prefix}: no row whose name begins so can be run; {_LIST} prints what can be run")
    return rows


def printed_values(datasets: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Return what the papers print for those of `datasets` that they have: by dataset, method and metric.

    Raises:
        DataError: if a table's file is malformed.
    """
    printed: dict[str, dict[str, dict[str, float]]] = {}
    tables = [read_table(name) for name in _table_names()]
    for dataset in datasets:
        for table in tables:
            for row in table.values.get(dataset, ()):
                method = table.rows[row].method
                if method is not None:
                    printed.setdefault(dataset, {}).setdefault(method, {}).update(table.printed(dataset, row))
    return printed


def printed_row(name: str) -> dict[str, float] | None:
    """Return the values that the paper prints for a row, by metric; None if it prints none, as for the figures.

    Args:
        name: such as ``st2si/table2/Scientific/st2si``; a row that cannot be run has its values as well.

    Raises:
        SettingError: if there is no such row.
        DataError: if the table's file is malformed.
    """
    table, dataset, row = _find(name)
    return table.printed(dataset, row) or None


def read_table(name: str) -> PaperTable:
    """Return a table or figure.

    Args:
        name: such as ``st2si/table2``.

    Raises:
        DataError: if its file is missing or malformed.
    """
    path = _folder() / f"{name}.yaml"
    content = _section(read_yaml(path), path, "the table", ("settings", "datasets", "rows", "printed"))
    datasets = _named(content.get("datasets"), path, "datasets")
    rows = {row: _row(fields, path, row) for row, fields in _named(content.get("rows"), path, "rows").items()}
    printed = _section(content.get("printed"), path, "printed", ("metrics", "values", "improvement"))
    metrics = _names(printed.get("metrics"), path, "metrics")
    table = PaperTable(
        settings=_section(content.get("settings"), path, "settings"),
        datasets={dataset: _section(own, path, dataset) for dataset, own in datasets.items()},
        rows=rows,
        metrics=metrics,
        values=_numbers(printed.get("values"), path, datasets, rows, metrics),
        improvement=_numbers(printed.get("improvement"), path, datasets, rows, metrics),
    )
    _check_rows(table, path)
    return table


def _check_rows(table: PaperTable, path: Path) -> None:
    """Refuse a row that cannot be run, or is without what there is not. Raises DataError."""
    shared = {*table.settings, *(name for own in table.datasets.values() for name in own)}
    for name, row in table.rows.items():
        for setting in row.without:
            if setting not in shared:
                raise DataError(f"{path}: {name} is without '{setting}', which no rows share{nearest(setting, shared)}")
    for dataset, name in _runs(table):
        if "model" not in table.settings_of(dataset, name):
            raise DataError(f"{path}: the row {name} has no model: give it one, or implemented: False")


# -- names -------------------------------------------------------------------------------------------------------------


def _folder() -> Path:
    return shipped("properties") / "paper"


def _table_names() -> list[str]:
    """Return all ``<paper>/<table>`` that have a file."""
    return sorted(path.relative_to(_folder()).with_suffix("").as_posix() for path in _folder().glob("*/*.yaml"))


def _find(name: str) -> tuple[PaperTable, str, str]:
    """Return a row's table, dataset and name. Raises SettingError, which names the nearest and how to list them."""
    parts = name.split("/")
    if len(parts) != len(_LEVELS):
        raise SettingError(
            f"paper={name} must be paper/table/dataset/row, such as st2si/table2/Scientific/st2si; {_LIST} prints all"
        )
    _check_levels(parts, name)
    return read_table(_parent(name, 2)), parts[2], parts[3]


def _check_levels(parts: Sequence[str], name: str) -> None:
    """Refuse a name of which a part is not there. Raises SettingError."""
    if len(parts) > len(_LEVELS):
        raise SettingError(f"paper={name} has more than the four parts paper/table/dataset/row")
    for depth, part in enumerate(parts):
        above = "/".join(parts[:depth])
        known = _names_below(above)
        if part not in known:
            place = f" in {above}" if above else ""
            listing = f"{_LIST}:{above}" if above else _LIST
            raise SettingError(
                f"paper={name}: there is no {_LEVELS[depth]} '{part}'{place} ({listing} prints what there is)"
                f"{nearest(part, known)}"
            )


def _names_below(name: str) -> list[str]:
    """Return the papers, a paper's tables, a table's datasets, or the rows of a dataset."""
    depth = name.count("/") + 1 if name else 0
    if depth < 2:
        pairs = [table.split("/") for table in _table_names()]
        return sorted({pair[depth] for pair in pairs if depth == 0 or pair[0] == name})
    table = read_table(_parent(name, 2))
    return list(table.datasets) if depth == 2 else list(table.rows)


def _parent(name: str, parts: int) -> str:
    return "/".join(name.split("/")[:parts])


def _begins_with(name: str, prefix: str) -> bool:
    """Tell whether the parts of `name` begin with those of `prefix`."""
    return not prefix or f"{name}/".startswith(f"{prefix}/")


def _runs(table: PaperTable) -> Iterator[tuple[str, str]]:
    """Yield the dataset and row of all that can be run."""
    for dataset in table.datasets:
        for name, row in table.rows.items():
            if row.implemented:
                yield dataset, name


# -- a file ------------------------------------------------------------------------------------------------------------


def _section(value: Any, path: Path, what: str, known: Iterable[str] | None = None) -> dict[str, Any]:
    """Return a mapping, empty for nothing, whose keys are text and, if given, `known`. Raises DataError."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise DataError(f"{path}: {what} must be 'name: value' lines, but is {value!r}")
    for key in value:
        if not isinstance(key, str):
            raise DataError(f"{path}: the name {key!r} in {what} must be text: put it in quotes")
        if known is not None and key not in known:
            raise DataError(f"{path}: {what} has no '{key}', but {', '.join(known)}{nearest(key, known)}")
    return value


def _named(value: Any, path: Path, what: str) -> dict[str, Any]:
    """Return a mapping that must not be empty. Raises DataError."""
    named = _section(value, path, what)
    if not named:
        raise DataError(f"{path} names no {what}: a table has 'datasets' and 'rows'")
    for key in named:
        if not key or "/" in key:
            raise DataError(f"{path}: the name '{key}' in {what} must not be empty and have no '/'")
    return named


def _names(value: Any, path: Path, what: str) -> tuple[str, ...]:
    """Return a list of names, empty for nothing. Raises DataError."""
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise DataError(f"{path}: {what} must be a list of names, but is {value!r}")
    return tuple(value)


def _row(value: Any, path: Path, name: str) -> PaperRow:
    fields = _section(value, path, name, ("method", "implemented", "hosted", "settings", "without"))
    method, implemented, hosted = fields.get("method"), fields.get("implemented", True), fields.get("hosted", False)
    for said, given in (("implemented", implemented), ("hosted", hosted)):
        if not isinstance(given, bool):
            raise DataError(f"{path}: {said} of {name} must be True or False, but is {given!r}")
    if not (method is None or isinstance(method, str)):
        raise DataError(f"{path}: method of {name} must be text, but is {method!r}")
    settings = _section(fields.get("settings"), path, f"settings of {name}")
    return PaperRow(settings, _names(fields.get("without"), path, f"without of {name}"), method, implemented, hosted)


def _numbers(
    value: Any, path: Path, datasets: Iterable[str], rows: Iterable[str], metrics: Sequence[str]
) -> dict[str, dict[str, list[float]]]:
    """Return numbers by dataset and row, one for each metric. Raises DataError."""
    found = _section(value, path, "printed", tuple(datasets))
    return {
        dataset: {
            row: _values(numbers, path, f"{row} on {dataset}", metrics)
            for row, numbers in _section(own, path, dataset, tuple(rows)).items()
        }
        for dataset, own in found.items()
    }


def _values(value: Any, path: Path, what: str, metrics: Sequence[str]) -> list[float]:
    numbers = isinstance(value, list) and all(isinstance(x, int | float) and not isinstance(x, bool) for x in value)
    if not numbers or len(value) != len(metrics):
        raise DataError(f"{path}: {what} must have {len(metrics)} numbers, one for each of metrics, but has {value!r}")
    return list(value)
