"""The C library's allocator, told to keep what a step of training frees for the next one.

A step of SASRec on the CPU allocates and frees tensors of tens of megabytes. glibc takes each one above its threshold
(at most 32 MiB) from the system, gives it back at once, and returns the free end of its heap as well: so the system
clears the same pages again in every step. `benchmarks/cpu_allocator.py` measures it.
"""

import contextlib
import ctypes
import os
import sys

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_KEPT = 2**31 - 1  # bytes that stay at the end of the heap; the largest int
_OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


_process = {"is a command": False}


def process_is_a_command() -> None:
    """Note that this process is a command's own, so that a run in it may call `keep_freed_memory`."""
    _process["is a command"] = True


def keep_freed_memory_of_a_command() -> None:
    """Do what `keep_freed_memory` does if this process is a command's own, and not that of a program that calls us."""
    if _process["is a command"]:
        keep_freed_memory()


def keep_freed_memory() -> bool:
    """Let this process keep freed memory, on Linux with glibc; elsewhere nothing happens.

    It holds for the rest of the process, and glibc cannot be asked to undo it: a call of the library does not do it.
    Whoever sets glibc's own variables is left alone.

    Returns:
        Whether glibc took it.
    """
    if sys.platform != "linux" or any(name in os.environ for name in _OWN):
        return False
    with contextlib.suppress(OSError, AttributeError):  # musl has no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _KEPT))
    return False
