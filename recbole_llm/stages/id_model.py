"""The ID model of IDLE-Adapter, or of ST2SI with an ID model's scores: found, or trained first, then frozen.

An ID model is an ordinary run of a sequential model, in ``<checkpoint_dir>/id-<model>-<dataset>-<hash>/``. The hash is
that of its settings (see `config.fingerprint`) and of the data's files, so whoever asks for the same finds it, and an
interrupted one is resumed.
"""

from pathlib import Path
from typing import Any

from recbole_llm.config import fingerprint, roles
from recbole_llm.config.config import Config
from recbole_llm.config.parts import merged
from recbole_llm.data.build import file_hashes
from recbole_llm.errors import CheckpointError, SettingError
from recbole_llm.model.id_model.frozen import COPY, FrozenIdModel
from recbole_llm.model.needs import IdModel
from recbole_llm.runs import checkpoint
from recbole_llm.runs import folder as run_folder
from recbole_llm.runs.context import RunContext
from recbole_llm.stages.runner import Runner
from recbole_llm.stages.store import Found, Supplied, find_or_make
from recbole_llm.utils.hashing import hash_of_tokens

# Always given, so that the ID model reads the columns and the length that the run around it reads.
_ALWAYS = ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD", "MAX_ITEM_LIST_LENGTH")


def fulfil(need: IdModel, config: Any, dataset: Any, context: RunContext, runner: Runner) -> Supplied:
    """Return the frozen ID model of a run (or None), and the settings that the run stores with it.

    Args:
        need: the model's declaration.
        config: the settings of the run: `id_model`, `id_model_path`, `id_model_settings`, and its data.
        dataset: its dataset, all interactions.
        context: of the run.
        runner: trains and loads the ID model.

    Raises:
        SettingError: if `id_model_path` names a run of another model, or a setting of the ID model is unknown.
        CheckpointError: if `id_model_path` is no finished run, or the ID model belongs to other data.
    """
    if not need.required and not (config["id_model"] or config["id_model_path"]):
        return Supplied(None)
    settings: dict[str, Any] = {}
    made = False
    if context.folder is not None and (context.folder / COPY / checkpoint.WEIGHTS).is_file():
        folder = context.folder / COPY
    elif config["id_model_path"]:
        folder, settings = _given(config)
    else:
        folder, made = _find_or_train(config, context, runner)
    return Supplied(_load(folder, config, dataset, runner), settings, made)


def _find_or_train(config: Any, context: RunContext, runner: Runner) -> Found:
    settings = settings_of(config)

    def is_made(folder: Path) -> bool:
        # A trial of a study may not see test data: the first run that may evaluates the ID model, too.
        trained = not context.reads_test and checkpoint.is_finished(folder / checkpoint.RESUME)
        return trained or (folder / run_folder.RESULT).is_file()

    def make(folder: Path) -> None:
        if not context.reads_test:
            runner.fit(settings, folder)
        elif (folder / checkpoint.RESUME).is_file():
            runner.resume(folder, {name: value for name, value in settings.items() if roles.in_same_place(name)})
        else:
            runner.run(settings, folder)

    name = f"id-{settings['model']}-{config['dataset']}"
    return find_or_make(Path(config["checkpoint_dir"]), name, shape(config, settings), is_made, make)


def _load(folder: Path, config: Any, dataset: Any, runner: Runner) -> FrozenIdModel:
    here = {name: config.merged[name] for name in ("use_gpu", "gpu_id", "state", "data_path") if name in config.merged}
    parts = runner.load(folder, here)
    _refuse_other_data(folder, parts, config, dataset)
    return FrozenIdModel(parts.model.eval().requires_grad_(False), folder)


def _given(config: Any) -> tuple[Path, dict[str, Any]]:
    if config["id_model_settings"]:
        raise SettingError(
            f"id_model_settings={config['id_model_settings']} has no effect beside id_model_path="
            f"{config['id_model_path']}, a model that is trained already: leave out one of them"
        )
    folder, stored = run_folder.open_existing(config["id_model_path"])
    if not (folder / run_folder.RESULT).is_file():
        raise CheckpointError(f"the run {folder} is not finished: resume it by --resume={folder}")
    if "id_model" in config.given and stored.get("model") != config["id_model"]:
        raise SettingError(f"id_model={config['id_model']}, but id_model_path={folder} holds a {stored.get('model')}")
    # What is stored with the run says what it has, and a resumed run agrees.
    return folder, {"id_model": stored.get("model")}


def settings_of(config: Any) -> dict[str, Any]:
    """Return the settings of the run of the ID model that a run asks for.

    Raises:
        SettingError: if no ID model is named, or `id_model_settings` is no mapping.
    """
    own = config["id_model_settings"] or {}
    if not isinstance(own, dict):
        raise SettingError(f"id_model_settings={own} must hold 'name: value' pairs, such as {{epochs: 100}}")
    if not config["id_model"]:
        raise SettingError(
            "no id_model is named: it is a sequential model with a user vector, such as ComiRec or SASRec"
        )
    whole = config.merged
    place = {name: value for name, value in whole.items() if roles.in_same_place(name)}
    always = {name: whole[name] for name in _ALWAYS}
    # What differs from the defaults, whoever gave it: a resumed run is given all of its settings.
    defaults = Config(config.model_class, config["dataset"], config_dict={**place, **always}).merged
    shared = {
        name: value for name, value in whole.items() if roles.shared_with_id_model(name) and value != defaults.get(name)
    }
    named = {"model": str(config["id_model"]), "dataset": config["dataset"]}
    return merged(place, shared, always, own, named)


def shape(config: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Return all that an ID model's weights depend on.

    Args:
        config: the settings of the run that asks for it.
        settings: those of the ID model's run.
    """
    whole = Config(config_dict=settings).merged
    return {"settings": fingerprint.of_id_model(whole, settings["model"]), "files": file_hashes(config)}


def _refuse_other_data(folder: Path, parts: Any, config: Any, dataset: Any) -> None:
    other_dataset = parts.dataset
    for what, field in (("items", dataset.iid_field), ("users", dataset.uid_field)):
        other_field = other_dataset.iid_field if what == "items" else other_dataset.uid_field
        tokens, other = dataset.field2id_token[field], other_dataset.field2id_token[other_field]
        if hash_of_tokens(tokens) != hash_of_tokens(other):
            raise CheckpointError(
                f"the ID model {folder} knows the {len(other) - 1} {what} of {parts.config['dataset']}, but this run "
                f"has the {len(tokens) - 1} {what} of {config['dataset']}: train it on the same data"
            )
