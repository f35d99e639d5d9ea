"""The page docs/settings.md and the files of properties/ with this package's defaults, written from the declarations.

``python -m recbole_llm.config.document`` writes them in a checkout; a test makes them again and compares.
"""

import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from recbole_llm.config import declared
from recbole_llm.config.kinds import Choice, Maybe
from recbole_llm.config.schema import RECBOLE, Role, Section, Setting
from recbole_llm.config.settings import overall, recbole_models
from recbole_llm.utils.files import write_text
from recbole_llm.utils.paths import shipped

_WIDTH = 128
_COLUMN = 32  # where the comment of a setting begins
_HEAD = "Written by `python -m recbole_llm.config.document` from recbole_llm/config/settings/."
_ROLES = {
    Role.IDENTITY: "which model on which dataset",
    Role.FORMAT: "how the files of a dataset are read",
    Role.DATA: "which users, items and interactions are left",
    Role.PROTOCOL: "who is tested, on which target, among which items",
    Role.METRIC: "what is computed of a ranking, and by what the best epoch is chosen",
    Role.INPUT: "what a model reads of a history, an item or an instruction",
    Role.TRAINING: "the size of a model, and how it is trained",
    Role.STAGE: "what is trained or found before the run itself",
    Role.CHANCE: "the seed; runs that differ in it alone are repetitions of one another",
    Role.PLACE: "where files lie, and what is shown",
    Role.MACHINE: "how it is computed; the result is the same",
}


def written(value: Any) -> str:
    """Return a value as YAML on one line, None as ``~``."""
    if value is None:
        return "~"
    if isinstance(value, bool | float):
        return str(value)
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...").strip()


def properties_file(model: str | None) -> str:
    """Return the text of properties/model/<model>.yaml, or of properties/overall.yaml for None."""
    title = overall.TITLE if model is None else declared.TITLES[model]
    sections = overall.OVERALL if model is None else declared.OURS[model]
    lines = [line for part in (*title.split("\n"), _HEAD) for line in _comment(part)]
    for section in sections:
        lines += ["", *(_comment(section.title) if section.title else ()), *_comment(section.remark)]
        lines += [line for setting in section.settings for line in _entry(setting)]
    return "\n".join(lines) + "\n"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_long_words=False)


def _entry(setting: Setting) -> list[str]:
    entry = f"{setting.name}: {written(setting.default)}"
    first = f"({setting.kind.type}{_choices(setting)}) {setting.sentence}"
    indent = " " * _COLUMN
    if len(entry) >= _COLUMN - 1:
        return [entry, *_wrapped(first, indent)]
    return [f"{entry:<{_COLUMN}}{line[_COLUMN:]}" if n == 0 else line for n, line in enumerate(_wrapped(first, indent))]


def _choices(setting: Setting) -> str:
    """Return the choices of a setting, if its sentence does not name them all."""
    kind = setting.kind.kind if isinstance(setting.kind, Maybe) else setting.kind
    if not isinstance(kind, Choice) or all(name in setting.sentence for name in kind.names):
        return ""
    return f": {kind.words}"


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=f"{indent}# ",
        subsequent_indent=f"{indent}#   ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def settings_page() -> str:
    """Return the text of docs/settings.md."""
    parts = [
        "# Settings",
        f"<!-- {_HEAD} -->",
        "Every setting is checked before anything is loaded or trained. A value that cannot be ends with one sentence: "
        "`train_share=5 must be a number above 0 and up to 1, or ~`. A setting of another model is refused on the "
        "command line and in a dict; in a file, which several models may share, it is passed over with a warning.",
        "`~` is YAML's word for no value. The role of a setting says what follows from it:",
        _table(("Role", "What it is about"), ((str(role), words) for role, words in _ROLES.items())),
        "An ID model has the *format*, *data*, *protocol*, *metric* and *chance* settings of the run that it serves. "
        "A search varies *input*, *training* and *stage* settings. All runs of one table have the same *data* and "
        "*protocol* settings. Runs that differ in *chance*, *place* and *machine* settings alone repeat one another.",
        "## Every run",
        *_every_run(),
        *(part for model in declared.OURS for part in _of_model(model)),
        *_of_recbole(),
    ]
    return "\n\n".join(parts) + "\n"


def _every_run() -> Iterable[str]:
    yield from _sections((declared.RUN, *overall.OVERALL))
    replaced = {setting.name for setting in declared.of_sections(overall.OVERALL)}
    yield "## Every run: RecBole's own settings"
    yield from _sections(declared.RECBOLE_GENERAL, replaced)


def _of_model(model: str) -> Iterable[str]:
    yield f"## {model}"
    yield from _sections(declared.OURS[model])
    if recbole_models.recbole_model(model):
        yield f"RecBole's own settings of {model} are in the last table of this page."


def _sections(sections: Sequence[Section], without: Iterable[str] = ()) -> Iterable[str]:
    for section in sections:
        settings = [setting for setting in section.settings if setting.name not in set(without)]
        if not settings:
            continue
        if section.title:
            yield f"### {section.title}"
        if section.remark:
            yield section.remark
        yield _table(("Setting", "Must be", "Default", "Role", "What it does"), map(_row, settings))


def _row(setting: Setting) -> tuple[str, ...]:
    default = declared.general()[setting.name].default if setting.default is RECBOLE else setting.default
    return f"`{setting.name}`", setting.kind.words, f"`{written(default)}`", str(setting.role), setting.sentence


def _of_recbole() -> Iterable[str]:
    models = [model for model in declared.models_with_settings() if recbole_models.recbole_model(model)]
    yield "## RecBole's models"
    yield "Settings that several of them have:"
    common = [(f"`{name}`", kind.words, sentence) for name, kind, sentence in recbole_models.common()]
    yield _table(("Setting", "Must be", "What it does"), common)
    yield (
        "All settings of each model with their defaults; a value must have the type of the default. RecBole's "
        "documentation says what they do."
    )
    rows = []
    for model in models:
        settings = recbole_models.recbole_model(model)
        rows.append((model, ", ".join(f"`{each.name}: {written(each.default)}`" for each in settings)))
    yield _table(("Model", "Settings"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def files(root: Path) -> dict[Path, str]:
    """Return the text of every file that is written, by its path in the checkout `root`."""
    properties = root / "properties"
    texts = {properties / "model" / f"{model}.yaml": properties_file(model) for model in declared.OURS}
    return {properties / "overall.yaml": properties_file(None), **texts, root / "docs" / "settings.md": settings_page()}


def main() -> int:
    """Write all files in the checkout that this package runs from."""
    for path, text in files(shipped("properties").parent).items():
        write_text(path, text)
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
