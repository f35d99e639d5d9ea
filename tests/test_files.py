"""Files and folders of a run: who may read them, and space that is taken before it is needed."""

import os
import stat
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_data import small_settings

from recbole_llm.backbone import feature_store
from recbole_llm.errors import StorageError
from recbole_llm.quick_start.run import run
from recbole_llm.runs import folder as run_folder
from recbole_llm.utils import files


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder):
    """The permissions of everything in `folder` and of itself, as two sets: of files and of folders."""
    found = [folder, *folder.rglob("*")]
    return [
        {stat.S_IMODE(path.stat().st_mode) for path in found if path.is_dir() == is_dir} for is_dir in (False, True)
    ]


def test_who_changes_what_a_file_holds_changes_nothing_for_the_next_reader(tmp_path):
    (tmp_path / "a.yaml").write_text("topk: [5, 10]")
    files.read_yaml(tmp_path / "a.yaml")["topk"].append(20)
    assert files.read_yaml(tmp_path / "a.yaml") == {"topk": [5, 10]}


def save_weights(path):
    save_file({"x": torch.zeros(2)}, path)


def test_files_follow_the_umask(tmp_path, umask):
    for name, write in {"text": lambda path: path.write_text("x"), "weights": save_weights}.items():
        with files.replacing(tmp_path / "new" / name) as temporary:
            write(temporary)
    assert modes(tmp_path / "new") == [{0o666 & ~umask}, {0o777 & ~umask}]


def test_folders_follow_the_umask_with_all_that_is_in_them(tmp_path, umask):
    with files.replacing_folder(tmp_path / "new") as temporary:
        (temporary / "inner").mkdir()
        save_weights(temporary / "inner" / "weights")
        (temporary / "text").write_text("x")
    assert modes(tmp_path / "new") == [{0o666 & ~umask}, {0o777 & ~umask}]


def test_what_a_link_points_to_keeps_its_permissions(tmp_path):
    outside = tmp_path / "outside"
    outside.touch(mode=0o600)
    with files.replacing_folder(tmp_path / "new") as temporary:
        (temporary / "link").symlink_to(outside)
    assert stat.S_IMODE(outside.stat().st_mode) == 0o600


def test_files_of_other_threads_follow_the_umask_meanwhile(tmp_path, umask, monkeypatch):
    real = os.umask

    def slow(mask):  # a change of the umask, however short, is seen by the other thread
        before = real(mask)
        time.sleep(0.01)
        return before

    stop = threading.Event()
    other = tmp_path / "other"
    other.mkdir()

    def create():
        count = 0
        while not stop.is_set():
            (other / str(count)).touch()
            count += 1

    with monkeypatch.context() as patch:
        patch.setattr(os, "umask", slow)
        thread = threading.Thread(target=create)
        thread.start()
        try:
            for number in range(20):
                files.write_text(tmp_path / "text", str(number))
                with files.replacing_folder(tmp_path / str(number)):
                    pass
        finally:
            stop.set()
            thread.join()
    assert modes(other)[0] == {0o666 & ~umask}


def test_all_that_a_run_leaves_follows_the_umask(small, tiny, umask):
    settings = {**small_settings(small), "backbone": str(tiny["llama"]), "tuning": "ilp", "epochs": 1}
    result = run("ST2SI", "small", settings=settings)
    folder = Path(result["path"]).parent
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "model.safetensors", "scenario.safetensors", "result.json"} <= names
    assert modes(folder) == [{0o666 & ~umask}, {0o777 & ~umask}]


def test_space_is_taken_where_the_system_has_no_call_for_it(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    size = 2**20 + 4321
    with (tmp_path / "file").open("wb") as file:
        files.reserve(file, size)
        status = os.fstat(file.fileno())
    assert status.st_size == size
    assert status.st_blocks * 512 >= size, "the file is longer, but holds no space"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_found_where_the_system_has_no_call_for_it(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    with Path("/dev/full").open("r+b", buffering=0) as full:
        monkeypatch.setattr(feature_store.tempfile, "TemporaryFile", lambda **_: full)
        with pytest.raises(StorageError, match=r"0\.4 GB of hidden states do not fit in .*: No space left on device"):
            feature_store.FeatureStore(10**5, 1000, torch.float32, torch.device("cpu"), tmp_path, in_memory=0)


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_peak_memory_is_told_in_bytes(monkeypatch, platform, unit):
    import resource

    usage = resource.struct_rusage([0.0, 0.0, 5000, *[0] * 13])
    assert usage.ru_maxrss == 5000
    monkeypatch.setattr(resource, "getrusage", lambda _: usage)
    monkeypatch.setattr(run_folder.sys, "platform", platform)
    assert run_folder.peak_memory_bytes()["peak_memory_bytes"] == 5000 * unit
