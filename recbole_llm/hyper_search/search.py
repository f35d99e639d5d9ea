"""A search for the settings that are best on validation: by hyperopt, or by Optuna if it has a storage."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole_llm.config.config import Config
from recbole_llm.data.folder import ensure_files
from recbole_llm.errors import SettingError, require_flag, require_one_of, require_whole
from recbole_llm.hyper_search import hyperopt_search, optuna_search
from recbole_llm.hyper_search.choices import ALGOS, PRUNERS
from recbole_llm.hyper_search.space import default_file, read_space
from recbole_llm.hyper_search.study import Study
from recbole_llm.utils.interruption import noting_what_is_stored
from recbole_llm.utils.packages import require_package


def tune(
    model: str | None = None,
    dataset: str | None = None,
    config_files: Sequence[str | Path] = (),
    settings: dict[str, Any] | None = None,
    command_line: Sequence[str] = (),
    **options: Any,
) -> dict[str, Any]:
    """Search the settings of a model that are best on validation: `recbole_llm.tune`.

    Args:
        model: a model of this package or of RecBole, by name.
        dataset: a dataset name.
        config_files: YAML files with settings that all trials share.
        settings: such settings by name; they override the files.
        command_line: ``--name=value`` settings; they override all others.
        options: how it is searched, see `search`.

    Returns:
        What `tune.json` holds, and under "path" where that file is.

    Raises:
        RecBoleLLMError: one of its kinds, whose message says what to do.
    """
    return search(Config(model, dataset, config_files, settings, command_line), **options)


def search(
    base: Config,
    params_file: str | Path | None = None,
    algo: str = "exhaustive",
    trials: int | None = None,
    early_stop: int | None = None,
    out: str | Path | None = None,
    storage: str | None = None,
    pruner: str | None = None,
    defaults_first: bool = False,
) -> dict[str, Any]:
    """Search the settings of a model that are best on validation, and evaluate the winner on the test part, once.

    Args:
        base: the settings that all trials share.
        params_file: what is searched, in RecBole's form; None for the model's own file.
        algo: one of `ALGOS`.
        trials: how many; None for 100, and all combinations of an exhaustive search.
        early_stop: trials without a better one after which hyperopt stops; None for 10.
        out: the study's folder; None for one in `checkpoint_dir`.
        storage: a journal file or the URL of a database, by which any number of processes share the study (Optuna).
        pruner: how bad trials are ended early, one of Optuna's `PRUNERS`; None for median.
        defaults_first: whether the first trial has the settings that the model has without a search, so that no study
            ends below them.

    Returns:
        What `tune.json` holds, and under "path" where that file is.

    Raises:
        RecBoleLLMError: one of its kinds, whose message says what to do.
    """
    require_one_of("algo", algo, ALGOS)
    for name, value in (("trials", trials), ("early_stop", early_stop)):
        if value is not None:
            require_whole(name, value)
    _require_engine(algo, early_stop, storage, pruner, defaults_first)
    require_package("hyperopt" if storage is None else "optuna", "tuning", "tune")
    space = read_space(params_file or default_file(base["model"]))
    space.check(base, base.given)
    first = {"first": "defaults"} if defaults_first else {}
    if first:
        space.values_of(base)
    if algo == "exhaustive":
        space.combinations()
    ensure_files(base)  # trials are told the dataset's name alone
    folder = None if out is None else Path(out)
    if storage is None:
        study = Study(base, space, {"engine": "hyperopt", "algo": algo}, folder)
        with noting_what_is_stored(study.folder, lambda: bool(study.all_stored())):
            return hyperopt_search.search(study, trials, early_stop or 10)
    pruner = pruner or "median"
    require_one_of("pruner", pruner, PRUNERS)
    study = Study(base, space, {"engine": "optuna", "algo": algo, "pruner": pruner, **first}, folder)
    with noting_what_is_stored(study.folder, lambda: bool(study.all_stored())):
        return optuna_search.search(study, storage, trials)


def _require_engine(
    algo: str, early_stop: int | None, storage: str | Path | None, pruner: str | None, defaults_first: bool
) -> None:
    """Refuse options that the engine (Optuna with a storage, else hyperopt) does not have. Raises SettingError."""
    if storage is None and pruner is not None:
        raise SettingError("pruning is Optuna's: it needs --storage, a file or the URL of a database")
    if storage is not None and early_stop is not None:
        raise SettingError(
            "early_stop is RecBole's HyperTuning's: with --storage a study has as many trials as planned"
        )
    require_flag("defaults_first", defaults_first)
    if defaults_first and (storage is None or algo == "exhaustive"):
        raise SettingError(
            "defaults_first is for --algo=random or bayes with --storage, a file or the URL of a database; an "
            "exhaustive search tries them in any case"
        )
