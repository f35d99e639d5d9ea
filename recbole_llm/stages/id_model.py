"""The id model of IDLE-Adapter, or of ST2SI with an id model's scores: found, or trained first, then frozen.

An id model is an ordinary run of a sequential model, in ``<checkpoint_dir>/id-<model>-<dataset>-<hash>/``. The hash is
that of all its settings, defaults included, and of the data's files, so whoever asks for the same finds it, and an
interrupted one goes on.
"""

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from recbole.data.interaction import Interaction
from recbole.utils import init_seed
from recbole.utils.argument_list import dataset_arguments
from torch import nn

from recbole_llm.config.config import Config
from recbole_llm.data.build import file_hashes
from recbole_llm.errors import CheckpointError, SettingError
from recbole_llm.runs import checkpoint
from recbole_llm.runs import folder as run_folder
from recbole_llm.runs.result import RunResult
from recbole_llm.utils.files import replacing_folder, storage_errors

# Settings of a run that are its id model's too: the data, the protocol, and how a run is kept.
_SHARED = (
    *(name for name in dataset_arguments if name != "MAX_ITEM_LIST_LENGTH"),
    *("attribute_field", "attribute_separator", "encoding", "item_text_fields", "items_without_text"),
    *("benchmark_filename", "eval_args", "metrics", "topk"),
    *("valid_metric", "valid_metric_bigger", "mask_history", "eval_batch_size", "seed", "reproducibility"),
)
_FIELDS = ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD")
_KEPT = ("device_table", "use_gpu", "gpu_id", "show_progress", "state", "checkpoint_dir", "resume_seconds", "data_path")
# Settings that every run has and an id model without a language model does not read.
_UNREAD = ("prompt", "prompt_item", "prompt_noun", "precision", "candidates", "candidate_seeds")
_COPY = "id_model"  # the folder in the adapter's run that holds what loading the id model takes


def find_or_train(config: Any) -> Path:
    """Return the folder of the id model that the settings of a run ask for; train it if it is not there.

    Args:
        config: the settings of the adapter's run: `id_model`, `id_model_path`, `id_model_settings`, and its data.

    Raises:
        SettingError: if `id_model_path` names a run of another model, or a setting of the id model is unknown.
        CheckpointError: if `id_model_path` is no finished run.
    """
    own = Path(config["run_folder"] or ".") / _COPY
    if (own / checkpoint.WEIGHTS).is_file():
        return own
    if config["id_model_path"]:
        return _given(config)
    from recbole_llm.quick_start import run as quick_start

    settings = _settings(config)
    folder = Path(config["checkpoint_dir"]) / f"id-{settings['model']}-{config['dataset']}-{_digest(config, settings)}"
    with storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.parent / f".{folder.name}.lock")
        lock.acquire()
    with lock:
        if (folder / run_folder.RESULT).is_file():
            logging.getLogger().info("The id model %s is there already", folder)
        elif config["reads_test"] is False:
            # A trial of a study, which may not see test data: the first run that may evaluates the id model, too.
            if not checkpoint.is_finished(folder / checkpoint.RESUME):
                quick_start.fit(Config(config_dict=settings), folder)
        elif (folder / checkpoint.RESUME).is_file():
            quick_start.run(resume=folder, settings={name: settings[name] for name in _KEPT if name in settings})
        else:
            logging.getLogger().info("The id model %s is trained first", settings["model"])
            shutil.rmtree(folder, ignore_errors=True)  # of a process that ended before its first epoch did
            quick_start.run(settings=settings, folder=folder)
    return folder


def load_id_model(folder: Path, config: Any, dataset: Any) -> nn.Module:
    """Return the id model of a run: frozen, in eval mode, on the run's device.

    Args:
        folder: what `find_or_train` returned.
        config: the settings of the adapter's run.
        dataset: its data.

    Raises:
        CheckpointError: if the weights are broken, or belong to other data or another item vocabulary.
    """
    from recbole_llm.quick_start import run as quick_start

    here = {name: config.merged[name] for name in ("use_gpu", "gpu_id", "state", "data_path") if name in config.merged}
    parts = quick_start.load(folder, here, test=False)
    _refuse_other_data(folder, parts, config, dataset)
    model = parts.model.eval().requires_grad_(False)
    init_seed(config["seed"], config["reproducibility"])  # building the id model drew from the generators
    return model


def keep_copy(folder: Path, run: Path) -> None:
    """Put what loading the id model takes into the folder of the adapter's run, which then needs no other."""
    if folder.parent == run:
        return
    with replacing_folder(run / _COPY) as temporary:
        for name in (run_folder.CONFIG, checkpoint.WEIGHTS, run_folder.RESULT):
            shutil.copyfile(folder / name, temporary / name)
        if (folder / _COPY).is_dir():  # an IDLE-Adapter, which has an id model of its own
            shutil.copytree(folder / _COPY, temporary / _COPY)


def test_metrics(folder: Path) -> dict[str, float] | None:
    """Return the ID model's own test metrics. Raises CheckpointError if its result is broken."""
    return RunResult.read(folder).test


def _given(config: Any) -> Path:
    folder, stored = run_folder.open_existing(config["id_model_path"])
    if not (folder / run_folder.RESULT).is_file():
        raise CheckpointError(f"the run {folder} is not finished: go on with it by --resume={folder}")
    if "id_model" in config.given and stored.get("model") != config["id_model"]:
        raise SettingError(f"id_model={config['id_model']}, but id_model_path={folder} holds a {stored.get('model')}")
    for settings in (config, config.merged):  # what is stored with the run says what it has, and a resumed run agrees
        settings["id_model"] = stored.get("model")
    return folder


def _settings(config: Any) -> dict[str, Any]:
    """Return the settings of the id model's run."""
    own = config["id_model_settings"] or {}
    if not isinstance(own, dict):
        raise SettingError(f"id_model_settings={own} must hold 'name: value' pairs, such as {{epochs: 100}}")
    if not config["id_model"]:
        raise SettingError(
            "no id_model is named: it is a sequential model with a user vector, such as ComiRec or SASRec"
        )
    merged = config.merged
    kept = {name: merged[name] for name in _KEPT if name in merged}
    always = {name: merged[name] for name in (*_FIELDS, "MAX_ITEM_LIST_LENGTH")}
    # What differs from the defaults, whoever gave it: a resumed run is given all of its settings.
    defaults = Config(config.model_class, config["dataset"], config_dict={**kept, **always}).merged
    shared = {name: merged[name] for name in _SHARED if name in merged and merged[name] != defaults.get(name)}
    return {**kept, **shared, **always, **own, "model": str(config["id_model"]), "dataset": config["dataset"]}


def _digest(config: Any, settings: dict[str, Any]) -> str:
    merged = Config(config_dict=settings).merged
    left_out = _KEPT if "backbone" in merged else (*_KEPT, *_UNREAD)
    shape = {
        "settings": {name: value for name, value in merged.items() if name not in left_out},
        "files": file_hashes(config),
    }
    return hashlib.sha256(json.dumps(run_folder.plain(shape), sort_keys=True).encode()).hexdigest()[:10]


def _refuse_other_data(folder: Path, parts: Any, config: Any, dataset: Any) -> None:
    theirs = parts.dataset
    for what, field in (("items", "iid_field"), ("users", "uid_field")):
        mine, other = (data.field2id_token[getattr(data, field)] for data in (dataset, theirs))
        if checkpoint.hash_of_tokens(mine) != checkpoint.hash_of_tokens(other):
            raise CheckpointError(
                f"the id model {folder} knows the {len(other) - 1} {what} of {parts.config['dataset']}, but this run "
                f"has the {len(mine) - 1} {what} of {config['dataset']}: train it on the same data"
            )


def resized_histories(rows: Interaction, field: str, length_field: str, width: int) -> Interaction:
    """Return the histories of `rows` with `width` columns, the most recent items kept, and their lengths.

    Args:
        rows: with `field`, int64 [batch, items] from the left, and `length_field`, int64 [batch].
        field: of the histories.
        length_field: of their lengths.
        width: items that the id model reads.
    """
    histories, lengths = rows[field], rows[length_field]
    kept = lengths.clamp(max=width)
    columns = torch.arange(width, device=histories.device)
    source = (lengths - kept)[:, None] + columns
    inside = columns < kept[:, None]
    recent = histories.gather(1, source.clamp(max=histories.shape[1] - 1)) * inside
    return Interaction({field: recent, length_field: kept})
