"""Answers to exported prompts become an ordinary run: parsed by the written rules, scored, in a folder of its own."""

from pathlib import Path
from typing import Any

import numpy as np

from recbole_llm.errors import DataError
from recbole_llm.evaluation.candidate_choices import CandidateChoices, CandidateLists, results
from recbole_llm.inference.hosted.prompt_file import PromptSet, prompt_set_of, read_lines, require_name
from recbole_llm.runs import folder as run_folder
from recbole_llm.runs.result import RESULT, RunResult

_USAGE = ("prompt_tokens", "completion_tokens")


def import_answers(
    prompts: Path, answers: Path, name: str, rule: str | None = None, settings: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Score answers and write the folder of a run.

    Args:
        prompts: the file that `export` wrote.
        answers: JSON lines with ``row``, ``draw`` and ``answer``, each list of candidates once, in any order; other
            entries are allowed, and ``candidates`` are compared.
        name: of the model, as tables show it.
        rule: by which answers are read; None: the prompts' `answer_rule`.
        settings: that differ here, such as `data_path` and `checkpoint_dir`.

    Returns:
        What `result.json` holds, and under "path" where that file is.

    Raises:
        DataError: if a row is missing, doubled or unknown, or a list of candidates has no target.
        SettingError: if the name cannot be that of a folder.
        StorageError: if the folder cannot be written.
    """
    name = require_name(name)
    asked = prompt_set_of(prompts, settings or {})
    texts, usage = _read(answers, asked)
    choices = CandidateChoices(asked.lists)
    choices.read(slice(None), texts, asked.titles)
    rule = rule or asked.config["answer_rule"]
    merged = {**asked.config.merged, "model": name, "answer_rule": rule}
    folder = run_folder.create(Path(asked.config["checkpoint_dir"]), merged)
    found = _result(asked, name, {**merged}, usage)
    result = RunResult.from_dict({**found, **results(choices, None, rule)}, folder / RESULT)
    choices.write_of(folder, asked.parts[-1], rule)
    result.write(folder)
    return {**result.to_dict(), "path": str(folder / RESULT)}


def _read(path: Path, asked: PromptSet) -> tuple[list[list[str]], dict[str, int]]:
    """Return the answers [rows][draws] and the sum of what the lines say of tokens."""
    shape = asked.lists.places.shape
    texts = np.full(shape, None, dtype=object)
    usage = dict.fromkeys(_USAGE, 0)
    for number, line in read_lines(path, "answers"):
        row, draw = _place(line, shape, f"line {number} of {path}")
        if not isinstance(line.get("answer"), str):
            raise DataError(f"line {number} of {path} has no text under 'answer': an empty answer is ''")
        if texts[row, draw] is not None:
            raise DataError(f"line {number} of {path} answers row {row}, draw {draw} again: leave one of them out")
        if "candidates" in line:
            _require_candidates(line["candidates"], asked, row, draw, f"line {number} of {path}")
        texts[row, draw] = line["answer"]
        tokens = line.get("usage")
        if isinstance(tokens, dict):
            for name in _USAGE:
                usage[name] += tokens[name] if isinstance(tokens.get(name), int) else 0
    missing = np.argwhere(texts == None)  # noqa: E711 (of an array)
    if len(missing):
        row, draw = missing[0]
        raise DataError(
            f"{path} lacks {len(missing)} of {texts.size} answers, row {row}, draw {draw} the first: ask the rest, or "
            f"give '' for none"
        )
    return texts.tolist(), {name: count for name, count in usage.items() if count}


def _place(line: dict[str, Any], shape: tuple[int, ...], where: str) -> tuple[int, int]:
    row, draw = line.get("row"), line.get("draw")
    for value, size in ((row, shape[0]), (draw, shape[1])):
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < size:
            raise DataError(
                f"{where} is of row {row}, draw {draw}, but the prompts have rows 0 to {shape[0] - 1} and draws 0 to "
                f"{shape[1] - 1}"
            )
    assert isinstance(row, int) and isinstance(draw, int)
    return row, draw


def _require_candidates(given: Any, asked: PromptSet, row: int, draw: int, where: str) -> None:
    """Refuse candidates other than those that the list holds; one without the target is named as such."""
    tokens = asked.dataset.field2id_token[asked.dataset.iid_field]
    shown = [str(token) for token in tokens[asked.lists.shown[row, draw]]]
    if not isinstance(given, list) or [str(token) for token in given] != shown:
        known = {str(token): number for number, token in enumerate(tokens)}
        if isinstance(given, list) and all(str(token) in known for token in given):
            ids = np.array([[[known[str(token)] for token in given]]])
            try:
                CandidateLists(ids, asked.lists.targets[row : row + 1])
            except DataError:
                raise DataError(
                    f"the candidates in {where} do not hold the target of row {row}, draw {draw}: these are answers to "
                    f"other prompts"
                ) from None
        raise DataError(f"the candidates in {where} are not those of the prompt: these are answers to other prompts")


def _result(asked: PromptSet, name: str, settings: dict[str, Any], usage: dict[str, int]) -> dict[str, Any]:
    dataset, parts = asked.dataset, asked.parts
    return {
        "model": name,
        "dataset": asked.config["dataset"],
        "backbone": None,
        "tuning": None,
        "seed": asked.config["seed"],
        "valid": None,
        "test": None,
        "protocol": dataset.item_protocol.entry(),
        "epochs": 0,
        "best_epoch": None,
        "seconds": {"prepare": 0.0, "fit": 0.0, "evaluate": 0.0},
        "parameters": {"trained": 0, "frozen": 0},
        "device": "hosted",
        "counts": {
            "users": dataset.user_num - 1,
            "items": dataset.item_num - 1,
            **{part: len(rows) for part, rows in zip(("train", "valid", "test"), parts, strict=True)},
        },
        "hosted": {"answers": len(asked), **usage},
        "history": [],
        "settings": run_folder.plain(settings),
        "commit": run_folder.git_commit(),
        "kind": "sequential",
    }
