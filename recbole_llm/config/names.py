"""The names of models, datasets and settings, known without importing RecBole, torch or transformers.

They come from the names of YAML files and the declarations of `config/settings/`, so a misspelt name is answered at
once.
"""

import functools
from collections.abc import Iterable
from pathlib import Path

from recbole_llm.config.declared import general, has_setting, names_of_all_models, own, reads_text
from recbole_llm.config.given_dataset import GivenDataset, given_dataset
from recbole_llm.errors import SettingError, nearest
from recbole_llm.utils.paths import has_interactions, recbole_folder, shipped

__all__ = [
    "can_be_prepared",
    "dataset_files",
    "dataset_folders",
    "general_names",
    "has_folder",
    "has_setting",
    "is_ours",
    "known_datasets",
    "known_models",
    "model_files",
    "names_of_all_models",
    "names_of_model",
    "reads_text",
    "recbole_folder",
    "require_dataset",
    "require_given",
    "require_model",
    "require_setting",
]

_OUR_MODELS = Path(__file__).resolve().parents[1] / "model" / "sequential_recommender"


# -- models ------------------------------------------------------------------------------------------------------------


@functools.cache
def known_models() -> tuple[str, ...]:
    """Return the names of all models, ours first."""
    ours = [path.stem for path in sorted((shipped("properties") / "model").glob("*.yaml")) if is_ours(path.stem)]
    folder = recbole_folder() / "properties" / "model"
    # Random has no settings, and so no file among them.
    return (*ours, *sorted({"Random", *(path.stem for path in folder.glob("*.yaml"))} - set(ours)))


def is_ours(model: str) -> bool:
    """Tell whether this package has a model of this name, in a file or a folder with its name in lower case."""
    return any((_OUR_MODELS / name).is_file() for name in (f"{model.lower()}.py", f"{model.lower()}/__init__.py"))


def require_model(model: object) -> str:
    """Return the name of a model if there is one. Raises SettingError, which names the nearest."""
    if model is None:
        raise SettingError("no model is named: add --model=ST2SI, or any model of RecBole")
    if not isinstance(model, str) or model not in known_models():
        raise SettingError(f"there is no model '{model}'{nearest(str(model), known_models())}")
    return model


# -- datasets ----------------------------------------------------------------------------------------------------------


def dataset_folders(dataset: str, data_path: Path) -> tuple[Path, Path]:
    """Return where the atomic files of a dataset may be: in `data_path`, and among RecBole's examples."""
    return data_path / dataset, recbole_folder() / "dataset_example" / dataset


def has_folder(dataset: str, data_path: Path) -> bool:
    """Tell whether a dataset is in `data_path` or among RecBole's examples."""
    return any(folder.is_dir() for folder in dataset_folders(dataset, data_path))


def can_be_prepared(dataset: str) -> bool:
    """Tell whether a file in dataset_configs/ says how the dataset is made."""
    return (shipped("dataset_configs") / f"{dataset}.yaml").is_file()


def known_datasets(data_path: Path) -> list[str]:
    """Return the names of the datasets that are here or that this package can prepare."""
    here = [folder.name for folder in data_path.glob("*") if has_interactions(folder)]
    return sorted({*here, "ml-100k", *(path.stem for path in shipped("dataset_configs").glob("*.yaml"))})


def require_dataset(dataset: str | None, data_path: Path) -> str:
    """Return the name of a dataset that is here or can be prepared, however it is named; see `given_dataset`.

    Raises:
        SettingError: which names the nearest.
    """
    if dataset is None:
        raise SettingError("no dataset is named: add --dataset=ml-100k, or the name of a folder in data_path")
    given = given_dataset(dataset)
    require_given(given, data_path)
    return given.name


def require_given(dataset: GivenDataset, data_path: Path) -> None:
    """Refuse a dataset that neither is here nor can be prepared. Raises SettingError, which names the nearest."""
    name = dataset.name
    if dataset.folder is not None or has_folder(name, data_path) or dataset.can_be_prepared():
        return
    if dataset.file is not None:
        raise SettingError(
            f"{dataset.file} has no settings under 'prepare:', and there is no folder {name} in {data_path}: data_path "
            f"names the folder that holds it"
        )
    if not can_be_prepared(name):
        raise SettingError(
            f"there is no dataset '{name}' in {data_path}{nearest(name, known_datasets(data_path))} A dataset "
            f"is a folder {name} with {name}.inter in it; data_path names the folder that holds it"
        )


# -- settings ----------------------------------------------------------------------------------------------------------


def model_files(model: str) -> list[Path]:
    """Return the files with the settings of a model, RecBole's before ours."""
    files = [root / "model" / f"{model}.yaml" for root in (recbole_folder() / "properties", shipped("properties"))]
    return [file for file in files if file.is_file()]


def dataset_files(dataset: str) -> list[Path]:
    """Return the files with the settings of a dataset, RecBole's before ours."""
    folders = (recbole_folder() / "properties" / "dataset", shipped("dataset_configs"))
    return [folder / f"{dataset}.yaml" for folder in folders if (folder / f"{dataset}.yaml").is_file()]


def general_names() -> frozenset[str]:
    """Return the names of the settings that every run has, whatever its model."""
    return frozenset(general())


def names_of_model(model: str) -> frozenset[str]:
    """Return the names of the settings that are declared for a model itself."""
    return frozenset(own(model))


def require_setting(name: str, own_names: Iterable[str]) -> None:
    """Refuse a setting that no model has. Raises SettingError, which names the nearest, of the run's own if it can.

    Args:
        name: of the setting.
        own_names: names that the run has.
    """
    everywhere = {*own_names, *general_names(), *names_of_all_models()}
    if name not in everywhere:
        close = nearest(name, own_names) or nearest(name, everywhere)
        raise SettingError(f"there is no setting '{name}'{close}")
