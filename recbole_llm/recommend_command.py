"""The verb ``recommend``: the best items for histories that are given on the command line or in a file."""

from pathlib import Path
from typing import Any

from recbole_llm.config import parse_value
from recbole_llm.errors import DataError, SettingError, nearest
from recbole_llm.inference import Recommender

_OPTIONS = ("run", "history", "histories", "k", "exclude_seen", "user", "allow_untrained", "cuda_graph", "data_path")


def recommend_command(arguments: list[str]) -> int:
    """Print one tab-separated line an item: number of the history, rank, item and score.

    Raises:
        SettingError: for options that are missing or not understood.
        DataError: for a file or a history that cannot be read.
        CheckpointError: if the run is broken.
    """
    given = _options(arguments)
    if "run" not in given:
        raise SettingError("recommend needs the folder of a finished run: --run=saved/<run>")
    if ("history" in given) == ("histories" in given):
        raise SettingError('recommend needs either --history="ITEM,ITEM,..." or --histories=FILE')
    if "user" in given and "histories" in given:
        raise SettingError("--user goes with --history alone")
    k, flags = _values(given)
    settings = {"data_path": given["data_path"]} if "data_path" in given else None
    histories = [_items(given["history"])] if "history" in given else _read_histories(Path(given["histories"]))
    exclude_seen = flags.pop("exclude_seen")
    recommender = Recommender.from_run(given["run"], settings, **flags)
    users = [given["user"]] if "user" in given else None
    for number, row in enumerate(recommender.recommend(histories, k, exclude_seen, users), start=1):
        for rank, (item, score) in enumerate(zip(row.items, row.scores, strict=True), start=1):
            print(f"{number}\t{rank}\t{item}\t{score:.6g}")
    return 0


def _options(arguments: list[str]) -> dict[str, str]:
    given = {}
    for argument in arguments:
        name, separator, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not separator:
            raise SettingError(f"'{argument}' is not understood: settings are written --name=value")
        if name not in _OPTIONS:
            raise SettingError(f"recommend has no setting '{name}'{nearest(name, _OPTIONS)}")
        given[name] = value
    return given


def _values(given: dict[str, str]) -> tuple[Any, dict[str, bool]]:
    flags = {}
    for name in ("exclude_seen", "allow_untrained", "cuda_graph"):
        flags[name] = parse_value(given.get(name, "false"))
        if not isinstance(flags[name], bool):
            raise SettingError(f"{name}={given[name]} must be true or false")
    return parse_value(given.get("k", "10")), flags


def _read_histories(path: Path) -> list[list[str]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the histories {path} cannot be read: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise DataError(
                f"line {number} of {path} is empty: it needs one history a line, items separated by commas or spaces"
            )
    if not lines:
        raise DataError(f"{path} is empty: it needs one history a line, items separated by commas or spaces")
    return [_items(line) for line in lines]


def _items(text: str) -> list[str]:
    return text.replace(",", " ").split()
