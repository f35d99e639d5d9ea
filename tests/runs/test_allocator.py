"""A command's process keeps freed memory where the C library is glibc; a library call changes nothing."""

import platform
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import recbole_llm
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
