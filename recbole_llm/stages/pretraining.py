"""Pre-training of a backbone on source data sets, before it is tuned on a target (ST2SI, 3.4.2 and Appendix B).

The sources are laid side by side as one data set with disjoint users and items (`recbole_llm.data.sources`), and the
backbone and one projection are trained on all of it as on any data set, with full tuning. Nothing is held out: the
sources are other catalogues than the target, and what is wanted is the backbone, at chosen epochs. The projection is
dropped.

A pre-training lies in ``<checkpoint_dir>/pretrain-<sources>-<hash>/``, whose hash is that of everything that shapes it:
settings, the backbone's weights, and the sources' files. So it is found again by whoever asks for the same, goes on
where it was interrupted, and its ``backbone-epoch-<n>/`` are ordinary backbones.
"""

import dataclasses
import hashlib
import json
import logging
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock
from recbole.utils import init_seed
from recbole.utils.argument_list import dataset_arguments

import recbole_llm
from recbole_llm.backbone.loading import fingerprint
from recbole_llm.backbone.pretrained import RECORD, read_record, release_device_memory, source_items
from recbole_llm.backbone.resolve import resolve
from recbole_llm.config.config import Config
from recbole_llm.data.build import create_dataset, data_preparation
from recbole_llm.data.sources import Source, item_keys, read_source, refuse_shared_items, write_union
from recbole_llm.errors import SettingError, require_whole
from recbole_llm.runs import checkpoint
from recbole_llm.runs import folder as run_folder
from recbole_llm.stages.pretraining_trainer import PretrainingTrainer, epoch_folder
from recbole_llm.utils.files import storage_errors, write_text
from recbole_llm.utils.hashing import content_hash
from recbole_llm.utils.interruption import noting_what_is_stored

# Settings of a run that are its pre-training's too: those that change the result (beside backbone), and those that do
# not. All others (learning rates, tuning, train_window, label_smoothing, ilp_dropout, weight_average, epochs, seed,
# evaluation) are the target's alone.
_SHAPING = (
    *("weights", "precision", "backbone_dropout", "query_token", "multi_query", "alignment", "alignment_instruction"),
    *("max_attribute_tokens", "MAX_ITEM_LIST_LENGTH", "max_sequence_tokens", "weight_decay", "warmup_steps"),
    *("lr_scheduler", "clip_grad_norm", "train_batch_size"),
)
_OTHERS = (
    *("gradient_checkpointing", "compile", "train_batch_tokens", "eval_batch_tokens", "reproducibility"),
    *("use_gpu", "gpu_id", "show_progress", "state", "checkpoint_dir", "resume_seconds"),
)
# How a source without a file in dataset_configs/ is read: as the target is.
_FORMAT = ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD", "field_separator", "encoding")


@dataclass(frozen=True)
class PretrainSettings:
    """The settings of a pre-training, checked.

    Attributes:
        datasets: the sources.
        epochs: how long.
        save_epochs: after which epochs the backbone is kept, ascending; a target takes the last.
        learning_rate: of backbone and projection; None for that of full tuning.
        seed: of the pre-training, the same for every seed of a target.

    Raises:
        SettingError: for a value that is not allowed.
    """

    datasets: list[str]
    epochs: int
    save_epochs: list[int]
    learning_rate: float | None
    seed: int

    def __post_init__(self) -> None:
        if not self.datasets:
            raise SettingError("pretrain_datasets names no data set: --pretrain_datasets=Food,Cell")
        twice = [name for name in self.datasets if self.datasets.count(name) > 1]
        if twice:
            raise SettingError(f"pretrain_datasets names '{twice[0]}' twice")
        for name, value, least in (("pretrain_epochs", self.epochs, 1), ("pretrain_seed", self.seed, 0)):
            require_whole(name, value, least)
        for epoch in self.save_epochs:
            if not isinstance(epoch, int) or isinstance(epoch, bool) or not 1 <= epoch <= self.epochs:
                raise SettingError(
                    f"pretrain_save_epochs={self.save_epochs} must be whole numbers from 1 to pretrain_epochs="
                    f"{self.epochs}"
                )
        rate = self.learning_rate
        if rate is not None and not (isinstance(rate, (int, float)) and rate > 0):
            raise SettingError(f"pretrain_learning_rate={rate} must be a number above 0")

    @classmethod
    def from_config(cls, config: Any) -> "PretrainSettings":
        """Read the settings of a run."""
        datasets, epochs, saved = config["pretrain_datasets"], config["pretrain_epochs"], config["pretrain_save_epochs"]
        if saved is None:
            saved = [epochs]
        saved = [saved] if isinstance(saved, (int, float, str)) else list(saved)
        if all(isinstance(epoch, int) for epoch in saved):
            saved = sorted(set(saved)) or [epochs]
        return cls(
            datasets=names_of(datasets),
            epochs=epochs,
            save_epochs=saved,
            learning_rate=config["pretrain_learning_rate"],
            seed=config["pretrain_seed"],
        )


def names_of(value: Any) -> list[str]:
    """Return the data sets that a value of `pretrain_datasets` names: a list, or text with commas."""
    names = value.split(",") if isinstance(value, str) else value or ()
    return [name for name in (str(name).strip() for name in names) if name]


def use_pretrained(config: Any, dataset: Any) -> None:
    """Pre-train if the settings of a run ask for it, and refuse a target that has items of a source.

    Sets `pretrained_backbone`. A backbone that was pre-trained here and is given by its folder is checked as well.

    Args:
        config: the settings of the run.
        dataset: its data set, the target.

    Raises:
        SettingError: for a value that is not allowed.
        DataError: if a source cannot be read, or shares items with the target.
    """
    if config["pretrain_datasets"] and not config["pretrained_backbone"]:
        folder = pretrain(config, dataset)
        config["pretrained_backbone"] = config.merged["pretrained_backbone"] = str(folder)
    backbone = str(config["pretrained_backbone"] or config["backbone"])
    if read_record(backbone) is not None:
        refuse_shared_items(dataset, source_items(backbone))


def pretrain(config: Any, target: Any = None) -> Path:
    """Pre-train as the settings of a run say, unless that was done before.

    Args:
        config: the settings of the run.
        target: its data set; None if there is none yet.

    Returns:
        The folder of the backbone after the last of `pretrain_save_epochs`.

    Raises:
        SettingError: for a value that is not allowed.
        DataError: if a source cannot be read, or shares items with the target.
        StorageError: if the folder cannot be written.
    """
    settings = PretrainSettings.from_config(config)
    if target is not None and target.dataset_name in settings.datasets:
        raise SettingError(f"pretrain_datasets names the target {target.dataset_name} itself: pre-train on others")
    sources = [_source_config(config, name) for name in settings.datasets]
    shape = _shape(config, settings, sources)
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:10]
    name = f"pretrain-{'+'.join(settings.datasets)[:80]}"
    folder = Path(config["checkpoint_dir"]) / f"{name}-{digest}"
    wanted = [epoch_folder(folder, epoch) for epoch in settings.save_epochs]
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire()

    def is_stored() -> bool:
        return (folder / checkpoint.RESUME).is_file() or any(folder.glob(f"*/{RECORD}"))

    with lock, noting_what_is_stored(folder, is_stored):
        if all((path / RECORD).is_file() for path in wanted):
            logging.getLogger().info("The pre-trained backbone %s is there already", wanted[-1])
        else:
            for left_over in folder.glob("data-*"):  # of a process that was killed
                shutil.rmtree(left_over, ignore_errors=True)
            write_text(folder / "settings.yaml", yaml.safe_dump(shape, allow_unicode=True))
            _train(config, settings, [read_source(source) for source in sources], target, folder, name)
            release_device_memory()
    return wanted[-1]


def _source_config(config: Any, name: str) -> Config:
    """Return the settings that the source `name` is read with: its own, and the text fields that the user asks for."""
    given = {"data_path": config.merged["data_path"], "items_without_text": config["items_without_text"]}
    given |= {key: config[key] for key in ("use_gpu", "gpu_id", "state", "checkpoint_dir")}
    if "item_text_fields" in config.given:
        given["item_text_fields"] = config["item_text_fields"]
    own = Config(config.model_class, name, config_dict=given)
    if not own.is_new_dataset:
        return own
    given |= {key: config.given[key] for key in _FORMAT if key in config.given}
    return Config(config.model_class, name, config_dict=given)


def _shape(config: Any, settings: PretrainSettings, sources: list[Config]) -> dict[str, Any]:
    """Return all that the weights of the pre-training depend on, as plain values."""
    read = (*dataset_arguments, "item_text_fields", "items_without_text", "encoding")
    data = {}
    for source in sources:
        files = [Path(source["data_path"]) / f"{source['dataset']}.{suffix}" for suffix in ("inter", "item")]
        data[source["dataset"]] = {
            "files": {file.name: content_hash(file) for file in files if file.is_file()},
            "settings": {key: source[key] for key in read},
        }
    own = dataclasses.asdict(settings)
    del own["save_epochs"]  # which epochs are kept changes none of them
    return run_folder.plain(
        {
            **own,
            "backbone": str(config["backbone"]),
            "backbone_weights": fingerprint(resolve(str(config["backbone"])).folder),
            "settings": {key: config[key] for key in _SHAPING},
            "data": data,
        }
    )


def _train(
    config: Any, settings: PretrainSettings, sources: list[Source], target: Any, folder: Path, name: str
) -> None:
    keys = {source.name: item_keys(source.texts) for source in sources}
    if target is not None:
        refuse_shared_items(target, keys)
    with tempfile.TemporaryDirectory(dir=folder, prefix="data-") as data:
        fields = write_union(sources, Path(data), name)
        union = _union_config(config, settings, Path(data), name, fields)
        union["run_folder"] = str(folder)
        init_seed(settings.seed, union["reproducibility"])
        dataset = create_dataset(union)
        logging.getLogger().info(dataset)
        train, _, _ = data_preparation(union, dataset)
        union["description"] = checkpoint.describe(union, dataset)
        init_seed(settings.seed, union["reproducibility"])
        model = union.model_class(union, train._dataset).to(union["device"])
    record = {
        "datasets": settings.datasets,
        "epochs": settings.epochs,
        "backbone": str(config["backbone"]),
        "users": dataset.user_num - 1,
        "items": dataset.item_num - 1,
        "interactions": sum(len(source.items) for source in sources),
        "version": recbole_llm.__version__,
    }
    _fit(PretrainingTrainer(union, model, settings.save_epochs, record, keys), settings, train, union["show_progress"])


def _union_config(config: Any, settings: PretrainSettings, data: Path, name: str, fields: list[str]) -> Config:
    shared = {key: config.merged[key] for key in (*_SHAPING, *_OTHERS) if key in config.merged}
    return Config(
        config.model_class,
        name,
        config_dict={
            **shared,
            "backbone": config["backbone"],
            "data_path": str(data),
            "item_text_fields": fields,
            "eval_args": {"split": {"RS": [1, 0, 0]}, "order": "TO", "group_by": "none", "mode": "full"},
            "epochs": settings.epochs,
            "learning_rate": settings.learning_rate,
            "seed": settings.seed,
            "tuning": "full",
        },
    )


def _fit(trainer: PretrainingTrainer, settings: PretrainSettings, train: Any, show_progress: bool) -> None:
    state = trainer.run_folder / checkpoint.RESUME
    if state.exists():
        done = checkpoint.load_resume(state, trainer.description)["epoch"]
        missed = [e for e in settings.save_epochs if e <= done and not epoch_folder(trainer.run_folder, e).exists()]
        if not missed:  # else an epoch is wanted now that the interrupted training did not keep
            trainer.resume_checkpoint(state)
    trainer.fit(train, None, show_progress=show_progress)
    state.unlink(missing_ok=True)
