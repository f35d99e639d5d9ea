"""What tests of RecBole's models share."""

from pathlib import Path

import pytest
from atomic_files import write_atomic_files


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """The folder of a dataset of 12 users and 20 items."""
    return write_atomic_files(tmp_path_factory.mktemp("data") / "tiny", users=12, items=20)
