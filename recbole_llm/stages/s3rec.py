"""S3Rec's own pre-training, before what is compared with other models.

RecBole's S3Rec (Zhou et al., CIKM 2020) needs two runs, the second with the path of the first. With ``train_stage:
both``, the default here, a run pre-trains in ``<checkpoint_dir>/pretrain-S3Rec-<dataset>-<hash>/``, whose hash is that
of everything that shapes the weights: settings and data files. So it is found again by every run that asks for the
same, and the run itself is stored as what it then is: a fine-tuning that starts there. ``train_stage: pretrain`` and
``finetune`` are RecBole's own.
"""

from pathlib import Path
from typing import Any

from recbole.utils import init_seed

from recbole_llm.config.config import Config
from recbole_llm.config.fingerprint import data_settings, hashed
from recbole_llm.config.roles import names_with_role, pretraining_settings
from recbole_llm.config.schema import Role
from recbole_llm.data.build import file_hashes
from recbole_llm.model.needs import OwnPretraining
from recbole_llm.runs import checkpoint
from recbole_llm.runs import folder as run_folder
from recbole_llm.runs.context import RunContext
from recbole_llm.stages.runner import Runner
from recbole_llm.stages.store import Found, Supplied, find_or_make, write_shape


def fulfil(need: OwnPretraining, config: Any, dataset: Any, context: RunContext, runner: Runner) -> Supplied:
    """Return the folder of the run whose weights training starts from, and the settings that the run stores.

    Args:
        need: the model's declaration.
        config: the settings of the run.
        dataset: its dataset.
        context: of the run.
        runner: builds what is pre-trained.

    Raises:
        StorageError: if the folder cannot be written.
    """
    stage = config["train_stage"]
    if stage == "pretrain":
        return Supplied(None)
    if stage == "both":
        given, made = config["pre_model_path"], False
        if not given:
            given, made = _pretrained(config, context, runner)
        return Supplied(str(given), {"train_stage": "finetune", "pre_model_path": str(given)}, made)
    own = context.folder
    if not Path(config["pre_model_path"]).exists() and own is not None and (own / run_folder.RESULT).is_file():
        return Supplied(str(own))  # a finished run is loaded without what it once started from
    return Supplied(str(config["pre_model_path"]))


def _pretrained(config: Any, context: RunContext, runner: Runner) -> Found:
    shaped_by = shape(config)

    def is_made(folder: Path) -> bool:
        # The weights are stored once, at the end: weights that are there are those of a finished pre-training.
        return (folder / checkpoint.WEIGHTS).is_file()

    def make(folder: Path) -> None:
        write_shape(folder, shaped_by)
        _pretrain(config, RunContext(folder, context.reads_test), runner)

    return find_or_make(Path(config["checkpoint_dir"]), f"pretrain-S3Rec-{config['dataset']}", shaped_by, is_made, make)


def shape(config: Any) -> dict[str, Any]:
    """Return all that the pre-trained weights depend on, as plain values."""
    names = {*pretraining_settings("S3Rec"), *names_with_role(Role.CHANCE), *data_settings(), "eval_args"}
    settings = hashed({name: config[name] for name in sorted(names)}, "S3Rec")
    return run_folder.plain({"files": file_hashes(config), "settings": settings})


def _pretrain(config: Any, context: RunContext, runner: Runner) -> None:
    only_at_the_end = int(config["pretrain_epochs"]) + 1
    first = Config(config_dict={**config.merged, "train_stage": "pretrain", "save_step": only_at_the_end})
    init_seed(first["seed"], first["reproducibility"])
    parts = runner.build(first, context)
    parts.trainer().fit(parts.train, show_progress=first["show_progress"])
