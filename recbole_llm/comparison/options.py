"""What is compared and how it is shown: the options of a comparison, checked."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from recbole_llm.comparison.tables import ROWS
from recbole_llm.errors import SettingError, nearest, require_one_of

FORMATS = ("markdown", "latex", "csv")
# Under which answer to `repeatable` the numbers of a table are; None: each run's own.
PROTOCOLS: dict[str, tuple[bool | None, ...]] = {
    "own": (None,),
    "kept": (True,),
    "left_out": (False,),
    "both": (False, True),
}


@dataclass
class Options:
    """What is compared, and how it is shown.

    Attributes:
        models: model names, each alone or as ``label:model``; a label of `model_settings` names the model given there.
            Without `dataset`, labels of `runs`: the table has these rows in this order, and nothing is started.
        dataset: dataset names.
        seeds: how many, from the setting `seed` on, or a list of them.
        config_files: YAML files with settings of all models.
        settings: settings of all models; each goes to those that have it, and overrides the files and `model_settings`.
        model_settings: settings of each label, or a YAML file with them; ``model`` names a label's model.
        runs: finished runs, see `finished.find_runs`; they take the place of the cells that they are.
        out: the folder; None: ``comparisons/<datasets>-<hash of what is compared>``.
        show: metrics of the table, and other columns: ``seeds``, ``interval.ndcg@10`` over users, and what
            `result.json` has under a name, a dot leading into a mapping: ``epochs``, ``valid.ndcg@10``,
            ``seconds.fit``; empty: NDCG and Recall at the largest cut-off, and MRR.
        ours: labels whose improvement is shown; empty: models that read text.
        baselines: labels that `ours` are measured against; empty: all others.
        papers: whether the papers' printed numbers stand beside ours.
        significance: whether there are tests and intervals over users and metrics by group; without, an improvement is
            shown for models that `ours` names alone.
        protocols: ``own``: all runs of a dataset have ranked in one way (`repeatable`), which the caption names;
            ``kept``: items that a user met before are ranked with the others; ``left_out``: they are not; ``both``: a
            table of each. Every run has the numbers of both, but for those of version 0.2.
        rows: ``models`` or ``metrics``.
        format: which table is printed: ``markdown``, ``latex`` or ``csv``; all are written.

    Raises:
        SettingError: for a value that is not possible.
    """

    models: Sequence[str] = ()
    dataset: Sequence[str] = ()
    seeds: int | Sequence[int] = 1
    config_files: Sequence[str | Path] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    model_settings: str | Path | dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: Sequence[str] = ()
    out: str | Path | None = None
    show: Sequence[str] = ()
    ours: Sequence[str] = ()
    baselines: Sequence[str] = ()
    papers: bool = False
    significance: bool = True
    protocols: str = "own"
    rows: str = "models"
    format: str = "markdown"

    def __post_init__(self) -> None:
        for name in ("models", "dataset", "runs", "show", "ours", "baselines"):
            value = getattr(self, name)
            setattr(self, name, names_of(value) if isinstance(value, str) else [str(entry) for entry in value])
        if not self.models and not self.runs:
            raise SettingError("nothing is named to compare: add --models=ST2SI,SASRec or --runs='saved/*'")
        if self.models and not self.dataset and not self.runs:
            raise SettingError("no dataset is named: add --dataset=ml-100k, or several separated by commas")
        if isinstance(self.seeds, bool) or not (isinstance(self.seeds, int) and self.seeds >= 1):
            self.seeds = _seed_list(self.seeds)
        for name, allowed in (("rows", ROWS), ("format", FORMATS), ("protocols", tuple(PROTOCOLS))):
            require_one_of(name, getattr(self, name), allowed)
        for name, verb in (("model", "--models"), ("dataset", "--dataset")):
            if name in self.settings:
                raise SettingError(f"compare takes several: name them with {verb}, not with {name}")
        if not self.plans:
            self._require_no_settings()
        self.show = [metric.lower() for metric in self.show]

    @property
    def plans(self) -> bool:
        """Whether runs may be started."""
        return bool(self.models and self.dataset)

    def _require_no_settings(self) -> None:
        """Finished runs have their settings: any other is misspelt, or would be passed over in silence."""
        for name in sorted(self.settings.keys() - {"data_path"}):
            options = [option.name for option in fields(self)]
            raise SettingError(
                f"--{name} is no option of a comparison of finished runs{nearest(name, options)} Settings of runs need "
                f"--models and --dataset"
            )
        for name in ("dataset", "model_settings", "config_files"):
            if getattr(self, name):
                raise SettingError(f"--{name} is for runs that are started, which --models names; --runs are finished")


def _seed_list(value: Any) -> list[int]:
    seeds = list(value) if isinstance(value, (list, tuple)) else []
    if not seeds or any(not isinstance(seed, int) or isinstance(seed, bool) or seed < 0 for seed in seeds):
        raise SettingError(f"seeds={value} must be how many (3), or a list of whole numbers from 0 ([1,2,3])")
    return list(dict.fromkeys(seeds))


def names_of(text: str) -> list[str]:
    """Return the names in a list that is separated by commas, in brackets or not."""
    return [name.strip().strip("'\"") for name in text.strip().strip("[]").split(",") if name.strip()]
