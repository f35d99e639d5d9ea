"""The verb ``recommend``: the best items for users of the dataset, or for histories that are given by hand."""

import csv
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from recbole_llm.cli.arguments import Given, Parser, flag, one_of
from recbole_llm.cli.search_options import add_search, search_of
from recbole_llm.cli.show import show, show_error
from recbole_llm.errors import DataError, SettingError
from recbole_llm.utils.files import read_text, replacing
from recbole_llm.utils.plain_text import csv_cell, json_line, one_line
from recbole_llm.utils.values import parse_value

if TYPE_CHECKING:
    from recbole_llm.inference.recommender import Recommendation

_FLAGS = ("allow_untrained", "cuda_graph")
FORMATS = ("table", "jsonl", "csv")
_HISTORY_FORM = "one history a line, items separated by commas"
_AT_ONCE = 4096  # users between two writes


@dataclass
class Asked:
    """Who is recommended to, and how the answer is shown.

    Attributes:
        users: tokens, None for histories; empty: all.
        histories: item tokens of each, oldest first.
        k: how many items; checked by the recommender.
        exclude_seen: whether items of the history are left out; None: as the run was evaluated.
        options: of the recommender.
        new_items: the file with items to rank among those of the dataset; None: no such items.
        format: one of `FORMATS`.
        out: the file to write; None: standard output.
    """

    users: list[str] | None
    histories: list[list[str]]
    k: Any
    exclude_seen: bool | None
    options: dict[str, Any]
    new_items: Path | None
    format: str
    out: Path | None


@dataclass
class Answer:
    """What is shown of one user or history.

    Attributes:
        who: the name of the column and what stands in it: ("user", token) or ("history", number).
        history: item tokens, oldest first.
        found: the recommendation.
    """

    who: tuple[str, Any]
    history: list[str]
    found: "Recommendation"


def parser() -> Parser:
    """Return the parser of the verb."""
    found = Parser(
        "recommend",
        "Show the best items, with titles and scores: for users of the dataset, after all that they did, or after "
        "histories that are given by hand.",
        "--run=saved/<run> --user=USER | --users=USERS\n"
        '       recbole-llm recommend --run=saved/<run> --history="ITEM,ITEM" | --histories=FILE',
    )
    group = found.add_argument_group("whom to recommend to")
    group.add_argument("--run", metavar="FOLDER", help="the folder of a finished run")
    group.add_argument("--user", metavar="USER", help="a user of the dataset; with --history, whose history it is")
    group.add_argument(
        "--users", metavar="USERS", help="several, separated by commas; all; or a file, one user per line"
    )
    group.add_argument(
        "--history", metavar="ITEMS", help='items, the oldest first, separated by commas; "a,b" in quotes is one item'
    )
    group.add_argument("--histories", metavar="FILE", help="a file, one history per line")
    group.add_argument("--data_path", metavar="FOLDER", help="where the dataset is (default: as in the run)")
    group = found.add_argument_group("how")
    group.add_argument("--k", metavar="INT", help="how many items (default: 10)")
    for name, help_text in (
        ("exclude_seen", "leave out the items of the history (default: as the run was evaluated)"),
        ("allow_untrained", "allow items in the history that no training row has (default: False)"),
        ("cuda_graph", "replay the model's work on a GPU, for many small requests (default: False)"),
    ):
        group.add_argument(f"--{name}", type=flag(name), nargs="?", const=True, metavar="BOOL", help=help_text)
    group.add_argument(
        "--new_items",
        metavar="FILE",
        help="a table of item tokens and texts, with the columns of the .item file: items that the model was never "
        "trained on, ranked among the others by a model that reads item texts",
    )
    add_search(group)
    group.add_argument(
        "--format",
        type=one_of("format", FORMATS),
        metavar="NAME",
        help="table, jsonl or csv (default: by the name of --out; else table, or csv for several users in a pipe)",
    )
    group.add_argument("--out", metavar="FILE", help="a file to write (default: standard output)")
    return found


def main(arguments: Given) -> int:
    """Show the best items with titles and scores as a table, JSON lines or CSV.

    Raises:
        SettingError: for options that are missing or not understood, and a model that cannot answer.
        DataError: for a file or a history that cannot be read, and unknown users and items.
        CheckpointError: if the run is broken.
        StorageError: if the file cannot be written.
    """
    given = arguments.options
    asked = _asked(given)
    from recbole_llm.inference.titles import item_titles
    from recbole_llm.quick_start.run import load
    from recbole_llm.runs.folder import require_finished

    require_finished(given["run"])
    parts = load(given["run"], {"data_path": given["data_path"]} if "data_path" in given else None)
    user = given.get("user") if asked.users is None else None
    titles = item_titles(parts)
    if asked.new_items is not None:
        from recbole_llm.inference.new_items import read_new_items

        new_items = asked.options["new_items"] = read_new_items(parts, asked.new_items)
        titles = {**(titles or {}), **dict(zip(new_items.index, new_items.iloc[:, 0], strict=True))}
    answers = _to_users(parts, asked) if asked.users is not None else _after_histories(parts, asked, user)
    if asked.out is None:
        _write(sys.stdout, answers, titles, asked.format)
        return 0
    with replacing(asked.out) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        _write(file, answers, titles, asked.format)
    show(asked.out)
    return 0


# -- what is asked -----------------------------------------------------------------------------------------------------


def _asked(given: dict[str, Any]) -> Asked:
    if "run" not in given:
        raise SettingError("recommend needs the folder of a finished run: --run=saved/<run>")
    sources = [name for name in ("history", "histories", "users") if name in given]
    if len(sources) > 1 or not (sources or "user" in given):
        raise SettingError(
            'recommend needs one of --user=USER, --users=USER,USER (or all, or a file), --history="ITEM,ITEM,..." and '
            "--histories=FILE"
        )
    if "user" in given and sources and sources != ["history"]:
        raise SettingError(f"--user goes alone or with --history, not with --{sources[0]}")
    flags = {name: given.get(name, False) for name in _FLAGS}
    exclude_seen = given.get("exclude_seen")
    users, histories = _users(given), []
    if "history" in given:
        histories = [_items(given["history"])]
    elif "histories" in given:
        histories = [_items(line) for line in _lines(Path(given["histories"]), "histories", _HISTORY_FORM)]
    several = len(histories) > 1 or (users is not None and len(users) != 1)
    out = Path(given["out"]) if "out" in given else None
    shown = _format(given.get("format"), out, several)
    new_items = Path(given["new_items"]) if "new_items" in given else None
    k = parse_value(given.get("k", "10"))
    search = search_of(given, k)
    return Asked(users, histories, k, exclude_seen, {**flags, "search": search}, new_items, shown, out)


def _format(wanted: str | None, out: Path | None, several: bool) -> str:
    if wanted is None:
        by_name = out.suffix.removeprefix(".") if out is not None else ""
        if by_name in FORMATS:
            return by_name
        return "csv" if several and (out is not None or not sys.stdout.isatty()) else "table"
    return wanted


def _users(given: dict[str, Any]) -> list[str] | None:
    """Return the users that are named, an empty list for all, None for histories."""
    if "users" not in given:
        return [given["user"]] if "user" in given and "history" not in given else None
    text = given["users"]
    if text == "all":
        return []
    if text.strip() and _is_file(text):
        return [line.strip() for line in _lines(Path(text), "users", "one user a line")]
    users = [user.strip() for user in text.split(",") if user.strip()]
    if not users:
        raise DataError("users= names no user: there is nobody to recommend to")
    return users


def _is_file(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # a list that is longer than the name of a file can be
        return False


def _lines(path: Path, what: str, form: str) -> list[str]:
    lines = read_text(path, f"file of {what}").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise DataError(f"line {number} of {path} is empty: it needs {form}")
    if not lines:
        raise DataError(f"{path} is empty: it needs {form}")
    return lines


def _items(text: str) -> list[str]:
    try:
        items = next(csv.reader([text], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        raise DataError(f"the history {text!r} is not understood ({error}): write a quote in an item twice") from None
    return [item for item in map(str.strip, items) if item]


# -- answers, some users at a time -------------------------------------------------------------------------------------


def _to_users(parts: Any, asked: Asked) -> Iterator[Answer]:
    from recbole_llm.inference.users import UserRecommender

    recommender = UserRecommender(parts, **asked.options)
    _tell(recommender.search_summary)
    users = asked.users or recommender.users
    for user in users:
        recommender.history(user)  # an unknown user ends it before anything is written
    for begin in range(0, len(users), _AT_ONCE):
        some = users[begin : begin + _AT_ONCE]
        for user, found in zip(some, recommender.recommend(some, asked.k, asked.exclude_seen), strict=True):
            yield Answer(("user", user), recommender.history(user), found)


def _after_histories(parts: Any, asked: Asked, user: str | None) -> Iterator[Answer]:
    from recbole_llm.inference.recommender import Recommender

    recommender = Recommender(parts.model, parts.train._dataset, **asked.options)
    _tell(recommender.search_summary)
    _refuse_blanks(parts.dataset, asked.histories)
    for begin in range(0, len(asked.histories), _AT_ONCE):
        some = asked.histories[begin : begin + _AT_ONCE]
        if len(some) == 1:
            rows = [recommender.recommend(some[0], asked.k, asked.exclude_seen, user)]
        else:
            rows = recommender.recommend(some, asked.k, asked.exclude_seen)
        for number, (history, found) in enumerate(zip(some, rows, strict=True), start=begin + 1):
            yield Answer(("history", number), history, found)


def _tell(summary: str | None) -> None:
    if summary is not None:
        show_error(summary)  # standard output is for the answers


def _refuse_blanks(dataset: Any, histories: list[list[str]]) -> None:
    """Refuse items that are separated by blanks, which an item's token may hold."""
    known = dataset.field2token_id[dataset.iid_field]
    for item in (item for history in histories for item in history):
        if item not in known and len(item.split()) > 1 and all(part in known for part in item.split()):
            raise DataError(
                f"there is no item '{item}' in {dataset.dataset_name}, whose items may have blanks in their names: "
                f"separate items by commas, as {','.join(item.split()[:2])}"
            )


# -- how they are shown ------------------------------------------------------------------------------------------------


def _write(file: IO[str], answers: Iterator[Answer], titles: dict[str, str] | None, shown: str) -> None:
    written = {"table": _as_table, "jsonl": _as_json, "csv": _as_csv}[shown]
    for number, answer in enumerate(answers):
        file.write(written(answer, titles, number == 0))


def _rows(answer: Answer, titles: dict[str, str] | None) -> list[dict[str, Any]]:
    """Return what is told of each item, best first."""
    return [
        {
            "rank": rank,
            "item": item,
            **({} if titles is None else {"title": titles.get(item, "")}),
            "score": float(f"{score:.6g}"),
        }
        for rank, (item, score) in enumerate(zip(answer.found.items, answer.found.scores, strict=True), start=1)
    ]


def _as_json(answer: Answer, titles: dict[str, str] | None, first: bool) -> str:
    kind, name = answer.who
    who = {"user": name} if kind == "user" else {"history": answer.history}
    return json_line(json.dumps({**who, "items": _rows(answer, titles)}, ensure_ascii=False)) + "\n"


def _as_csv(answer: Answer, titles: dict[str, str] | None, first: bool) -> str:
    kind, name = answer.who
    text = io.StringIO()
    columns = [kind, "rank", "item", *([] if titles is None else ["title"]), "score"]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if first:
        writer.writeheader()
    for row in _rows(answer, titles):
        writer.writerow({column: csv_cell(value) for column, value in {kind: name, **row}.items()})
    return text.getvalue()


def _as_table(answer: Answer, titles: dict[str, str] | None, first: bool) -> str:
    from tabulate import tabulate

    kind, name = answer.who
    last = answer.history[-1]
    last = (titles or {}).get(last) or last
    count = len(answer.history)
    head = one_line(f"{kind} {name}: {count} item{'' if count == 1 else 's'}, the last {last}")
    rows = _rows(answer, titles)
    # A token of digits is a name, not a number; nothing but rank and score is laid to the right.
    align = ["right", "left", *([] if titles is None else ["left"]), "right"]
    table = tabulate([[one_line(value) for value in row.values()] for row in rows], [*rows[0]] if rows else [],
                     disable_numparse=True, colalign=align if rows else None)  # fmt: skip
    return f"{'' if first else chr(10)}{head}\n\n{table or 'nothing is left to recommend'}\n"
