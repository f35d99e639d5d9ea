"""Which trainer a run has."""

from typing import Any

from recbole.utils import get_trainer as recbole_trainer

from recbole_llm.config.hooks import hooks_of_class
from recbole_llm.trainer.one_pass_trainer import OnePassTrainer
from recbole_llm.trainer.run_folder_trainer import with_run_folder


def trainer_class(config: Any) -> type:
    """Return the trainer class of a run: the model's `trainer_class`, else RecBole's with our checkpoints in front.

    With `train_positions` other than last it is `OnePassTrainer`.
    """
    if config["train_positions"] != "last":
        return with_run_folder(OnePassTrainer)
    own = hooks_of_class(config.model_class).trainer_class
    base = own if own is not None else recbole_trainer(config["MODEL_TYPE"], config["model"])
    return with_run_folder(base)
