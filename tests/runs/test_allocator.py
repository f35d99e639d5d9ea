"""A command's process keeps freed memory where the C library is glibc; a library call changes nothing."""

import platform
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from small_data import small_settings

import recbole_llm
from recbole_llm import run
from recbole_llm.cli.main import main
from recbole_llm.utils import allocator

FAULTS = """
    import resource, sys
    import numpy as np
    from recbole_llm.utils.allocator import keep_freed_memory
    taken = keep_freed_memory() if sys.argv[1] == "set" else None
    for _ in range(2):
        np.ones(2**23)  # 64 MiB, freed at once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**23)
    print(taken, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how, **variables):
    package = str(Path(recbole_llm.__file__).parents[1])
    command = [sys.executable, "-c", textwrap.dedent(FAULTS), how]
    out = subprocess.run(command, check=True, capture_output=True, text=True, env={"PYTHONPATH": package, **variables})
    taken, count = out.stdout.split()
    return taken, int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_used_again():
    """The pages of 64 MiB are cleared again without it, 16,384 of 4 KiB or 32 of 2 MiB, and not with it."""
    _, as_it_is = faults("as it is")
    taken, kept = faults("set")
    assert taken == "True"
    assert kept < 10 < as_it_is
    assert faults("set", MALLOC_MMAP_MAX_="65536")[0] == "False", "glibc's own variables count most"


@pytest.mark.parametrize("platform_name", ["darwin", "win32"])
def test_nothing_happens_elsewhere(monkeypatch, platform_name):
    monkeypatch.setattr(sys, "platform", platform_name)
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: pytest.fail("the C library was called"))
    assert allocator.keep_freed_memory() is False


def test_nothing_happens_without_mallopt(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    for name in allocator._OWN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: object())
    assert allocator.keep_freed_memory() is False


@pytest.mark.parametrize("is_a_command", [True, False])
def test_a_run_changes_the_process_of_a_command_alone(small, monkeypatch, is_a_command):
    called = []
    monkeypatch.setattr(allocator, "keep_freed_memory", lambda: called.append(1))
    monkeypatch.setattr(allocator, "_process", {"is a command": is_a_command})
    settings = small_settings(small, model="SASRec", epochs=1, hidden_size=8, inner_size=8, n_layers=1)
    run(settings=settings)
    assert called == ([1] if is_a_command else [])


def test_arguments_in_a_process_of_somebody_else_make_it_no_command(monkeypatch, capsys):
    monkeypatch.setattr(allocator, "_process", {"is a command": False})
    assert main(["--help"]) == 0
    assert allocator._process == {"is a command": False}
    monkeypatch.setattr(sys, "argv", ["recbole-llm", "--help"])
    assert main() == 0
    assert allocator._process == {"is a command": True}
