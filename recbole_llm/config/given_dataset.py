"""A dataset as users name it: by its name, by the folder of its atomic files, or by a YAML file of their own."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_llm.errors import SettingError
from recbole_llm.utils.files import read_yaml
from recbole_llm.utils.paths import has_interactions

# Keys of a dataset's file that are not settings of a run.
_NOT_SETTINGS = ("prepare",)


@dataclass(frozen=True)
class GivenDataset:
    """What a user named.

    Attributes:
        name: of the dataset; its folder and files are called so.
        folder: of its atomic files, where that was named.
        file: its settings, where a YAML file was named.
    """

    name: str
    folder: Path | None = None
    file: Path | None = None

    def settings(self) -> dict[str, Any]:
        """Return the settings of a run that `file` holds. Raises DataError if it cannot be read."""
        return {} if self.file is None else run_settings(self.file)

    def can_be_prepared(self) -> bool:
        """Tell whether `file` says how the dataset is made."""
        return self.file is not None and "prepare" in read_yaml(self.file)


def given_dataset(named: str) -> GivenDataset:
    """Return what a value of the setting `dataset` names.

    Text that ends in ``.yaml`` or ``.yml`` is a file; text with a slash is a folder; any other is a name.

    Raises:
        SettingError: if the folder or the file is not there, or the folder holds no interactions of its name.
    """
    path = Path(named).expanduser()
    if named.endswith((".yaml", ".yml")):
        if not path.is_file():
            raise SettingError(f"dataset={named} names a file that does not exist")
        return GivenDataset(path.stem, file=path)
    if os.sep not in named and named not in (".", ".."):
        return GivenDataset(named)
    folder = Path(os.path.abspath(path))  # noqa: PTH100 (a link keeps its own name, which its files have)
    if not folder.is_dir():
        raise SettingError(f"dataset={named} names a folder that does not exist")
    if not has_interactions(folder):
        raise SettingError(
            f"dataset={named} names a folder without {folder.name}.inter: the files of a dataset are called as their "
            f"folder"
        )
    return GivenDataset(folder.name, folder=folder)


def run_settings(file: Path) -> dict[str, Any]:
    """Return the settings of a run in a dataset's file. Raises DataError."""
    return {name: value for name, value in read_yaml(file).items() if name not in _NOT_SETTINGS}
