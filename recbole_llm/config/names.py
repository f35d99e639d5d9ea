"""The names of models, datasets and settings, known without importing RecBole, torch or transformers.

They come from the names of YAML files and the keys in them, so a misspelt name is answered at once.
"""

import functools
from collections.abc import Iterable
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

from recbole_llm.errors import SettingError, nearest
from recbole_llm.utils.files import read_yaml
from recbole_llm.utils.paths import has_interactions, shipped

_OUR_MODELS = Path(__file__).resolve().parents[1] / "model" / "sequential_recommender"
_LISTS = ("general_arguments", "training_arguments", "evaluation_arguments", "dataset_arguments")
# Names that RecBole reads although none of its YAML files has them.
_WITHOUT_DEFAULT = frozenset(
    {
        *("model", "dataset", "config_files", "encoding", "nproc", "world_size", "offset", "ip", "port", "local_rank"),
        *("additional_feat_suffix", "benchmark_filename", "numerical_features", "discretization"),
        *("token_num_threshold", "xgb_early_stopping_rounds"),
    }
)


@functools.cache
def recbole_folder() -> Path:
    """Return the folder of the package `recbole`, without importing it.

    Raises:
        ModuleNotFoundError: if it is not installed.
    """
    found = find_spec("recbole")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'recbole'", name="recbole")
    return Path(found.submodule_search_locations[0])


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


def reads_text(model: str) -> bool:
    """Tell whether a model of this package reads item text with a language model: its settings then have `backbone`."""
    path = shipped("properties") / "model" / f"{model}.yaml"
    return path.is_file() and "backbone" in read_yaml(path)


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
    """Return the name of a dataset that is here or can be prepared. Raises SettingError, which names the nearest."""
    if dataset is None:
        raise SettingError("no data set is named: add --dataset=ml-100k, or the name of a folder in data_path")
    if not has_folder(dataset, data_path) and not can_be_prepared(dataset):
        raise SettingError(
            f"there is no data set '{dataset}' in {data_path}{nearest(dataset, known_datasets(data_path))} A data set "
            f"is a folder {dataset} with {dataset}.inter in it; data_path names the folder that holds it"
        )
    return dataset


# -- settings ----------------------------------------------------------------------------------------------------------


@functools.cache
def general_names() -> frozenset[str]:
    """Return the names of the settings that every run has, whatever its model."""
    properties = recbole_folder() / "properties"
    files = [properties / "overall.yaml", properties / "dataset/sample.yaml"]
    files += sorted((properties / "quick_start_config").glob("*.yaml"))
    names = {name for file in [*files, shipped("properties") / "overall.yaml"] for name in read_yaml(file)}
    return frozenset(names | set(_argument_lists()) | _WITHOUT_DEFAULT)


def _argument_lists() -> Iterable[str]:
    """Yield the names in RecBole's lists of arguments; their file imports nothing, the package around it does."""
    spec = spec_from_file_location("recbole_argument_list", recbole_folder() / "utils" / "argument_list.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in _LISTS:
        yield from getattr(module, name)


def model_files(model: str) -> list[Path]:
    """Return the files with the settings of a model, RecBole's before ours."""
    files = [root / "model" / f"{model}.yaml" for root in (recbole_folder() / "properties", shipped("properties"))]
    return [file for file in files if file.is_file()]


def dataset_files(dataset: str) -> list[Path]:
    """Return the files with the settings of a dataset, RecBole's before ours."""
    folders = (recbole_folder() / "properties" / "dataset", shipped("dataset_configs"))
    return [folder / f"{dataset}.yaml" for folder in folders if (folder / f"{dataset}.yaml").is_file()]


def names_of_model(model: str) -> frozenset[str]:
    """Return the names of the settings that are a model's own."""
    return frozenset(name for file in model_files(model) for name in read_yaml(file))


@functools.cache
def names_of_all_models() -> frozenset[str]:
    """Return the names of the settings that are some model's own."""
    folders = (recbole_folder() / "properties/model", shipped("properties") / "model")
    return frozenset(name for folder in folders for file in folder.glob("*.yaml") for name in read_yaml(file))


def has_setting(model: str, name: str) -> bool:
    """Tell whether a setting is one of `model`, or none of a model's own; an unknown name is left to `Config`."""
    return name in general_names() or name not in names_of_all_models() or name in names_of_model(model)


def require_setting(name: str, own: Iterable[str]) -> None:
    """Refuse a setting that no model has. Raises SettingError, which names the nearest, of the run's `own` if it can.

    Args:
        name: of the setting.
        own: names that the run has.
    """
    everywhere = {*own, *general_names(), *names_of_all_models()}
    if name not in everywhere:
        close = nearest(name, own) or nearest(name, everywhere)
        raise SettingError(f"there is no setting '{name}'{close}")
