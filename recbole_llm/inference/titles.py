"""What items are called, for whoever reads a recommendation."""

from pathlib import Path
from typing import Any


def item_titles(parts: Any) -> dict[str, str] | None:
    """Return the first text field of each item token; None where the dataset has none.

    Args:
        parts: of a run, see `quick_start.load`.
    """
    dataset, fields = parts.dataset, parts.config["item_text_fields"]
    path = Path(dataset.dataset_path) / f"{dataset.dataset_name}.item"
    if not fields or not path.is_file() or not dataset._has_item_column(path, fields[0]):
        return None
    texts: dict[str, str] = dataset.item_texts(fields[:1]).iloc[:, 0].to_dict()
    return texts
