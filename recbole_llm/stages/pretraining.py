"""Pre-training on source datasets, before a target (ST2SI, 3.4.2 and Appendix B; ZESRec, UniSRec).

The sources are laid side by side as one dataset with disjoint users and items (`recbole_llm.data.sources`), and the
model is trained on all of it as on any dataset. Nothing is held out: the sources are other catalogues than the target,
and what is wanted are weights, at chosen epochs: the backbone alone, with full tuning (`PretrainedBackbone`; the
projection is dropped), or all weights that serve another catalogue (`PretrainedState`).

A pre-training lies in ``<checkpoint_dir>/pretrain-<sources>-<hash>/`` (a whole model's in
``pretrain-<model>-<sources>-<hash>/``), whose hash is that of everything that shapes it: settings, the backbone's
weights, and the sources' files. So it is found again by whoever asks for the same, and goes on where it was
interrupted. Its ``backbone-epoch-<n>/`` are ordinary backbones, its ``state-epoch-<n>/`` are for `pretrained_state`.
"""

import contextlib
import dataclasses
import logging
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole.utils import init_seed

import recbole_llm
from recbole_llm.backbone.loading import fingerprint
from recbole_llm.backbone.pretrained import RECORD, read_record, release_device_memory, source_items
from recbole_llm.backbone.resolve import resolve
from recbole_llm.config.config import Config
from recbole_llm.config.fingerprint import data_settings, hashed
from recbole_llm.config.given_dataset import given_dataset
from recbole_llm.config.roles import pretraining_settings
from recbole_llm.data.build import create_dataset, data_preparation
from recbole_llm.data.folder import ensure_files
from recbole_llm.data.sources import Source, item_keys, read_source, refuse_shared_items, write_union
from recbole_llm.errors import SettingError
from recbole_llm.model.needs import PretrainedBackbone, PretrainedState
from recbole_llm.model.pretrained_state import PretrainedWeights
from recbole_llm.runs import checkpoint, resume_parts
from recbole_llm.runs import folder as run_folder
from recbole_llm.runs.context import RunContext
from recbole_llm.stages.kept import Kept, kept_by
from recbole_llm.stages.pretraining_trainer import KeepingMixin
from recbole_llm.stages.runner import Runner
from recbole_llm.stages.store import Found, Supplied, find_or_make, write_shape
from recbole_llm.utils.collectives import object_from_first
from recbole_llm.utils.hashing import content_hash
from recbole_llm.utils.interruption import noting_what_is_stored
from recbole_llm.utils.processes import first, meet, world

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
            raise SettingError("pretrain_datasets names no dataset: --pretrain_datasets=Food,Cell")
        twice = [name for name in self.datasets if self.datasets.count(name) > 1]
        if twice:
            raise SettingError(f"pretrain_datasets names '{twice[0]}' twice")
        for epoch in self.save_epochs:
            if not 1 <= epoch <= self.epochs:
                raise SettingError(
                    f"pretrain_save_epochs={self.save_epochs} must be whole numbers from 1 to pretrain_epochs="
                    f"{self.epochs}"
                )

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
    """Return the datasets that a value of `pretrain_datasets` names: a list, or text with commas."""
    names = value.split(",") if isinstance(value, str) else value or ()
    return [name for name in (str(name).strip() for name in names) if name]


def fulfil(need: PretrainedBackbone, config: Any, dataset: Any, context: RunContext, runner: Runner) -> Supplied:
    """Return the backbone of a run, pre-trained if its settings ask for it, and the settings that the run stores.

    A target that has items of a source is refused, also for a backbone that was pre-trained here and is given by its
    folder.

    Args:
        need: the model's declaration.
        config: the settings of the run.
        dataset: its dataset.
        context: of the run.
        runner: of other runs; a pre-training is none.

    Raises:
        SettingError: for a value that is not allowed.
        DataError: if a source cannot be read, or shares items with the target.
        StorageError: if the folder cannot be written.
    """
    chosen, made = config["pretrained_backbone"], False
    if config["pretrain_datasets"] and not chosen:
        chosen, made = find_or_pretrain(config, dataset)
    backbone = str(chosen or config["backbone"])
    if read_record(backbone) is not None:
        refuse_shared_items(dataset, source_items(backbone))
    return Supplied(backbone, {"pretrained_backbone": backbone} if chosen else {}, made)


def fulfil_state(need: PretrainedState, config: Any, dataset: Any, context: RunContext, runner: Runner) -> Supplied:
    """Return the weights that a run starts from, if its settings ask for any, and the settings that the run stores.

    A finished run is loaded without them: its own weights are stored whole. A target that has items of a source is
    refused.

    Args:
        need: the model's declaration.
        config: the settings of the run.
        dataset: its dataset.
        context: of the run.
        runner: of other runs; a pre-training is none.

    Raises:
        SettingError: for a value that is not allowed.
        CheckpointError: if `pretrained_state` names no state that a pre-training stored.
        DataError: if a source cannot be read, or shares items with the target.
        StorageError: if the folder cannot be written.
    """
    chosen, made = config["pretrained_state"], False
    if config["pretrain_datasets"] and not chosen:
        chosen, made = find_or_pretrain(config, dataset)
    if not chosen:
        return Supplied(None)
    stored = {"pretrained_state": str(chosen)}
    finished = context.folder is not None and (context.folder / run_folder.RESULT).is_file()
    if finished and not (Path(chosen) / RECORD).is_file():
        return Supplied(None, stored)
    start = PretrainedWeights.read(Path(chosen))
    refuse_shared_items(dataset, source_items(chosen))
    return Supplied(start, stored, made)


def find_or_pretrain(config: Any, target: Any = None) -> Found:
    """Pre-train as the settings of a run say, unless that was done before.

    Args:
        config: the settings of the run.
        target: its dataset; None if there is none yet.

    Returns:
        The folder of what was kept after the last of `pretrain_save_epochs`, and whether it was made now.

    Raises:
        SettingError: for a value that is not allowed.
        DataError: if a source cannot be read, or shares items with the target.
        StorageError: if the folder cannot be written.
    """
    settings = PretrainSettings.from_config(config)
    sources = [source_config(config, name) for name in settings.datasets]
    settings = by_name(settings, sources)
    if target is not None and target.dataset_name in settings.datasets:
        raise SettingError(f"pretrain_datasets names the target {target.dataset_name} itself: pre-train on others")
    shaped_by = first(lambda: shape(config, settings, sources))
    kept = kept_by(config)
    name = folder_name(config, settings)

    def is_made(folder: Path) -> bool:
        return all((kept.folder(folder, epoch) / RECORD).is_file() for epoch in settings.save_epochs)

    def make(folder: Path) -> None:
        if world().is_first:
            write_shape(folder, shaped_by)
        with noting_what_is_stored(folder, lambda: _is_stored(folder)):
            _train(config, settings, kept, first(lambda: list(map(read_source, sources))), target, folder, name)
        release_device_memory()

    def leftovers(folder: Path) -> Iterable[Path]:
        return folder.glob("data-*")  # the epochs that are there are other runs' backbones

    found = find_or_make(Path(config["checkpoint_dir"]), name, shaped_by, is_made, make, leftovers)
    return Found(kept.folder(found.folder, settings.save_epochs[-1]), found.made)


def folder_name(config: Any, settings: PretrainSettings) -> str:
    """Return what the folder of a pre-training is called before its hash."""
    return f"pretrain-{kept_by(config).prefix}{'+'.join(settings.datasets)[:80]}"


def _is_stored(folder: Path) -> bool:
    return (folder / checkpoint.RESUME).is_file() or any(folder.glob(f"*/{RECORD}"))


def by_name(settings: PretrainSettings, sources: list[Config]) -> PretrainSettings:
    """Return the settings with the names of the sources in the place of their paths."""
    return dataclasses.replace(settings, datasets=[source["dataset"] for source in sources])


def source_config(config: Any, name: str) -> Config:
    """Return the settings that a source is read with: its own, and the text fields that the user asks for.

    Args:
        config: the settings of the run.
        name: of the source, or its folder or file; see `given_dataset`.
    """
    given = {"items_without_text": config["items_without_text"]}
    named = given_dataset(name)
    if named.folder is None and "data_path" not in named.settings():
        given["data_path"] = config.merged["data_path"]
    given |= {key: config[key] for key in ("use_gpu", "gpu_id", "state", "checkpoint_dir")}
    if "item_text_fields" in config.given:
        given["item_text_fields"] = config["item_text_fields"]
    own = Config(config.model_class, name, config_dict=given)
    if not own.is_new_dataset or own.named.file is not None:
        return own
    given |= {key: config.given[key] for key in _FORMAT if key in config.given}
    return Config(config.model_class, name, config_dict=given)


def _of_pretraining(config: Any) -> dict[str, Any]:
    """Return the settings of a run that shape its pre-training, beside the backbone.

    All others (learning rates, tuning, train_window, head_dropout, weight_average, epochs, seed, evaluation) are the
    target's alone.
    """
    return {name: config.merged[name] for name in pretraining_settings(str(config["model"]))}


def shape(config: Any, settings: PretrainSettings, sources: list[Config]) -> dict[str, Any]:
    """Return all that the weights of the pre-training depend on, as plain values."""
    model, data = str(config["model"]), {}
    for source in sources:
        files = [ensure_files(source) / f"{source['dataset']}.{suffix}" for suffix in ("inter", "item")]
        data[source["dataset"]] = {
            "files": {file.name: content_hash(file) for file in files if file.is_file()},
            "settings": hashed({key: source[key] for key in data_settings()}, model),
        }
    own = dataclasses.asdict(settings)
    del own["save_epochs"]  # which epochs are kept changes none of them
    return run_folder.plain(
        {
            **own,
            "backbone": str(config["backbone"]),
            "backbone_weights": fingerprint(resolve(str(config["backbone"])).folder),
            "settings": {**hashed(_of_pretraining(config), model), **kept_by(config).more_shape(config)},
            "data": data,
        }
    )


def _train(
    config: Any,
    settings: PretrainSettings,
    kept: Kept,
    sources: list[Source],
    target: Any,
    folder: Path,
    name: str,
) -> None:
    keys = {source.name: item_keys(source.texts) for source in sources}
    if target is not None:
        refuse_shared_items(target, keys)
    with _union_of(sources, folder, name) as (data, fields):
        union = _union_config(config, settings, kept, data, name, fields)
        init_seed(settings.seed, union["reproducibility"])
        dataset = create_dataset(union)
        logging.getLogger().info(dataset)
        train, _, _ = data_preparation(union, dataset)
        context = RunContext(folder, description=checkpoint.describe(union, dataset))
        init_seed(settings.seed, union["reproducibility"])
        model = first(lambda: kept.build(union, train._dataset))
    record = {
        "datasets": settings.datasets,
        "epochs": settings.epochs,
        "backbone": str(config["backbone"]),
        "users": dataset.user_num - 1,
        "items": dataset.item_num - 1,
        "interactions": sum(len(source.items) for source in sources),
        "version": recbole_llm.__version__,
    }

    def keep(epoch: int, more: dict[str, Any]) -> None:
        kept.save(kept.folder(folder, epoch), model, {**record, **more}, keys)

    trainer = kept.trainer_class(union)(union, model, context, settings.save_epochs, keep)
    _fit(trainer, settings, kept, train, union["show_progress"] and world().is_first)


@contextlib.contextmanager
def _union_of(sources: list[Source], folder: Path, name: str) -> Iterator[tuple[Path, list[str]]]:
    """Write the union of the sources into a folder that is there for the block, and give it and its text fields.

    Processes that share a pre-training read what the first one wrote.
    """
    with contextlib.ExitStack() as stack:
        found: tuple[str, list[str]] = "", []
        if world().is_first:
            data = stack.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix="data-"))
            found = data, write_union(sources, Path(data), name)
        data, fields = object_from_first(found)
        yield Path(data), fields
        meet()  # all have read it


def _union_config(
    config: Any, settings: PretrainSettings, kept: Kept, data: Path, name: str, fields: list[str]
) -> Config:
    others = pretraining_settings(str(config["model"]), shaping=False)
    shared = {key: config.merged[key] for key in (*others, "reproducibility") if key in config.merged}
    return Config(
        config.model_class,
        name,
        config_dict={
            **shared,
            **_of_pretraining(config),
            "backbone": config["backbone"],
            "data_path": str(data),
            "item_text_fields": fields,
            "eval_args": {"split": {"RS": [1, 0, 0]}, "order": "TO", "group_by": "none", "mode": "full"},
            "epochs": settings.epochs,
            "seed": settings.seed,
            **kept.settings(config, settings.learning_rate),
        },
    )


def _fit(trainer: KeepingMixin, settings: PretrainSettings, kept: Kept, train: Any, show_progress: bool) -> None:
    state = trainer.run_folder / checkpoint.RESUME
    if state.exists():
        done = checkpoint.load_resume(state, trainer.description)["epoch"]
        missed = [e for e in settings.save_epochs if e <= done and not kept.folder(trainer.run_folder, e).exists()]
        if not missed:  # else an epoch is wanted now that the interrupted training did not keep
            trainer.resume_checkpoint(state)
    trainer.fit(train, None, show_progress=show_progress)
    if world().is_first:
        resume_parts.remove(state)
