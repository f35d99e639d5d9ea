"""S3Rec in one command: its own pre-training first, then what is compared with other models.

RecBole's S3Rec (Zhou et al., CIKM 2020) needs two runs, the second with the path of the first. With ``train_stage:
both``, the default here, a run pre-trains in ``<checkpoint_dir>/pretrain-S3Rec-<dataset>-<hash>/``, whose hash is that
of everything that shapes the weights: settings and data files. So it is found again by every run that asks for the
same, and the run itself is stored as what it then is: a fine-tuning that starts there. ``train_stage: pretrain`` and
``finetune`` are RecBole's own.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import recbole
import torch
import yaml
from filelock import FileLock
from recbole.utils import init_seed
from recbole.utils.argument_list import dataset_arguments
from torch import Tensor

from recbole_llm.data.build import file_hashes
from recbole_llm.errors import require_one_of
from recbole_llm.runs import checkpoint
from recbole_llm.runs import folder as run_folder
from recbole_llm.utils.files import read_yaml, storage_errors, write_text

_STAGES = ("both", "pretrain", "finetune")
# What shapes the pre-trained weights, beside the model's own settings and the data.
_TRAINING = (
    *("seed", "reproducibility", "learner", "learning_rate", "weight_decay", "clip_grad_norm", "train_batch_size"),
    *("shuffle", "transform", "eval_args", "item_text_fields", "items_without_text", "encoding"),
)
# The model's own settings that do not: which run starts where, how often it is stored, the loss of the fine-tuning.
_NOT_SHAPING = ("train_stage", "pre_model_path", "save_step", "loss_type")


def repair(model_class: Any) -> None:
    """Give RecBole's S3Rec its two stages in one run, and a quick way to make its pre-training data."""
    model_class.before_build = staticmethod(pretrain_first)
    model_class.reconstruct_pretrain_data = _with_attribute_table(model_class.reconstruct_pretrain_data)


def pretrain_first(config: Any, dataset: Any) -> None:
    """Pre-train if `train_stage` is both, unless that was done before; the run then goes on as a fine-tuning.

    Sets `train_stage` and `pre_model_path`.

    Args:
        config: the settings of the run.
        dataset: its data set.

    Raises:
        SettingError: for an unknown `train_stage`.
        StorageError: if the folder cannot be written.
    """
    stage = config["train_stage"]
    require_one_of("train_stage", stage, _STAGES)
    if stage == "both":
        start = str(config["pre_model_path"] or _pretrained(config))
        for settings in (config, config.merged):
            settings["train_stage"], settings["pre_model_path"] = "finetune", start
    elif stage == "finetune" and not Path(config["pre_model_path"]).exists():
        own = Path(config["run_folder"] or "")
        if config["run_folder"] and (own / run_folder.RESULT).is_file():
            config["pre_model_path"] = str(own)  # a finished run is loaded without what it once started from


def _pretrained(config: Any) -> Path:
    """Return the folder of the pre-training that a run asks for, after making it if it is not there."""
    shape = _shape(config)
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:10]
    folder = Path(config["checkpoint_dir"]) / f"pretrain-S3Rec-{config['dataset']}-{digest}"
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire()
    with lock:
        if (folder / checkpoint.WEIGHTS).is_file():
            logging.getLogger().info("The pre-training %s is there already", folder)
        else:
            logging.getLogger().info("S3Rec is pre-trained first, in %s", folder)
            write_text(folder / "settings.yaml", yaml.safe_dump(shape, allow_unicode=True))
            _pretrain(config, folder)
    return folder


def _shape(config: Any) -> dict[str, Any]:
    """Return all that the pre-trained weights depend on, as plain values."""
    own = read_yaml(Path(recbole.__file__).parent / "properties" / "model" / "S3Rec.yaml").keys() - set(_NOT_SHAPING)
    names = sorted({*own, *_TRAINING, *dataset_arguments})
    return run_folder.plain(
        {
            "files": file_hashes(config),
            "settings": {name: config[name] for name in names},
        }
    )


def _pretrain(config: Any, folder: Path) -> None:
    from recbole_llm.config.config import Config
    from recbole_llm.quick_start import run as quick_start
    from recbole_llm.trainer.choose import trainer_class

    # The weights are stored once, at the end: weights that are there are those of a finished pre-training.
    first = Config(
        config_dict={**config.merged, "train_stage": "pretrain", "save_step": int(config["pretrain_epochs"]) + 1}
    )
    first["run_folder"] = str(folder)
    init_seed(first["seed"], first["reproducibility"])
    parts = quick_start.build(first, test=config["reads_test"] is not False)
    trainer = trainer_class(first)(first, parts.model)
    trainer.fit(parts.train, show_progress=first["show_progress"])


def _with_attribute_table(reconstruct: Callable[..., Any]) -> Callable[..., Any]:
    """Return `reconstruct_pretrain_data` with the attributes of all items in one table.

    Repairs `recbole/model/sequential_recommender/s3rec.py:295`, which writes a Python list with an entry for every
    attribute value of the catalogue at every position of every row: 95 million numbers a batch where items have 900
    categories. Its random draws stay what they are.
    """

    def reconstructed(self: Any, item_seq: Tensor, item_seq_len: Tensor) -> tuple[Tensor, ...]:
        features, number = self.item_feat, self.n_features
        # RecBole's own code does the rest, for a catalogue with one attribute that no item has.
        self.item_feat, self.n_features = {self.FEATURE_FIELD: torch.zeros(self.n_items, 1, dtype=torch.long)}, 1
        try:
            _, *others = reconstruct(self, item_seq, item_seq_len)
        finally:
            self.item_feat, self.n_features = features, number
        # Its rows end at the last position.
        width = self.max_seq_length
        source = item_seq_len[:, None] - width + torch.arange(width, device=item_seq.device)
        items = item_seq.gather(1, source.clamp(min=0)) * (source >= 0)
        table = attribute_table(features[self.FEATURE_FIELD], number)
        return table.to(item_seq.device)[items], *others

    return reconstructed


def attribute_table(values: Tensor, number: int) -> Tensor:
    """Return a table, bool [items, number]: whether an item has an attribute.

    Args:
        values: ids of each item's attributes, int64 [items] or [items, most], 0 for none.
        number: of attributes, without the padding id; attribute id n is column n - 1.
    """
    values = values if values.dim() == 2 else values[:, None]
    table = torch.zeros(len(values), number + 1, dtype=torch.bool)
    return table.scatter_(1, values.cpu(), True)[:, 1:]
