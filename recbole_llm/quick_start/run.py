"""Runs as functions: what the command line does, from Python."""

import functools
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from recbole.utils import init_seed

from recbole_llm.config import renamed
from recbole_llm.config.config import Config, parse_command_line
from recbole_llm.config.given_dataset import given_dataset
from recbole_llm.config.hooks import hooks_of, hooks_of_class
from recbole_llm.config.parts import merged
from recbole_llm.data.build import file_hashes
from recbole_llm.data.fingerprint import kept_fingerprint
from recbole_llm.data.shared import SharedData
from recbole_llm.errors import DataError, SettingError
from recbole_llm.evaluation import candidate_choices
from recbole_llm.inference.recommender import Recommender
from recbole_llm.quick_start.build import Parts, build_parts
from recbole_llm.quick_start.finish import evaluate_best, store
from recbole_llm.quick_start.outcome import numbers
from recbole_llm.quick_start.process import start_log, stay_silent, unchanged_process
from recbole_llm.runs import checkpoint
from recbole_llm.runs import folder as run_folder
from recbole_llm.runs.context import RunContext
from recbole_llm.runs.lock import alone
from recbole_llm.stages.runner import Runner
from recbole_llm.trainer.run_folder_trainer import best_epoch
from recbole_llm.utils.allocator import keep_freed_memory_of_a_command
from recbole_llm.utils.collectives import object_from_first
from recbole_llm.utils.files import read_yaml, storage_errors
from recbole_llm.utils.interruption import noting_what_is_stored
from recbole_llm.utils.processes import first, going_on, joined, only_first, world

__all__ = ["Parts", "build", "fit", "load", "pretrain", "recommender", "run"]


def run(
    model: str | type | None = None,
    dataset: str | None = None,
    config_files: Sequence[str | Path | Mapping[str, Any]] = (),
    settings: dict[str, Any] | None = None,
    command_line: Sequence[str] = (),
    resume: str | Path | None = None,
    folder: str | Path | None = None,
) -> dict[str, Any]:
    """Train a model, evaluate its best epoch and store the run.

    In a process that torchrun started together with others, all of them share the run, see `utils.processes`.

    Args:
        model: a model of this package or of RecBole, by name, or a model class.
        dataset: a dataset name.
        config_files: YAML files with settings, or settings that stand in the place of a file, such as those of
            `config.paper.row_settings`; a later one overrides an earlier one.
        settings: settings by name; they override the files.
        command_line: ``--name=value`` settings; they override all others.
        resume: the folder of an interrupted run, which is resumed; its own settings are then the default.
        folder: where to store the run; None for a new folder in `checkpoint_dir`.

    Returns:
        What `result.json` holds, and under "path" where that file is.

    Raises:
        RecBoleLLMError: one of its kinds, whose message says what to do.
    """
    with joined(), unchanged_process():
        if resume is not None:
            return _resume(resume, functools.partial(Config, model, dataset, config_files), settings, command_line)
        started = time.monotonic()
        config = Config(model, dataset, config_files, settings, command_line)
        return _run_new(config, folder, _data_of(config), started)


def _data_of(config: Config) -> SharedData:
    return SharedData(keeps=bool(hooks_of_class(config.model_class).stages))


def _resume(
    run: str | Path,
    make_config: Callable[..., Config],
    settings: dict[str, Any] | None,
    command_line: Sequence[str] = (),
    data: SharedData | None = None,
) -> dict[str, Any]:
    started = time.monotonic()
    folder, stored = run_folder.open_unfinished(run)
    config = make_config(merged(renamed.loadable(stored, folder, training=True), settings or {}), command_line)
    return _run(config, folder, data or _data_of(config), started)


def _run_new(config: Config, folder: str | Path | None, data: SharedData, started: float) -> dict[str, Any]:
    made = None
    if world().is_first:
        made = run_folder.create(Path(config["checkpoint_dir"]), config.merged, folder)
    made = Path(object_from_first(str(made)))
    return _run(config, made, data, started, new=True)


def _run(config: Config, folder: Path, data: SharedData, started: float, new: bool = False) -> dict[str, Any]:
    """Train, evaluate and store a run in a folder that has its settings; a `new` one that keeps nothing is removed."""

    def is_stored() -> bool:
        return (folder / checkpoint.RESUME).is_file()

    def how_to_go_on() -> str:
        if is_stored():
            return f"resume it with recbole-llm run --resume={folder}, in any number of processes"
        return "nothing is stored to --resume from: start it again"

    locked = alone(folder) if world().is_first else nullcontext()
    with locked, noting_what_is_stored(folder, is_stored), going_on(how_to_go_on):
        try:
            return _train_and_evaluate(config, folder, data, started, new)
        except KeyboardInterrupt:
            if new and not is_stored():
                shutil.rmtree(folder, ignore_errors=True)
            raise


def _train_and_evaluate(config: Config, folder: Path, data: SharedData, started: float, new: bool) -> dict[str, Any]:
    _begin(config)
    try:
        parts, trainer = _parts_and_trainer(config, RunContext(folder), data)
        del data  # what nested runs have read is not needed any more
        chooses = hooks_of_class(config.model_class).chooses(config)
        rankings = {
            "valid": candidate_choices.candidate_measure(config, chooses, parts.valid, [parts.train]),
            "test": candidate_choices.candidate_measure(config, chooses, parts.test, [parts.train, parts.valid]),
        }
    except BaseException:
        if new and world().is_first:
            shutil.rmtree(folder, ignore_errors=True)  # nothing happened that could be resumed
        raise
    _precompute_and_resume(trainer, parts, parts.valid, parts.test)
    prepared = time.monotonic()

    trainer.fit(parts.train, parts.valid, show_progress=config["show_progress"])
    fitted, fit_seconds = time.monotonic(), trainer.fit_seconds()

    metrics, validated = evaluate_best(parts, trainer, rankings)
    trainer.before_storing()
    evaluated = time.monotonic()

    seconds = {
        **({} if parts.pretrain_seconds is None else {"pretrain": parts.pretrain_seconds}),
        "prepare": prepared - started - (parts.pretrain_seconds or 0.0),
        "fit": fit_seconds,
        "evaluate": evaluated - fitted,
    }
    valid = rankings["valid"] if validated else None
    took = {"seconds": seconds, "processes": world().size}
    stored = only_first(lambda: store(parts, trainer, metrics, took, rankings["test"], valid))
    return object_from_first(stored) or {}


def fit(config: Config, folder: Path, callback: Callable[[int, float], None] | None = None) -> dict[str, Any]:
    """Train a model as `run` does, and choose its best epoch on validation; the test part is neither read nor needed.

    What is left in `folder` is a run whose training is finished: `run` with ``resume=folder`` evaluates its best epoch
    on the test part and stores `result.json`.

    Args:
        config: the settings.
        folder: where the run is stored; made if it is missing.
            A training that was interrupted there is resumed.
        callback: called after every evaluated epoch with its number and its validation metric; what it raises ends the
            training.

    Returns:
        "score" (the best `valid_metric`), "valid" (all metrics of that epoch), "epochs", "best_epoch", "history" and
        "seconds".

    Raises:
        DataError: if the split leaves no validation part, or the training evaluates none.
        RecBoleLLMError: one of its other kinds, whose message says what to do.
    """
    with unchanged_process():
        return _fit(config, folder, _data_of(config), callback)


def _fit(
    config: Config, folder: Path, data: SharedData, callback: Callable[[int, float], None] | None = None
) -> dict[str, Any]:
    started = time.monotonic()
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        return _train(config, folder, data, started, callback)


def _train(
    config: Config, folder: Path, data: SharedData, started: float, callback: Callable[[int, float], None] | None
) -> dict[str, Any]:
    run_folder.write_settings(folder, config.merged)
    _begin(config)
    parts, trainer = _parts_and_trainer(config, RunContext(folder, reads_test=False), data)
    del data
    if parts.valid is None:
        raise DataError(f"no user of {config['dataset']} has a validation target: there is nothing to choose by")
    _precompute_and_resume(trainer, parts, parts.valid)
    trainer.fit(parts.train, parts.valid, show_progress=config["show_progress"], callback_fn=callback)
    if trainer.best_valid_result is None:
        raise DataError(f"no epoch of {config['model']} was evaluated on validation: raise epochs, lower eval_step")
    trainer.store_finished()
    return {
        "score": float(trainer.best_valid_score),
        "valid": numbers(trainer.best_valid_result),
        "epochs": trainer.epochs_done,
        "best_epoch": best_epoch(trainer.history, config["valid_metric"].lower(), config["valid_metric_bigger"]),
        "history": trainer.history,
        "seconds": round(time.monotonic() - started, 2),
    }


def _begin(config: Config) -> None:
    init_seed(config["seed"], config["reproducibility"])
    _speak(config)
    logging.getLogger().info(config)
    if config["device"].type == "cpu":  # a host beside a GPU only loads, and should give back what it loaded
        keep_freed_memory_of_a_command()


def _speak(config: Config) -> None:
    """Begin the log of a run; of several processes that share it, the first one speaks."""
    if world().is_first:
        start_log(config)
    else:
        stay_silent(config)


def _parts_and_trainer(config: Config, context: RunContext, data: SharedData) -> tuple[Parts, Any]:
    assert context.folder is not None
    parts = first(lambda: build_parts(config, context, data, _runner(data)))
    if world().is_first:
        parts.fingerprint = kept_fingerprint(context.folder, config.merged, parts.settings, file_hashes(config))
        run_folder.write_settings(context.folder, parts.settings)
    return parts, parts.trainer()


def _precompute_and_resume(trainer: Any, parts: Parts, *evaluated: Any) -> None:
    """Compute what training only reads, then resume from the state in the run's folder, if there is one.

    In this order: what IDLE-Adapter aligns with are the states of its language model before any of it was trained.
    """
    state = trainer.run_folder / checkpoint.RESUME
    trainer.finished = checkpoint.is_finished(state)
    trainer.precompute(*evaluated, show_progress=parts.config["show_progress"])
    if state.exists():
        trainer.resume_checkpoint(state)


def _runner(data: SharedData) -> Runner:
    """Return how a stage trains and loads runs that read `data`."""

    def nested(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def restored(*arguments: Any) -> Any:
            with unchanged_process():
                return method(*arguments)

        return restored

    return Runner(
        run=nested(lambda settings, folder: _run_new(Config(config_dict=settings), folder, data, time.monotonic())),
        resume=nested(lambda folder, settings: _resume(folder, _stored_config, settings, data=data)),
        fit=nested(lambda settings, folder: _fit(Config(config_dict=settings), folder, data)),
        load=nested(lambda folder, settings: _load(folder, settings, False, data)),
        build=nested(lambda config, context: build_parts(config, context, data, _runner(data))),
    )


def _stored_config(settings: dict[str, Any], command_line: Sequence[str] = ()) -> Config:
    return Config(config_dict=settings, command_line=command_line)


def build(config: Config, test: bool = True, folder: Path | None = None) -> Parts:
    """Make dataset, loaders and model of a run.

    Args:
        config: the settings.
        test: False leaves the test part alone, see `data_preparation`.
        folder: where the run is, or will be, stored; None for a model that is not stored.

    Raises:
        RecBoleLLMError: one of its kinds, whose message says what to do.
    """
    data = _data_of(config)
    return build_parts(config, RunContext(folder, test), data, _runner(data))


def pretrain(
    model: str | type = "ST2SI",
    config_files: Sequence[str | Path] = (),
    settings: dict[str, Any] | None = None,
    command_line: Sequence[str] = (),
) -> Path:
    """Pre-train on the datasets of `pretrain_datasets`, without a target; see `stages.pretraining`.

    Args:
        model: a model that is pre-trained in this way.
        config_files: YAML files with settings.
        settings: settings by name; they override the files.
        command_line: ``--name=value`` settings; they override all others.

    Returns:
        The folder of the backbone, for the setting `backbone`, or of a model's weights, for `pretrained_state`.

    Raises:
        RecBoleLLMError: one of its kinds, whose message says what to do.
    """
    from recbole_llm.stages import pretraining  # imports transformers, which a run of an ID model does without

    given = merged(*map(read_yaml, config_files), settings or {}, parse_command_line(command_line))
    sources = pretraining.names_of(given.get("pretrain_datasets"))
    if not sources:
        raise SettingError("pretrain_datasets names no dataset: --pretrain_datasets=Food,Cell")
    # A Config needs a dataset; a source stands for the target that there is not: the first whose folder is in
    # data_path, where there is such a one.
    stand_in = next((source for source in sources if given_dataset(source).folder is None), sources[0])
    if given_dataset(stand_in).folder is not None:
        given.pop("data_path", None)
    with joined(), unchanged_process():
        config = Config(given.get("model", model), stand_in, config_dict=given)
        _speak(config)
        with going_on(lambda: "the same command resumes the pre-training"):
            return pretraining.find_or_pretrain(config).folder


def load(run: str | Path, settings: dict[str, Any] | None = None, test: bool = True) -> Parts:
    """Load a finished run: its data, and its model with the best weights, in eval mode.

    Args:
        run: the folder of the run, or its `result.json`.
        settings: settings that differ here, such as `data_path`.
        test: False leaves the test part alone.

    Raises:
        CheckpointError: if the run is broken, or its weights belong to another catalogue.
    """
    with unchanged_process():
        return _load(run, settings, test)


def _load(run: str | Path, settings: dict[str, Any] | None, test: bool, data: SharedData | None = None) -> Parts:
    folder, stored = run_folder.open_existing(run)
    own = renamed.loadable(stored, folder, training=False)
    config = Config(config_dict=merged(own, settings or {}))
    init_seed(config["seed"], config["reproducibility"])
    data = data or _data_of(config)
    parts = build_parts(config, RunContext(folder, test), data, _runner(data))
    checkpoint.load_weights(folder / checkpoint.WEIGHTS, parts.model, parts.context.description, hooks_of(parts.model))
    parts.model.eval()
    evaluated = [loader.dataset for loader in (parts.valid, parts.test) if loader is not None]
    hooks_of(parts.model).use_stored_states(evaluated)
    return parts


def recommender(run: str | Path, settings: dict[str, Any] | None = None, **options: Any) -> Recommender:
    """Return a recommender of a finished run.

    Args:
        run: as in `load`.
        settings: as in `load`.
        options: of `recbole_llm.inference.recommender.Recommender`.

    Raises:
        CheckpointError: if the run is broken, or its weights belong to another catalogue.
        SettingError: if the model does not recommend from histories.
    """
    parts = load(run, settings)
    return Recommender(parts.model, parts.train._dataset, **options)
