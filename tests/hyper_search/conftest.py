"""The working folder of a study."""

import pytest
from small_data import write_dataset
from tune_parts import GRID, TWO, histories


@pytest.fixture
def place(workdir):
    """A working folder with data and a parameter file."""
    write_dataset(workdir, histories(), titles=None)
    (workdir / "grid.hyper").write_text(GRID)
    (workdir / "two.hyper").write_text(TWO)
    return workdir
