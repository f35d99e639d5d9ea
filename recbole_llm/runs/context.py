"""What a run is, beside its settings: where it is stored, whether it may read test data, what its weights belong to."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class RunContext:
    """What code far from the start of a run has to know of it.

    Attributes:
        folder: where the run is stored; None for a model that is built and not stored.
        reads_test: whether the test part may be read: by this run, and by runs that it needs first.
        description: what identifies the model and the catalogue that the weights belong to, see `checkpoint.describe`;
            empty before the model is built.
    """

    folder: Path | None = None
    reads_test: bool = True
    description: dict[str, str] = field(default_factory=dict)
