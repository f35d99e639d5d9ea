"""The verb ``tune``: what it takes, and what it shows."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tabulate import tabulate

from recbole_llm.config.config import Config, parse_value
from recbole_llm.errors import SettingError, require_flag, require_one_of, require_whole
from recbole_llm.hyper_search import hyperopt_search, optuna_search
from recbole_llm.hyper_search.space import default_file, read_space
from recbole_llm.hyper_search.study import BEST, Study
from recbole_llm.runs.result import RunResult
from recbole_llm.runs.table import result_table

ALGOS = ("exhaustive", "random", "bayes")
_OPTIONS = (
    "params_file",
    "trials",
    "max_evals",
    "algo",
    "early_stop",
    "out",
    "storage",
    "pruner",
    "defaults_first",
    "config_files",
)


def tune(
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
    """Search the settings of a model that are best on validation; see `recbole_llm.quick_start.run.tune`."""
    require_one_of("algo", algo, ALGOS)
    for name, value in (("trials", trials), ("early_stop", early_stop)):
        if value is not None:
            require_whole(name, value)
    _require_engine(algo, early_stop, storage, pruner, defaults_first)
    package = "hyperopt" if storage is None else "optuna"
    if find_spec(package) is None:
        raise SettingError(f"tuning needs the package '{package}': pip install 'recbole-llm[tune]'")
    space = read_space(params_file or default_file(base["model"]))
    space.check(base, base.given)
    first = {"first": "defaults"} if defaults_first else {}
    if first:
        space.values_of(base)
    if algo == "exhaustive":
        space.combinations()
    folder = None if out is None else Path(out)
    if storage is None:
        study = Study(base, space, {"engine": "hyperopt", "algo": algo}, folder)
        return hyperopt_search.search(study, trials, early_stop or 10)
    pruner = pruner or "median"
    require_one_of("pruner", pruner, optuna_search.PRUNERS)
    study = Study(base, space, {"engine": "optuna", "algo": algo, "pruner": pruner, **first}, folder)
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


def tune_command(arguments: Sequence[str]) -> int:
    """Run ``tune`` with ``--name=value`` arguments, print its table, the winner's, and last the path of tune.json.

    Raises:
        RecBoleLLMError: one of its kinds, whose message says what to do.
    """
    options: dict[str, Any] = {}
    settings = []
    for argument in arguments:
        name, separator, text = argument.removeprefix("--").partition("=")
        if name not in _OPTIONS:
            settings.append(argument)
        elif not separator:
            raise SettingError(f"'{argument}' is not understood: settings are written --name=value")
        elif name == "config_files":
            options.setdefault(name, []).extend(text.split())
        else:
            name = "trials" if name == "max_evals" else name
            value = parse_value(text) if name in ("trials", "early_stop", "defaults_first") else text
            if options.setdefault(name, value) != value:
                raise SettingError(f"--{name} is given twice, as {options[name]!r} and {value!r}")
    base = Config(config_file_list=options.pop("config_files", []), command_line=settings)
    try:
        outcome = tune(base, **options)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on with the study", file=sys.stderr)
        return 130
    print(trials_table(outcome))
    print(outcome["path"])
    return 0


def trials_table(outcome: dict[str, Any]) -> str:
    """Return a table of the trials in `tune.json`, the best first, and the winner's own."""
    names = list(outcome["space"])

    def order(trial: dict[str, Any]) -> tuple[bool, float, int]:
        score = trial["score"]
        return score is None, 0.0 if score is None else (-score if outcome["bigger"] else score), trial["number"]

    rows = [
        [t["number"], t["state"], t["score"], t["best_epoch"], len(t["history"]), t["seconds"]]
        + [str(t["settings"].get(name)) for name in names]
        for t in sorted(outcome["trials"], key=order)
    ]
    headers = ["trial", "state", outcome["metric"], "best epoch", "evaluated", "seconds", *names]
    table = tabulate(rows, headers=headers, floatfmt=("", "", ".4f", "", "", ".1f"), missingval="-")
    folder = Path(outcome["path"]).parent
    run = folder / outcome["result"]
    winner = result_table(RunResult.read(run))
    what = f"trial {outcome['best']} is the best on validation: its run is {run.parent}, its settings {folder / BEST}"
    return f"\n{table}\n{winner}\n\n{what}"
