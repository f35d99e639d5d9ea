"""Runs as functions: what the command line does, from Python."""

import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from recbole.utils import init_logger, init_seed

from recbole_llm import pretraining, registry, run_folder
from recbole_llm.config import Config, parse_command_line
from recbole_llm.data.preparation import create_dataset, data_preparation
from recbole_llm.errors import DataError, SettingError
from recbole_llm.evaluation import candidates
from recbole_llm.evaluation.ranks import write_ranks
from recbole_llm.files import read_yaml, write_json
from recbole_llm.trainer import checkpoint
from recbole_llm.trainer.trainer import best_epoch


@dataclass
class Parts:
    """A run's settings, data and model.

    Attributes:
        config: the settings.
        dataset: RecBole's data set, all interactions.
        train, valid, test: RecBole's loaders; valid and test are None where the split leaves nothing.
        model: the model, on its device.
        pretrain_seconds: how long the model's class took before it could be built: the pre-training of a backbone.
    """

    config: Config
    dataset: Any
    train: Any
    valid: Any
    test: Any
    model: Any
    pretrain_seconds: float = 0.0


def run(
    model: str | type | None = None,
    dataset: str | None = None,
    config_files: Sequence[str | Path] = (),
    settings: dict[str, Any] | None = None,
    command_line: Sequence[str] = (),
    resume: str | Path | None = None,
) -> dict[str, Any]:
    """Train a model, evaluate its best epoch and store the run.

    Args:
        model: a model of this package or of RecBole, by name, or a model class.
        dataset: a data set name.
        config_files: YAML files with settings.
        settings: settings by name; they override the files.
        command_line: ``--name=value`` settings; they override all others.
        resume: the folder of an interrupted run, to go on with; its own settings are then the default.

    Returns:
        What `result.json` holds, and under "path" where that file is.

    Raises:
        RecBoleLLMError: one of its kinds, whose message says what to do.
    """
    started = time.monotonic()
    if resume is not None:
        folder, stored = run_folder.open_unfinished(resume)
        settings = {**stored, **(settings or {})}
    config = Config(model, dataset, config_files, settings, command_line)
    if resume is None:
        folder = run_folder.create(Path(config["checkpoint_dir"]), config.merged)
    config["run_folder"] = str(folder)
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    logging.getLogger().info(config)

    try:
        parts = build(config)
        valid_ranking = candidates.candidate_ranking(config, parts.valid, [parts.train])
        test_ranking = candidates.candidate_ranking(config, parts.test, [parts.train, parts.valid])
        run_folder.write_settings(folder, config.merged)  # the model may have added to them
        trainer = registry.trainer_class(config)(config, parts.model)
    except BaseException:
        if resume is None:
            shutil.rmtree(folder, ignore_errors=True)  # nothing happened that one could go on with
        raise
    if resume is not None and (folder / checkpoint.RESUME).exists():
        trainer.resume_checkpoint(folder / checkpoint.RESUME)
    if hasattr(trainer, "precompute"):
        trainer.precompute(parts.valid, parts.test, show_progress=config["show_progress"])
    prepared = time.monotonic()

    trainer.fit(parts.train, parts.valid, show_progress=config["show_progress"])
    fitted = time.monotonic()

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
        **({"pretrain": parts.pretrain_seconds} if config["pretrain_datasets"] else {}),
        "prepare": prepared - started - parts.pretrain_seconds,
        "fit": trainer.fit_seconds(),
        "evaluate": evaluated - fitted,
    }
    result = _result(parts, trainer, test, seconds)
    result.update(candidates.results(test_ranking, valid_ranking if validated else None))
    write_json(folder / run_folder.RESULT, result)
    (folder / checkpoint.RESUME).unlink(missing_ok=True)  # the run is finished: nothing is left to go on with
    return {**result, "path": str(folder / run_folder.RESULT)}


def build(config: Config) -> Parts:
    """Make data set, loaders and model of a run, with RecBole's own order of seeds."""
    dataset = create_dataset(config)
    logging.getLogger().info(dataset)
    if max(config["topk"]) >= dataset.item_num:
        raise SettingError(
            f"topk={config['topk']} is more than the {dataset.item_num - 1} items of {config['dataset']}"
        )
    train, valid, test = data_preparation(config, dataset)
    if test is None:
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
    config["description"] = checkpoint.describe(config, dataset)
    return Parts(config, dataset, train, valid, test, model, pretrain_seconds)


def pretrain(
    model: str | type = "ST2SI",
    config_files: Sequence[str | Path] = (),
    settings: dict[str, Any] | None = None,
    command_line: Sequence[str] = (),
) -> Path:
    """Pre-train a backbone on the data sets of `pretrain_datasets`, without a target; see `recbole_llm.pretraining`.

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


def compare(**options: Any) -> dict[str, Any]:
    """Compare models side by side: what the verb ``compare`` does, from Python.

    Args:
        options: see `recbole_llm.compare.Options`, such as
            ``models=["ST2SI", "SASRec"], dataset=["ml-100k"], seeds=3, settings={"epochs": 10}``.

    Returns:
        What `comparison.json` holds, and under "path" where that file is.

    Raises:
        RecBoleLLMError: one of its kinds, whose message says what to do.
    """
    from recbole_llm import compare as comparing

    return comparing.compare(comparing.Options(**options))


def load(run: str | Path, settings: dict[str, Any] | None = None) -> Parts:
    """Load a finished run: its data, and its model with the best weights, in eval mode.

    Args:
        run: the folder of the run, or its `result.json`.
        settings: settings that differ here, such as `data_path`.

    Raises:
        CheckpointError: if the run is broken, or its weights belong to another catalogue.
    """
    folder, stored = run_folder.open_existing(run)
    config = Config(config_dict={**stored, **(settings or {})})
    config["run_folder"] = str(folder)
    init_seed(config["seed"], config["reproducibility"])
    parts = build(config)
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
