"""What is written from the declarations is what lies in the checkout."""

from pathlib import Path

import pytest

from recbole_llm.config import declared, document
from recbole_llm.config.kinds import Maybe
from recbole_llm.utils.files import read_yaml

ROOT = Path(__file__).resolve().parents[2]
FILES = document.files(ROOT)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_files_are_as_the_declarations_say(path):
    assert path.read_text(encoding="utf-8") == FILES[path], "run python -m recbole_llm.config.document"


@pytest.mark.parametrize("model", [None, *declared.OURS])
def test_files_hold_the_declared_defaults(model):
    path = ROOT / "properties" / ("overall.yaml" if model is None else f"model/{model}.yaml")
    sections = declared.overall.OVERALL if model is None else declared.OURS[model]
    assert read_yaml(path) == {setting.name: setting.default for setting in declared.of_sections(sections)}
    assert max(map(len, path.read_text().splitlines())) <= 128


def test_every_setting_is_on_the_page():
    page = document.settings_page()
    names = {*declared.general(), *(name for model in declared.OURS for name in declared.own(model))}
    assert not [name for name in names if f"`{name}`" not in page and f"`{name}:" not in page]


def test_sentences_are_sentences():
    for setting in (
        *declared.general().values(),
        *(s for m in declared.OURS for s in declared.of_sections(declared.OURS[m])),
    ):
        kind = setting.kind.kind if isinstance(setting.kind, Maybe) else setting.kind
        assert kind.words and setting.sentence, setting.name
        assert len(setting.sentence) < 320 and setting.sentence[0] != " ", setting.name
