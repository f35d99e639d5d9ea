"""Which setting of a model names the item columns that it reads as attributes."""

from typing import Any

SETTINGS = {
    "FDSA": "selected_features",
    "GRU4RecF": "selected_features",
    "SASRecF": "selected_features",
    "S3Rec": "item_attribute",
    "MLP4Rec": "selected_features",
}


def columns_of(config: Any) -> list[str]:
    """Return the item columns that the model of a run reads as attributes; none for most models."""
    setting = SETTINGS.get(config["model"])
    return as_list(config[setting]) if setting is not None else []


def as_list(value: Any) -> list[str]:
    """Return the columns that a value names: one, several, or none."""
    return [value] if isinstance(value, str) else list(value or ())
