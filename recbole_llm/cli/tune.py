"""The verb ``tune``: a search for the settings that are best on validation."""

from pathlib import Path
from typing import Any

from recbole_llm.cli import settings
from recbole_llm.cli.arguments import Given, Parser, add_model_and_dataset, flag, one_of
from recbole_llm.cli.interrupts import interrupted
from recbole_llm.cli.show import show
from recbole_llm.errors import SettingError
from recbole_llm.hyper_search.choices import ALGOS, PRUNERS
from recbole_llm.utils.interruption import stored_folders
from recbole_llm.utils.plain_text import one_line
from recbole_llm.utils.values import parse_value


def parser() -> Parser:
    """Return the parser of the verb."""
    found = Parser(
        "tune",
        "Search the settings that are best on validation, and evaluate the winner on the test part, once. The last "
        "line that is printed is the path of tune.json. The same command resumes the study; with --storage any number "
        "of processes share it.",
        "-m MODEL -d DATASET [--algo=bayes] [--trials=20] [--name=value ...]",
        takes_settings=True,
    )
    group = found.add_argument_group("what to tune")
    add_model_and_dataset(group, "a folder in data_path, or a file of dataset_configs/ (prepared if it is not here)")
    group.add_argument(
        "--params_file", metavar="FILE", help="what is searched, in RecBole's form (default: the model's own file)"
    )
    group = found.add_argument_group("how to search")
    group.add_argument(
        "--algo", type=one_of("algo", ALGOS), metavar="NAME", help="exhaustive, random or bayes (default: exhaustive)"
    )
    group.add_argument(
        "--trials", type=parse_value, metavar="INT", help="how many (default: 100; exhaustive: all combinations)"
    )
    group.add_argument("--max_evals", type=parse_value, metavar="INT", help="RecBole's name of --trials")
    group.add_argument(
        "--early_stop",
        type=parse_value,
        metavar="INT",
        help="stop after this many trials that are no better (default: 10; not with --storage)",
    )
    group.add_argument(
        "--storage",
        metavar="FILE|URL",
        help="a journal file or a database that processes share, by Optuna (default: none, hyperopt searches alone)",
    )
    group.add_argument(
        "--pruner",
        type=one_of("pruner", PRUNERS),
        metavar="NAME",
        help="how bad trials are ended early, with --storage: median, halving, hyperband or none (default: median)",
    )
    group.add_argument(
        "--defaults_first",
        type=flag("defaults_first"),
        nargs="?",
        const=True,
        metavar="BOOL",
        help="try the settings without a search first, with --storage and random or bayes (default: False)",
    )
    group.add_argument(
        "--out", metavar="FOLDER", help="the study's folder (default: saved/tune-<model>-<dataset>-<hash>)"
    )
    return found


def main(given: Given) -> int:
    """Search, print the table of trials, the winner's metrics and, last, the path of `tune.json`.

    Raises:
        RecBoleLLMError: one of its kinds, whose message says what to do.
    """
    own = parser()
    settings.check(settings.merged(given), own)
    options = {k: v for k, v in given.options.items() if k not in ("model", "dataset", "config_files")}
    if "max_evals" in options:
        options["trials"] = _one_number(options.pop("max_evals"), options)
    try:
        from recbole_llm.hyper_search.search import tune

        outcome = tune(
            config_files=given.options.get("config_files", []), command_line=settings.run_settings(given), **options
        )
    except KeyboardInterrupt as interrupt:
        stored = stored_folders(interrupt)
        return interrupted(interrupt, f"the same command resumes the study {stored[-1]}" if stored else None)
    show(trials_table(outcome))
    show(outcome["path"])
    return 0


def _one_number(evaluations: Any, options: dict[str, Any]) -> Any:
    if options.get("trials", evaluations) != evaluations:
        raise SettingError(f"--trials is given twice, as {options['trials']!r} and {evaluations!r} (max_evals)")
    return evaluations


def trials_table(outcome: dict[str, Any]) -> str:
    """Return a table of the trials in `tune.json`, the best first, and the winner's own."""
    from tabulate import tabulate

    from recbole_llm.hyper_search.study import BEST
    from recbole_llm.runs.result import RunResult
    from recbole_llm.runs.table import result_table

    names = list(outcome["space"])

    def order(trial: dict[str, Any]) -> tuple[bool, float, int]:
        score = trial["score"]
        return score is None, 0.0 if score is None else (-score if outcome["bigger"] else score), trial["number"]

    rows = [
        [t["number"], t["state"], t["score"], t["best_epoch"], len(t["history"]), t["seconds"]]
        + [one_line(t["settings"].get(name)) for name in names]
        for t in sorted(outcome["trials"], key=order)
    ]
    headers = ["trial", "state", outcome["metric"], "best epoch", "evaluated", "seconds", *names]
    table = tabulate(rows, headers=headers, floatfmt=("", "", ".4f", "", "", ".1f"), missingval="-")
    folder = Path(outcome["path"]).parent
    run = folder / outcome["result"]
    winner = result_table(RunResult.read(run))
    what = f"trial {outcome['best']} is the best on validation: its run is {run.parent}, its settings {folder / BEST}"
    return f"\n{table}\n{winner}\n\n{what}"
