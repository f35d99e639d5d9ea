"""The verb ``prepare``: a publisher's files made into RecBole's atomic files."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from recbole_llm.cli.arguments import Given, Parser
from recbole_llm.cli.interrupts import interrupted
from recbole_llm.cli.show import show
from recbole_llm.errors import SettingError
from recbole_llm.utils.paths import cache_folder

if TYPE_CHECKING:
    from recbole_llm.prepare import PreparedDataset
    from recbole_llm.prepare.look import Tokenize
    from recbole_llm.prepare.spec import Spec


def parser() -> Parser:
    """Return the parser of the verb."""
    found = Parser(
        "prepare",
        "Make the atomic files of a dataset from its publisher's files, and compare its counts with the papers'.",
        "-d DATASET [--raw=FOLDER] [--out=FOLDER] [--report[=FILE]]",
    )
    group = found.add_argument_group("options")
    group.add_argument("-d", "--dataset", metavar="NAME", help="a name in dataset_configs/, or a YAML file of your own")
    group.add_argument(
        "--raw", type=Path, metavar="FOLDER", help="the raw files; missing ones are downloaded (default: in the cache)"
    )
    group.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where the folder of the dataset is made (default: dataset)"
    )
    group.add_argument(
        "--report",
        nargs="?",
        const="",
        metavar="FILE",
        help="write an HTML page about the data (default: none; without FILE: <out>/<dataset>-report.html)",
    )
    group.add_argument(
        "--tokenizer", metavar="NAME", help="the tokenizer that counts title lengths in the page (default: words)"
    )
    return found


def main(given: Given) -> int:
    """Prepare, print the counts and, last, the folder of the dataset.

    Raises:
        RecBoleLLMError: as `recbole_llm.prepare.prepare` does.
    """
    from recbole_llm.prepare import prepare
    from recbole_llm.prepare.make import DEFAULT_OUT
    from recbole_llm.prepare.spec import load_spec

    options = given.options
    if "dataset" not in options:
        raise SettingError("prepare needs a dataset: --dataset=Scientific, or a YAML file of your own")
    spec = load_spec(options["dataset"])
    raw, out = options.get("raw"), options.get("out", DEFAULT_OUT)
    report = None
    if "report" in options:
        report = Path(options["report"]) if options["report"] else out / f"{spec.dataset}-report.html"
    downloads = raw if raw is not None else cache_folder("raw") / spec.dataset
    before = _sizes(downloads)
    try:
        done = prepare(options["dataset"], raw, out, report, _tokenizer(options.get("tokenizer")), _to_stderr)
    except KeyboardInterrupt as interrupt:
        new = _sizes(downloads) != before
        kept = f"what was downloaded is kept in {downloads}: the same command uses it"
        return interrupted(interrupt, kept if new else None)
    _print_counts(done, spec)
    if report is not None:
        show(f"\nreport: {report}")
    show(f"\n{done.folder}")
    return 0


def _tokenizer(name: str | None) -> "tuple[str, Tokenize] | None":
    """Return a transformers tokenizer by its name or folder, and what counts the tokens of texts with it."""
    if name is None:
        return None
    from recbole_llm.backbone.loading import load_tokenizer

    tokenizer = load_tokenizer(name)

    def lengths(texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]] if texts else []

    return name, lengths


def _print_counts(done: "PreparedDataset", spec: "Spec") -> None:
    from recbole_llm.prepare import counts

    for reason, rows in done.manifest["skipped"].items():
        show(f"left out: {rows:,} ({reason})")
    show(counts.table(done.counts, spec.paper_counts, spec.notes))


def _sizes(folder: Path) -> dict[Path, int]:
    """Return the files of a folder with their sizes."""
    return {path: path.stat().st_size for path in folder.glob("*") if path.is_file()}


def _to_stderr(line: str) -> None:
    show(line, file=sys.stderr)
