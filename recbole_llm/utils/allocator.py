"""The C library's allocator, told to keep what a step of training frees for the next one.

A step of SASRec on the CPU allocates and frees tensors of tens of megabytes. glibc takes each one above its threshold (at
most 32 MiB) from the system, gives it back at once, and returns the free end of its heap as well: so the system clears
the same pages again in every step.
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


def keep_freed_memory() -> bool:
    """Let this process keep freed memory, on Linux with glibc; elsewhere nothing happens.

    It holds for the rest of the process, and glibc cannot be asked to undo it: so commands call it, whose process is
    their own, and no function of the library does. Whoever sets glibc's own variables is left alone.

    Returns:
        Whether glibc took it.
    """
    if sys.platform != "linux" or any(name in os.environ for name in _OWN):
        return False
    with contextlib.suppress(OSError, AttributeError):  # musl has no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _KEPT))
    return False
