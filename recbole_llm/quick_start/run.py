"""Runs as functions: what the command line does, from Python."""

import functools
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from recbole.utils import init_logger, init_seed

from recbole_llm.config.config import Config, parse_command_line
from recbole_llm.data.build import create_dataset, data_preparation
from recbole_llm.errors import DataError, SettingError
from recbole_llm.evaluation import candidates
from recbole_llm.runs import checkpoint
from recbole_llm.runs import folder as run_folder
from recbole_llm.runs.ranks import write_ranks
from recbole_llm.stages import pretraining
from recbole_llm.trainer.choose import trainer_class
from recbole_llm.trainer.run_folder_trainer import best_epoch
from recbole_llm.utils.files import read_yaml, write_json
from recbole_llm.utils.interruption import noting_what_is_stored

if TYPE_CHECKING:
    from recbole_llm.inference.recommender import Recommender
    from recbole_llm.inference.users import UserRecommender

_WORTH_SAYING = 0.005  # seconds; less is no pre-training


@dataclass
class Parts:
    """A run's settings, data and model.

    Attributes:
        config: the settings.
        dataset: RecBole's data set, all interactions.
        train, valid, test: RecBole's loaders; valid and test are None where the split leaves nothing, and test where
            it was not asked for.
        model: the model, on its device.
        pretrain_seconds: how long the model's class took before it could be built: a pre-training.
    """

    config: Config
    dataset: Any
    train: Any
    valid: Any
    test: Any
    model: Any
    pretrain_seconds: float = 0.0

    @functools.cached_property
    def recommender(self) -> "Recommender":
        """Recommends from histories; see `recbole_llm.inference.recommender.Recommender`. Raises SettingError."""
        from recbole_llm.inference.recommender import Recommender

        return Recommender(self.model, self.train._dataset)

    @functools.cached_property
    def user_recommender(self) -> "UserRecommender":
        """Recommends to users of the data set; see `recbole_llm.inference.users.UserRecommender`."""
        from recbole_llm.inference.users import UserRecommender

        return UserRecommender(self)

    def recommend(self, histories: Any, k: int = 10, exclude_seen: bool = False, users: Any = None) -> Any:
        """Return the best `k` items after a history, or after each of a list; see `Recommender.recommend`."""
        return self.recommender.recommend(histories, k, exclude_seen, users)

    def recommend_to(self, users: Any, k: int = 10, exclude_seen: bool = False) -> Any:
        """Return the best `k` items for a user of the data set, or for each; see `UserRecommender.recommend`."""
        return self.user_recommender.recommend(users, k, exclude_seen)


def run(
    model: str | type | None = None,
    dataset: str | None = None,
    config_files: Sequence[str | Path] = (),
    settings: dict[str, Any] | None = None,
    command_line: Sequence[str] = (),
    resume: str | Path | None = None,
    folder: str | Path | None = None,
) -> dict[str, Any]:
    """Train a model, evaluate its best epoch and store the run.

    Args:
        model: a model of this package or of RecBole, by name, or a model class.
        dataset: a data set name.
        config_files: YAML files with settings.
        settings: settings by name; they override the files.
        command_line: ``--name=value`` settings; they override all others.
        resume: the folder of an interrupted run, to go on with; its own settings are then the default.
        folder: where to store the run; None for a new folder in `checkpoint_dir`.

    Returns:
        What `result.json` holds, and under "path" where that file is.

    Raises:
        RecBoleLLMError: one of its kinds, whose message says what to do.
    """
    started = time.monotonic()
    if resume is not None:
        kept, stored = run_folder.open_unfinished(resume)
        settings = {**stored, **(settings or {})}
    config = Config(model, dataset, config_files, settings, command_line)
    if resume is None:
        kept = run_folder.create(Path(config["checkpoint_dir"]), config.merged, folder)
    folder = kept
    with noting_what_is_stored(folder, (folder / checkpoint.RESUME).is_file):
        try:
            return _train_and_evaluate(config, folder, started, resume)
        except KeyboardInterrupt:
            if resume is None and not (folder / checkpoint.RESUME).is_file():
                shutil.rmtree(folder, ignore_errors=True)  # there is nothing to resume from
            raise


def _train_and_evaluate(config: Config, folder: Path, started: float, resume: str | Path | None) -> dict[str, Any]:
    _begin(config, folder)
    try:
        parts, trainer = _parts_and_trainer(config, folder)
        valid_ranking = candidates.candidate_ranking(config, parts.valid, [parts.train])
        test_ranking = candidates.candidate_ranking(config, parts.test, [parts.train, parts.valid])
    except BaseException:
        if resume is None:
            shutil.rmtree(folder, ignore_errors=True)  # nothing happened that one could go on with
        raise
    _precompute_and_resume(trainer, config, folder, parts.valid, parts.test)
    prepared = time.monotonic()

    trainer.fit(parts.train, parts.valid, show_progress=config["show_progress"])
    fitted, fit_seconds = time.monotonic(), trainer.fit_seconds()

    trainer.eval_collector.candidates = test_ranking
    test = trainer.evaluate(parts.test, load_best_model=True, show_progress=config["show_progress"])
    if test is not None and trainer.eval_collector.has_ranks():
        write_ranks(folder / "ranks-test.tsv.gz", parts.dataset, *trainer.eval_collector.collected())
    validated = parts.valid is not None and trainer.best_valid_result is not None
    if validated:
        trainer.eval_collector.candidates = valid_ranking
        trainer.evaluate(parts.valid, load_best_model=False)
        if trainer.eval_collector.has_ranks():
            write_ranks(folder / "ranks-valid.tsv.gz", parts.dataset, *trainer.eval_collector.collected())
    evaluated = time.monotonic()
    _save_extras(folder, parts)

    seconds = {
        **({"pretrain": parts.pretrain_seconds} if parts.pretrain_seconds >= _WORTH_SAYING else {}),
        "prepare": prepared - started - parts.pretrain_seconds,
        "fit": fit_seconds,
        "evaluate": evaluated - fitted,
    }
    result = _result(parts, trainer, test, seconds)
    result.update(candidates.results(test_ranking, valid_ranking if validated else None))
    write_json(folder / run_folder.RESULT, result)
    (folder / checkpoint.RESUME).unlink(missing_ok=True)  # the run is finished: nothing is left to go on with
    return {**result, "path": str(folder / run_folder.RESULT)}


def fit(config: Config, folder: Path, callback: Callable[[int, float], None] | None = None) -> dict[str, Any]:
    """Train a model as `run` does, and choose its best epoch on validation; the test part is neither read nor needed.

    What is left in `folder` is a run whose training is finished: `run` with ``resume=folder`` evaluates its best epoch
    on the test part and stores `result.json`.

    Args:
        config: the settings.
        folder: where the run is stored; made if it is missing.
            A training that was interrupted there goes on.
        callback: called after every evaluated epoch with its number and its validation metric; what it raises ends the
            training.

    Returns:
        "score" (the best `valid_metric`), "valid" (all metrics of that epoch), "epochs", "best_epoch", "history" and
        "seconds".

    Raises:
        DataError: if the split leaves no validation part, or the training evaluates none.
        RecBoleLLMError: one of its other kinds, whose message says what to do.
    """
    started = time.monotonic()
    run_folder.write_settings(folder, config.merged)
    _begin(config, folder)
    parts, trainer = _parts_and_trainer(config, folder, test=False)
    if parts.valid is None:
        raise DataError(f"no user of {config['dataset']} has a validation target: there is nothing to choose by")
    _precompute_and_resume(trainer, config, folder, parts.valid)
    trainer.fit(parts.train, parts.valid, show_progress=config["show_progress"], callback_fn=callback)
    if trainer.best_valid_result is None:
        raise DataError(f"no epoch of {config['model']} was evaluated on validation: raise epochs, lower eval_step")
    trainer.store_finished()
    return {
        "score": float(trainer.best_valid_score),
        "valid": _numbers(trainer.best_valid_result),
        "epochs": trainer.epochs_done,
        "best_epoch": best_epoch(trainer.history, config["valid_metric"].lower(), config["valid_metric_bigger"]),
        "history": trainer.history,
        "seconds": round(time.monotonic() - started, 2),
    }


def _begin(config: Config, folder: Path) -> None:
    config["run_folder"] = str(folder)
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    logging.getLogger().info(config)


def _parts_and_trainer(config: Config, folder: Path, test: bool = True) -> tuple[Parts, Any]:
    parts = build(config, test)
    run_folder.write_settings(folder, config.merged)  # the model may have added to them
    if hasattr(parts.model, "before_training") and not (folder / checkpoint.RESUME).exists():
        parts.model.before_training(parts.dataset)
    return parts, trainer_class(config)(config, parts.model)


def _precompute_and_resume(trainer: Any, config: Config, folder: Path, *evaluated: Any) -> None:
    """Compute what training only reads, then go on from the state in `folder`, if there is one.

    In this order: what IDLE-Adapter aligns with are the states of its language model before any of it was trained.
    """
    state = folder / checkpoint.RESUME
    if hasattr(trainer, "precompute"):
        trainer.finished = checkpoint.is_finished(state)
        trainer.precompute(*evaluated, show_progress=config["show_progress"])
    if state.exists():
        trainer.resume_checkpoint(state)


def build(config: Config, test: bool = True) -> Parts:
    """Make data set, loaders and model of a run, with RecBole's own order of seeds.

    Args:
        config: the settings.
        test: False leaves the test part alone, see `data_preparation`; a model that another one starts from
            (`before_build`) reads this as ``config["reads_test"]``.
    """
    config["reads_test"] = test
    dataset = create_dataset(config)
    logging.getLogger().info(dataset)
    if max(config["topk"]) >= dataset.item_num:
        raise SettingError(
            f"topk={config['topk']} is more than the {dataset.item_num - 1} items of {config['dataset']}"
        )
    train, valid, tested = data_preparation(config, dataset, test)
    if test and tested is None:
        raise DataError(
            f"no user of {config['dataset']} has a test target: leave-one-out needs histories of 3 interactions or more"
        )
    before = time.monotonic()
    if hasattr(config.model_class, "before_build"):
        config.model_class.before_build(config, dataset)
    pretrain_seconds = time.monotonic() - before
    init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
    model = config.model_class(config, train._dataset).to(config["device"])
    logging.getLogger().info(model)
    config["description"] = checkpoint.describe(config, dataset, model)
    return Parts(config, dataset, train, valid, tested, model, pretrain_seconds)


def pretrain(
    model: str | type = "ST2SI",
    config_files: Sequence[str | Path] = (),
    settings: dict[str, Any] | None = None,
    command_line: Sequence[str] = (),
) -> Path:
    """Pre-train a backbone on the data sets of `pretrain_datasets`, without a target; see `stages.pretraining`.

    Args:
        model: a model that is pre-trained in this way.
        config_files: YAML files with settings.
        settings: settings by name; they override the files.
        command_line: ``--name=value`` settings; they override all others.

    Returns:
        The folder of the backbone, for the setting `backbone`.

    Raises:
        RecBoleLLMError: one of its kinds, whose message says what to do.
    """
    given = {**{k: v for file in config_files for k, v in read_yaml(file).items()}, **(settings or {})}
    given |= parse_command_line(command_line)
    # A Config needs a data set; the first source stands for the target that there is not.
    sources = pretraining.names_of(given.get("pretrain_datasets"))
    if not sources:
        raise SettingError("pretrain_datasets names no data set: --pretrain_datasets=Food,Cell")
    config = Config(given.get("model", model), sources[0], config_dict=given)
    init_logger(config)
    return pretraining.pretrain(config)


def load(run: str | Path, settings: dict[str, Any] | None = None, test: bool = True) -> Parts:
    """Load a finished run: its data, and its model with the best weights, in eval mode.

    Args:
        run: the folder of the run, or its `result.json`.
        settings: settings that differ here, such as `data_path`.
        test: False leaves the test part alone.

    Raises:
        CheckpointError: if the run is broken, or its weights belong to another catalogue.
    """
    folder, stored = run_folder.open_existing(run)
    config = Config(config_dict={**stored, **(settings or {})})
    config["run_folder"] = str(folder)
    init_seed(config["seed"], config["reproducibility"])
    parts = build(config, test)
    checkpoint.load_weights(folder / checkpoint.WEIGHTS, parts.model, config["description"])
    parts.model.eval()
    return parts


def _save_extras(folder: Path, parts: Parts) -> None:
    if hasattr(parts.model, "save_extras"):
        parts.model.save_extras(folder, parts.dataset)


def _result(parts: Parts, trainer: Any, test: Any, seconds: dict[str, float]) -> dict[str, Any]:
    config = parts.config
    metric = config["valid_metric"].lower()
    return {
        "model": config["model"],
        "dataset": config["dataset"],
        "backbone": config["backbone"],
        "tuning": config["tuning"],
        "seed": config["seed"],
        "valid": _numbers(trainer.best_valid_result),
        "test": _numbers(test),
        "epochs": trainer.epochs_done,
        "best_epoch": best_epoch(trainer.history, metric, config["valid_metric_bigger"]),
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "parameters": run_folder.parameter_counts(parts.model),
        **run_folder.peak_memory_bytes(),
        "device": _device_name(config["device"]),
        "counts": {
            "users": parts.dataset.user_num - 1,
            "items": parts.dataset.item_num - 1,
            "train": len(parts.train._dataset),
            "valid": 0 if parts.valid is None else len(parts.valid._dataset),
            "test": len(parts.test._dataset),
        },
        **(parts.model.extra_results() if hasattr(parts.model, "extra_results") else {}),
        "history": trainer.history,
        "settings": run_folder.plain(config.merged),
        "commit": run_folder.git_commit(),
    }


def _numbers(result: Any) -> dict[str, float] | None:
    return None if result is None else {name: float(value) for name, value in result.items()}


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
