"""A finished run's model inside another model: frozen, with the folder that it came from."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from recbole_llm.runs import checkpoint
from recbole_llm.runs import folder as run_folder
from recbole_llm.runs.result import RunResult
from recbole_llm.utils.files import replacing_folder

COPY = "id_model"  # the folder in a run that holds what loading its ID model takes


@dataclass(frozen=True)
class FrozenIdModel:
    """An ID model that is used and not trained.

    Attributes:
        module: the model, frozen, in eval mode, on the run's device.
        folder: of its run.
    """

    module: nn.Module
    folder: Path

    def test_metrics(self) -> dict[str, float] | None:
        """Return the ID model's own test metrics."""
        return RunResult.read(self.folder).test

    def copy_into(self, run: Path) -> None:
        """Put what loading the ID model takes into the folder of the host's run, which then needs no other folder.

        Raises:
            StorageError: if it cannot be written.
        """
        if self.folder.parent == run:
            return
        with replacing_folder(run / COPY) as temporary:
            for name in (run_folder.CONFIG, checkpoint.WEIGHTS, run_folder.RESULT):
                shutil.copyfile(self.folder / name, temporary / name)
            if (self.folder / COPY).is_dir():  # an IDLE-Adapter, which has an ID model of its own
                shutil.copytree(self.folder / COPY, temporary / COPY)
