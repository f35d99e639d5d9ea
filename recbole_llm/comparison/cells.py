"""The cells of a comparison: one model on one dataset with one seed."""

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recbole_llm.runs.result import RunResult, is_sequential
from recbole_llm.utils.values import write_value


@dataclass(frozen=True)
class Cell:
    """One model on one dataset with one seed.

    Attributes:
        dataset, label, model, seed: which; `label` names the model in the table.
        given: the settings that are not defaults, without model, dataset and seed.
        merged: all settings of the run; empty if no run of this cell is known.
        run: the folder of the run, once there is one.
        result: what the run found; None before it is read.
        status: done, failed or missing; a missing cell with settings is one to run.
        reason: why there is no result.
        fingerprint: of all that the result of a planned cell depends on, see `data.fingerprint`.
    """

    dataset: str
    label: str
    model: str
    seed: int
    given: dict[str, Any] = field(default_factory=dict)
    merged: dict[str, Any] = field(default_factory=dict, repr=False)
    run: Path | None = None
    result: RunResult | None = field(default=None, repr=False)
    status: str = "missing"
    reason: str | None = None
    fingerprint: str | None = None

    @property
    def key(self) -> str:
        """The name of the cell in the state file."""
        return f"{self.dataset}/{self.label}/{self.seed}"

    @property
    def is_planned(self) -> bool:
        """Whether a run must be started, or resumed, to fill the cell."""
        return self.status == "missing" and bool(self.merged)

    @property
    def is_sequential(self) -> bool:
        """Whether the model reads histories, see `RunResult.is_sequential`."""
        return is_sequential(self.model) if self.result is None else self.result.is_sequential

    @property
    def reads_text(self) -> bool:
        """Whether the model reads item text with a language model."""
        backbone = self.merged.get("backbone") if self.result is None else self.result.backbone
        return backbone is not None

    def arguments(self) -> list[str]:
        """Return the arguments of ``run`` that repeat the cell."""
        settings = {"model": self.model, "dataset": self.dataset, "seed": self.seed, **self.given}
        return [f"--{name}={write_value(value)}" for name, value in settings.items()]

    def command(self) -> str:
        """Return the command that repeats the cell."""
        return shlex.join(["recbole-llm", "run", *self.arguments()])
