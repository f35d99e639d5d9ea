"""The file of prompts: one line of JSON per list of candidates, and beside it the settings that made it.

A line has ``row`` and ``draw``, the ``prompt``, and ``candidates``, item tokens in the order in which they are shown.
Which of them is the target is not in it.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from recbole_llm.config.config import Config
from recbole_llm.data.build import create_dataset, give_protocol
from recbole_llm.errors import DataError, SettingError
from recbole_llm.evaluation.candidate_choices import CandidateLists
from recbole_llm.model.prompt_recommender import choice_template, titles_of
from recbole_llm.runs.folder import plain
from recbole_llm.utils.files import read_yaml, replacing, storage_errors, write_text

MODEL = "LLMPrompt"
_NAME = re.compile(r"[\w][\w.+-]*")


@dataclass(frozen=True)
class PromptSet:
    """Everything that a hosted model is asked, and what its answers are measured by.

    Attributes:
        config: the settings.
        dataset: all interactions.
        parts: training, validation and test.
        lists: the candidates of the test rows.
        titles: object [items], as prompts have them; row 0 is empty.
    """

    config: Any
    dataset: Any
    parts: list[Any]
    lists: CandidateLists
    titles: np.ndarray

    def __len__(self) -> int:
        return int(self.lists.places.size)

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield what each line of the file holds."""
        template = choice_template(self.config)
        test, tokens = self.parts[-1], self.dataset.field2id_token[self.dataset.iid_field]
        rows = test[np.arange(len(test))]
        lengths = rows[test.item_list_length_field].numpy()
        histories = rows[test.item_id_list_field].numpy()
        for row, draw in np.ndindex(self.lists.places.shape):
            shown, history = self.lists.shown[row, draw], histories[row, : lengths[row]]
            titles = {"history": list(self.titles[history]), "candidates": list(self.titles[shown])}
            yield {
                "row": row,
                "draw": draw,
                "prompt": template.written(titles, self.lists.size).rstrip(),
                "candidates": [str(token) for token in tokens[shown]],
            }


def prompt_set(config: Config) -> PromptSet:
    """Return the prompts of the test part.

    Args:
        config: of `LLMPrompt`.

    Raises:
        SettingError: if no candidates are drawn.
        DataError: if the data cannot be read, or the split has no test part.
    """
    if config["candidates"] is None:
        raise SettingError("prompts show a list of candidates: set candidates=20")
    dataset = create_dataset(config)
    parts = list(dataset.build())
    if len(parts) < 3 or not len(parts[2]):
        raise DataError(f"no user of {config['dataset']} has a test target: there is nothing to ask")
    give_protocol(config, dataset, parts)
    lists = CandidateLists.drawn(parts[2], parts[:2], config["candidates"], config["candidate_seeds"])
    titles = titles_of(dataset, config["item_text_fields"][0], config["tidy_titles"])
    if (titles.iloc[1:] == "").any():
        raise DataError("an item has no title, and a prompt names items by their titles: set items_without_text=drop")
    return PromptSet(config, dataset, parts, lists, titles.to_numpy(dtype=object))


def export(config: Config, out: Path) -> PromptSet:
    """Write the file of prompts and, beside it, ``<name>.yaml`` with the settings.

    Args:
        config: of `LLMPrompt`.
        out: the file; it must not exist, since answers may belong to it.

    Raises:
        SettingError: if the file exists.
        StorageError: if it cannot be written.
        DataError: see `prompt_set`.
    """
    if out.exists():
        raise SettingError(f"{out} exists, and answers may belong to it: name another file with --out")
    found = prompt_set(config)
    with replacing(out) as temporary, temporary.open("w", encoding="utf-8") as file:
        for line in found.lines():
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    header = f"# the settings of the prompts in {out.name}\n"
    write_text(settings_file(out), header + yaml.safe_dump(plain(config.merged), allow_unicode=True, sort_keys=True))
    return found


def settings_file(prompts: Path) -> Path:
    """Return where the settings of a file of prompts are."""
    return prompts.with_suffix(".yaml")


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of prompts. Raises DataError if one is not what `export` writes."""
    lines = list(read_lines(path, "prompts"))
    for number, line in lines:
        if not isinstance(line.get("prompt"), str) or not _is_key(line) or not isinstance(line.get("candidates"), list):
            raise DataError(f"line {number} of {path} is not one of a file of prompts: export them again")
    return [line for _, line in lines]


def prompt_set_of(prompts: Path, settings: dict[str, Any]) -> PromptSet:
    """Return the prompts that a file was made of, from its settings and the data.

    Args:
        prompts: the file.
        settings: that differ here, such as `data_path`.

    Raises:
        DataError: if the settings are missing, or the data gives other candidates than the file has.
    """
    if not settings_file(prompts).is_file():
        raise DataError(f"{settings_file(prompts)} with the settings of {prompts} is missing: export the prompts again")
    found = prompt_set(Config(config_dict={**read_yaml(settings_file(prompts)), **settings}))
    known = read_prompts(prompts)
    expected = list(found.lines())
    for line, other in zip(known, expected, strict=False):
        if line["candidates"] != other["candidates"] or key_of(line) != key_of(other):
            raise DataError(
                f"row {line['row']}, draw {line['draw']} of {prompts} has other candidates than the data give now: "
                f"the data have changed; export the prompts again"
            )
    if len(known) != len(expected):
        raise DataError(f"{prompts} has {len(known)} prompts where the data give {len(expected)}: export them again")
    return found


def key_of(line: dict[str, Any]) -> tuple[int, int]:
    """Return the row and the draw of a line."""
    return line["row"], line["draw"]


def _is_key(line: dict[str, Any]) -> bool:
    return all(isinstance(line.get(name), int) and not isinstance(line[name], bool) for name in ("row", "draw"))


def read_lines(path: Path, what: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield number and object of each line of a file of JSON lines; empty lines are passed over.

    Raises:
        DataError: if the file cannot be read, or a line is no JSON object.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the file of {what} {path} cannot be read: {error}") from error
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except ValueError as error:
            raise DataError(f"line {number} of {path} is no JSON: mend or remove it") from error
        if not isinstance(found, dict):
            raise DataError(f"line {number} of {path} is no JSON object such as {{'row': 0, 'draw': 0, 'answer': ''}}")
        yield number, found


def require_name(name: str | None) -> str:
    """Return the name of a hosted model, which a folder can have. Raises SettingError."""
    if not name or not _NAME.fullmatch(name):
        raise SettingError(f"name={name} must name the model in the tables by letters, digits, . _ + -, such as GPT-4")
    return name


def append(path: Path, line: dict[str, Any]) -> None:
    """Add one line to a file of answers, whole and on the disk. Raises StorageError."""
    with storage_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
