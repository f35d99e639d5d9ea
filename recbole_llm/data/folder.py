"""The folder of a dataset's files: found where the settings say, or made when it is read for the first time."""

from pathlib import Path
from typing import Any

from recbole_llm.prepare import ensure


def ensure_files(config: Any) -> Path:
    """Return the folder of a run's atomic files, after making it from the publisher's files if it is not there.

    Raises:
        DataError: if it can neither be found nor be made here; the files to put in place are named.
    """
    folder = Path(config["data_path"])
    return folder if folder.is_dir() else ensure(config["dataset"], folder.parent)
