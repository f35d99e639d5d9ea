"""What a setting is. Every setting is declared once, in `config/settings/`; `config/declared.py` finds them by model.

From a declaration come the check of a value before anything is loaded, the page docs/settings.md, the files in
properties/ (`config/document.py`), and what the setting's role decides (`config/roles.py`).
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from recbole_llm.config.kinds import Kind


class Role(StrEnum):
    """What a setting is about; `config/roles.py` says what follows from it."""

    IDENTITY = "identity"  # which model on which dataset
    FORMAT = "format"  # how the files of a dataset are read: columns, separators, names of fields
    DATA = "data"  # which users, items and interactions are left
    PROTOCOL = "protocol"  # who is tested, on which target, among which items, at which cut-offs
    METRIC = "metric"  # what is computed of a ranking, and by what the best epoch is chosen
    INPUT = "input"  # what a model reads of a history, an item or an instruction
    TRAINING = "training"  # the size of a model, and how it is trained
    STAGE = "stage"  # what is trained or found before the run itself
    CHANCE = "chance"  # the seed: runs that differ in it alone are repetitions of one another
    PLACE = "place"  # where files lie, and what is shown while it runs
    MACHINE = "machine"  # how it is computed, without an influence on what is


class _Unset:
    """Marks a default that is RecBole's own."""

    def __repr__(self) -> str:
        return "RecBole's own"


FIRST_VERSION = "0.1.0"
RECBOLE = _Unset()  # the default is the one in RecBole's files


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        name: as users write it.
        kind: which values are possible.
        default: `RECBOLE` where RecBole's own files say it.
        role: what it is about.
        sentence: what it does, for users.
        shared: whether an ID model has the value of the run that it is trained for; None: as the role says.
        pretraining: whether a pre-training of this model reads it, too.
        text: whether only models that read item text with a language model read it.
        since: the version that had it first; `config/fingerprint.py` says what follows.
    """

    name: str
    kind: Kind
    default: Any
    role: Role
    sentence: str
    shared: bool | None = None
    pretraining: bool = False
    text: bool = False
    since: str = FIRST_VERSION


@dataclass(frozen=True)
class Section:
    """Settings that stand together in a file and on the page, under a heading and perhaps a remark."""

    title: str
    settings: tuple[Setting, ...]
    remark: str = ""
