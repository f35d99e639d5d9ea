"""A dataset's atomic files from its publisher's files: made, or found where they are."""

import sys
from collections.abc import Callable
from pathlib import Path

from recbole_llm.errors import SettingError
from recbole_llm.prepare import pipeline
from recbole_llm.prepare.look import Tokenize, look
from recbole_llm.prepare.pipeline import PreparedDataset
from recbole_llm.prepare.report import write_report
from recbole_llm.prepare.spec import load_spec
from recbole_llm.utils.paths import has_interactions
from recbole_llm.utils.plain_text import printable

DEFAULT_OUT = Path("dataset")
"""RecBole's default `data_path`."""


def _quiet(line: str) -> None:
    del line


def prepare(
    dataset: str,
    raw: Path | None = None,
    out: Path | None = None,
    report: Path | None = None,
    tokenizer: tuple[str, Tokenize] | None = None,
    say: Callable[[str], None] = _quiet,
) -> PreparedDataset:
    """Make the atomic files of a dataset from its publisher's files.

    Args:
        dataset: a name under ``dataset_configs/``, or the path of a YAML file of one's own.
        raw: folder with the raw files, where missing ones are downloaded to; None: a folder in the cache.
        out: the dataset becomes the folder ``out/<dataset>``, so `out` is RecBole's `data_path`; None: ``dataset``.
        report: HTML file to write; None: none.
        tokenizer: a name, and what counts the tokens of titles in the report; None: words are counted.
        say: told what is being done, one line at a time.

    Returns:
        Where the files are, with counts and manifest.

    Raises:
        SettingError: if the dataset is unknown or its settings are wrong.
        DataError: if a raw file is missing, broken, or not what the settings say.
        StorageError: if something cannot be written.
    """
    spec = load_spec(dataset)
    if report is not None and spec.benchmark is not None:
        raise SettingError(f"{spec.dataset} has one file for each part, of which no report is made: leave out --report")
    done = pipeline.run(spec, raw, DEFAULT_OUT if out is None else out, say)
    if report is not None:
        name, tokenize = tokenizer or (None, None)
        numbers = look(done.folder, done.dataset, tokenize, name)
        write_report(report, done, numbers)
    return done


def ensure(dataset: str, data_path: Path, file: Path | None = None) -> Path:
    """Return the folder ``data_path/<dataset>``, preparing the dataset first if its interactions are not there.

    Args:
        dataset: its name.
        data_path: where its folder is, or is made.
        file: a YAML file that says how it is made, in the place of the one under ``dataset_configs/``.

    Raises:
        DataError: if it is not there and cannot be prepared; the message says which files to put where.
        SettingError: if the dataset is unknown.
        StorageError: if something cannot be written.
    """
    folder = Path(data_path) / dataset
    if has_interactions(folder):
        return folder
    return prepare(dataset if file is None else str(file), out=Path(data_path), say=_to_stderr).folder


def _to_stderr(line: str) -> None:
    print(printable(line), file=sys.stderr)
