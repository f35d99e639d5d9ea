"""Which columns of the `.item` file the models with item attributes read: FDSA, GRU4RecF, SASRecF, S3Rec, MLP4Rec.

RecBole's own files name ml-100k's column `class` for every dataset, and load no item column at all. Here the dataset
says it: `attribute_field` in dataset_configs/<dataset>.yaml, with `attribute_separator` where the values of one item
are not separated by spaces. A run of such a model then loads that column; what the user sets stays as it is.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole_llm.compat.attribute_columns import SETTINGS, as_list, columns_of
from recbole_llm.errors import DataError, nearest
from recbole_llm.utils.headers import column_names, header_line

__all__ = ["SETTINGS", "check_file", "columns_of", "fill"]

_OPTIONAL = ("MLP4Rec",)  # reads attributes only where the user names some


def fill(settings: dict[str, Any], model: str, given: Mapping[str, Any]) -> None:
    """Set the attribute columns of `model`, and what loads them, where the user did not.

    Args:
        settings: all settings of the run, changed here.
        model: its name.
        given: the settings that are not defaults.
    """
    setting = SETTINGS.get(model)
    if setting is None:
        return
    named = as_list(settings.get("attribute_field"))
    if setting not in given and named and model not in _OPTIONAL:
        settings[setting] = named[0] if setting == "item_attribute" else named
    columns = as_list(settings.get(setting))
    if not columns:
        return
    if "load_col" not in given and settings.get("load_col") is not None:
        item = settings["load_col"].get("item", [settings["ITEM_ID_FIELD"]])
        if item != "*":
            settings["load_col"] = {**settings["load_col"], "item": list(dict.fromkeys([*item, *columns]))}
    if "seq_separator" not in given and settings.get("attribute_separator") is not None:
        settings["seq_separator"] = settings["attribute_separator"]


def check_file(config: Any) -> None:
    """Refuse a dataset whose `.item` file lacks the attribute that the model reads, before anything is loaded.

    Columns of numbers (``price:float``) among them become `numerical_features`: without that RecBole's models pass over
    them, or fail where there is no other (`recbole/model/layers.py:911`).

    Raises:
        DataError: if the file or the column is missing, or the model cannot read its type.
    """
    columns = columns_of(config)
    if not columns:
        return
    path = Path(config["data_path"]) / f"{config['dataset']}.item"
    *others, last = sorted(set(SETTINGS) - set(_OPTIONAL))
    advice = (
        f"name a column with {SETTINGS[config['model']]}, add one to the file, or take another model "
        f"({', '.join(others)} and {last} need an attribute)"
    )
    try:
        header = header_line(path, config["encoding"])
    except FileNotFoundError:
        raise DataError(f"{config['model']} reads an attribute of items, but {path} does not exist: {advice}") from None
    names = column_names(path, header, config["field_separator"])
    types = dict(column.partition(":")[::2] for column in header.split(config["field_separator"]))
    found = [name for name in names if name != config["ITEM_ID_FIELD"]]
    for column in columns:
        if column not in found:
            raise DataError(
                f"{config['model']} reads the attribute '{column}' of items, but {path} has only "
                f"{', '.join(found) or 'their ids'}{nearest(column, found)}: {advice}"
            )
    _read_numbers(config, columns, types, path)


def _read_numbers(config: Any, columns: list[str], types: Mapping[str, str], path: Path) -> None:
    model = config["model"]
    numbers = [column for column in columns if types[column].startswith("float")]
    for column in numbers:
        if types[column] != "float" or SETTINGS[model] == "item_attribute":
            kinds = "token or token_seq" if SETTINGS[model] == "item_attribute" else "token, token_seq or float"
            raise DataError(
                f"{model} cannot read the attribute '{column}' of {path}, whose type is {types[column]}: name a column "
                f"of type {kinds} with {SETTINGS[model]}"
            )
    known = as_list(config["numerical_features"])
    config["numerical_features"] = list(dict.fromkeys([*known, *numbers]))
