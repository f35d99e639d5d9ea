"""The folder of a dataset's files: found where the settings say, or made when it is read for the first time."""

from pathlib import Path
from typing import Any


def ensure_files(config: Any) -> Path:
    """Return the folder of a run's atomic files, after making it from the publisher's files if it is not there.

    Raises:
        DataError: if it can neither be found nor be made here; the files to put in place are named.
    """
    folder = Path(config["data_path"])
    if folder.is_dir():
        return folder
    from recbole_llm.prepare import ensure  # what reads publishers' files is heavy, and a run rarely needs it

    return ensure(config["dataset"], folder.parent, config.named.file)
