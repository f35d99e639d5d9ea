"""The command line: ``recbole-llm [verb] --name=value ...``; without a verb it is ``run``, as RecBole's own script."""

import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from recbole_llm.errors import RecBoleLLMError, SettingError, nearest

USAGE = """\
recbole-llm: language-model recommenders inside RecBole

  recbole-llm [run] --model=M --dataset=D [--config_files="a.yaml b.yaml"] [--name=value ...]
      Train a model, evaluate its best epoch, and store the run in saved/<run>/. The last line is the path of
      result.json. M is ST2SI or any sequential or general model of RecBole.
  recbole-llm run --paper=st2si/table2/Scientific/st2si [--config_files=...] [--name=value ...]
      Run a row of a paper's table or a point of its figure: paper/table/data set/row. --paper=list prints all rows, and
      --paper=list:st2si/table2 those of a table.
  recbole-llm run --resume=saved/<run>
      Go on with an interrupted run.
  recbole-llm pretrain --pretrain_datasets=A,B [--backbone=L] [--pretrain_epochs=15] [--name=value ...]
      Pre-train ST2SI's backbone on data sets. The last line is its folder: --backbone=<folder> tunes it on another.
  recbole-llm tune --model=M --dataset=D [--params_file=FILE] [--algo=exhaustive|random|bayes] [--trials=N]
                   [--early_stop=N] [--out=FOLDER] [--storage=FILE|URL [--pruner=median|halving|hyperband|none]
                    [--defaults_first=True]]
      Search the settings that are best on validation, in a parameter file as RecBole's; the last line is the path of
      tune.json. The same command goes on with the study; with --storage any number of processes share it.
  recbole-llm prepare --dataset=D [--raw=FOLDER] [--out=FOLDER] [--report[=FILE]]
      Make RecBole's atomic files of a data set from its publisher's files, and compare its counts with the papers'.
  recbole-llm recommend --run=saved/<run> --user=USER | --users=USER,USER|all|FILE |
                        --history="ITEM,ITEM,..." [--user=USER] | --histories=FILE
                        [--k=10] [--exclude_seen=true] [--format=table|jsonl|csv] [--out=FILE]
      The best items, with titles and scores: for users of the data set, after all that they did, or after histories
      that are given by hand, oldest item first (FILE: one a line).
  recbole-llm compare --models=ST2SI,SASRec,GRU4Rec --dataset=D[,E] [--seeds=3] [--name=value ...]
  recbole-llm compare --runs='saved/*' [--models=... --dataset=...]
      Models side by side: runs what is missing, and goes on where it was interrupted. Settings go to the models that
      have them; --model_settings=FILE has each model's own. Also --config_files, --show=METRICS, --ours, --baselines,
      --rows=models|metrics, --format=markdown|latex|csv, --papers, --out. The last line is the path of the JSON.
  recbole-llm plot --kind=curves|bars|groups|sensitivity|backbones|pretraining|trade_off
                   --runs=saved/<run>,... | --comparison=FILE [--setting=S] [--metric=ndcg@10] [--out=FOLDER]
      Draw finished runs or a comparison as PNG and SVG; sensitivity draws against the numeric setting S.
  recbole-llm plot --kind=representations --run=saved/<run> [--layer=N] [--out=FOLDER]
      Draw where the vectors of an IDLEAdapter run lie: id model, language model and adapter.
  recbole-llm report --comparison=FILE [--out=report.html]
      Write one HTML page that holds all of a comparison: tables, plots, settings and commands.
  recbole-llm doctor [--data_path=FOLDER]
      Show versions, device, language models and data sets, and what to do about what is missing.

  --debug shows the traceback of an error.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 after an error, 2 after a mistake in the settings."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in argv
    argv = [argument for argument in argv if argument != "--debug"]
    if argv and argv[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    try:
        verb, rest = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else ("run", argv)
        if "=" in verb:
            raise SettingError(f"'{verb}' is not understood: settings are written --name=value")
        if verb not in _VERBS:
            raise SettingError(f"there is no verb '{verb}'{nearest(verb, _VERBS)} The verbs are {', '.join(_VERBS)}")
        return _VERBS[verb](rest)
    except (RecBoleLLMError, OSError) as error:  # OSError: a place where RecBole writes, such as ./log
        if debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, SettingError) else 1
    except ModuleNotFoundError as error:
        if debug:
            traceback.print_exc()
        from recbole_llm.cli.doctor import missing_packages

        command = dict(missing_packages()).get(str(error.name), "recbole-llm doctor says how to get it")
        print(f"error: the package '{error.name}' is missing: {command}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; go on with --resume=<run>", file=sys.stderr)
        return 130


def _run(argv: list[str]) -> int:
    from recbole_llm.config.paper import list_rows, row_settings

    papers, argv = _taken(argv, "--paper")
    if papers and papers[-1].partition(":")[0] == "list":
        print(*list_rows(papers[-1].partition(":")[2]), sep="\n")
        return 0
    from recbole_llm.quick_start.run import run
    from recbole_llm.runs.table import result_table

    files, argv = _taken(argv, "--config_files")
    resume, argv = _taken(argv, "--resume")
    config_files: list[Any] = [*map(row_settings, papers), *" ".join(files).split()]
    result = run(config_files=config_files, command_line=argv, resume=resume[-1] if resume else None)
    print(result_table(result))
    print(result["path"])
    return 0


def _taken(argv: list[str], name: str) -> tuple[list[str], list[str]]:
    """Return the values of ``name=value`` arguments, and the other arguments."""
    return (
        [argument.partition("=")[2] for argument in argv if argument.partition("=")[0] == name],
        [argument for argument in argv if argument.partition("=")[0] != name],
    )


def _pretrain(argv: list[str]) -> int:
    from recbole_llm.quick_start.run import pretrain

    files, argv = _taken(argv, "--config_files")
    print(pretrain(config_files=" ".join(files).split(), command_line=argv))
    return 0


def _tune(argv: list[str]) -> int:
    from recbole_llm.hyper_search.command import tune_command

    return tune_command(argv)


def _doctor(argv: list[str]) -> int:
    from recbole_llm.cli.doctor import report

    settings: dict[str, Any] = dict(argument.removeprefix("--").split("=", 1) for argument in argv if "=" in argument)
    print(report(settings.get("data_path", "dataset/")))
    return 0


def _prepare(argv: list[str]) -> int:
    from recbole_llm.prepare import prepare_command

    return prepare_command(argv)


def _recommend(argv: list[str]) -> int:
    from recbole_llm.cli.recommend import recommend_command

    return recommend_command(argv)


def _plot(argv: list[str]) -> int:
    from recbole_llm.plots.command import plot_command

    return plot_command(argv)


def _report(argv: list[str]) -> int:
    from recbole_llm.report.command import report_command

    return report_command(argv)


def _compare(argv: list[str]) -> int:
    from recbole_llm.comparison.compare import compare_command

    return compare_command(argv)


_VERBS: dict[str, Callable[[list[str]], int]] = {
    "run": _run,
    "pretrain": _pretrain,
    "tune": _tune,
    "prepare": _prepare,
    "recommend": _recommend,
    "compare": _compare,
    "plot": _plot,
    "report": _report,
    "doctor": _doctor,
}

if __name__ == "__main__":
    sys.exit(main())
