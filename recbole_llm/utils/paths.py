"""Where the files that travel with the package lie, and where derived files are kept."""

import functools
import os
from importlib.util import find_spec
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped(folder: str) -> Path:
    """Return the folder ``properties`` or ``dataset_configs``.

    setup.cfg maps both into the wheel as ``recbole_llm/<folder>``; in a checkout they lie beside the package.

    Raises:
        FileNotFoundError: if the installation lacks the folder.
    """
    for parent in (_PACKAGE, _PACKAGE.parent):
        if (parent / folder).is_dir():
            return parent / folder
    raise FileNotFoundError(f"the installation of recbole_llm lacks its folder '{folder}': install it again")


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


def cache_folder(kind: str) -> Path:
    """Return (and make) the folder for derived files of one `kind`, such as ``backbones`` or ``item_text``.

    The root is ``$RECBOLE_LLM_CACHE``, else ``$XDG_CACHE_HOME/recbole_llm``, else ``~/.cache/recbole_llm``.
    """
    root = os.environ.get("RECBOLE_LLM_CACHE")
    if root:
        base = Path(root).expanduser()
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "recbole_llm"
    folder = base / kind
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def has_interactions(folder: Path) -> bool:
    """Tell whether `folder` holds the interactions of the dataset of its name, in one file or in those of a split."""
    return any((folder / f"{folder.name}.{kind}").is_file() for kind in ("inter", "train.inter"))
