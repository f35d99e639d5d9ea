"""How a stage trains and loads runs: given by quick_start, so that stages import nothing above them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_llm.config.config import Config
from recbole_llm.runs.context import RunContext


@dataclass(frozen=True)
class Runner:
    """Runs inside of a run; they share what both read of the same files.

    Attributes:
        run: trains a model with these settings in this folder, evaluates it and stores the result.
        resume: does so for the interrupted run in this folder, with settings that differ here.
        fit: trains with these settings in this folder and does not read the test part.
        load: returns the parts of the finished run in this folder, its model with the best weights, with settings that
            differ here; without the test part.
        build: returns the parts of a run that is not trained yet.
    """

    run: Callable[[dict[str, Any], Path], Any]
    resume: Callable[[Path, dict[str, Any]], Any]
    fit: Callable[[dict[str, Any], Path], Any]
    load: Callable[[Path, dict[str, Any]], Any]
    build: Callable[[Config, RunContext], Any]
