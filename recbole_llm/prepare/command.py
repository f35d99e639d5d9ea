"""`recbole-llm prepare`, and the functions behind it."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from recbole_llm.errors import SettingError
from recbole_llm.prepare import counts, pipeline
from recbole_llm.prepare.look import Tokenize, look
from recbole_llm.prepare.pipeline import PreparedDataset
from recbole_llm.prepare.report import write_report
from recbole_llm.prepare.spec import load_spec
from recbole_llm.utils.paths import has_interactions

DEFAULT_OUT = Path("dataset")
"""RecBole's default `data_path`."""


def _quiet(line: str) -> None:
    del line


def prepare(
    dataset: str,
    raw: Path | None = None,
    out: Path | None = None,
    report: Path | None = None,
    tokenizer: str | None = None,
    say: Callable[[str], None] = _quiet,
) -> PreparedDataset:
    """Make the atomic files of a data set from its publisher's files.

    Args:
        dataset: a name under ``dataset_configs/``, or the path of a YAML file of one's own.
        raw: folder with the raw files, where missing ones are downloaded to; None: a folder in the cache.
        out: the data set becomes the folder ``out/<dataset>``, so `out` is RecBole's `data_path`; None: ``dataset``.
        report: HTML file to write; None: none.
        tokenizer: name or folder of a transformers tokenizer that counts title lengths in the report; None: words.
        say: told what is being done, one line at a time.

    Returns:
        Where the files are, with counts and manifest.

    Raises:
        SettingError: if the data set is unknown or its settings are wrong.
        DataError: if a raw file is missing, broken, or not what the settings say.
        StorageError: if something cannot be written.
    """
    spec = load_spec(dataset)
    if report is not None and spec.benchmark is not None:
        raise SettingError(f"{spec.dataset} has one file for each part, of which no report is made: leave out --report")
    done = pipeline.run(spec, raw, DEFAULT_OUT if out is None else out, say)
    if report is not None:
        numbers = look(done.folder, done.dataset, _tokenize(tokenizer) if tokenizer else None, tokenizer)
        write_report(report, done, numbers)
    return done


def ensure(dataset: str, data_path: Path) -> Path:
    """Return the folder ``data_path/<dataset>``, preparing the data set first if its interactions are not there.

    Raises:
        DataError: if it is not there and cannot be prepared; the message says which files to put where.
        SettingError: if the data set is unknown.
        StorageError: if something cannot be written.
    """
    folder = Path(data_path) / dataset
    if has_interactions(folder):
        return folder
    return prepare(dataset, out=Path(data_path), say=_to_stderr).folder


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def _tokenize(name: str) -> Tokenize:
    from recbole_llm.backbone.loading import load_tokenizer  # heavy, and only needed here

    tokenizer = load_tokenizer(name)

    def lengths(texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]] if texts else []

    return lengths


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise SettingError(f"prepare: {message}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `prepare` to a parser."""
    parser.add_argument("--dataset", required=True, metavar="D", help="name in dataset_configs/, or a YAML file")
    parser.add_argument("--raw", type=Path, metavar="FOLDER", help="the raw files; missing ones are downloaded into it")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the folder D is made (default: dataset)")
    parser.add_argument(
        "--report", nargs="?", const="", metavar="FILE", help="write an HTML page (default: <out>/D-report.html)"
    )
    parser.add_argument("--tokenizer", metavar="NAME", help="counts title lengths in the report (default: words)")


def prepare_command(argv: Sequence[str]) -> int:
    """Run ``prepare`` with its options; return the exit status.

    Raises:
        RecBoleLLMError: as `prepare` does, and SettingError for a wrong option.
    """
    parser = _Parser(prog="recbole-llm prepare", description="Make the atomic files of a data set from its raw files.")
    add_arguments(parser)
    options = parser.parse_args(argv)
    spec = load_spec(options.dataset)
    out = DEFAULT_OUT if options.out is None else options.out
    report = None
    if options.report is not None:
        report = Path(options.report) if options.report else out / f"{spec.dataset}-report.html"
    done = prepare(options.dataset, options.raw, out, report, options.tokenizer, _to_stderr)
    for reason, rows in done.manifest["skipped"].items():
        print(f"left out: {rows:,} ({reason})")
    print(counts.table(done.counts, spec.paper_counts, spec.notes))
    if report is not None:
        print(f"\nreport: {report}")
    print(f"\n{done.folder}")
    return 0
