"""What a run's atomic files must be, checked before and while RecBole reads them: one sentence names the file.

RecBole's own errors are a KeyError, a TypeError, or nothing at all: a column that is named twice, or that `load_col`
leaves out, is found only by what goes wrong later.
"""

import csv
from pathlib import Path
from typing import Any

import pandas as pd
from recbole.data.dataset import Dataset
from recbole.utils import FeatureSource

from recbole_llm.compat.plain_text import plain_text
from recbole_llm.errors import DataError, SettingError, nearest
from recbole_llm.utils.headers import column_names, header_line, not_text

_TYPES = ("token", "token_seq", "float", "float_seq")


def sorts_by_time(config: Any) -> bool:
    """Tell whether the rows of a run are sorted or split by their times."""
    args = config["eval_args"]
    return config["benchmark_filename"] is None and (args["order"] == "TO" or "TS" in (args["split"] or ()))


class AtomicFiles(Dataset):
    """Checks the files that RecBole reads, and reads them as plain text, see `compat.plain_text`."""

    inter_feat: Any

    def _load_data(self, token: str, dataset_path: str) -> None:
        if self.config["benchmark_filename"] is None:
            self._check_interactions(Path(dataset_path) / f"{token}.inter")
        super()._load_data(token, dataset_path)

    def _load_feat(self, filepath: str, source: Any) -> Any:
        path = Path(filepath)
        loaded = self._loaded_columns(path, self._header(path), source)
        id_field = {FeatureSource.USER: self.uid_field, FeatureSource.ITEM: self.iid_field}.get(source)
        if loaded and id_field is not None and id_field not in loaded:
            raise SettingError(
                f"load_col and unload_col leave '{id_field}' of {path} out: load it, too, or no column of that file"
            )
        try:
            with plain_text():
                return super()._load_feat(filepath, source)
        except UnicodeError as error:
            raise not_text(path, self.config["encoding"]) from error
        except (ValueError, csv.Error, pd.errors.ParserError) as error:
            raise DataError(f"{path} cannot be read: {' '.join(str(error).split())}") from error

    def _header(self, path: Path) -> dict[str, str]:
        """Return the type of each column of a file. Raises DataError."""
        separator = self.config["field_separator"]
        header = header_line(path, self.config["encoding"])
        if not header:
            raise DataError(f"{path} is empty: it needs a header line and one line a row")
        pairs = [column.split(":") for column in header.split(separator)]
        if any(len(pair) != 2 for pair in pairs):
            shown = "tabs" if separator == "\t" else f"'{separator}' (field_separator)"
            raise DataError(f"the header of {path} must be 'name:type' columns separated by {shown}, but is '{header}'")
        column_names(path, header, separator)
        for name, kind in pairs:
            if kind not in _TYPES:
                raise DataError(
                    f"the column '{name}' of {path} has the type '{kind}'{nearest(kind, _TYPES)} Types are "
                    f"{', '.join(_TYPES)}"
                )
        return {name: kind for name, kind in pairs}

    def _loaded_columns(self, path: Path, types: dict[str, str], source: Any) -> list[str]:
        """Return which columns of a file `load_col` and `unload_col` load; warn of those that the file lacks."""
        loaded, left_out = self._get_load_and_unload_col(source)
        for setting, named in (("load_col", loaded), ("unload_col", left_out)):
            for name in sorted((named or set()) - set(types)):
                self.logger.warning("%s names '%s', which %s lacks%s", setting, name, path, nearest(name, types))
        return [name for name in types if (loaded is None or name in loaded) and name not in (left_out or ())]

    # -- interactions ----------------------------------------------------------------------------------------------

    def _needed(self) -> dict[str, str]:
        """Return the columns of interactions that a run cannot do without, and what each must be of."""
        needed = {self.uid_field: "token", self.iid_field: "token"}
        if sorts_by_time(self.config):
            needed[self.time_field] = "float"
        if "labeled" in self.config["eval_args"]["mode"].values() and self.config["threshold"] is None:
            needed[self.label_field] = "float"
        return needed

    def _check_interactions(self, path: Path) -> None:
        try:
            types = self._header(path)
            with path.open("rb") as file:
                if len(file.readlines(2**16)) < 2:
                    raise DataError(f"{path} is empty: it needs a header line and one line an interaction")
        except FileNotFoundError:
            raise DataError(f"the interactions {path} do not exist") from None
        loaded = self._loaded_columns(path, types, FeatureSource.INTERACTION)
        for field, kind in self._needed().items():
            if field not in types:
                raise self._lacks(path, field, types)
            if field not in loaded:
                raise SettingError(
                    f"load_col and unload_col leave '{field}' of {path} out, which {self.config['model']} needs under "
                    f"these eval_args: load it, too"
                )
            if types[field] != kind:
                raise DataError(
                    f"the column '{field}' of {path} has the type '{types[field]}', but must be '{field}:{kind}'"
                    + (", of numbers such as seconds since 1970" if field == self.time_field else "")
                )

    def _lacks(self, path: Path, field: str, columns: dict[str, str]) -> DataError:
        if field == self.label_field:
            return DataError(
                f"mode labeled of eval_args reads the column '{field}', which {path} lacks: make it with threshold, "
                f"such as threshold={{rating: 4}}, or name one with LABEL_FIELD"
            )
        return DataError(
            f"{path} lacks the column '{field}'{nearest(field, columns)} It has {', '.join(columns)}; name its columns "
            f"with USER_ID_FIELD, ITEM_ID_FIELD and TIME_FIELD"
        )
